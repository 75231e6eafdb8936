"""DICOM series to volumes: the right slices in the right order, in the right place, in the right numbers."""

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset, Sequence
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from monai_diffaug.io.dicom_in import pixels
from monai_diffaug.io.dicom_in.convert import Series
from monai_diffaug.io.dicom_in.headers import frames_of, is_dicom
from monai_diffaug.io.dicom_in.scan import scan
from monai_diffaug.io.dicom_in.series import stacked
from monai_diffaug.io.problems import BadInput
from monai_diffaug.io.pseudonyms import Pseudonyms
from monai_diffaug.io.work import Rules

from .hospital import CR, CT, brain, save, series, slice_of

NAMES = Pseudonyms(b"0" * 32)
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def converted(folder, out, **rules):
    """All series of a folder, converted: entries, and problems by kind."""
    found = scan(folder)
    entries, problems = [], list(found.problems)
    for work in found.works:
        result = work.run(Rules(out, NAMES, **rules))
        entries += result.entries
        problems += result.problems
    return entries, {p.kind: p for p in problems}


def volume_of(out, entry):
    image = nib.load(out / entry["image"])
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (0.8, 0.6, 0, -0.36, 0.48, 0.8), (-1, 0, 0, 0, 1, 0)],
    ids=["axial", "sagittal", "oblique", "mirrored"],
)
def test_geometry_is_that_of_simpleitk(tmp_path, orientation):
    sitk = pytest.importorskip("SimpleITK")
    files = series(tmp_path / "in", orientation=orientation, RescaleSlope=2, RescaleIntercept=-1000)
    (entry,), problems = converted(tmp_path / "in", tmp_path / "out")
    assert not problems
    voxels, affine = volume_of(tmp_path / "out", entry)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(f) for f in files])
    theirs = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(theirs).T, voxels)
    assert voxels.dtype == np.int16
    for index in ((0, 0, 0), (5, 9, 3), (63, 0, 7)):
        lps = theirs.TransformIndexToPhysicalPoint(index)
        ours = affine @ [*index, 1]
        assert np.allclose(ours[:3] * [-1, -1, 1], lps, atol=1e-3)
    assert entry["spacing"] == [1.0, 1.5, 3.0]
    assert entry["orientation"] == "".join(nib.aff2axcodes(affine))
    # and what ITK reads from the file that was written is the same place
    again = sitk.ReadImage(str(tmp_path / "out" / entry["image"]))
    assert np.allclose(again.GetOrigin(), theirs.GetOrigin(), atol=1e-3)
    assert np.allclose(again.GetDirection(), theirs.GetDirection(), atol=1e-4)


def test_hounsfield_units_of_a_real_file(tmp_path):
    path = tmp_path / "in" / "x"
    path.parent.mkdir()
    path.write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    (entry,), problems = converted(tmp_path / "in", tmp_path / "out")
    data = pydicom.dcmread(path)
    voxels, affine = volume_of(tmp_path / "out", entry)
    assert np.array_equal(voxels[..., 0].T, data.pixel_array * int(data.RescaleSlope) + int(data.RescaleIntercept))
    assert (entry["modality"], entry["units"], entry["spacing"][2]) == ("CT", "HU", 5.0)
    assert set(problems) == {"one slice"}
    assert affine[2, 3] == pytest.approx(float(data.ImagePositionPatient[2]))


def test_slopes_that_differ_or_are_fractions_become_floats(tmp_path):
    volume = brain(3)
    for i, plane in enumerate(volume):
        data = slice_of(
            plane, study="1.2.3", series="1.2.4", position=(0, 0, i), number=i, RescaleSlope=0.5 + i, RescaleIntercept=0
        )
        save(data, tmp_path / "in" / f"{i}")
    (entry,), _ = converted(tmp_path / "in", tmp_path / "out")
    voxels, _ = volume_of(tmp_path / "out", entry)
    assert voxels.dtype == np.float32
    assert np.allclose(voxels[..., 2].T, volume[2] * 2.5)


