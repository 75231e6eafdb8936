"""RePaint: walking steps over again makes the filling agree with what surrounds it, which more steps alone do not."""

import pytest
import torch
import torch.nn.functional as F

from monai_diffaug import registry
from monai_diffaug.backbones.ideal import ideal
from monai_diffaug.types import NoiseSource


def agreement(seed: int, n: int = 36, **given) -> float:
    """How often the filling belongs to the picture that the known quarter was cut from.

    A model of twelve smooth pictures, exact: what is wrong is the sampler's doing.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = F.interpolate(torch.randn(12, 1, 6, 6, generator=generator), (16, 16), mode="bicubic")
    pictures = 0.9 * pictures / pictures.abs().amax((1, 2, 3), keepdim=True)
    which = torch.arange(n) % 12
    image = pictures[which] + 0.05 * torch.randn(n, 1, 16, 16, generator=generator)
    mask = torch.zeros_like(image)
    mask[..., 4:] = 1
    seeds = NoiseSource(range(seed * 100, seed * 100 + n))
    made = registry.call("repaint", ideal(pictures, spread=0.05), image, mask=mask, generator=seeds, **given).image
    assert torch.equal(made[mask == 0], image[mask == 0]), "known pixels are exact"
    found = torch.cdist(made[..., 4:].flatten(1), pictures[..., 4:].flatten(1)).argmin(1)
    return float((found == which).float().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_jumps_beat_the_same_number_of_steps_without(seed):
    """25 steps walked ten times (241 network calls) against 250 steps walked once; measured 0.65 and 0.77 against 0.29
    and 0.35 with n = 48.
    """
    jumping = agreement(seed, steps=25, jump_length=4, rounds=10)
    straight = agreement(seed, steps=250, rounds=1)
    assert jumping > straight + 0.2
    assert jumping > 0.5
