"""DiffEdit on test patients: it finds the lesion by itself, and spares the rest of the image."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.primitives import masks
from monai_diffaug.types import NoiseSource

from . import real


def overlap(found, true):
    both = ((found > 0) & (true > 0)).flatten(1).sum(1)
    return float((both / ((found > 0) | (true > 0)).flatten(1).sum(1)).mean())


def call(seed, **given):
    sick, _ = real.slices("with")
    return registry.call(
        "diffedit",
        real.shipped("brain_mri"),
        sick,
        prompt="healthy",
        source_prompt="tumor",
        scale=3.0,
        steps=12,
        draws=6,
        generator=NoiseSource(range(8 * seed, 8 * seed + 8)),
        **{"threshold": 0.8, **given},
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_mask_lies_on_the_lesion(seed):
    """0.44 at a threshold of 0.8. At the paper's 0.5 it is 0.25: these lesions are a twentieth of the slice, the mask a
    fifth. A random mask as large, and the mask for a prompt against itself, are the controls.
    """
    _, true = real.slices("with")
    true = masks.to_latent(true, torch.zeros(8, 4, 24, 24))
    found = torch.nn.functional.interpolate(call(seed, strength=0.1).map, (24, 24), mode="nearest")
    shuffled = found.flatten(1)[:, torch.randperm(24 * 24, generator=torch.Generator().manual_seed(seed))]
    assert overlap(found, true) >= 0.35
    assert overlap(found, true) > 3 * overlap(shuffled.reshape(found.shape), true)
    assert overlap(found, true.roll(1, 0)) < 0.5 * overlap(found, true), "another patient's lesion"