def test_values_beyond_16_bits_are_not_wrapped(tmp_path):
    bright = (brain(3).astype(np.uint16) * 20).clip(0, 60000).astype(np.uint16)
    series(tmp_path / "in", bright)
    (entry,), _ = converted(tmp_path / "in", tmp_path / "out")
    assert np.array_equal(volume_of(tmp_path / "out", entry)[0], bright.T)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless]
)
def test_transfer_syntaxes(tmp_path, syntax):
    volume = brain(3)
    for i, plane in enumerate(volume):
        data = slice_of(plane, study="1.2.3", series="1.2.4", position=(0, 0, 3 * i), number=i)
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if syntax.is_compressed and syntax.is_encapsulated:
            try:
                data.compress(syntax, generate_instance_uid=False)
            except (RuntimeError, NotImplementedError):
                pytest.skip(f"no encoder for {syntax.name}")
        save(data, tmp_path / "in" / f"{i}", syntax)
    (entry,), problems = converted(tmp_path / "in", tmp_path / "out")
    assert np.array_equal(volume_of(tmp_path / "out", entry)[0], volume.T)
    assert not problems


@pytest.mark.parametrize(
    "name",
    ["MR_small_bigendian", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_implicit"],
)
def test_pydicoms_own_files_hold_one_picture_in_all_syntaxes(tmp_path, name):
    (frame,) = frames_of(TEST_FILES / f"{name}.dcm")
    (stack,), _ = stacked([frame])
    plain = pydicom.dcmread(TEST_FILES / "MR_small.dcm").pixel_array
    assert np.array_equal(pixels.volume(stack)[..., 0].T, plain)
    assert (frame.native is None) == (name != "MR_small_implicit")


def test_enhanced_multi_frame_files_with_two_time_points(tmp_path):
    volume = brain(8)
    data = slice_of(volume[0], ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None)
    data.SOPClassUID, data.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.4.1", 8

    def one(sequence, item):
        group = Dataset()
        setattr(group, sequence, Sequence([item]))
        return group

    measures, place = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 1.0], 3
    place.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared = one("PixelMeasuresSequence", measures)
    shared.PlaneOrientationSequence = Sequence([place])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for i in range(8):  # slices 3 2 1 0, at two times in turn
        where, content = Dataset(), Dataset()
        where.ImagePositionPatient = [0, 0, 3.0 * (3 - i // 2)]
        content.TemporalPositionIndex = i % 2 + 1
        group = one("PlanePositionSequence", where)
        group.FrameContentSequence = Sequence([content])
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = Sequence(groups)
    data.PixelData = volume.tobytes()
    save(data, tmp_path / "in" / "multi.dcm")
    entries, problems = converted(tmp_path / "in", tmp_path / "out")
    assert not problems
    assert len(entries) == 2
    for time, entry in enumerate(entries):
        voxels, affine = volume_of(tmp_path / "out", entry)
        assert np.array_equal(voxels, volume[[6 + time, 4 + time, 2 + time, time]].T)
        assert affine[2, 2] == 3.0


def test_a_cine_in_color_becomes_its_frames(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "us").write_bytes((TEST_FILES / "examples_ybr_color.dcm").read_bytes())
    assert converted(tmp_path / "in", tmp_path / "no")[1]["burned-in text"].lost  # a scanner's screen, with its words
    assert not list((tmp_path / "no").rglob("*.png"))
    entries, problems = converted(tmp_path / "in", tmp_path / "out", allow_burned_in=True)
    assert len(entries) == 30
    assert [e["frame"] for e in entries] == list(range(1, 31))
    theirs = pydicom.pixels.pixel_array(TEST_FILES / "examples_ybr_color.dcm", index=7)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / entries[7]["image"])), theirs)
    assert not problems["burned-in text"].lost


def test_radiographs_are_as_one_looks_at_them(tmp_path):
    ramp = np.tile(np.arange(4096, dtype=np.uint16)[::64], (64, 1))
    more = {"sop_class": CR, "modality": "CR", "BitsStored": 12, "HighBit": 11, "ImagePositionPatient": None}
    common = {"WindowCenter": 2048, "WindowWidth": 2048, **more}
    save(slice_of(ramp, PatientID="A", **common), tmp_path / "in" / "a")
    save(slice_of(ramp, PatientID="B", PhotometricInterpretation="MONOCHROME1", **common), tmp_path / "in" / "b")
    save(slice_of(ramp, PatientID="C", **more), tmp_path / "in" / "c")
    entries, _ = converted(tmp_path / "in", tmp_path / "out")
    shown = {e["patient"]: np.asarray(Image.open(tmp_path / "out" / e["image"])).astype(int) for e in entries}
    a, b, c = (shown[NAMES.patient(name)] for name in "ABC")
    assert a.max() == 65535
    assert (a[0, :16] == 0).all()  # below the window
    assert (a[0, 49:] == 65535).all()
    assert np.array_equal(b, 65535 - a)  # MONOCHROME1 is black where values are high
    assert np.abs(c[0] - ramp[0] * (65535 / 4095)).max() < 1  # no window: the whole range


