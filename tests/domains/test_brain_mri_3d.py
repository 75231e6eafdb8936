"""Volumes told age, sex and lesion volume: what the network is told, and what becomes of masks."""

import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_diffaug.backbones.parts import conditioner_from_config
from monai_diffaug.backbones.weights import instantiate
from monai_diffaug.domains import brain_mri_3d as brain
from monai_diffaug.domains import brain_mri_3d_outline
from monai_diffaug.domains.brain_mri_3d_variants import lesion_volume
from monai_diffaug.primitives.runs import Draws
from monai_diffaug.primitives.segmentation import SegmentationStage, dice
from monai_diffaug.types import DiffAugError


def head(lesion=3, side=1):
    """An ellipsoid with a bright ball in its left or right half, 48 x 48 x 12, as a volume of thick slices is."""
    x, y, z = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 48), np.linspace(-1, 1, 12), indexing="ij")
    image = 100.0 * ((x / 0.7) ** 2 + (y / 0.85) ** 2 + z**2 < 1)
    mask = (x - 0.3 * side) ** 2 + y**2 + z**2 < (lesion / 10) ** 2
    return (image + 120 * mask + np.random.default_rng(0).uniform(0, 2, image.shape)).astype(np.float32), mask


@pytest.fixture
def data(tmp_path):
    """The layout of the real set, with six patients, one of whom nothing is known."""
    folder = tmp_path / "brain_lgg_3d" / "dev"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    rows = ["file,label_file,patient,gender,age"]
    for i in range(6):
        image, mask = head(2 + i % 4, 1 if i % 2 else -1)
        for part, array in (("images", image), ("labels", mask.astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1])), folder / part / f"P{i}.nii.gz")
        known = f"{1 + i % 2},{30 + 5 * i}" if i else ","
        rows.append(f"images/P{i}.nii.gz,labels/P{i}.nii.gz,P{i},{known}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_items_and_volumes(data):
    found = brain.items(data)
    assert "age" not in found[0]
    assert found[1]["sex"] == "male"
    volumes = brain.read(found)
    assert volumes.images.shape == (6, 1, 64, 64, 32)
    assert volumes.images.min() >= -1
    assert volumes.vectors[0].isnan().tolist() == [True, True, False]
    assert volumes.vectors[1].tolist()[:2] == [35.0, 1.0]
    # thick slices are stretched over the whole depth, and the head fills the box
    assert (volumes.images[:, 0, 32, 32] > -0.8).float().mean() > 0.8
    assert volumes.vectors[3, 2] > volumes.vectors[4, 2]


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(DiffAugError, match=r"labels.csv is missing"):
        brain.items(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DiffAugError, match="nothing under 'training'"):
        brain.listed(tmp_path / "list.json")
    (tmp_path / "list.json").write_text("not JSON")
    with pytest.raises(DiffAugError, match="no datalist"):
        brain.listed(tmp_path / "list.json")


def test_a_datalist_of_ones_own(data, tmp_path):
    (tmp_path / "mine.json").write_text(
        json.dumps({"training": [{"image": "brain_lgg_3d/dev/images/P1.nii.gz", "age": 60, "lesion": 0.5}]})
    )
    volumes = brain.read(brain.listed(tmp_path / "mine.json"))
    assert volumes.vectors[0, 0] == 60
    assert volumes.vectors[0, 1].isnan()
    assert volumes.vectors[0, 2] == 0.5


def test_variants_keep_the_lesion_with_its_head(data):
    volumes = brain.read(brain.items(data))
    more = brain.varied(volumes, 2)
    assert len(more) == 24
    assert torch.equal(more.images[6:12], volumes.images.flip(2))
    assert more.patients[12] == volumes.patients[0]
    inside = [float(x[m > 0].mean()) for x, m in zip(more.images, more.masks, strict=True)]
    assert min(inside) > 0.5  # the lesion is the brightest there is, wherever it was moved
    assert (more.vectors[12:18, 2] - volumes.vectors[:, 2]).abs().max() < 0.1


def test_the_opposite_has_the_same_age_and_sex():
    assert torch.allclose(brain.opposite(torch.tensor([[50.0, 1.0, 0.2]])), torch.tensor([[50.0, 1.0, 0.8]]))
    assert brain.opposite_numbers(50, "male", 0.2) == [50.0, 1.0, 0.8]
    assert brain.opposite_numbers(50, "male") is None


def test_what_is_told():
    told = brain.conditioner()
    assert told(1).tokens.abs().max() == 0
    row = told(1, vector=brain.vector(75, "male", 0.0)).tokens[0, 0]
    assert row.tolist() == [4.0, 4.0, 1.0]
    part = told(2, vector=brain.vector(age=47.5)).tokens[:, 0]
    assert part.tolist() == [[2.5, 0.0, 0.0]] * 2
    assert told(1, vector=brain.vector(75)).concat.shape == (1, 3, 16, 16, 8)
    again = conditioner_from_config(told.config, brain.CONTRACT)
    asked = brain.vector(30, "female", 0.3)
    assert torch.equal(again(1, vector=asked).tokens, told(1, vector=asked).tokens)
    assert brain.numbers(60) == [60.0, None, None]


@pytest.mark.parametrize(
    ("given", "what"),
    [({"age": 12}, "give 20 to 75"), ({"lesion": 1.5}, "give 0 to 1"), ({"sex": "F"}, "female or male")],
)
def test_what_cannot_be_told(given, what):
    with pytest.raises(DiffAugError, match=what):
        brain.vector(**given)


def test_a_vector_outside_its_units_is_refused():
    with pytest.raises(DiffAugError, match="give 20 to 75"):
        brain.conditioner()(1, vector=torch.tensor([80.0, 0.0, 0.5]))


def test_each_number_is_left_out_at_times():
    said = brain.Said(brain.conditioner(), one=0.2, all_of_them=0.1)
    batch = {"vector": torch.tensor([[50.0, 1.0, 0.5]]).repeat(2000, 1)}
    rows = said(batch, Draws(torch.Generator().manual_seed(0))).tokens[:, 0]
    silent = (rows == 0).float()
    assert (silent.mean(0) - (1 - 0.8 * 0.9)).abs().max() < 0.04
    assert abs(float(silent.all(1).float().mean()) - (0.1 + 0.9 * 0.2**3)) < 0.03


def test_lesion_volume():
    masks = torch.zeros(2, 1, 10, 10, 10)
    masks[1, :, :2, :2] = 1  # 4 %
    assert lesion_volume(masks).tolist() == [0.0, 1.0]
    masks[1] = 0
    masks[1, 0, 0, 0] = 1  # 1 %
    assert math.isclose(float(lesion_volume(masks)[1]), 0.5, abs_tol=1e-6)


def test_the_instrument_learns_to_outline():
    """Bright balls in noise: outlined better than before, and the overlap is that of masks."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(4, 1, 16, 16, 16)
    for i in range(4):
        masks[i, 0, 3 : 7 + i, 4:9, 5:10] = 1
    images = 1.5 * masks - 1 + 0.2 * torch.randn(masks.shape, generator=generator)
    torch.manual_seed(0)
    net = brain_mri_3d_outline.Outline()
    settings = brain.Settings(steps=120, batch=4, lr=4e-3, ema=0.5, warmup=5, precision=torch.float32)
    stage = SegmentationStage(net, settings, held_out=[{"image": images, "mask": masks}])
    before = stage.check(0)["held_out_dice"]
    for step in range(120):
        stage.step({"image": images, "mask": masks}, step, Draws.of(0, step))
    assert stage.check(120)["held_out_dice"] > max(0.7, before + 0.3)
    assert dice(masks, masks).tolist() == [1.0] * 4
    assert dice(masks, 1 - masks).tolist() == [0.0] * 4


def test_refining_leaves_the_encoder_alone(data, tmp_path):
    volumes = brain.read(brain.items(data)[:2])
    config = brain.autoencoder_config(brain.CONTRACT, (8, 8, 8))
    autoencoder = brain.MonaiAutoencoder(instantiate(config), 1.0, config)
    with torch.no_grad():
        x = volumes.images[:1, :, :32, :32]
        latent, image = autoencoder.encode(x), autoencoder.decode(autoencoder.encode(x))
    brain.refine(autoencoder, volumes, tmp_path / "run", brain.Settings(steps=2, batch=1, lr=1e-3, warmup=1, ema=0.1))
    with torch.no_grad():
        assert torch.equal(autoencoder.encode(x), latent)
        assert not torch.equal(autoencoder.decode(latent), image)
