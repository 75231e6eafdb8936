"""Blended Latent Diffusion's mechanism: what is kept outside, how thin masks survive, which candidate wins."""

from dataclasses import replace

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.primitives import masks
from monai_diffaug.testing import ideal_backbone, tiny
from monai_diffaug.types import DiffAugError, NoiseSource

METHOD = "blended_latent_diffusion"


def case(dims=2):
    backbone = tiny("text", dims, 16 if dims == 2 else 8, autoencoder=True)
    image = torch.rand(2, 1, *backbone.contract.size) * 2 - 1
    mask = torch.zeros_like(image)
    mask[(..., *[slice(2, 6)] * dims)] = 1
    return backbone, image, mask


def call(backbone, image, mask, **more):
    given = {"prompt": "a large head ct", "mask": mask, "steps": 4, "generator": NoiseSource(range(len(image))), **more}
    return registry.call(METHOD, backbone, image, **given)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("background", ["decoder", "latent", "paste"])
def test_the_background_is_restored(background, dims):
    """On a random autoencoder, which keeps nothing; what it does to the inside is measured on a trained one."""
    backbone, image, mask = case(dims)
    plain = call(backbone, image, mask, background="none").image
    made = call(backbone, image, mask, background=background)
    outside = mask == 0
    assert (made.image - image)[outside].abs().mean() < 0.8 * (plain - image)[outside].abs().mean()
    if background == "paste":
        assert torch.equal(made.image, torch.where(outside, image, plain))
    before, after = made.info["background"][0]
    assert before == pytest.approx(float((plain - image)[:1][outside[:1]].abs().mean()), rel=1e-4)
    assert after == pytest.approx(float((made.image - image)[:1][outside[:1]].abs().mean()), rel=1e-4)


def test_pixel_models_lose_nothing_outside():
    backbone = ideal_backbone()
    image = backbone.network.module.points[:2].float()
    mask = torch.zeros_like(image)
    mask[..., 4:9, 4:9] = 1
    made = call(backbone, image, mask, prompt="tumor").image
    assert torch.equal(made[mask == 0], image[mask == 0])
    assert (made - image)[mask == 1].abs().mean() > 0.05


def test_a_grown_mask_shrinks_to_the_true_one(monkeypatch):
    backbone = ideal_backbone()
    image = backbone.network.module.points[:1].float()
    mask = torch.zeros_like(image)
    mask[..., 7:8, 7:8] = 1
    areas, real = [], masks.blend
    monkeypatch.setattr(masks, "blend", lambda a, b, m: areas.append(float(m.sum())) or real(a, b, m))
    call(backbone, image, mask, prompt="tumor", dilation=3, steps=20)
    assert areas[0] == 49.0
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] == 1.0


def test_the_best_candidate_is_returned_whatever_the_batch():
    backbone, image, mask = case()

    class Brightness:  # a scorer that likes bright pictures
        module = torch.nn.Identity()

        def __call__(self, images, prompts):
            assert len(prompts) == len(images)
            return images.mean((1, 2, 3))

    fond = replace(backbone, scorer=Brightness())
    best = call(fond, image, mask, candidates=4, background="none").image
    each = [
        call(backbone, image, mask, background="none", generator=NoiseSource(seeds)).image
        for seeds in zip(*[iter(NoiseSource([0, 1]).spawn(4).seeds)] * 2)
    ]
    brightest = torch.stack(each).mean((2, 3, 4)).amax(0)
    assert torch.allclose(best.mean((1, 2, 3)), brightest, atol=1e-5)
    alone = call(fond, image[1:], mask[1:], candidates=4, background="none", generator=NoiseSource([1])).image
    assert torch.allclose(best[1:], alone, atol=1e-4)


def test_refusals():
    backbone, image, mask = case()
    with pytest.raises(DiffAugError, match="decoder, latent, paste, none"):
        call(backbone, image, mask, background="poisson")
    with pytest.raises(DiffAugError, match="scorer"):
        call(replace(backbone, scorer=None), image, mask, candidates=2)