def test_missing_slices_are_told_and_the_longest_run_is_taken(tmp_path):
    files = series(tmp_path / "in", brain(12))
    files[3].unlink()
    files[4].unlink()
    (entry,), problems = converted(tmp_path / "in", tmp_path / "out")
    assert problems["missing slices"].text.startswith("about 2 of 12 slices are missing, in 1 place: ")
    voxels, affine = volume_of(tmp_path / "out", entry)
    assert np.array_equal(voxels, brain(12)[5:].T)
    assert affine[2, 3] == pytest.approx(10 + 5 * 3.0)
    assert affine[2, 2] == 3.0


def test_duplicates_are_told_and_used_once(tmp_path):
    files = series(tmp_path / "in", brain(6), study="1.2.3", series="1.2.4")
    (tmp_path / "in" / "copy").write_bytes(files[2].read_bytes())
    other = slice_of(brain(6)[4], study="1.2.3", series="1.2.4", position=(-30, -40, 10 + 4 * 3.0), number=99)
    save(other, tmp_path / "in" / "sent_again")
    (entry,), problems = converted(tmp_path / "in", tmp_path / "out")
    assert set(problems) == {"duplicate UID", "duplicate position"}
    assert not any(p.lost for p in problems.values())
    assert np.array_equal(volume_of(tmp_path / "out", entry)[0], brain(6).T)


def test_echoes_of_one_series_become_volumes_of_their_own(tmp_path):
    series(tmp_path / "in" / "a", brain(5), study="1.2.3", series="1.2.4", EchoTime=10)
    series(tmp_path / "in" / "b", brain(5) + 7, study="1.2.3", series="1.2.4", EchoTime=90)
    entries, problems = converted(tmp_path / "in", tmp_path / "out")
    assert not problems
    assert [int(volume_of(tmp_path / "out", e)[0].min()) for e in entries] == [0, 7]


def test_a_mixed_series_is_told_and_divided(tmp_path):
    series(tmp_path / "in" / "a", brain(5), study="1.2.3", series="1.2.4")
    series(tmp_path / "in" / "b", brain(3, 32), study="1.2.3", series="1.2.4", orientation=(0, 1, 0, 0, 0, -1))
    entries, problems = converted(tmp_path / "in", tmp_path / "out")
    assert "5 + 3 images differ" in problems["mixed series"].text
    assert sorted(volume_of(tmp_path / "out", e)[0].shape for e in entries) == [(32, 32, 3), (64, 64, 5)]


def test_missing_geometry(tmp_path):
    series(tmp_path / "in", brain(4), ImagePositionPatient=None)
    entries, problems = converted(tmp_path / "in", tmp_path / "out")
    assert not entries
    assert "ImagePositionPatient missing" in problems["missing geometry"].text
    entries, problems = converted(tmp_path / "in", tmp_path / "out2", dims=2)
    assert [Path(e["image"]).suffix for e in entries] == [".png"] * 4
    assert not problems


def test_truncated_and_damaged_files_cost_no_more_than_themselves(tmp_path):
    files = series(tmp_path / "in", brain(9))
    files[0].write_bytes(files[0].read_bytes()[:-100])
    files[8].write_bytes(files[8].read_bytes()[:150] + b"\xff" * 300)
    (tmp_path / "in" / "notes.txt").write_text("not DICOM " * 50)
    (entry,), problems = converted(tmp_path / "in", tmp_path / "out")
    assert problems["truncated"].file == files[0]
    assert problems["truncated"].lost
    assert np.array_equal(volume_of(tmp_path / "out", entry)[0], brain(9)[1:8].T)
    assert not is_dicom(tmp_path / "in" / "notes.txt")
    assert scan(tmp_path / "in").passed_over["not DICOM"] == 1


def test_damaged_compressed_pixels_cost_one_slice(tmp_path):
    volume = brain(5)
    for i, plane in enumerate(volume):
        data = slice_of(plane, study="1.2.3", series="1.2.4", position=(0, 0, 3 * i), number=i)
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.compress(RLELossless, generate_instance_uid=False)
        path = save(data, tmp_path / "in" / f"{i}", RLELossless)
        if i == 4:
            path.write_bytes(path.read_bytes()[:-900])
    (entry,), problems = converted(tmp_path / "in", tmp_path / "out")
    assert problems["unreadable"].file.name == "4"
    assert np.array_equal(volume_of(tmp_path / "out", entry)[0], volume[:4].T)
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 1


