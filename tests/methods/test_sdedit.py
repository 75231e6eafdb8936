"""SDEdit's mechanism: where it starts, and what a mask keeps."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.testing import ideal_backbone, tiny
from monai_diffaug.types import NoiseSource


def masked(image):
    mask = torch.zeros_like(image)
    mask[..., 4:12, 4:12] = 1
    return mask


def test_outside_the_mask_pixels_come_back_exactly():
    backbone = tiny("none", autoencoder=True)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    mask = masked(image)
    made = registry.call("sdedit", backbone, image, mask=mask, steps=6, generator=NoiseSource([1, 2])).image
    assert torch.equal(made[mask == 0], image[mask == 0])
    assert not torch.equal(made, image)


def test_the_noise_outside_the_mask_is_the_draw_that_the_image_was_spliced_in_with():
    """So that what lies outside moves along one straight line to the source; a fresh draw a step would not."""
    backbone = ideal_backbone(labels=False)
    seen = []
    inner = backbone.network

    class Watched:
        module = inner.module
        attention_sites, feature_sites = inner.attention_sites, inner.feature_sites

        def __call__(self, x, t, condition):
            level = backbone.schedule.at(float(t[0]))
            seen.append((x - level.alpha * image) / level.sigma)
            return inner(x, t, condition)

    from dataclasses import replace

    image = inner.module.points[:1].float()
    mask = masked(image)
    registry.call(
        "sdedit", replace(backbone, network=Watched()), image, mask=mask, steps=10, generator=NoiseSource([3])
    )
    for noise in seen[1:-1]:
        assert noise[mask == 0] == pytest.approx(seen[0][mask == 0], abs=1e-3)


def test_rounds_feed_the_output_back():
    backbone = ideal_backbone(labels=False)
    image = backbone.network.module.points[:1] + 0.5
    source = NoiseSource([3])
    twice = registry.call("sdedit", backbone, image, rounds=2, steps=10, solver="ddim", generator=source).image
    again = NoiseSource([3])
    once = registry.call("sdedit", backbone, image, steps=10, solver="ddim", generator=again).image
    by_hand = registry.call("sdedit", backbone, once, steps=10, solver="ddim", generator=again).image
    assert torch.allclose(twice, by_hand, atol=1e-5)


def test_strength_moves_it_from_the_image_to_the_model():
    """On the exact denoiser of a few heads, from a picture that is none of them."""
    backbone = ideal_backbone(labels=False)
    points = backbone.network.module.points.float()
    image = points[:8].flip(-2) * 0.8
    far = [
        float(
            (
                registry.call("sdedit", backbone, image, strength=s, steps=20, generator=NoiseSource(range(8))).image
                - image
            )
            .square()
            .mean()
        )
        for s in (0.0, 0.2, 0.4, 0.6, 1.0)
    ]
    assert far[0] == 0.0
    assert far == sorted(far)
