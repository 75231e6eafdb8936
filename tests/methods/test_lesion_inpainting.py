"""What lesion inpainting is made of: what the network is told, what stays, what becomes the label."""

import dataclasses

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.backbones import hub
from monai_diffaug.backbones.monai_unet import MonaiUNet
from monai_diffaug.backbones.regions import RegionConditioner, widened
from monai_diffaug.backbones.weights import instantiate
from monai_diffaug.primitives import masks
from monai_diffaug.primitives.regions import Regions, cut_out, moved
from monai_diffaug.primitives.runs import Draws
from monai_diffaug.testing import tiny
from monai_diffaug.types import Condition, DiffAugError, NoiseSource


@pytest.fixture
def scene():
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 5:9, 6:10] = 1
    return tiny("regions", autoencoder=True), image, mask


def paint(backbone, image, mask, seed=0, **more):
    return registry.call(
        "lesion_inpainting", backbone, image, mask=mask, steps=4, generator=NoiseSource([seed, seed + 1]), **more
    )


def test_outside_the_hole_the_image_is_the_source(scene):
    backbone, image, mask = scene
    made = paint(backbone, image, mask, dilation=3)
    far = masks.grow(mask, 3) == 0
    assert torch.equal(made.image[far], image[far])
    assert (made.image - image)[mask > 0].abs().mean() > 0.05


def test_the_mask_comes_out_as_the_label(scene):
    backbone, image, mask = scene
    made = paint(backbone, image, mask, prompt=["tumor", "healthy"])
    assert torch.equal(made.mask[0], mask[0])
    assert not made.mask[1].any()
    assert made.label == ["tumor", "healthy"]
    second = torch.zeros_like(mask)
    second[:, :, 11:14, 2:6] = 1
    both = paint(backbone, image, mask, erase=second, dilation=1)
    assert torch.equal(both.mask, mask)
    assert (both.image - image)[second > 0].abs().mean() > 0.05


def test_what_lay_in_the_hole_plays_no_part(scene):
    backbone, image, mask = scene
    other = torch.where(masks.grow(mask, 3) > 0, -image, image)
    one, two = (paint(backbone, x, mask, dilation=3).image for x in (image, other))
    assert torch.allclose(one[mask > 0], two[mask > 0], atol=1e-5)


def test_the_network_is_told_hole_regions_and_surroundings(scene):
    backbone, image, mask = scene
    seen = []

    class Ear(MonaiUNet):
        def __call__(self, x, t, condition):
            seen.append(condition)
            return super().__call__(x, t, condition)

    listening = dataclasses.replace(backbone, network=Ear(backbone.network.module, backbone.network.config))
    paint(listening, image, mask, dilation=2, scale=2.0)
    hole = masks.grow(mask, 2)
    small = torch.nn.functional.interpolate(torch.cat([0 * mask, mask, hole], 1), (8, 8), mode="area")
    known = backbone.encode(cut_out(image, hole))
    untold, told = seen[0].concat.chunk(2)
    assert torch.allclose(told, torch.cat([small, known], 1))
    assert torch.allclose(untold, torch.cat([0 * small[:, :2], small[:, 2:], known], 1))
    assert seen[0].labels.tolist() == [0, 0, 2, 2]


def test_bad_words_are_refused(scene):
    backbone, image, mask = scene
    with pytest.raises(DiffAugError, match="did you mean 'tumor'"):
        paint(backbone, image, mask, prompt="tumour")
    with pytest.raises(DiffAugError, match="needs regions_condition"):
        paint(tiny("class"), image, mask)
    with pytest.raises(DiffAugError, match="give regions and known"):
        backbone.conditioner(2, regions=torch.zeros(2, 3, 16, 16))


def test_its_checkpoint_loads(scene, tmp_path):
    backbone, image, mask = scene
    again = hub.load(hub.save(backbone, tmp_path / "ckpt", torch.float32))
    assert torch.allclose(paint(again, image, mask).image, paint(backbone, image, mask).image, atol=1e-5)


def test_a_widened_network_starts_as_the_narrow_one(scene):
    source = tiny("class_mask", autoencoder=True)
    config = {**scene[0].network.config}
    network = widened(MonaiUNet(instantiate(config), config), source.network, {0: 0, 1: 1, 2: 2, 3: 3, 5: 4})
    x, t, small = torch.randn(1, 4, 8, 8), torch.tensor([400.0]), torch.rand(1, 1, 8, 8)
    more = torch.cat([torch.rand(1, 1, 8, 8), small, torch.rand(1, 5, 8, 8)], 1)
    labels = torch.tensor([2])
    narrow = source.network(x, t, Condition(labels=labels, concat=torch.cat([small, 0 * small], 1)))
    assert torch.allclose(network(x, t, Condition(labels=labels, concat=more)), narrow, atol=1e-5)


def test_training_cuts_out_lesions_and_lesion_shaped_regions():
    g = torch.Generator().manual_seed(0)
    image = torch.full((64, 1, 32, 32), -1.0)
    image[:, :, 4:28, 4:28] = 0.2
    mask = torch.zeros(64, 1, 32, 32)
    mask[:32, :, 8:13, 9:14] = 1
    shapes = torch.zeros(3, 1, 32, 32)
    shapes[:, :, 2:6, 20:25] = 1
    told = Regions(RegionConditioner(("healthy", "tumor"), (8, 8), 1), lambda x: x[:, :, ::4, ::4], shapes, alone=0.2)
    maps = told.drawn(image, mask, Draws(g))
    free, lesion, hole = maps.chunk(3, 1)
    assert ((free > 0) & (masks.grow(mask, 3) > 0)).sum() == 0  # healthy regions keep away from lesions
    assert (lesion <= mask).all()
    assert (torch.maximum(free, lesion) <= hole).all()
    spared = (mask > 0) & (lesion == 0)
    assert not (hole[spared] > 0).any()  # what was not asked for is not in the hole
    cut = lesion.flatten(1).any(1)
    assert cut[:32].float().mean() > 0.5
    assert not cut[32:].any()
    assert free.flatten(1).any(1)[32:].all()
    found = told({"image": image, "mask": mask}, Draws(torch.Generator().manual_seed(1)))
    assert set(found.labels.tolist()) == {0, 1, 2}
    assert (found.concat.flatten(1).abs().sum(1) == 0).float().mean() == pytest.approx(0.2, abs=0.15)


def test_shapes_move_to_where_they_may_be():
    shape, allowed = torch.zeros(1, 10, 10), torch.zeros(1, 10, 10)
    shape[:, 1:3, 1:4], allowed[:, 5:, 5:] = 1, 1
    out = moved(shape, allowed, 0.5)
    assert out.sum() > 0
    assert (out <= allowed).all()
    assert moved(shape, 0 * allowed, 0.5).sum() == 0