def test_a_syntax_without_a_decoder_names_what_to_install(tmp_path, monkeypatch):
    class Missing:
        is_available = False

    monkeypatch.setattr("pydicom.pixels.get_decoder", lambda uid: Missing())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes((TEST_FILES / "MR_small_RLE.dcm").read_bytes())
    entries, problems = converted(tmp_path / "in", tmp_path / "out")
    assert not entries
    assert "RLE Lossless and there is no decoder for that here: install one (pip install" in problems["no decoder"].text
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_one_slice_volumes(tmp_path):
    series(tmp_path / "in", brain(1))
    assert len(converted(tmp_path / "in", tmp_path / "a")[0]) == 1
    entries, problems = converted(tmp_path / "in", tmp_path / "b", dims=3)
    assert not entries
    assert problems["one slice"].lost


def test_dims_2_gives_each_slice_its_place(tmp_path):
    series(tmp_path / "in", brain(4))
    entries, _ = converted(tmp_path / "in", tmp_path / "out", dims=2)
    assert len(entries) == 4
    voxels, affine = volume_of(tmp_path / "out", entries[2])
    assert voxels.shape == (64, 64, 1)
    assert np.array_equal(voxels[..., 0].T, brain(4)[2])
    assert affine[2, 3] == pytest.approx(16.0)


def test_anisotropic_spacing_is_told_and_mended(tmp_path):
    series(tmp_path / "in", brain(6), step=5.0)
    (entry,), problems = converted(tmp_path / "in", tmp_path / "a")
    assert "1 x 1.5 x 5 mm: --spacing 1 makes them cubes" in problems["anisotropic"].text
    (entry,), problems = converted(tmp_path / "in", tmp_path / "b", spacing=(1.0,))
    assert not problems
    voxels, affine = volume_of(tmp_path / "b", entry)
    assert voxels.shape == (64, 95, 26)
    assert np.allclose(np.sqrt((affine[:3, :3] ** 2).sum(0)), 1)
    old, _ = volume_of(tmp_path / "a", converted(tmp_path / "in", tmp_path / "a")[0][0])
    middle = (old[..., 2].mean() + old[..., 3].mean()) / 2
    assert voxels[..., 10].mean() == pytest.approx(old[..., 2].mean(), rel=0.05)  # 10 mm is the third slice
    assert voxels[..., 12:14].mean() == pytest.approx(middle, rel=0.08)


def test_objects_that_are_no_images_are_passed_over(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("rtplan.dcm", "reportsi.dcm", "liver_1frame.dcm", "rtdose.dcm", "waveform_ecg.dcm"):
        (tmp_path / "in" / name).write_bytes((TEST_FILES / name).read_bytes())
    found = scan(tmp_path / "in")
    assert (found.total, found.passed_over["no image"]) == (0, 5)
    found = scan(TEST_FILES / "dicomdirtests")
    assert not any(frame.path.name.startswith("DICOMDIR") for work in found.works for frame in work.frames)
    assert found.total > 10


def test_other_modalities_are_left_out_by_name(tmp_path):
    series(tmp_path / "in" / "a", brain(3))
    series(tmp_path / "in" / "b", brain(3), sop_class=CT, modality="CT")
    found = scan(tmp_path / "in", ["ct"])
    assert [w.frames[0].modality for w in found.works] == ["CT"]
    assert [p.kind for p in found.problems] == ["wrong modality"]


def test_nothing_is_left_of_a_series_that_fails_half_way(tmp_path, monkeypatch):
    series(tmp_path / "in" / "a", brain(5), study="1.2.3", series="1.2.4", EchoTime=10)
    series(tmp_path / "in" / "b", brain(5), study="1.2.3", series="1.2.4", EchoTime=90)
    calls = []

    def failing(stack):
        calls.append(stack)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pixels_volume(stack)

    pixels_volume = pixels.volume
    monkeypatch.setattr("monai_diffaug.io.dicom_in.convert.volume", failing)
    (work,) = scan(tmp_path / "in").works
    assert isinstance(work, Series)
    with pytest.raises(KeyboardInterrupt):
        work.run(Rules(tmp_path / "out", NAMES))
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_a_damaged_header_is_one_line(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 500)
    with pytest.raises(BadInput, match="damaged.*: copy the file again") as caught:
        frames_of(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_big_endian_is_read(tmp_path):
    plane = brain(1)[0]
    data = slice_of(plane.byteswap(), PatientID="X")
    path = save(data, tmp_path / "in" / "x", ExplicitVRBigEndian)
    (frame,) = frames_of(path)
    (stack,), _ = stacked([frame])
    assert np.array_equal(pixels.volume(stack)[..., 0].T, plane)
