"""Nothing of the patient in the output: searched for byte by byte; and what must be the same stays the same."""

import os
import stat
import warnings
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, Sequence
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from monai_diffaug.domains import part_of
from monai_diffaug.io.deidentify import Policy, age_of, deidentified, identifying, leaks
from monai_diffaug.io.intake import intake
from monai_diffaug.io.problems import BadInput
from monai_diffaug.io.pseudonyms import Pseudonyms, open_secret, usual_secret
from monai_diffaug.types import DiffAugError

from .hospital import PERSON, brain, names_left, save, secrets_of, series, slice_of

NAMES = Pseudonyms(b"0" * 32)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def told(data, policy=None, names=NAMES):
    """A data set, saved, de-identified and read again."""
    buffer = BytesIO()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.save_as(buffer, enforce_file_format=True)
    whole = pydicom.dcmread(BytesIO(buffer.getvalue()))
    return deidentified(whole, names, str(data.PatientID), policy or Policy(), "x")


def hidden():
    """An image that names its patient wherever it can."""
    data = slice_of(brain(1)[0])
    data.add_new(0x00091001, "LO", "Featherstone private")
    data.private_block(0x0011, "ACME", create=True).add_new(1, "PN", "Featherstone^Minnie")
    request, deeper = Dataset(), Dataset()
    request.RequestedProcedureDescription = "Head of Featherstone"
    request.ScheduledStationName = "SCANNER07X"
    deeper.ReferencedSOPClassUID, deeper.ReferencedSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    deeper.PersonName = "Quackenbush^Theo"
    request.ReferencedImageSequence = Sequence([deeper])
    data.RequestAttributesSequence = Sequence([request])
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    source.AcquisitionDate = "20190305"
    data.SourceImageSequence = Sequence([source])
    data.Manufacturer = "Featherstone & Sons"  # no table lists it
    data.ProtocolName = "t2 HOSP-4711-88"
    data.add_new((0x6000, 0x4000), "LT", "Featherstone")  # a drawing over the image, and its remark
    data.add_new((0x6000, 0x0010), "US", 4)
    data.add_new((0x6000, 0x3000), "OW", b"\xff" * 4)
    return data


def test_no_identifying_value_is_left_anywhere():
    data = hidden()
    written = told(data)
    for secret in secrets_of(data) | {"Minnie", "FEATHERSTONE", "SCANNER07X"}:
        assert secret.lower().encode() not in written.lower(), secret
    new = pydicom.dcmread(BytesIO(written))
    assert new.PatientIdentityRemoved == "YES"
    assert new.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert new.PatientID == new.PatientName == NAMES.patient(PERSON["PatientID"])
    assert new.Manufacturer == ""
    assert not [e for e in new.iterall() if e.tag.is_private or 0x6000 <= e.tag.group <= 0x60FF]
    assert np.array_equal(new.pixel_array, brain(1)[0])  # the image is what it was
    assert new.ImagePositionPatient == [0, 0, 0]
    assert written[:128] == b"\0" * 128


def test_without_the_pass_over_sequences_and_unlisted_text_names_would_be_left():
    """What the library does by itself is not enough: this is why there is more."""
    from dicomanonymizer import anonymize_dataset

    data = hidden()
    anonymize_dataset(data)
    assert "Featherstone" in data.Manufacturer
    assert data.SourceImageSequence[0].ReferencedSOPInstanceUID == ""  # the reference is lost


def test_uids_are_replaced_alike_in_all_files():
    study = generate_uid()
    a, b = (slice_of(brain(1)[0], study=study, PatientID="P1") for _ in range(2))
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = a.SOPClassUID, a.SOPInstanceUID
    b.SourceImageSequence = Sequence([source])
    new_a, new_b = (pydicom.dcmread(BytesIO(told(d))) for d in (a, b))
    assert new_a.StudyInstanceUID == new_b.StudyInstanceUID != study
    assert new_a.SOPInstanceUID != new_b.SOPInstanceUID
    assert new_b.SourceImageSequence[0].ReferencedSOPInstanceUID == new_a.SOPInstanceUID
    assert new_a.SOPClassUID == a.SOPClassUID
    assert new_a.file_meta.MediaStorageSOPInstanceUID == new_a.SOPInstanceUID
    assert pydicom.uid.UID(new_a.SOPInstanceUID).is_valid


def test_dates_are_dropped_or_moved_together():
    def images():
        return [slice_of(brain(1)[0], StudyDate=d, AcquisitionDateTime=f"{d}101500") for d in ("20190305", "20190312")]

    for data in images():
        new = pydicom.dcmread(BytesIO(told(data)))
        assert (new.StudyDate, new.get("AcquisitionDateTime", "")) == ("", "")
        assert new.LongitudinalTemporalInformationModified == "REMOVED"
    from datetime import datetime

    moved = [pydicom.dcmread(BytesIO(told(d, Policy("shift")))) for d in images()]
    first, second = (datetime.strptime(m.StudyDate, "%Y%m%d") for m in moved)
    assert (second - first).days == 7
    assert (first - datetime(2019, 3, 5)).days == NAMES.days(PERSON["PatientID"]) <= -365
    assert moved[0].AcquisitionDateTime == moved[0].StudyDate + "101500"
    assert moved[0].PatientBirthDate == ""
    assert "113107" in [c.CodeValue for c in moved[0].DeidentificationMethodCodeSequence]
    assert NAMES.days("A") != NAMES.days("B")


