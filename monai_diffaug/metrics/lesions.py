"""How well a map shows lesions: precision-recall, Dice at a threshold found elsewhere, intervals over patients.

Patients, not voxels, are what a result must hold for: every interval comes from drawing patients with replacement.
Scores are counted in bins first, patient by patient, so that a thousand draws cost no more than one sorting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..types import DiffAugError

__all__ = [
    "Counts",
    "Interval",
    "best_threshold",
    "bootstrap",
    "change_map",
    "count",
    "dice",
    "region_overlap",
    "smoothed",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Counts:
    """Voxels of each patient by score: ``inside`` (P, bins) lesions, ``outside`` (P, bins), highest scores first.

    ``edges`` (bins,) are the least scores of the bins.
    """

    inside: Floats
    outside: Floats
    edges: Floats
    patients: tuple[str, ...]

    def auprc(self, weights: Floats | None = None) -> float:
        """Area under the precision-recall curve over all voxels (average precision, as scikit-learn's).

        Args:
            weights: (P,), how often each patient counts; once unless given.
        """
        hit, miss = self._sums(weights)
        total = hit[-1]
        if total == 0:
            return float("nan")
        gained = np.diff(hit, prepend=0.0)
        return float((gained * hit / np.maximum(hit + miss, 1e-12)).sum() / total)

    def auroc(self, weights: Floats | None = None) -> float:
        """Area under the receiver operating characteristic; ties within a bin count half."""
        hit, miss = self._sums(weights)
        gained, before = np.diff(miss, prepend=0.0), np.concatenate([[0.0], hit[:-1]])
        return float((gained * (before + hit) / 2).sum() / max(hit[-1] * miss[-1], 1e-12))

    def dice(self, threshold: float) -> Floats:
        """Dice of each patient (P,), all voxels of a patient together, for scores of at least ``threshold``."""
        keep = self.edges >= threshold
        hit, found = self.inside[:, keep].sum(1), (self.inside + self.outside)[:, keep].sum(1)
        return 2 * hit / np.maximum(found + self.inside.sum(1), 1e-12)

    def _sums(self, weights: Floats | None) -> tuple[Floats, Floats]:
        w = np.ones(len(self.patients)) if weights is None else weights
        return np.cumsum(w @ self.inside), np.cumsum(w @ self.outside)


def smoothed(x: Tensor, voxels: int = 9) -> Tensor:
    """Means (N, C, *S) over boxes of ``voxels`` (odd) a side; the same for every map that is compared."""
    if voxels <= 1:
        return x
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    return pool(x, voxels, stride=1, padding=voxels // 2, count_include_pad=False)


def change_map(before: Tensor, after: Tensor, sign: int = 0, voxels: int = 9) -> Tensor:
    """A lesion map of an image and its healthy counterfactual.

    Args:
        before: (N, C, *S), as the autoencoder reconstructs it, so that its own loss does not count.
        after: the counterfactual.
        sign: 1 counts what has become darker (lesions are bright, as on FLAIR), -1 what has become brighter, 0 both.
        voxels: side of the box that is averaged over.

    Returns:
        (N, 1, *S), not negative, the mean over channels in the images' units.
    """
    change = before - after
    change = change.abs() if sign == 0 else (sign * change).clamp(min=0)
    return smoothed(change.mean(1, keepdim=True), voxels)


def count(maps: Tensor, masks: Tensor, patients: Sequence[str], bins: int = 4096) -> Counts:
    """Count voxels by score.

    Args:
        maps: (N, 1, *S), higher where a lesion is likelier.
        masks: (N, 1, *S), above 0 in lesions.
        patients: (N,), whose each is.
        bins: number of scores told apart, of equal shares of the voxels.

    Raises:
        DiffAugError: the shapes differ, a map is not finite, or no voxel is lesion.
    """
    if maps.shape != masks.shape or len(maps) != len(patients):
        raise DiffAugError(
            f"maps {tuple(maps.shape)}, masks {tuple(masks.shape)} and {len(patients)} patients do not fit: give one "
            "mask and one patient a map"
        )
    if not bool(maps.isfinite().all()) or not bool((masks > 0).any()):
        raise DiffAugError("maps must be finite and some voxel must be lesion: check what was read")
    scores = maps.detach().double().flatten(1).cpu().numpy()
    lesion = (masks.flatten(1) > 0).cpu().numpy()
    # Lesions are rare, so that half of the bins are of equal shares of their voxels.
    both = (scores.ravel(), scores[lesion])
    cuts = np.unique(np.concatenate([np.quantile(s, np.linspace(0, 1, bins // 2), method="lower") for s in both]))
    edges = cuts[::-1]
    names = tuple(dict.fromkeys(patients))
    inside, outside = np.zeros((len(names), len(edges))), np.zeros((len(names), len(edges)))
    for row, mask, patient in zip(scores, lesion, patients, strict=True):
        place = len(edges) - np.searchsorted(cuts, row, side="right")
        p = names.index(patient)
        inside[p] += np.bincount(place[mask], minlength=len(edges))
        outside[p] += np.bincount(place[~mask], minlength=len(edges))
    return Counts(inside, outside, edges, names)


def best_threshold(counts: Counts) -> float:
    """The score from which on voxels are called lesion with the highest mean Dice over patients.

    To be found on development patients, and used on others.
    """
    hit, found = np.cumsum(counts.inside, 1), np.cumsum(counts.inside + counts.outside, 1)
    mean = (2 * hit / np.maximum(found + counts.inside.sum(1, keepdims=True), 1e-12)).mean(0)
    return float(counts.edges[int(mean.argmax())])


def dice(a: Tensor, b: Tensor) -> Tensor:
    """Dice of pairs of masks (B, 1, *S), one number a pair (B,); 1 where both are empty."""
    a, b = (a > 0).flatten(1).double(), (b > 0).flatten(1).double()
    total = a.sum(1) + b.sum(1)
    return torch.where(total > 0, 2 * (a * b).sum(1) / total.clamp(min=1), 1.0)


def region_overlap(maps: Tensor, masks: Tensor, most: float = 0.3) -> float:
    """How much of each lesion is found, small ones counting as much as large ones (Bergmann et al. 2021, section 4.2).

    The mean share of a connected lesion above a threshold, over false positive rates from 0 to ``most`` and divided by
    that: 1 for a map that is right, ``most / 2`` for one that says nothing.

    Args:
        maps: (N, 1, *S), higher where a lesion is likelier.
        masks: (N, 1, *S), above 0 in lesions.
        most: false positive rate up to which it is told.

    Raises:
        DiffAugError: the shapes differ, no voxel is lesion, or all are.
    """
    inside = (masks > 0).cpu().numpy()
    if maps.shape != masks.shape or not inside.any() or inside.all():
        raise DiffAugError(
            f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} do not fit, or hold lesions nowhere or everywhere"
        )
    weight, regions = np.zeros(inside.shape), 0
    for i, mask in enumerate(inside[:, 0]):
        parts, n = ndimage.label(mask)
        sizes = np.bincount(parts.ravel(), minlength=n + 1)
        weight[i, 0] = np.where(mask, 1 / np.maximum(sizes[parts], 1), 0)
        regions += n
    scores = maps.detach().double().cpu().numpy().ravel()
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # a threshold takes all voxels of one score
    found = np.append(0.0, np.cumsum(weight.ravel()[order])[last] / regions)
    false = np.append(0.0, np.cumsum(~inside.ravel()[order])[last] / (~inside).sum())
    at = np.unique(np.append(false[false < most], most))
    best = found[np.searchsorted(false, at[:-1], "right") - 1]  # where the rate stands still, the highest share counts
    return float(np.trapezoid(np.append(best, np.interp(most, false, found)), at) / most)


def bootstrap(
    statistic: Callable[[Floats], float], patients: int, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """A figure's percentile interval over patients (Efron and Tibshirani 1993, section 13.3).

    Args:
        statistic: of how often each patient counts (P,); all ones give the figure itself. The difference of two
            methods is a statistic like any other, and its interval is that of the paired comparison.
        patients: P.
        draws: samples of P patients with replacement.
        seed: of the draws: the same patients for whatever is compared.
        level: of the interval.
    """
    rng = np.random.default_rng(seed)
    found = [
        statistic(np.bincount(rng.integers(0, patients, patients), minlength=patients).astype(np.float64))
        for _ in range(draws)
    ]
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistic(np.ones(patients)), float(low), float(high))
