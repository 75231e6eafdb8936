"""What is shared by the measurements of learned concepts: samples of a prompt, and what the judge says of them."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffaug.primitives import concepts, finetuning
from monai_diffaug.types import Backbone, Concept
from tests.behaviour import real

KEPT_OUT = "head ct"
"""The modality that `mednist` was not trained on: what personalization learns."""


def subject() -> Tensor:
    """Five test images of it."""
    return real.films(KEPT_OUT)[:5]


def samples(prompt: str, *known: Concept, n: int = 24, seed: int = 0, scale: float = 2.0, steps: int = 12) -> Tensor:
    """Images (n, 1, 64, 64) that `mednist`, with concepts on it, makes of a prompt."""
    with concepts.applied(real.shipped("mednist"), *known) as taught, torch.no_grad():
        return taught.decode(finetuning.drawn(taught, n, 1000 + 100 * seed, prompt=prompt, scale=scale, steps=steps))


def share(images: Tensor, label: str) -> float:
    """How many of the images the judge takes for ``label``."""
    judge = real.shipped("mednist").judge
    return float((judge.classify(images).argmax(1) == judge.labels.index(label)).float().mean())


def spread(images: Tensor) -> float:
    """Mean distance between pairs in the judge's features."""
    found = real.shipped("mednist").judge.features(images)
    n = len(found)
    return float(torch.cdist(found, found).sum() / (n * (n - 1)))


def unchanged(backbone: Backbone) -> str:
    """Digest of every weight."""
    from monai_diffaug.testing import digest_of

    return digest_of(backbone)
