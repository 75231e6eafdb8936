"""From a scan to its healthy counterfactual, map, mask and score, as files with the scan's geometry."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.expand.localize import localize
from monai_diffaug.testing import ideal_backbone, tiny
from monai_diffaug.types import DiffAugError

SETTINGS = {"steps": 10, "strength": 0.75}


@pytest.fixture
def volume(tmp_path):
    """Three heads and an empty slice; only the second shows a lesion. Axes run left to right and front to back."""
    points = ideal_backbone(size=16).network.module.points
    slices = [points[0, 0], points[1, 0], points[2, 0], torch.full((16, 16), -1.0)]
    array = np.stack([((s.T + 1) * 127.5).numpy().astype(np.uint8) for s in slices], -1)
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])  # LPS
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_a_volume_goes_through_slice_by_slice(volume, tmp_path):
    (found,) = localize(volume, tmp_path / "out", ideal_backbone(size=16), threshold=0.2, voxels=3, **SETTINGS)
    source = nib.load(volume)
    files = {n: nib.load(p) for n, p in (("healthy", found.healthy), ("map", found.map), ("lesion", found.mask))}
    for name, made in files.items():
        assert made.shape == source.shape, name
        assert np.allclose(made.affine, source.affine)
    heat = files["map"].get_fdata()
    assert heat[..., 1].max() > 3 * max(heat[..., 0].max(), heat[..., 2].max())
    assert not heat[..., 3].any()
    assert np.array_equal(files["healthy"].get_fdata()[..., 3], source.get_fdata()[..., 3])
    assert set(np.unique(files["lesion"].get_fdata())) == {0, 1}
    bright = source.get_fdata()[..., 1] - source.get_fdata()[..., 1].mean()
    assert bright[files["lesion"].get_fdata()[..., 1] > 0].mean() > bright[heat[..., 1] < 0.05].mean()
    said = json.loads(found.record.read_text())
    assert said["synthetic"] is True
    assert list(said["slices"]) == ["0", "1", "2"]
    assert said["score"] == max(said["slices"].values()) == found.score
    assert said["settings"] == SETTINGS


def test_orientation_does_not_matter(volume, tmp_path):
    turned = nib.as_closest_canonical(nib.load(volume))
    nib.save(turned, tmp_path / "ras.nii.gz")
    (one,) = localize(volume, tmp_path / "a", ideal_backbone(size=16), threshold=0.2, **SETTINGS)
    (two,) = localize(tmp_path / "ras.nii.gz", tmp_path / "b", ideal_backbone(size=16), threshold=0.2, **SETTINGS)
    back = nib.as_closest_canonical(nib.load(one.map)).get_fdata()
    assert np.allclose(nib.load(two.map).get_fdata(), back, atol=1e-5)
    assert back.any()


def test_a_picture_and_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name, point in (("sick", 1), ("well", 0)):
        pixels = ((ideal_backbone(size=16).network.module.points[point, 0] + 1) * 127.5).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    found = localize(tmp_path / "in", tmp_path / "out", ideal_backbone(size=16), threshold=0.2, voxels=3, **SETTINGS)
    assert [f.source.stem for f in found] == ["sick", "well"]
    assert found[0].score > 3 * found[1].score
    assert found[0].lesion_share > 0
    assert Image.open(found[0].map).size == (16, 16)
    assert np.array(Image.open(found[0].mask)).max() == 255
    assert not np.array(Image.open(found[1].mask)).any()


def test_what_cannot_be_used_is_refused(volume, tmp_path):
    with pytest.raises(DiffAugError, match="is 3D: give one of slices"):
        localize(volume, tmp_path, tiny("class", 3, 8), threshold=0.1)
    with pytest.raises(DiffAugError, match="needs guide"):
        localize(volume, tmp_path, tiny("class_mask"), "classifier_counterfactual", threshold=0.1)
    with pytest.raises(DiffAugError, match="does not exist"):
        localize(tmp_path / "no.nii.gz", tmp_path, ideal_backbone(size=16), threshold=0.1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffAugError, match="holds no image"):
        localize(tmp_path / "empty", tmp_path, ideal_backbone(size=16), threshold=0.1)
