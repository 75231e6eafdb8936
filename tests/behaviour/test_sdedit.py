"""SDEdit: strength trades faithfulness to a crude guide for realism, from the guide itself to a free sample."""

from functools import cache

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.testing import ideal_backbone
from monai_diffaug.types import NoiseSource

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 1.0)


@cache
def sweep(seed: int):
    """Distance to the guide and to the nearest picture of the exact model, for crude drawings of its pictures."""
    backbone = ideal_backbone(labels=False)
    pictures = backbone.network.module.points.float()
    # a drawing: two gray levels, in blocks
    guide = torch.nn.functional.interpolate(pictures, (8, 8), mode="area")
    guide = torch.nn.functional.interpolate((guide > -0.5).float() - 0.8, (16, 16))
    faithful, real = [], []
    for strength in STRENGTHS:
        seeds = NoiseSource(range(100 * seed, 100 * seed + len(guide)))
        made = registry.call("sdedit", backbone, guide, strength=strength, steps=20, generator=seeds).image
        faithful.append(float((made - guide).square().mean()))
        real.append(float(torch.cdist(made.flatten(1), pictures.flatten(1)).amin(1).mean()))
    return faithful, real


@pytest.mark.parametrize("seed", [0, 1])
def test_more_strength_is_less_like_the_guide_and_more_like_the_data(seed):
    faithful, real = sweep(seed)
    assert faithful[0] == 0.0, "strength 0 is the identity"
    assert faithful == sorted(faithful)
    assert all(b <= 1.05 * a for a, b in zip(real, real[1:])), (
        "down to the spread that the data has around its pictures"
    )
    assert real[2] < 0.5 * real[0], "already at 0.4 the drawing has become a picture"
    assert real[-1] < 0.5 * real[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_half_way_it_is_a_picture_of_what_was_drawn_which_a_free_sample_is_not(seed):
    faithful, _ = sweep(seed)
    assert faithful[2] < 0.7 * faithful[-1]
