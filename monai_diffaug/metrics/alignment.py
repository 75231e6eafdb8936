"""Does an image show what was asked for: by a dual encoder that was shown to be trusted, a classifier, or a ruler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..types import DiffAugError
from .lesions import Interval, bootstrap

__all__ = ["TRUSTED", "Aligned", "aligned", "consistency", "covariate", "trust"]

TRUSTED = 0.9
"""How well a scorer must tell real pairs from exchanged ones before models are ranked by it."""


@dataclass(frozen=True)
class Aligned:
    """Mean similarity of images and their prompts: ``synthetic``, of ``real`` pairs, and of synthetic ones exchanged.

    ``trust`` is the area under the curve of real pairs against real images with other texts.
    """

    synthetic: Interval
    real: Interval
    exchanged: Interval
    trust: float


def _others(texts: Sequence[str], images: Tensor, embedded: Tensor) -> Tensor:
    """Similarities (k,) of images with texts of the same set that say something else than theirs."""
    kinds = np.unique(np.asarray(texts, str), return_inverse=True)[1]
    differ = torch.from_numpy(kinds[:, None] != kinds[None])
    return (images @ embedded.T)[differ]


def trust(images: Tensor, embedded: Tensor, texts: Sequence[str]) -> float:
    """Area under the curve of real pairs' similarities against those of real images with other images' texts.

    Args:
        images: unit vectors (n, D) of real images.
        embedded: unit vectors (n, D) of their texts.
        texts: (n,), the texts themselves; another image's text that says the same is no other text.

    Raises:
        DiffAugError: the shapes differ, or all texts are one.
    """
    if images.shape != embedded.shape or len(images) != len(texts):
        raise DiffAugError(f"{tuple(images.shape)} images and {tuple(embedded.shape)} texts do not fit: give pairs")
    if len(set(texts)) < 2:
        raise DiffAugError("all texts say the same, so that pairs cannot be exchanged: give images with other texts")
    own, other = (images * embedded).sum(1), _others(texts, images, embedded)
    below = (own[:, None] > other).double().mean() + 0.5 * (own[:, None] == other).double().mean()
    return float(below)


def _mean(values: Tensor, seed: int) -> Interval:
    kept = values.double().numpy()
    return bootstrap(lambda w: float(w @ kept / w.sum()), len(kept), seed=seed)


def aligned(
    real: tuple[Tensor, Tensor, Sequence[str]],
    synthetic: tuple[Tensor, Tensor, Sequence[str]],
    *,
    least: float = TRUSTED,
    seed: int = 0,
) -> Aligned:
    """Cosine similarity of synthetic images and their prompts (CLIPScore without its factor, Hessel et al. 2021).

    Args:
        real: unit vectors (n, D) of images and of their texts, and the texts; of the same kind as the synthetic ones.
        synthetic: likewise, of what was asked for.
        least: trust below which nothing is said: a scorer that does not know these images ranks models by accident.
        seed: of the draws for the intervals.

    Raises:
        DiffAugError: the scorer cannot be trusted on these images.
    """
    found = trust(*real)
    if found < least:
        raise DiffAugError(
            f"this scorer tells real images with their texts from exchanged ones with an AUROC of {found:.2f}, below "
            f"{least}: use one that knows this kind of image"
        )
    made = _others(synthetic[2], *synthetic[:2]) if len(set(synthetic[2])) > 1 else torch.full((1,), float("nan"))
    return Aligned(
        _mean((synthetic[0] * synthetic[1]).sum(1), seed),
        _mean((real[0] * real[1]).sum(1), seed),
        _mean(made, seed),
        found,
    )


def consistency(asked: Sequence[int], probabilities: Tensor, seed: int = 0) -> tuple[Interval, float]:
    """Share of images of which a classifier says what was asked for, and the share by chance, prompts exchanged.

    Args:
        asked: class (n,) that each image was to show.
        probabilities: (n, K) of a classifier trained on real images that no generator and no filter has used.
        seed: of the draws.

    Raises:
        DiffAugError: the numbers differ.
    """
    if len(asked) != len(probabilities):
        raise DiffAugError(f"{len(asked)} prompts and {len(probabilities)} images do not fit: give one an image")
    said, wanted = probabilities.argmax(1), torch.as_tensor(list(asked))
    shares = [torch.bincount(x, minlength=probabilities.shape[1]).double() / len(x) for x in (said, wanted)]
    chance = float(shares[0] @ shares[1])
    return _mean((said == wanted).double(), seed), chance


def covariate(asked: Sequence[float], measured: Sequence[float], seed: int = 0) -> tuple[Interval, float]:
    """Rank correlation of what was asked for (age, lesion volume) and what is measured, and the mean absolute miss.

    Raises:
        DiffAugError: fewer than three pairs, or the same was asked of all.
    """
    a, b = np.asarray(asked, float), np.asarray(measured, float)
    if a.shape != b.shape or len(a) < 3 or np.ptp(a) == 0:
        raise DiffAugError("a rank correlation wants three or more pairs, and different numbers asked for")
    rng = np.random.default_rng(seed)
    draws = [spearmanr(a[i], b[i]).statistic for i in rng.integers(0, len(a), (500, len(a))) if np.ptp(a[i]) > 0]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(float(spearmanr(a, b).statistic), float(low), float(high)), float(np.abs(a - b).mean())
