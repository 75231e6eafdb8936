"""Overlap of outlines with masks, from pixel counts, for any weighting of the images.

Images without a lesion have no Dice: MONAI's ``DiceMetric`` drops them from the mean or, told not to, calls them 1 or
0. Both hide what happened there. So they are left out of Dice and IoU, and what is outlined on them is a figure of its
own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["false_positive_area", "overlap"]

Floats = NDArray[np.float64]


def overlap(both: Floats, drawn: Floats, true: Floats, weights: Floats, name: str = "dice") -> Floats:
    """Mean Dice or IoU over the images with a lesion (mean of cases, not of pooled pixels).

    Args:
        both: (N,) pixels in outline and mask.
        drawn: (N,) pixels in the outline.
        true: (N,) pixels in the mask.
        weights: (D, N), how often each image counts.
        name: ``dice`` or ``iou``.

    Returns:
        (D,); not a number where no image with a lesion counts.
    """
    there = true > 0
    a, b, c = both[there], drawn[there], true[there]
    each = 2 * a / (b + c) if name == "dice" else a / (b + c - a)
    return _mean(each, weights[:, there])


def false_positive_area(drawn: Floats, true: Floats, pixels: int, weights: Floats) -> Floats:
    """Mean share of the image that is outlined where there is no lesion, (D,); 0 is best."""
    empty = true == 0
    return _mean(drawn[empty] / pixels, weights[:, empty])


def _mean(each: Floats, weights: Floats) -> Floats:
    total = weights.sum(1)
    found = np.full(len(weights), np.nan)
    np.divide(weights @ each, total, out=found, where=total > 0)
    return found
