"""Would copies have been found: planted ones, in the user's own images, and false alarms on patients left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .copies import CopyFinder

__all__ = ["CHANGES", "c_t", "changed", "false_alarms", "recall"]

REQUIRED = ("shifted", "flipped", "brightened")
"""Changes under which copies must be found; the others are told beside them."""


def _between(g: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=g))


def _shifted(x: Tensor, g: torch.Generator) -> Tensor:
    """Up to a tenth of a side; what comes in at the edge is as the edge was."""
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        by = round(_between(g, -0.1, 0.1) * n)
        x = x.index_select(axis, (torch.arange(n) + by).clamp(0, n - 1))
    return x


def _turned(x: Tensor, angle: float, scale: float = 1.0) -> Tensor:
    """In the plane of the last two axes."""
    c, s = math.cos(angle) * scale, math.sin(angle) * scale
    matrix = torch.eye(x.ndim - 2, x.ndim - 1)
    matrix[:2, :2] = torch.tensor([[c, -s], [s, c]])
    if x.ndim == 5:
        matrix[2, 2] = scale
    grid = F.affine_grid(matrix[None], list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


CHANGES: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "exact": lambda x, g: x,
    "shifted": _shifted,
    "flipped": lambda x, g: x.flip(-1),
    "brightened": lambda x, g: (x * _between(g, 0.8, 1.2) + _between(g, -0.2, 0.2)).clamp(-1, 1),
    "turned": lambda x, g: _turned(x, math.radians(_between(g, -10, 10))),
    "cropped": lambda x, g: _turned(x, 0.0, 0.9),
}
"""Changes of one image (1, C, *S) in [-1, 1]: moved by up to 10 % of a side, mirrored, contrast changed by up to 20 %,
brightness by up to 10 % of the range, turned by up to 10 degrees, cropped to the middle 90 %."""


def changed(images: Tensor, change: str, seed: int = 0) -> Tensor:
    """Images (N, C, *S), each changed by its own draw."""
    g = torch.Generator().manual_seed(seed)
    return torch.cat([CHANGES[change](x[None], g) for x in images])


def recall(finder: CopyFinder, most: int = 24, seed: int = 0) -> dict[str, float]:
    """Change -> share of planted copies of training images that are found."""
    chosen = torch.randperm(len(finder.train), generator=torch.Generator().manual_seed(seed))[:most]
    some = finder.train[chosen]
    return {c: float(np.mean([f.copy for f in finder(changed(some, c, seed))])) for c in CHANGES}


def false_alarms(finder: CopyFinder, patients: Sequence[str], folds: int = 5, seed: int = 0) -> tuple[int, int]:
    """Held-out images that pass for copies where the line is drawn without their patients, and how many there are.

    Args:
        finder: calibrated on all of them.
        patients: whose each held-out image is.
        folds: groups of patients that are left out in turn.
        seed: of the grouping.
    """
    names = sorted(set(patients))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[i]: n % folds for n, i in enumerate(order)}
    where = np.array([fold[p] for p in patients])
    whole, alarms = finder.usual, 0
    try:
        for n in range(folds):
            left = torch.from_numpy(where == n)
            if not bool(left.any()) or bool(left.all()):
                continue
            finder.calibrate({s: (v[~left], w[~left]) for s, (v, w) in whole.items()})
            alarms += sum(f.copy for f in finder.judged({s: (v[left], w[left]) for s, (v, w) in whole.items()}))
    finally:
        finder.calibrate(whole)
    return alarms, len(patients)


def c_t(made: Tensor, usual: Tensor, patients: Sequence[str]) -> dict[str, Any]:
    """Do synthetic images lie nearer to training images than held-out ones do (Meehan et al. 2020, arXiv:2004.05675).

    The Mann-Whitney test of their section 4, on one cell, with the variance for images of one patient that are alike
    (Obuchowski 1997, Biometrics 53:567); without that the test of real against real is not uniform. Blurred images lie
    nearer to everything, so a small p-value alone is no proof of copying.

    Args:
        made: similarity of each synthetic image to its nearest training image (n,).
        usual: the same of held-out images (m,).
        patients: whose each of these is.

    Returns:
        ``nearer``: how often a synthetic image is the nearer of two (0.5: no copying), ``z`` (negative: copying) and
        the one-sided ``p``.
    """
    a, b = made.double().numpy(), usual.double().numpy()
    wins = (a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])
    nearer = float(wins.mean())
    by_made, by_usual = wins.mean(1) - nearer, wins.mean(0) - nearer
    index = np.unique(np.array(patients), return_inverse=True)[1]
    totals = np.bincount(index, by_usual)
    groups = max(len(totals), 2)
    variance = by_made.var() / max(len(a) - 1, 1) + (totals**2).sum() * groups / (groups - 1) / len(b) ** 2
    z = -(nearer - 0.5) / math.sqrt(max(variance, 1e-12))
    return {"nearer": nearer, "z": z, "p": 0.5 * math.erfc(-z / math.sqrt(2))}
