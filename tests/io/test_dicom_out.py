"""A synthetic image as DICOM: valid, back as it was, says what it is and of whom it is not."""

import json
import subprocess

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - its users' name for it
import torch
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from monai_diffaug.expand import edit, expand
from monai_diffaug.io import dicom_out, dicom_scan, dicom_seg, images, sidecar
from monai_diffaug.io.dicom_modules import code
from monai_diffaug.io.exporting import export
from monai_diffaug.testing import ideal_backbone
from monai_diffaug.types import DiffAugError

from .orthanc import program

RECORD = {
    "method": "sdedit",
    "backbone": "brain_mri",
    "backbone_digest": "c0" * 32,
    "seed": 7,
    "parameters": {"strength": 0.3},
    "prompt": "tumor, größer",
    "source": "DOE^JANE/scan.dcm",
    "scores": {"novelty": 0.5},
}
RNG = np.random.default_rng(0)
TILT = np.deg2rad(20)
AXIAL = np.array([[-0.7, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])
TURNED = np.array(
    [
        [-0.7, 0, 0, 10],
        [0, -0.8 * np.cos(TILT), -2.5 * np.sin(TILT), 20],
        [0, -0.8 * np.sin(TILT), 2.5 * np.cos(TILT), -30],
        [0, 0, 0, 1.0],
    ]
)
SAGITTAL = np.array([[0, 0, 3.0, -40], [-0.9, 0, 0, 50], [0, -0.9, 0, 60], [0, 0, 0, 1.0]])
MIRRORED = TURNED @ np.diag([1, 1, -1, 1.0])
"""Slices against the direction that readers of DICOM sort them by."""

IDENTITY = {
    "PatientName": "DOE^JANE",
    "PatientID": "MRN1234567",
    "PatientBirthDate": "19560704",
    "PatientSex": "F",
    "PatientAddress": "7 Elm Street",
    "OtherPatientIDs": "AKA998877",
    "AccessionNumber": "ACC5550001",
    "StudyDate": "20200317",
    "SeriesDate": "20200317",
    "ContentDate": "20200317",
    "AcquisitionDate": "20200317",
    "StudyID": "ST4711",
    "InstitutionName": "St Elsewhere",
    "StationName": "SCANNER9",
    "ReferringPhysicianName": "HOUSE^G",
    "OperatorsName": "NIGHT^SHIFT",
    "StudyDescription": "Doe brain",
    "SeriesDescription": "FLAIR for Jane",
    "ProtocolName": "janes protocol",
    "PatientComments": "afraid of MRI",
    "ImageComments": "moved twice",
    "DeviceSerialNumber": "SN0815",
    "FrameOfReferenceUID": "1.2.3.4.5.111",
}


def errors_of(path):
    """What dciodvfy calls an error."""
    done = subprocess.run([program("dciodvfy"), path], capture_output=True, text=True, check=False)
    lines = (done.stderr + done.stdout).splitlines()
    assert any("Image" in line or "Segmentation" in line for line in lines), "it did not recognize the object"
    return [line for line in lines if line.startswith("Error")]


def source(folder, modality="MR", affine=AXIAL, shape=(4, 20, 24)):
    """A series of a patient who can be told by name."""
    pixels = RNG.integers(0, 900, shape) - (900 if modality == "CT" else 0)
    for i, path in enumerate(dicom_out.write_series(folder, pixels, record={}, affine=affine, modality=modality)):
        d = pydicom.dcmread(path)
        for keyword, value in IDENTITY.items():
            setattr(d, keyword, value)
        del d[0x0099, 0x1001], d[0x0099, 0x0010], d.ContributingEquipmentSequence
        d.StudyInstanceUID, d.SeriesInstanceUID, d.SOPInstanceUID = "1.2.3.4.5.1", "1.2.3.4.5.2", f"1.2.3.4.5.3.{i}"
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
        d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
        d.private_block(0x0011, "VENDOR", create=True).add_new(1, "LO", "Jane Doe again")
        d.add_new(0x00080017, "UI", "1.2.3.4.5.99")
        d.save_as(path)
    return pixels


# ------------------------------------------------------------------------------------------------------ valid and back


@pytest.mark.parametrize("affine", [AXIAL, TURNED, SAGITTAL, MIRRORED], ids=["axial", "tilted", "sagittal", "mirrored"])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_volume_is_valid_and_comes_back(tmp_path, modality, affine):
    pixels = RNG.integers(-1024, 3000, (4, 20, 24)) if modality == "CT" else RNG.random((4, 20, 24)) * 1e-3
    files = dicom_out.write_series(tmp_path / "s", pixels, record=RECORD, affine=affine, modality=modality)
    for file in files:
        assert errors_of(file) == []
    scan = images.read(tmp_path / "s")
    flipped = np.linalg.det(affine[:3, :3]) < 0
    back = scan.image[0].numpy().transpose(2, 1, 0)
    step = 0 if modality == "CT" else np.ptp(pixels) / 65535
    assert np.abs((back[::-1] if flipped else back) - pixels).max() <= step
    corners = np.array([[0, 0, 0, 1], [23, 0, 0, 1], [0, 19, 0, 1], [0, 0, 3, 1.0]]).T
    mirrored = corners.copy()
    mirrored[2] = 3 - corners[2]
    assert np.allclose(scan.affine @ (mirrored if flipped else corners), affine @ corners, atol=1e-4)


@pytest.mark.parametrize("affine", [TURNED, MIRRORED], ids=["tilted", "mirrored"])
def test_an_independent_reader_sees_the_same_volume(tmp_path, affine):
    """ITK's series reader: the same numbers at the same millimeters."""
    pixels = RNG.integers(-1024, 3000, (4, 20, 24))
    files = dicom_out.write_series(tmp_path / "s", pixels, record=RECORD, affine=affine, modality="CT")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "s"))
    assert sorted(names) == sorted(map(str, files))
    volume = sitk.ReadImage(names)
    flipped = np.linalg.det(affine[:3, :3]) < 0
    array = sitk.GetArrayFromImage(volume)
    assert np.array_equal(array[::-1] if flipped else array, pixels)
    for index in ((0, 0, 0), (23, 19, 3), (5, 7, 2)):
        x, y, z = index
        lps = volume.TransformIndexToPhysicalPoint((x, y, 3 - z if flipped else z))
        assert np.allclose(np.array(lps) * (-1, -1, 1), (affine @ (*index, 1))[:3], atol=1e-3)