def test_age_and_sex_stay_only_if_asked():
    data = slice_of(brain(1)[0], PatientAge="097Y", PatientSex="F", PatientWeight=61.5)
    new = pydicom.dcmread(BytesIO(told(data)))
    assert (new.get("PatientAge", ""), new.PatientSex, new.get("PatientWeight", None)) == ("", "", None)
    new = pydicom.dcmread(BytesIO(told(data, Policy(characteristics=True))))
    assert (new.PatientAge, new.PatientSex, new.PatientWeight) == ("090Y", "F", 61.5)
    assert [age_of(t) for t in ("034Y", "018M", "101Y", "x", "")] == [34, 1, 90, None, None]


def test_a_name_left_in_the_pixels_is_not_written():
    data = slice_of(brain(1)[0])
    data.PixelData = data.PixelData[:-20] + b"Featherstone".ljust(20, b"\0")
    with pytest.raises(BadInput, match="identifying value is left"):
        told(data)


def test_what_identifies_and_what_does_not():
    data = slice_of(brain(1)[0], PatientID="12345")
    values = identifying(data)
    assert {"Featherstone", "Wilhelmina", "12345", "19430817", data.StudyInstanceUID} <= values
    assert data.SOPClassUID not in values
    assert leaks(b"dose 12345 mGy", {"12345"}) == 1
    assert leaks(b"at 7.123456 mm", {"12345"}) == 0  # a number within a number
    assert leaks("Grüße an Müller-Weiß".encode(), {"Müller-Weiß"}) == 1


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_bigendian.dcm", "examples_ybr_color.dcm", "JPEG2000.dcm"])
def test_files_of_others_stay_readable(name):
    data = pydicom.dcmread(get_testdata_file(name))
    values, pixels = identifying(data), data.pixel_array.copy()
    written = deidentified(data, NAMES, "x", Policy(), "x")
    assert not leaks(written, values)
    assert np.array_equal(pydicom.dcmread(BytesIO(written)).pixel_array, pixels)


def test_pseudonyms_are_keyed_and_lasting():
    assert NAMES.patient("A") == NAMES.patient(" A ") != NAMES.patient("B")
    assert NAMES.patient("A") != Pseudonyms(b"1" * 32).patient("A")
    assert NAMES.patient("A").isalnum()
    assert NAMES.uid("1.2.3").startswith("2.25.")
    assert len({NAMES.uid(str(i)) for i in range(2000)}) == 2000
    import uuid

    made = uuid.UUID(int=int(NAMES.uid("1.2.3")[5:]))
    assert (made.version, made.variant) == (8, uuid.RFC_4122)


def test_the_secret_is_private_and_outside(tmp_path, monkeypatch):
    with pytest.raises(DiffAugError, match="keep it outside of"):
        open_secret(tmp_path / "out" / "key", tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(DiffAugError, match="keep it outside of"):
        open_secret(tmp_path / "link" / "out" / "key", tmp_path / "out")
    first = open_secret(tmp_path / "key", tmp_path / "out")
    assert stat.S_IMODE(os.stat(tmp_path / "key").st_mode) == 0o600
    assert open_secret(tmp_path / "key", tmp_path / "out") == first
    assert open_secret(tmp_path / "other", tmp_path / "out") != first
    (tmp_path / "short").write_text("abc")
    with pytest.raises(DiffAugError, match="shorter than 32"):
        open_secret(tmp_path / "short", tmp_path / "out")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    open_secret(None, tmp_path / "out")
    assert usual_secret().is_file()


@pytest.mark.parametrize("options", [{}, {"dates": "shift", "characteristics": True}, {"dims": 2}])
def test_no_byte_of_an_import_names_the_patient(tmp_path, options):
    """Every file and every file name of the output, with files, folders and settings that name the patient."""
    source = tmp_path / "Featherstone_Wilhelmina"
    files = series(source / "HOSP-4711-88", brain(4))
    cut = series(source / "more", brain(3), PatientID="HOSP-4711-99")
    cut[0].write_bytes(cut[0].read_bytes()[:-50])  # so that there is a problem to report
    save(slice_of(brain(1)[0], PatientID=None), source / "unnamed")
    out = tmp_path / "out"
    said = []
    intake(
        source, out, usual=part_of, secret=tmp_path / "key", keep_dicom=True, say=said.append, workers=1,
        patients=("HOSP-4711-88",), **options,
    )  # fmt: skip
    datasets = [pydicom.dcmread(f, stop_before_pixels=True) for f in files]
    assert len(list(out.rglob("*.dcm"))) >= 7
    assert names_left(out, secrets_of(*datasets) | {"HOSP-4711-99", "FEATHERSTONE", str(tmp_path)}) == []
    assert any("Featherstone" in problem.line for problem in said)  # the screen may name the file
    key = (tmp_path / "key").read_text().strip()
    assert names_left(out, {key}) == []
