"""Import from a real archive over DICOMweb: found, fetched, converted, nameless; and what is said when it fails."""

import json
import socket
import warnings

import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient

from monai_diffaug.domains import part_of
from monai_diffaug.io import dicomweb
from monai_diffaug.io.dicomweb import TOKEN, search
from monai_diffaug.io.intake import intake
from monai_diffaug.types import DiffAugError

from .hospital import CT, brain, names_left, secrets_of, series
from .orthanc import running


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Orthanc with three patients: two MR series, one CT series."""
    import pydicom

    folder = tmp_path_factory.mktemp("pacs")
    with running(folder) as pacs:
        client = DICOMwebClient(pacs.web)
        sent = []
        for i, kind in enumerate(({}, {}, {"sop_class": CT, "modality": "CT"})):
            for path in series(folder / "in" / str(i), brain(4, 32) + i, PatientID=f"PAT{i}", **kind):
                sent.append(pydicom.dcmread(path))
        client.store_instances(sent)
        yield pacs, folder / "in", sent


def test_import_equals_that_from_the_folder(archive, tmp_path):
    pacs, folder, sent = archive
    web = intake(pacs.web, tmp_path / "web", usual=part_of, secret=tmp_path / "key", workers=1)
    plain = intake(folder, tmp_path / "plain", usual=part_of, secret=tmp_path / "key", workers=1)
    assert (web.report["images"], web.report["patients"], web.report["files"]) == (3, 3, 12)
    a, b = (json.loads(d.datalist.read_text()) for d in (web, plain))
    assert {k: a[k] for k in ("training", "validation", "test")} == {
        k: b[k] for k in ("training", "validation", "test")
    }
    for image in (tmp_path / "plain" / "images").iterdir():
        assert (tmp_path / "web" / "images" / image.name).read_bytes() == image.read_bytes()
    assert names_left(tmp_path / "web", secrets_of(*sent) | {"PAT0", pacs.web}) == []


def test_goes_on_without_fetching_twice(archive, tmp_path, monkeypatch):
    pacs, _, _ = archive
    options = {"usual": part_of, "secret": tmp_path / "key", "workers": 1}
    intake(pacs.web, tmp_path / "out", **options)
    fetched, real = [], dicomweb._fetched
    monkeypatch.setattr(dicomweb, "_fetched", lambda s, f: fetched.append(s) or real(s, f))
    sorted((tmp_path / "out" / "records").iterdir())[0].unlink()
    intake(pacs.web, tmp_path / "out", **options)
    assert len(fetched) == 1


def test_only_what_is_asked_for(archive):
    pacs, _, _ = archive
    assert [s.patient for s in search(pacs.web, ["ct"]).works] == ["PAT2"]
    assert sorted(s.patient for s in search(pacs.web, ["MR"], ["PAT1", "PAT2"]).works) == ["PAT1"]
    assert search(pacs.web, (), ["PAT*"]).total == 3
    assert search(pacs.web).works[0].count == 4
    with pytest.raises(DiffAugError, match="has no series of PAT9: check --patient"):
        search(pacs.web, (), ["PAT9"])


def test_pages(archive, monkeypatch):
    pacs, _, _ = archive
    monkeypatch.setattr(dicomweb, "PAGE", 1)
    assert search(pacs.web).total == 3


def test_nothing_of_the_patient_stays_in_the_temporary_folder(archive, tmp_path, monkeypatch):
    pacs, _, _ = archive
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    intake(pacs.web, tmp_path / "out", usual=part_of, secret=tmp_path / "key", workers=1, patients=("PAT0",))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert np.count_nonzero([p.suffix == ".gz" for p in (tmp_path / "out" / "images").iterdir()]) == 1


def test_a_server_that_wants_a_password(tmp_path, monkeypatch):
    with running(tmp_path, AuthenticationEnabled=True, RegisteredUsers={"anna": "geheim"}) as pacs:
        monkeypatch.delenv(TOKEN, raising=False)
        with pytest.raises(DiffAugError, match=f"refuses .401.*into the variable {TOKEN}"):
            search(pacs.web)
        monkeypatch.setenv(TOKEN, "anna:geheim")
        with pytest.raises(DiffAugError, match="has no series of images"):
            search(pacs.web)


def test_a_bearer_token_goes_into_the_header(monkeypatch):
    monkeypatch.setenv(TOKEN, "abc.def")
    client = dicomweb._client("https://pacs/dicom-web/")
    assert client._session.headers["Authorization"] == "Bearer abc.def"


def test_a_server_that_is_not_there():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(DiffAugError, match="cannot be reached .*: check address and network") as caught:
        search(f"http://127.0.0.1:{port}/dicom-web")
    assert "\n" not in str(caught.value)


def test_a_server_that_goes_away_half_way(archive, tmp_path, monkeypatch):
    pacs, _, _ = archive
    real, calls = dicomweb._fetched, []

    def failing(series, folder):
        calls.append(series)
        if len(calls) == 2:
            raise ConnectionError("gone")
        return real(series, folder)

    monkeypatch.setattr(dicomweb, "_fetched", failing)
    options = {"usual": part_of, "secret": tmp_path / "key", "workers": 1}
    said = []
    done = intake(pacs.web, tmp_path / "out", say=said.append, **options)
    assert done.report["images"] == 2
    assert "cannot be reached" in said[0].line
    assert intake(pacs.web, tmp_path / "out", **options).report["images"] == 3  # the next run fetches the rest
