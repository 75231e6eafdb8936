"""How far one set of images lies from another, and two sets of real ones: without its floor a score says nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.metrics.fid import get_fid_score
from torch import Tensor

from ..types import DiffAugError

__all__ = ["Floored", "copies", "fid", "floored", "kid"]


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise DiffAugError(
            f"features {tuple(a.shape)} and {tuple(b.shape)} cannot be compared: give (n, d) of one extractor, n > 1"
        )


def fid(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of features (n, d) and (m, d) (Heusel et al. 2017, arXiv:1706.08500, eq. 6)."""
    _check(a, b)
    return float(get_fid_score(a.double(), b.double()))


def kid(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD with the kernel ``(x.y / d + 1)^3`` (Binkowski et al. 2018, arXiv:1801.01401, section 4).

    Not bounded below by 0: two samples of one distribution scatter around it.
    """
    _check(a, b)
    a, b = a.double(), b.double()
    n, m, d = len(a), len(b), a.shape[1]
    within_a, within_b, across = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    inside = (within_a.sum() - within_a.diagonal().sum()) / (n * (n - 1))
    return float(inside + (within_b.sum() - within_b.diagonal().sum()) / (m * (m - 1)) - 2 * across.mean())


@dataclass(frozen=True)
class Floored:
    """A score, its spread over subsets, and the same score of real against real at the same size."""

    score: float
    spread: float
    floor: float
    floor_spread: float
    n: int

    def __str__(self) -> str:
        floor = f"real against real {self.floor:.4g} ± {self.floor_spread:.2g}"
        return f"{self.score:.4g} ± {self.spread:.2g} ({floor}, n = {self.n})"


def floored(
    score: Callable[[Tensor, Tensor], float],
    made: Tensor,
    real: Tensor,
    *,
    n: int | None = None,
    draws: int = 20,
    seed: int = 0,
) -> Floored:
    """``score`` of made against real features, and of real against real, on random subsets of one size.

    Args:
        score: of two sets of features.
        made: features (N, d) of synthetic images.
        real: features (M, d) of real images.
        n: size of a subset; half of the real ones unless given, since two must be found that do not overlap.
        draws: number of subsets.
        seed: of the subsets.
    """
    n = min(n or len(real) // 2, len(real) // 2, len(made))
    generator = torch.Generator().manual_seed(seed)
    scores, floors = [], []
    for _ in range(draws):
        order = torch.randperm(len(real), generator=generator)
        first, second = real[order[:n]], real[order[n : 2 * n]]
        picked = made[torch.randperm(len(made), generator=generator)[:n]]
        scores.append(score(picked, first))
        floors.append(score(second, first))
    a, b = torch.tensor(scores), torch.tensor(floors)
    return Floored(float(a.mean()), float(a.std()), float(b.mean()), float(b.std()), n)


def copies(made: Tensor, train: Tensor, held_out: Tensor, quantile: float = 0.01) -> tuple[float, Tensor, Tensor]:
    """Nearest-neighbor copy check, in whatever space the vectors (n, d) are.

    A copy lies nearer to a training image than all but ``quantile`` of unseen real images do.

    Returns:
        the fraction of copies; for each made vector its distance to the nearest training one, and which it is.
    """
    _check(made, train)
    distance, which = torch.cdist(made.float(), train.float()).min(1)
    usual = torch.quantile(torch.cdist(held_out.float(), train.float()).min(1).values, quantile)
    return float((distance < usual).float().mean()), distance, which
