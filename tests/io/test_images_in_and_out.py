"""Files come back as the kind that they were, with their geometry and number format, or with one clear line."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.io import images
from monai_diffaug.types import DiffAugError

RNG = np.random.default_rng(0)


def affine(axes, signs, spacing=(1.5, 2.0, 3.0)):
    a = np.eye(4)
    a[:3, :3] = 0
    for column, (axis, sign) in enumerate(zip(axes, signs)):
        a[axis, column] = sign * spacing[column]
    a[:3, 3] = (10, -20, 30)
    return a


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 7), (5, 6, 7, 2), (5, 6, 1, 3)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_comes_back_as_it_was(tmp_path, dtype, shape, ending):
    array = (RNG.random(shape) * 200).astype(dtype)
    for axes in itertools.permutations(range(3)):
        a = affine(axes, (1, -1, -1))
        path, again = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
        nib.save(nib.Nifti1Image(array, a, dtype=array.dtype), path)
        scan = images.read(path, orientation="RAS")
        images.write(again, scan.image, scan, remark="synthetic test")
        back = nib.load(again)
        assert back.get_data_dtype() == array.dtype
        assert np.array_equal(np.asarray(back.dataobj), array)
        assert np.allclose(back.affine, a)
        assert b"synthetic" in bytes(back.header["descrip"])


def test_scaled_nifti_keeps_its_scaling(tmp_path):
    image = nib.Nifti1Image(RNG.integers(0, 1000, (4, 5, 6)).astype("int16"), np.eye(4))
    image.header.set_slope_inter(0.5, -100)
    nib.save(image, tmp_path / "a.nii.gz")
    scan = images.read(tmp_path / "a.nii.gz")
    assert scan.image.min() < 0  # the scaled values, not the stored ones
    images.write(tmp_path / "b.nii.gz", scan.image, scan)
    a, b = nib.load(tmp_path / "a.nii.gz"), nib.load(tmp_path / "b.nii.gz")
    assert (b.dataobj.slope, b.dataobj.inter) == (0.5, -100)
    assert np.array_equal(a.get_fdata(), b.get_fdata())


def test_gzip_bytes_do_not_depend_on_the_clock(tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(RNG.random((4, 4, 4)).astype("float32"), np.eye(4)), tmp_path / "a.nii.gz")
    scan = images.read(tmp_path / "a.nii.gz")
    images.write(tmp_path / "b.nii.gz", scan.image, scan)
    monkeypatch.setattr("time.time", lambda: 1.0e9)
    images.write(tmp_path / "c.nii.gz", scan.image, scan)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def test_a_slice_is_read_as_a_viewer_shows_it(tmp_path):
    """Rows to the back of the head and columns to the patient's left, whichever way the file has its axes."""
    head = np.zeros((6, 8))  # rows P, columns L
    head[0, :] = 1  # front
    head[:, -1] += 2  # left
    for axes, signs in itertools.product([(0, 1, 2), (1, 0, 2)], itertools.product((1, -1), repeat=2)):
        a = affine(axes, (*signs, 1))
        array = head if axes == (1, 0, 2) else head.T
        first, second = (axes.index(1), axes.index(0)) if axes == (1, 0, 2) else (1, 0)
        if signs[first] > 0:  # world y goes to the front, rows to the back
            array = np.flip(array, first)
        if signs[second] > 0:  # world x goes to the right, columns to the left
            array = np.flip(array, second)
        nib.save(nib.Nifti1Image(array[..., None].astype("uint8"), a), tmp_path / "a.nii")
        scan = images.read(tmp_path / "a.nii", dims=2)
        assert np.array_equal(scan.image[0].numpy(), head), (axes, signs)


def test_volumes_are_turned_to_the_contract(tmp_path):
    array = RNG.integers(0, 255, (4, 5, 6)).astype("uint8")
    nib.save(nib.Nifti1Image(array, affine((0, 1, 2), (-1, -1, 1))), tmp_path / "a.nii")  # LPS
    scan = images.read(tmp_path / "a.nii", orientation="RAS")
    assert np.array_equal(scan.image[0].numpy(), array[::-1, ::-1])


@pytest.mark.parametrize(
    ("mode", "dtype", "shape"),
    [("L", "uint8", (7, 9)), ("I;16", "uint16", (7, 9)), ("RGB", "uint8", (7, 9, 3)), ("1", "bool", (7, 9))],
)
def test_png_comes_back_as_it_was(tmp_path, mode, dtype, shape):
    array = (RNG.random(shape) * (60000 if dtype == "uint16" else 255)).astype("uint8" if dtype == "bool" else dtype)
    array = array > 127 if dtype == "bool" else array
    Image.fromarray(array).save(tmp_path / "a.png")
    scan = images.read(tmp_path / "a.png", mask=True)
    images.write(tmp_path / "b.png", scan.image, scan, remark="synthetic test")
    with Image.open(tmp_path / "b.png") as back:
        assert back.mode == mode
        assert np.array_equal(np.asarray(back), array)
        assert back.text["Description"] == "synthetic test"


