"""Universal guidance: a network that reads clean images makes the untold backbone show what it asks for."""

import pytest

from monai_diffaug import registry
from monai_diffaug.types import NoiseSource
from tests.behaviour import real
from tests.behaviour.learned import share, unchanged

N, STEPS, STRENGTH = 8, 10, 60.0


def made(seed, target, **given):
    given = {"forward_scale": STRENGTH, "rounds": 4, "steps": STEPS, **given}
    generator = NoiseSource(range(100 * seed, 100 * seed + N))
    return registry.call(
        "universal_guidance", real.shipped("mednist"), target=f"a {target}", generator=generator, **given
    ).image


@pytest.mark.parametrize("seed", [0, 1])
def test_the_guide_is_followed(seed):
    """Guided by the scorer, measured by the judge. The paper's third claim, that the same clean network does worse
    inside plain classifier guidance, is not seen on this backbone: at the best of three strengths that reached 8 of 8
    breast MRIs, this 7 of 8, since the scorer reads the decoded noisy latents well enough."""
    backbone = real.shipped("mednist")
    before = unchanged(backbone)
    target = ("hand x-ray", "breast mri")[seed]
    often = share(made(seed, target), target)
    once = share(made(seed, target, rounds=1), target)
    free = share(made(seed, target, forward_scale=0.0, rounds=1), target)
    assert unchanged(backbone) == before
    assert often >= 0.7
    assert free < 0.4
    assert once < often