@pytest.mark.parametrize("modality", ["CR", "DX", "OT", "US", "MR", None])
def test_a_film_is_valid_and_comes_back(tmp_path, modality):
    pixels = RNG.integers(0, 4096, (20, 24))
    (file,) = dicom_out.write_series(tmp_path / "a.dcm", pixels, record=RECORD, modality=modality)
    assert errors_of(file) == []
    d = pydicom.dcmread(file)
    assert np.array_equal(d.pixel_array, pixels)
    assert d.SOPClassUID.name.startswith({"CR": "Computed", "DX": "Digital X-Ray"}.get(modality, "Secondary Capture"))
    assert np.array_equal(images.read(file).image[0], pixels)


def test_color_and_bytes(tmp_path):
    rgb = RNG.integers(0, 256, (20, 24, 3)).astype(np.uint8)
    (file,) = dicom_out.write_series(tmp_path / "c.dcm", rgb, record=RECORD, modality="XC")
    assert errors_of(file) == []
    assert np.array_equal(images.read(file).image, rgb.transpose(2, 0, 1))
    (file,) = dicom_out.write_series(tmp_path / "b.dcm", rgb[..., 0], record=RECORD)
    assert errors_of(file) == []
    assert pydicom.dcmread(file).BitsAllocated == 8


