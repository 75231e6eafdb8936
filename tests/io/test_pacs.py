"""What is sent to a real archive is there, and comes back pixel for pixel, with its tags."""

import json
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from pynetdicom import AE, evt, sop_class
from pynetdicom.presentation import build_role
from typer.main import get_command

from monai_diffaug.cli import app
from monai_diffaug.io import dicom_out, dicom_seg, pacs
from monai_diffaug.types import DiffAugError

from .orthanc import free_port, running

RECORD = {
    "method": "sdedit",
    "backbone": "brain_mri",
    "backbone_digest": "c0" * 32,
    "seed": 7,
    "parameters": {"strength": 0.3},
    "prompt": "tumor, größer",
    "source": "DOE^JANE/scan.dcm",
}
AFFINE = np.array([[-0.7, 0, 0, 10], [0, -0.7, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])
KEPT = ("PatientName", "PatientID", "ImageType", "SeriesDescription", "DerivationDescription", "ImageComments")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    with running(tmp_path_factory.mktemp("orthanc")) as started:
        yield started


@pytest.fixture
def empty(archive):
    archive.clear()
    return archive


@pytest.fixture
def made(tmp_path):
    """A CT series of four slices, its segmentation, an MR slice and a film: seven files of four kinds."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "made"
    volume = rng.integers(-1024, 2000, (4, 24, 32))
    files = dicom_out.write_series(folder / "ct", volume, record=RECORD, affine=AFFINE, modality="CT")
    ct = [pydicom.dcmread(f) for f in files]
    seg = dicom_seg.write_mask(folder / "seg.dcm", (volume > 900).astype(int), ct, record=RECORD)
    mr = dicom_out.write_series(folder / "mr.dcm", rng.random((24, 32)), record=RECORD, affine=AFFINE, modality="MR")
    dx = dicom_out.write_series(folder / "dx.dcm", rng.integers(0, 4096, (24, 32)), record=RECORD, modality="DX")
    return SimpleNamespace(folder=folder, files=[*files, seg, *mr, *dx])


def same(path, back):
    """Pixels, tags and provenance of what came back are those of the file."""
    sent = pydicom.dcmread(path)
    assert sent.SOPInstanceUID == back.SOPInstanceUID
    assert np.array_equal(sent.pixel_array, back.pixel_array)
    for element in sent:
        if element.keyword not in ("PixelData", ""):
            assert back[element.tag].value == element.value, element.keyword
    assert str(back.private_block(dicom_out.GROUP, dicom_out.CREATOR)[0x01].value) == dicom_out.said_in(path)
    assert all(str(back.get(k, "x")) == str(sent.get(k, "x")) for k in KEPT)


def test_c_store_and_c_get(empty, made):
    seen = []
    outcome = pacs.send(made.folder, empty.node, progress=lambda *step: seen.append(step))
    assert (outcome.now, outcome.before) == (7, 0)
    assert [step[:2] for step in seen] == [(i, 7) for i in range(8)]
    assert empty.rest("/statistics")["CountInstances"] == 7
    for path in made.files:
        same(path, got(empty, path))


def got(archive, path):
    """One instance by C-GET."""
    wanted = pydicom.dcmread(path)
    received = []
    entity = AE(ae_title="READER")
    entity.add_requested_context(sop_class.PatientRootQueryRetrieveInformationModelGet)
    entity.add_requested_context(wanted.SOPClassUID, wanted.file_meta.TransferSyntaxUID)

    def store(event):
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        received.append(dataset)
        return 0

    role = build_role(wanted.SOPClassUID, scp_role=True)
    association = entity.associate(
        "127.0.0.1",
        archive.dicom,
        ae_title=archive.title,
        ext_neg=[role],
        evt_handlers=[(evt.EVT_C_STORE, store)],
    )
    assert association.is_established
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(query, keyword, wanted.get(keyword))
    list(association.send_c_get(query, sop_class.PatientRootQueryRetrieveInformationModelGet))
    association.release()
    (back,) = received
    return back


def test_c_move(empty, made):
    pacs.send(made.folder / "ct", empty.node)
    received = []

    def store(event):
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        received.append(dataset)
        return 0

    reader = AE(ae_title="READER")
    reader.add_supported_context(sop_class.CTImageStorage)
    server = reader.start_server(("127.0.0.1", empty.mover), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    asker = AE(ae_title="READER")
    asker.add_requested_context(sop_class.StudyRootQueryRetrieveInformationModelMove)
    association = asker.associate("127.0.0.1", empty.dicom, ae_title=empty.title)
    query = Dataset()
    query.QueryRetrieveLevel = "SERIES"
    first = pydicom.dcmread(made.files[0])
    query.StudyInstanceUID, query.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
    list(association.send_c_move(query, "READER", sop_class.StudyRootQueryRetrieveInformationModelMove))
    association.release()
    server.shutdown()
    received.sort(key=lambda d: d.InstanceNumber)
    assert len(received) == 4
    for path, back in zip(made.files[:4], received):
        same(path, back)


def test_stow_and_wado_and_qido(empty, made):
    assert pacs.send(made.folder, empty.web).now == 7
    client = DICOMwebClient(empty.web)
    for path in made.files:
        sent = pydicom.dcmread(path)
        uids = sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID
        same(path, client.retrieve_instance(*uids, media_types=(("application/dicom", "*"),)))
    found = client.search_for_series(search_filters={"Modality": "CT"}, fields=["SeriesDescription"])
    (series,) = [Dataset.from_json(s) for s in found]
    assert series.SeriesDescription.startswith("SYNTHETIC sdedit")
    studies = [Dataset.from_json(s) for s in client.search_for_studies()]
    assert len({s.PatientID for s in studies}) == 3
    assert all(str(s.PatientName).startswith("SYNTHETIC^") for s in studies)


def test_a_stopped_run_goes_on(empty, made, monkeypatch):
    real, count = pacs._web, []

    def breaking(*args):
        context = real(*args)

        class Wrapped:
            def __enter__(self):
                store = context.__enter__()

                def stopping(path):
                    if len(count) == 3:
                        raise KeyboardInterrupt
                    count.append(path)
                    store(path)

                return stopping

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Wrapped()

    monkeypatch.setattr(pacs, "_web", breaking)
    with pytest.raises(KeyboardInterrupt):
        pacs.send(made.folder, empty.web)
    assert empty.rest("/statistics")["CountInstances"] == 3
    monkeypatch.setattr(pacs, "_web", real)
    outcome = pacs.send(made.folder, empty.web)
    assert (outcome.now, outcome.before) == (4, 3)
    assert empty.rest("/statistics")["CountInstances"] == 7
    assert pacs.send(made.folder, empty.web).now == 0
    assert pacs.send(made.folder, empty.node).now == 7, "another archive is another matter"
    assert empty.rest("/statistics")["CountInstances"] == 7, "the same UIDs are the same instances"


def one_line(call, *words):
    with pytest.raises(DiffAugError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_who_is_not_there_or_refuses_says_so_in_one_line(empty, made, tmp_path):
    nobody = free_port()
    one_line(lambda: pacs.send(made.folder, f"ANY@127.0.0.1:{nobody}"), f"ANY@127.0.0.1:{nobody} does not answer")
    one_line(lambda: pacs.send(made.folder, f"http://127.0.0.1:{nobody}/dicom-web"), "does not answer")
    one_line(lambda: pacs.send(made.folder, f"WRONG@127.0.0.1:{empty.dicom}"), "refuses us", "--calling")
    one_line(lambda: pacs.send(made.folder, empty.web + "/nowhere"), "correct the address")
    one_line(lambda: pacs.send(made.folder, "somewhere"), "TITLE@host:port")
    one_line(lambda: pacs.send(tmp_path / "nothing", empty.web), "does not exist")
    (tmp_path / "bare").mkdir()
    one_line(lambda: pacs.send(tmp_path / "bare", empty.web), "holds no DICOM file")
    assert empty.rest("/statistics")["CountInstances"] == 0


def test_real_images_are_not_sent(empty, made):
    real = pydicom.dcmread(made.files[0])
    del real[0x0099, 0x1001], real[0x0099, 0x0010]
    real.save_as(made.folder / "real.dcm")
    one_line(lambda: pacs.send(made.folder, empty.node), "real.dcm does not say that it is synthetic")
    assert empty.rest("/statistics")["CountInstances"] == 0


def test_a_password_is_used_and_never_shown(tmp_path, made):
    with running(tmp_path, AuthenticationEnabled=True, RegisteredUsers={"ann": "secret"}) as closed:
        one_line(lambda: pacs.send(made.folder, closed.web), "user and password")
        outcome = pacs.send(made.folder, closed.web.replace("//", "//ann:secret@"))
        assert outcome.now == 7
        assert "secret" not in outcome.to


def test_an_archive_that_stops_midway(tmp_path, made, monkeypatch):
    """Killed between two files: one line that says how many are stored, and the next run sends the rest."""
    monkeypatch.setattr(pacs, "_SECONDS", 10.0)
    with running(tmp_path) as dying:

        def kill(done, total, name):
            if done == 2:
                dying.process.kill()
                dying.process.wait()

        one_line(lambda: pacs.send(made.folder, dying.node, progress=kill), "2 of 7 files are stored", "again")
        port, http = dying.dicom, dying.http
    with running(tmp_path, dicom=port, http=http) as again:
        outcome = pacs.send(made.folder, again.node)
        assert (outcome.now, outcome.before) == (5, 2)


def test_the_commands(empty, made, capsys):
    """Sent, told how it was made, and one line where there is no archive."""
    run = get_command(app).main
    assert run(["send", str(made.folder), "--to", empty.web, "--json"], standalone_mode=False) in (0, None)
    assert json.loads(capsys.readouterr().out) == {"sent": 7, "before": 0, "to": empty.web}
    assert run(["made", str(made.files[0]), "--json"], standalone_mode=False) in (0, None)
    (facts,) = json.loads(capsys.readouterr().out).values()
    assert (facts["synthetic"], facts["method"], facts["seed"]) == (True, "sdedit", 7)
    assert run(["send", str(made.folder), "--to", f"ANY@127.0.0.1:{free_port()}"], standalone_mode=False) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    assert "does not answer" in said[0]
