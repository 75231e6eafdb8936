"""Blended Latent Diffusion: a lesion drawn inside a mask of a healthy slice, the rest of the slice given back."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.primitives import told
from monai_diffaug.types import NoiseSource

from . import real

SEEDS = (0, 1)


def drawn(seed, prompt, background="none", n=8):
    """Healthy slices of test patients, each inside the outline of another patient's lesion."""
    well, _ = real.slices("without")
    _, masks = real.slices("with")
    backbone, region = real.shipped("brain_mri"), masks.roll(1, 0)[:n]
    empty = region if prompt == "tumor" else torch.zeros_like(region)
    return registry.call(
        "blended_latent_diffusion",
        told.with_mask(backbone, empty),
        well[:n],
        prompt=prompt,
        mask=region,
        scale=3.0,
        steps=16,
        background=background,
        generator=NoiseSource(range(100 * seed, 100 * seed + n)),
    )


def tumor(images):
    judge = real.shipped("brain_mri").judge
    return float(judge.classify(images.clamp(-1, 1))[:, judge.labels.index("tumor")].mean())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_prompt_shows_inside_the_mask(seed):
    """The judge's probability of tumor: 0.07 before, 0.77 and 0.71 told tumor (seeds 0 and 1), 0.05 and 0.06 told
    healthy in the same mask.
    """
    inside, other = tumor(drawn(seed, "tumor").image), tumor(drawn(seed, "healthy").image)
    assert inside > 0.7
    assert other < inside - 0.4


@pytest.mark.parametrize("seed", SEEDS)
def test_the_decoder_gives_the_source_back_outside(seed):
    """Error outside the mask after fine-tuning the decoder, as a share of that before: 0.52, 0.41, 0.53, 0.40. The
    quarter that is reached on Stable Diffusion's decoder is not, at the paper's 75 steps of 1e-4; the bar is 0.6.
    """
    pairs = torch.tensor(drawn(seed, "tumor", "decoder", n=2).info["background"])
    assert (pairs[:, 1] < 0.6 * pairs[:, 0]).all()