@pytest.mark.parametrize("part", ["CHEST", "KNEE", "BRAIN", "what is this"])
@pytest.mark.parametrize("modality", ["CT", "MR", "CR", "DX"])
def test_valid_whatever_the_source_says(tmp_path, modality, part):
    """Laterality depends on the body part; values that break the standard are not repeated."""
    affine = AXIAL if modality in ("CT", "MR") else None
    (file,) = dicom_out.write_series(
        tmp_path / "a.dcm", RNG.integers(0, 900, (9, 8)), record={}, modality=modality, affine=affine
    )
    like = pydicom.dcmread(file)
    with pydicom.config.disable_value_validation():
        like.BodyPartExamined, like.SliceThickness, like.Laterality = part, "005.0000000E+00", "R"
        like.PatientOrientation, like.ViewPosition = ["L", "F"], "AP"
        like.WindowCenter, like.WindowWidth = ["40", "-550"], ["0400", "01800"]
        like.ConvolutionKernel, like.ScanOptions = "a kernel with far too long a name", "a b"
        like.RepetitionTime, like.EchoTrainLength = "2000.123456789012345", 1
    kvp = Tag("KVP")
    like[kvp] = RawDataElement(kvp, "DS", 4, b"none", 0, False, True)
    if part == "KNEE":
        like.AnatomicRegionSequence = [code("72696002", "SCT", "Knee")]
    (file,) = dicom_out.write_series(tmp_path / "b.dcm", RNG.integers(0, 900, (9, 8)), record=RECORD, like=[like])
    assert errors_of(file) == []
    d = pydicom.dcmread(file)
    assert [float(v) for v in d.WindowWidth] == [400, 1800]
    assert d.get("BodyPartExamined", "KNEE") == part or part != "KNEE"


@pytest.mark.parametrize("modality", ["CT", "MR", "DX"])
def test_a_mask_is_a_valid_segmentation_and_comes_back(tmp_path, modality):
    film = modality == "DX"
    shape, affine = ((20, 24), None) if film else ((4, 20, 24), TURNED)
    out = tmp_path / ("x.dcm" if film else "x")
    files = dicom_out.write_series(out, RNG.integers(0, 900, shape), record=RECORD, affine=affine, modality=modality)
    datasets = [pydicom.dcmread(f) for f in files]
    mask = RNG.integers(0, 3, shape)
    mask[..., :3] = 0
    named = [dicom_seg.Segment.named("glioma"), dicom_seg.Segment.named("edema")]
    seg = dicom_seg.write_mask(tmp_path / "m.dcm", mask, datasets, record=RECORD, segments=named)
    assert errors_of(seg) == []
    scan = images.read(out)
    back = images.read(seg, mask=True, like=scan)
    assert np.array_equal(dicom_scan.slices_first(back, back.image.numpy()).reshape(shape), mask)
    opened = highdicom.seg.segread(seg)
    assert [opened.get_segment_description(n).segment_label for n in (1, 2)] == ["glioma", "edema"]
    assert opened.get_segment_description(1).segmented_property_type.meaning == "Neoplasm"
    assert opened.PatientID == datasets[0].PatientID
    assert opened.StudyInstanceUID == datasets[0].StudyInstanceUID
    with pytest.raises(DiffAugError, match="one grid"):
        dicom_seg.write_mask(tmp_path / "n.dcm", mask[..., :-1], datasets, record=RECORD)


# ---------------------------------------------------------------------------------------------------- what it says


