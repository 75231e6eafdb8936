"""How well classes are told apart, for any weighting of the images, so that a bootstrap costs one matrix product.

The figures are scikit-learn's (macro averages, a precision without any prediction is 0), which cannot take thousands of
weightings at once; they agree with it to rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import DiffAugError

__all__ = ["area", "auroc", "class_figures", "macro_figures"]

Floats = NDArray[np.float64]


def _confusions(probabilities: Floats, truth: NDArray[np.int64], weights: Floats) -> Floats:
    """(D, K, K): weight of the images of each true (row) and told (column) class."""
    k = probabilities.shape[1]
    cell = truth * k + probabilities.argmax(1)
    return (weights @ np.eye(k * k)[cell]).reshape(-1, k, k)


def _ratio(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve, ties counting half.

    Args:
        scores: (N,), higher for positives.
        positive: (N,).
        weights: (D, N), how often each image counts.

    Returns:
        (D,); not a number where a weighting leaves one class only.

    Raises:
        DiffAugError: there is one class only in ``positive``: no area is defined, and 0.5 would be a lie.
    """
    if positive.all() or not positive.any():
        raise DiffAugError("AUROC wants images of both kinds, there is one only: leave it out of the metrics")
    return area(scores, positive, weights)


def area(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """The same (D,), not a number where there is one class only."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    w, y = weights[:, order], positive[order]
    hit, miss = (np.add.reduceat(w * side, starts, axis=1) for side in (y, ~y))
    pairs = hit.sum(1) * miss.sum(1)
    above = (hit * (np.cumsum(miss, 1) - miss / 2)).sum(1)
    return np.divide(above, pairs, out=np.full(len(w), np.nan), where=pairs > 0)


def class_figures(probabilities: Floats, truth: NDArray[np.int64], weights: Floats) -> dict[str, Floats]:
    """``precision``, ``recall`` and ``f1`` of each class, (D, K)."""
    table = _confusions(probabilities, truth, weights)
    right = np.einsum("dkk->dk", table)
    precision, recall = _ratio(right, table.sum(1)), _ratio(right, table.sum(2))
    return {"precision": precision, "recall": recall, "f1": _ratio(2 * right, table.sum(1) + table.sum(2))}


def macro_figures(probabilities: Floats, truth: NDArray[np.int64], weights: Floats, name: str) -> Floats:
    """One of ``accuracy``, ``balanced_accuracy``, ``precision``, ``recall``, ``f1``, ``auroc`` (one class against the
    rest), (D,).

    ``balanced_accuracy`` is the mean recall of the classes that are there; the other means are over all classes.
    """
    if name == "accuracy":
        table = _confusions(probabilities, truth, weights)
        return _ratio(np.einsum("dkk->d", table), table.sum((1, 2)))
    if name == "auroc":
        k = probabilities.shape[1]
        each = range(1, 2) if k == 2 else range(k)
        areas: Floats = np.mean([auroc(probabilities[:, i], truth == i, weights) for i in each], axis=0)
        return areas
    figures = class_figures(probabilities, truth, weights)
    if name == "balanced_accuracy":
        there = _confusions(probabilities, truth, weights).sum(2) > 0
        return _ratio((figures["recall"] * there).sum(1), there.sum(1).astype(float))
    means: Floats = figures[name].mean(1)
    return means