def test_jpeg_comes_back_nearly_as_it_was(tmp_path):
    smooth = np.linspace(20, 200, 64)[None] * np.ones((48, 1))
    Image.fromarray(smooth.astype("uint8")).save(tmp_path / "a.jpg", quality=95)
    scan = images.read(tmp_path / "a.jpg")
    images.write(tmp_path / "b.jpg", scan.image, scan)
    back = images.read(tmp_path / "b.jpg")
    assert back.kind == "jpeg"
    assert (back.image.float() - scan.image.float()).abs().max() <= 3


def test_values_are_rounded_and_clipped(tmp_path):
    Image.fromarray(np.arange(256, dtype="uint8").reshape(16, 16)).save(tmp_path / "a.png")
    scan = images.read(tmp_path / "a.png")
    new = torch.full((1, 16, 16), 300.0)
    new[0, 0] = -7.0
    new[0, 1] = 99.6
    images.write(tmp_path / "b.png", new, scan)
    rows = images.read(tmp_path / "b.png").image[0, :3, 0].tolist()
    assert rows == [0, 100, 255]


def noise(*shape):
    return RNG.integers(0, 255, shape, dtype=np.uint8)


def volume(value=None):
    array = RNG.random((16, 16, 8)).astype("float32")
    if value is not None:
        array[0, 0, 0] = value
    return array


def save(path, array):
    if ".nii" in path.name:
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    else:
        Image.fromarray(array).save(path)


def cut(path):
    """Half of a good file."""
    save(path, volume() if ".nii" in path.name else noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def frames(path):
    first, *more = (Image.fromarray(noise(8, 8)) for _ in range(3))
    first.save(path, save_all=True, append_images=more)


SPOILED = {
    "truncated": cut,
    "text": lambda path: path.write_text("this is no image"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: None,
    "nan": lambda path: save(path, volume(np.nan)),
    "infinite": lambda path: save(path, volume(np.inf)),
    "constant": lambda path: save(path, np.full((8, 8, 8) if ".nii" in path.name else (8, 8), 7, np.uint8)),
    "cmyk": lambda path: Image.new("CMYK", (8, 8), (1, 2, 3, 4)).save(path),
    "transparent": lambda path: save(path, noise(8, 8, 4)),
    "moving": frames,
    "complex": lambda path: save(path, RNG.random((8, 8, 8)).astype("complex64")),
    "series": lambda path: path.write_bytes(b"\0" * 200),
    "notes": lambda path: path.write_text("notes"),
    "bits": lambda path: save(path, noise(8, 8) > 99),
}


REASONS = {
    "truncated.nii.gz": "corrupt or truncated",
    "truncated.nii": "corrupt or truncated",
    "truncated.png": "corrupt or truncated",
    "truncated.jpg": "corrupt or truncated",
    "text.png": "corrupt or truncated",
    "text.nii": "corrupt or truncated",
    "text.nii.gz": "corrupt or truncated",
    "text.jpg": "corrupt or truncated",
    "empty.png": "corrupt or truncated",
    "empty.nii.gz": "corrupt or truncated",
    "missing.png": "does not exist",
    "nan.nii.gz": "NaN or infinity",
    "infinite.nii.gz": "NaN or infinity",
    "constant.png": "constant",
    "constant.nii.gz": "constant",
    "cmyk.jpg": "CMYK",
    "transparent.png": "transparency",
    "moving.png": "3 frames",
    "complex.nii.gz": "one number a voxel",
    "series.dcm": "holds no DICOM image",
    "notes.txt": "NIfTI, PNG or JPEG",
    "bits.png": "black and white only",
}


@pytest.mark.parametrize("name", REASONS)
def test_bad_files_get_one_line(tmp_path, name):
    path = tmp_path / name
    SPOILED[name.split(".")[0]](path)
    with pytest.raises(DiffAugError, match=REASONS[name]) as caught:
        images.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dimensions_are_told(tmp_path):
    nib.save(nib.Nifti1Image(RNG.random((8, 8, 8)).astype("float32"), np.eye(4)), tmp_path / "volume.nii.gz")
    Image.fromarray(RNG.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / "slice.png")
    with pytest.raises(DiffAugError, match=r"volume\.nii\.gz is a volume .*the backbone is 2D"):
        images.read(tmp_path / "volume.nii.gz", dims=2)
    with pytest.raises(DiffAugError, match=r"slice\.png is a slice .*the backbone is 3D"):
        images.read(tmp_path / "slice.png", dims=3)


def test_what_is_not_finite_is_not_written(tmp_path):
    path = tmp_path / "good.png"
    save(path, noise(8, 8))
    scan = images.read(path)
    with pytest.raises(DiffAugError, match="NaN"):
        images.write(tmp_path / "new.png", torch.full(scan.image.shape, float("nan")), scan)
    assert not (tmp_path / "new.png").exists()