def test_it_says_that_it_is_synthetic_and_how(tmp_path):
    (file,) = dicom_out.write_series(tmp_path / "a.dcm", RNG.random((9, 8)), record=RECORD, modality="MR", affine=AXIAL)
    d = pydicom.dcmread(file)
    assert list(d.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert d.SeriesDescription.startswith("SYNTHETIC")
    assert str(d.PatientName).startswith("SYNTHETIC^")
    for text in (d.ImageComments, d.DerivationDescription, d.ContributingEquipmentSequence[0].ContributionDescription):
        assert all(word in text for word in ("Synthetic", "sdedit", "c0" * 32, "seed 7", "größer", "not for diagnosis"))
    assert d.DerivationCodeSequence[0].CodeValue == "123110"
    maker = d.ContributingEquipmentSequence[0]
    assert maker.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Synthesizing Equipment"
    assert (maker.Manufacturer, maker.DeviceSerialNumber) == ("monai-diffaug", "c0" * 32)
    assert "SyntheticData" not in d
    assert "SourceImageSequence" not in d
    (flagged,) = dicom_out.write_series(tmp_path / "b.dcm", np.eye(8), record=RECORD, flag=True)
    assert pydicom.dcmread(flagged).SyntheticData == "YES"
    facts = sidecar.of(file)
    assert facts["synthetic"] is True
    assert {k: facts[k] for k in ("method", "seed", "prompt", "parameters")} == {
        k: RECORD[k] for k in ("method", "seed", "prompt", "parameters")
    }
    assert "source" not in facts


def test_the_word_burned_in_is_seen_and_small(tmp_path):
    pixels = RNG.integers(300, 500, (256, 256))
    (file,) = dicom_out.write_series(tmp_path / "a.dcm", pixels, record=RECORD, modality="CR", burned_in=True)
    assert errors_of(file) == []
    d = pydicom.dcmread(file)
    changed = d.pixel_array != pixels
    assert d.BurnedInAnnotation == "YES"
    assert 0.002 < changed.mean() < 0.03
    assert not changed[:230].any()
    assert not changed[:, 128:].any()


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_nothing_of_the_patient_is_left(tmp_path, modality):
    """Every value of the source that tells who, when or where is looked for in the bytes, and so are its UIDs."""
    source(tmp_path / "DOE_JANE", modality)
    datasets = [pydicom.dcmread(f) for f in sorted((tmp_path / "DOE_JANE").iterdir())]
    pixels = RNG.integers(0, 900, (4, 20, 24))
    files = dicom_out.write_series(tmp_path / "out", pixels, record=RECORD, like=datasets)
    seg = dicom_seg.write_mask(tmp_path / "seg.dcm", pixels > 600, [pydicom.dcmread(f) for f in files], record=RECORD)
    told = [*IDENTITY.values(), "1.2.3.4.5.", "Jane", "scan.dcm"]
    told.remove("F")
    for file in (*files, seg):
        assert errors_of(file) == []
        data = file.read_bytes().lower()
        assert [v for v in told if v.lower().encode() in data] == []
    d = pydicom.dcmread(files[0])
    assert d.PatientSex == ""
    assert d.PatientIdentityRemoved == "YES"
    tied = dicom_out.write_series(tmp_path / "tied", pixels, record=RECORD, like=datasets, refer=True)
    assert pydicom.dcmread(tied[2]).SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.5.3.2"
    assert errors_of(tied[2]) == []


def test_uids_follow_from_what_is_in_it(tmp_path):
    def uids(name, pixels, record=RECORD):
        files = dicom_out.write_series(tmp_path / name, pixels, record=record, affine=AXIAL, modality="MR")
        datasets = [pydicom.dcmread(f) for f in files]
        assert len({d.SOPInstanceUID for d in datasets}) == len(files)
        assert len({d.SeriesInstanceUID for d in datasets}) == len({d.FrameOfReferenceUID for d in datasets}) == 1
        return {d.SOPInstanceUID for d in datasets} | {datasets[0].SeriesInstanceUID, datasets[0].StudyInstanceUID}

    pixels = RNG.integers(0, 900, (4, 20, 24))
    first = uids("a", pixels)
    assert uids("b", pixels) == first
    assert (tmp_path / "a" / "0002.dcm").read_bytes() == (tmp_path / "b" / "0002.dcm").read_bytes()
    pixels[1, 2, 3] += 1
    assert not uids("c", pixels) & first
    pixels[1, 2, 3] -= 1
    assert not uids("d", pixels, {**RECORD, "seed": 8}) & first


def test_what_dicom_cannot_say_is_refused(tmp_path):
    sheared = AXIAL.copy()
    sheared[0, 1] = 0.3
    for pixels, told, match in (
        (np.ones((2, 4, 4)), {"affine": sheared}, "sheared"),
        (np.ones((2, 4, 4)), {"affine": np.zeros((4, 4))}, "singular"),
        (np.ones((2, 4, 4)), {}, "no position in space"),
        (np.full((4, 4), np.nan), {}, "finite"),
        (np.full((4, 4), 0.5), {"modality": "DX"}, "whole numbers"),
    ):
        with pytest.raises(DiffAugError, match=match):
            dicom_out.write_series(tmp_path / "x", pixels, record=RECORD, **told)
    with pytest.raises(DiffAugError, match="give a folder"):
        dicom_out.write_series(tmp_path / "x.dcm", np.ones((2, 4, 4)), record=RECORD, affine=AXIAL)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- through edit and expand


@pytest.fixture(scope="module")
def heads():
    return ideal_backbone(2, size=16)


@pytest.fixture(scope="module")
def volumes():
    return ideal_backbone(3, size=8)


FAST = {"steps": 3, "prompt": "tumor"}


def test_a_series_in_is_a_series_out(tmp_path, volumes):
    """With its segmentation, in the same place; the names on disk are nobody's; killed or not, the same bytes."""
    for i in (1, 2):
        pixels = source(tmp_path / "in" / "images" / f"DOE_{i}")
        datasets = [pydicom.dcmread(f) for f in sorted((tmp_path / "in" / "images" / f"DOE_{i}").iterdir())]
        (tmp_path / "in" / "masks").mkdir(exist_ok=True)
        named = [dicom_seg.Segment.named("glioma")]
        dicom_seg.write_mask(
            tmp_path / "in" / "masks" / f"DOE_{i}.dcm", pixels > 600, datasets, record={}, segments=named
        )
    runs = [expand(tmp_path / "in", tmp_path / o, "sdedit", volumes, parameters=FAST) for o in ("a", "b")]
    entries = json.loads(runs[0].datalist.read_text())["training"]
    assert [e["image"] for e in entries] == ["images/image0001_sdedit_1", "images/image0002_sdedit_1"]
    for entry in entries:
        folder = tmp_path / "a" / entry["image"]
        old, new = images.read(tmp_path / "a" / entry["source"]), images.read(folder)
        assert np.allclose(old.affine, new.affine, atol=1e-4)
        assert old.image.shape == new.image.shape
        assert not torch.equal(old.image, new.image)
        for file in sorted(folder.iterdir()):
            assert errors_of(file) == []
        seg = tmp_path / "a" / entry["label"]
        assert errors_of(seg) == []
        old_seg = images.read(tmp_path / "a" / entry["source_mask"], mask=True, like=old)
        assert torch.equal(images.read(seg, mask=True, like=new).image, old_seg.image)
        for file in (*folder.iterdir(), seg, sidecar.place(folder)):
            data = file.read_bytes()
            assert not any(v.encode() in data for v in ("DOE", "MRN1234567", "1.2.3.4.5."))
            assert "DOE" not in str(file.relative_to(tmp_path))
        assert sidecar.of(folder)["seed"] == entry["provenance"]["seed"]
    for kind in ("images", "masks"):
        for file in (p for p in (tmp_path / "a" / kind).rglob("*") if p.is_file()):
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_a_slice_in_is_a_slice_out(tmp_path, heads):
    """Each file of a series is an image to a 2D backbone; a damaged one is said and passed over."""
    source(tmp_path / "in", "CT")
    (tmp_path / "in" / "0003.dcm").write_bytes((tmp_path / "in" / "0003.dcm").read_bytes()[:-300])
    outcome = expand(tmp_path / "in", tmp_path / "out", "sdedit", heads, parameters=FAST)
    assert outcome.made == 3
    (line,) = outcome.skipped
    assert "0003.dcm" in line
    made = edit(tmp_path / "in" / "0002.dcm", tmp_path / "new.dcm", "sdedit", heads, parameters=FAST)
    d, s = pydicom.dcmread(made.image), pydicom.dcmread(tmp_path / "in" / "0002.dcm")
    assert errors_of(made.image) == []
    assert d.ImagePositionPatient == s.ImagePositionPatient
    assert (d.Modality, d.RescaleIntercept, d.BitsStored) == ("CT", s.RescaleIntercept, s.BitsStored)
    assert sidecar.of(made.image)["method"] == "sdedit"
    with pytest.raises(DiffAugError, match=r"end it in \.dcm"):
        edit(tmp_path / "in" / "0002.dcm", tmp_path / "new.png", "sdedit", heads, parameters=FAST)
    with pytest.raises(DiffAugError, match="the backbone is 2D"):
        edit(tmp_path / "in" / ".." / "in", tmp_path / "new", "sdedit", heads, parameters=FAST)


def test_black_for_white_is_turned(tmp_path, heads):
    """MONOCHROME1: the network sees, and the synthetic film shows, bone bright."""
    pixels = RNG.integers(0, 4096, (20, 24))
    (file,) = dicom_out.write_series(tmp_path / "a.dcm", pixels, record={}, modality="CR")
    d = pydicom.dcmread(file)
    d.PhotometricInterpretation, d.BitsStored, d.HighBit = "MONOCHROME1", 12, 11
    d.save_as(file)
    scan = images.read(file)
    assert np.array_equal(scan.image[0], 4095 - pixels)
    images.write(tmp_path / "b.dcm", scan.image, scan, record=RECORD)
    back = pydicom.dcmread(tmp_path / "b.dcm")
    assert back.PhotometricInterpretation == "MONOCHROME2"
    assert np.array_equal(back.pixel_array, 4095 - pixels)


# --------------------------------------------------------------------------------------------- export and sidecars


def test_png_and_nifti_go_out_as_dicom(tmp_path, heads, volumes):
    (tmp_path / "png" / "images").mkdir(parents=True)
    (tmp_path / "png" / "masks").mkdir()
    Image.fromarray(RNG.integers(0, 255, (24, 20)).astype("uint8")).save(tmp_path / "png" / "images" / "a.png")
    Image.fromarray(((RNG.random((24, 20)) > 0.7) * 255).astype("uint8")).save(tmp_path / "png" / "masks" / "a.png")
    (tmp_path / "nii" / "images").mkdir(parents=True)
    (tmp_path / "nii" / "masks").mkdir()
    for affine, name in ((AXIAL, "a"), (MIRRORED, "b")):
        volume = RNG.integers(0, 900, (9, 10, 11)).astype("int16")
        nib.save(nib.Nifti1Image(volume, affine), tmp_path / "nii" / "images" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image((volume > 700).astype("uint8"), affine), tmp_path / "nii" / "masks" / f"{name}.nii.gz")
    for kind, backbone, modality in (("png", heads, "CR"), ("nii", volumes, "MR")):
        expand(tmp_path / kind, tmp_path / f"{kind}_more", "sdedit", backbone, parameters=FAST)
        made = export(tmp_path / f"{kind}_more", tmp_path / f"{kind}_dicom", modality=modality)
        for image in made:
            name = image.name.removesuffix(".dcm")
            files = sorted(image.iterdir()) if image.is_dir() else [image]
            mask = image.parent / f"{name}_mask.dcm"
            assert [errors_of(f) for f in (*files, mask)] == [[]] * (len(files) + 1)
            scan = images.read(image, orientation="RAS")
            seg = images.read(mask, mask=True, like=scan)
            end = ".png" if kind == "png" else ".nii.gz"
            old = images.read(tmp_path / f"{kind}_more" / "images" / f"{name}{end}", orientation="RAS")
            label = images.read(tmp_path / f"{kind}_more" / "masks" / f"{name}{end}", orientation="RAS", mask=True)
            assert torch.equal(scan.image.int(), old.image.int())
            assert torch.equal(seg.image > 0, label.image > 0)
            assert sidecar.of(image)["method"] == "sdedit"
        before = {f: f.stat().st_mtime_ns for f in (tmp_path / f"{kind}_dicom").rglob("*.dcm")}
        assert export(tmp_path / f"{kind}_more", tmp_path / f"{kind}_dicom", modality=modality) == made
        assert {f: f.stat().st_mtime_ns for f in (tmp_path / f"{kind}_dicom").rglob("*.dcm")} == before
    with pytest.raises(DiffAugError, match="no datalist"):
        export(tmp_path / "png", tmp_path / "x")


def test_png_and_nifti_say_how_they_were_made(tmp_path, heads, volumes):
    """Beside the file and in it; the sidecar may be lost."""
    Image.fromarray(RNG.integers(0, 255, (24, 20)).astype("uint8")).save(tmp_path / "DOE.png")
    volume = nib.Nifti1Image(RNG.integers(0, 900, (9, 10, 11)).astype("int16"), AXIAL)
    volume.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    nib.save(volume, tmp_path / "DOE.nii.gz")
    for end, backbone in ((".png", heads), (".nii.gz", volumes)):
        made = edit(tmp_path / f"DOE{end}", tmp_path / f"new{end}", "sdedit", backbone, parameters=FAST, seed=3)
        beside = sidecar.of(made.image)
        made.record.unlink()
        inside = sidecar.of(made.image)
        assert inside == beside
        assert inside["synthetic"] is True
        assert inside["backbone_digest"] == backbone.digest
        assert inside["versions"].keys() == {"monai-diffaug", "monai", "torch"}
        assert (inside["prompt"], inside["parameters"]["steps"]) == ("tumor", 3)
        assert "DOE" not in json.dumps(inside)
        with pytest.raises(DiffAugError, match="does not say how it was made"):
            sidecar.of(tmp_path / f"DOE{end}")
    header = nib.load(tmp_path / "new.nii.gz").header
    assert bytes(header["intent_name"].item()) == b"SYNTHETIC"
    assert [e.get_content() for e in header.extensions if b"DOE" in bytes(str(e.get_content()), "utf8")] == []
