"""Which images lie among which: precision, recall, density and coverage of synthetic images, and copies."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import DiffAugError
from .distribution import fid

__all__ = ["authentic", "mifid", "prdc"]


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of each to its k-th neighbor in its own set (n,), itself not counted."""
    return torch.cdist(x, x).kthvalue(k + 1, dim=1).values


def prdc(made: Tensor, real: Tensor, k: int = 5) -> dict[str, float]:
    """``precision``, ``recall``, ``density``, ``coverage`` of features (n, d) against (m, d).

    Precision is the share of made images within some real image's ball, the ball of an image reaching to its k-th
    neighbor; recall the same with the sets exchanged (Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 2 and 3). Density
    counts the balls, coverage the real images whose ball holds a made one (Naeem et al. 2020, arXiv:2002.09797, eq. 3
    and 4). None of them is 1 for two samples of one distribution, and none of them notices copies.

    Raises:
        DiffAugError: a set has no k-th neighbor, or the features are unlike.
    """
    if made.ndim != 2 or real.ndim != 2 or made.shape[1] != real.shape[1]:
        raise DiffAugError(f"features {tuple(made.shape)} and {tuple(real.shape)} are not of one kind: give (n, d)")
    if min(len(made), len(real)) <= k:
        raise DiffAugError(f"{min(len(made), len(real))} images have no neighbor number {k}: give more, or a lower k")
    made, real = made.double(), real.double()
    across = torch.cdist(real, made)  # rows: real
    real_ball, made_ball = _radii(real, k)[:, None], _radii(made, k)[None]
    within = across < real_ball
    return {
        "precision": float(within.any(0).double().mean()),
        "recall": float((across < made_ball).any(1).double().mean()),
        "density": float(within.double().sum(0).mean() / k),
        "coverage": float((across.min(1).values < real_ball[:, 0]).double().mean()),
    }


def authentic(made: Tensor, train: Tensor) -> float:
    """Share of made images (n, d) that lie farther from their nearest training image (m, d) than that from its own.

    Alaa et al. 2022 (arXiv:2102.08921, section 4.3). One half or more for new images of the same kind, 0 for copies.
    """
    if made.ndim != 2 or train.ndim != 2 or made.shape[1] != train.shape[1] or len(train) < 2:
        raise DiffAugError(f"features {tuple(made.shape)} and {tuple(train.shape)} are not of one kind: give (n, d)")
    nearest = torch.cdist(made.double(), train.double()).min(1)
    own = _radii(train.double(), 1)
    return float((nearest.values > own[nearest.indices]).double().mean())


def mifid(made: Tensor, train: Tensor, near: float = 0.1) -> float:
    """FID that copying makes worse: over the mean cosine distance to the nearest training image, if below ``near``.

    Bai et al. 2021 (arXiv:2106.03062, eq. 4), as torchmetrics has it.
    """
    a, b = (torch.nn.functional.normalize(x.double(), dim=1) for x in (made, train))
    apart = float((1 - (a @ b.T).abs()).min(1).values.mean())
    value = fid(made, train)
    return value / (apart + 1e-14) if apart < near else value
