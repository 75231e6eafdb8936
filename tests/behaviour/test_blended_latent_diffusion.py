"""Blended Latent Diffusion on slices without a lesion: one is drawn where the mask says, and nothing else changes."""

import pytest

from monai_diffaug import registry
from monai_diffaug.primitives import told
from monai_diffaug.types import NoiseSource

from . import real


def drawn(seed, n=8, knows=True, **given):
    """Lesions in healthy slices, inside the outlines of another patient's; the backbone is told the mask, or not."""
    backbone, (well, _), (_, masks) = real.shipped("brain_mri"), real.slices("without"), real.slices("with")
    region = masks.roll(1 + seed, 0)[:n]
    model = told.with_mask(backbone, region) if knows else backbone
    made = registry.call(
        "blended_latent_diffusion",
        model,
        well[:n],
        mask=region,
        scale=3.0,
        steps=20,
        generator=NoiseSource(range(100 * seed, 100 * seed + n)),
        **{"prompt": "tumor", "background": "none", **given},
    )
    return well[:n], region, made


def tumor(images):
    judge = real.shipped("brain_mri").judge
    return float(judge.classify(images.clamp(-1, 1))[:, judge.labels.index("tumor")].mean())


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_lesion_is_drawn_inside(seed):
    """A classifier says tumor with 0.76 (bar 0.7) where it said 0.07, and the region is brighter by 0.55. Controls: the
    same without telling the mask (0.44), and the prompt "healthy" in the region.
    """
    well, region, made = drawn(seed)
    assert tumor(well) < 0.2
    assert tumor(made.image) > 0.7
    assert ((made.image - well) * region).sum() / region.sum() > 0.25
    assert tumor(drawn(seed, knows=False)[2].image) < tumor(made.image)
    assert tumor(drawn(seed, knows=False, prompt="healthy")[2].image) < 0.5 * tumor(made.image)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_decoder_restores_what_lies_outside(seed):
    """To 45 to 52 % of plain decoding's error after the paper's 75 iterations at 1e-4, on a decoder of 0.2 million
    weights; the dossier's 25 % is out of its reach at any rate (5e-4: 37 %, 2e-3: 48 %). `paste` leaves none. What was
    drawn keeps three quarters of its contrast to the source at least.
    """
    well, region, made = drawn(seed, n=1, background="decoder")
    before, after = made.info["background"][0]
    assert after < 0.6 * before
    _, _, plain = drawn(seed, n=1)
    moved = ((made.image - plain.image).abs() * region).sum() / region.sum()
    assert moved < 0.35 * ((plain.image - well).abs() * region).sum() / region.sum(), "what was drawn stays"
