"""Scans in, restored scans out: DICOM, NIfTI and 16-bit PNG, geometry and units kept."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.expand.restoring import restore_scans
from monai_diffaug.io import dicom_out, images
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError


@pytest.fixture(scope="module")
def backbone():
    """It samples anything; what lies outside the window, and the grid, must come through all the same."""
    made = tiny("image")
    return replace(made, contract=replace(made.contract, extra={"window": [-1000, 1000]}))


def plane(rows=16, columns=16):
    y, x = np.mgrid[:rows, :columns]
    hu = np.where((x - columns / 2) ** 2 + (y - rows / 2) ** 2 < 25, 40, -1000).astype(np.int16)
    hu[3, 5] = 2500  # metal, above the window
    return hu


AFFINE = np.array([[-1.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 5, -3], [0, 0, 0, 1]], float)


def test_a_volume_keeps_affine_size_and_what_is_outside_the_window(backbone, tmp_path):
    volume = np.stack([plane(16, 20).T, plane(16, 20).T + 10], -1).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / "ct.nii.gz")
    (out,) = restore_scans(tmp_path / "ct.nii.gz", tmp_path / "out", backbone, steps=2, draws=2)
    got = nib.load(out)
    np.testing.assert_allclose(got.affine, AFFINE)
    assert got.shape == (20, 16, 2)
    assert np.array_equal(got.get_fdata()[5, 3], [2500, 2510])
    assert got.get_fdata()[volume <= 1000].min() >= -1000
    assert not np.array_equal(got.get_fdata(), volume)
    spread = nib.load(tmp_path / "out" / "ct_std.nii.gz")
    np.testing.assert_allclose(spread.affine, AFFINE)
    assert spread.get_fdata().max() > 1
    said = json.loads((tmp_path / "out" / "ct_restored.json").read_text())
    assert said["parameters"] == {"steps": 2, "draws": 2}
    assert "source" not in said or said["source"] is None


def test_nothing_changes_at_no_strength(backbone, tmp_path):
    rng = np.random.default_rng(0)
    for shape in ((16, 16), (24, 16)):
        values = rng.integers(-900, 900, shape).astype(np.int16)
        nib.save(nib.Nifti1Image(values[..., None], AFFINE), tmp_path / "ct.nii.gz")
        (out,) = restore_scans(tmp_path / "ct.nii.gz", tmp_path / "out", backbone, steps=2, strength=0.0)
        np.testing.assert_allclose(nib.load(out).get_fdata()[..., 0], values, atol=1.01)


def test_a_slice_of_twice_the_size_comes_back_on_its_grid(backbone, tmp_path):
    hu = plane(32, 32)
    dicom_out.write_series(tmp_path / "ct.dcm", hu, record={"method": "made"}, affine=AFFINE, modality="CT")
    (out,) = restore_scans(tmp_path / "ct.dcm", tmp_path / "out", backbone, steps=2, strength=0.0)
    before, after = images.read(tmp_path / "ct.dcm"), images.read(out)
    assert after.image.shape == (1, 32, 32)
    np.testing.assert_allclose(after.affine, before.affine)
    middle = (slice(None), slice(15, 17), slice(15, 17))
    torch.testing.assert_close(after.image[middle].float(), before.image[middle].float(), atol=1.01, rtol=0)


def test_png_keeps_its_offset(backbone, tmp_path):
    Image.fromarray((plane() + 1024).astype(np.uint16)).save(tmp_path / "ct.png")
    (out,) = restore_scans(tmp_path / "ct.png", tmp_path / "out", backbone, steps=2, strength=0.0)
    got = np.asarray(Image.open(out)).astype(int) - 1024
    np.testing.assert_allclose(got, plane(), atol=1.01)


def test_what_is_no_ct_is_refused(backbone, tmp_path):
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "photo.png")
    with pytest.raises(DiffAugError, match="16-bit PNG"):
        restore_scans(tmp_path / "photo.png", tmp_path / "out", backbone)
    with pytest.raises(DiffAugError, match="a window in its contract"):
        restore_scans(tmp_path / "photo.png", tmp_path / "out", tiny("image"))
    with pytest.raises(DiffAugError, match="needs image_condition"):
        restore_scans(tmp_path / "photo.png", tmp_path / "out", tiny("class"))
    assert not (tmp_path / "out").exists()
