"""Forward and backward guidance and the repeats, against what they should do in closed form."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.backbones.ideal import gaussian
from monai_diffaug.methods.semantic.text_guided.universal_guidance import universal_guidance
from monai_diffaug.testing import digest_of, ideal_backbone, tiny
from monai_diffaug.types import DiffAugError, NoiseSource

SEEDS = range(6)


def brighter(images):
    """Wants a mean of one."""
    return (images.flatten(1).mean(1) - 1.0).square()


def made(backbone, **given):
    given = {"objective": brighter, "steps": 10, "rounds": 1, "generator": NoiseSource(SEEDS), **given}
    return universal_guidance(backbone, **given)


def test_one_image_a_seed_and_the_loss_of_each():
    sample = made(gaussian(shape=(1, 8, 8)))
    assert sample.image.shape == (6, 1, 8, 8)
    assert sample.info["loss"] == pytest.approx(brighter(sample.image).tolist())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("how", ["forward", "backward"])
def test_either_guidance_lowers_the_objective(dims, how):
    backbone = gaussian(shape=(1, *[8] * dims))
    free = made(backbone, forward_scale=0.0)
    strong = {"forward_scale": 10.0 * 8**dims} if how == "forward" else {"forward_scale": 0.0, "backward_steps": 20}
    led = made(backbone, **strong)
    assert max(led.info["loss"]) < 0.7 * min(free.info["loss"])


def test_repeats_mend_what_a_strong_guide_overshoots():
    """On independent voxels repeats cannot add up, but they settle where a single strong step goes too far."""
    backbone = gaussian(shape=(1, 8, 8))
    once, often = (sum(made(backbone, forward_scale=2000.0, rounds=k).info["loss"]) for k in (1, 5))
    assert often < 0.5 * once


def test_repeats_alone_do_not_change_the_distribution():
    """Renoising from t' to t and stepping down again samples the same Gaussian."""
    sample = made(gaussian(shape=(1, 16, 16)), forward_scale=0.0, rounds=4, steps=30)
    assert sample.image.mean() == pytest.approx(0.5, abs=0.02)
    assert sample.image.std() == pytest.approx(0.3, rel=0.1)


def test_without_guidance_it_is_plain_ddim():
    backbone = ideal_backbone()
    a = made(backbone, forward_scale=0.0, prompt="tumor", scale=1.0).image
    b = made(backbone, forward_scale=1e-9, prompt="tumor", scale=1.0).image
    assert torch.allclose(a, b, atol=1e-4)


def test_the_scorer_is_asked_by_name_and_stays_as_it_is():
    backbone = tiny("text")
    before = digest_of(backbone)
    given = {"target": "a head ct", "steps": 6, "generator": NoiseSource(range(3))}
    led = registry.call("universal_guidance", backbone, forward_scale=50.0, **given)
    free = registry.call("universal_guidance", backbone, forward_scale=0.0, **given)
    assert sum(led.info["loss"]) < sum(free.info["loss"])
    assert digest_of(backbone) == before


def test_what_it_cannot_ask_is_refused():
    with pytest.raises(DiffAugError, match="objective"):
        registry.call("universal_guidance", tiny("class"), generator=NoiseSource([0]))
    backbone = tiny("text")
    with pytest.raises(DiffAugError, match="target"):
        registry.call("universal_guidance", backbone, generator=NoiseSource([0]))
    with pytest.raises(DiffAugError, match="has no judge"):
        registry.call("universal_guidance", backbone, objective="judge", target="x", generator=NoiseSource([0]))
    with pytest.raises(DiffAugError, match="is unknown"):
        registry.call("universal_guidance", backbone, objective="jury", target="x", generator=NoiseSource([0]))
