"""How far one set of images lies from another, and two sets of real ones: without its floor a score says nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import DiffAugError

__all__ = ["Floored", "copies", "drawn", "fid", "fid_infinity", "floored", "kid", "of_draws", "sifid"]


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise DiffAugError(
            f"features {tuple(a.shape)} and {tuple(b.shape)} cannot be compared: give (n, d) of one extractor, n > 1"
        )


def fid(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of features (n, d) and (m, d) (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

    The trace of the root of the two covariances' product is the sum of the singular values of ``A B^T``, the rows of A
    and B being centered features over the root of n - 1. That matrix is n x m, or d x d after a QR decomposition where
    there are more images than features; so it is as small as it can be, and no root of a singular matrix is taken.
    """
    _check(a, b)
    a, b = a.double(), b.double()
    rows = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    spread = sum(float(x.square().sum()) for x in rows)
    small = [torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x for x in rows]
    shared = float(torch.linalg.svdvals(small[0] @ small[1].T).sum())
    return float((a.mean(0) - b.mean(0)).square().sum()) + spread - 2 * shared


def fid_infinity(a: Tensor, b: Tensor, *, sizes: int = 6, draws: int = 5, seed: int = 0) -> float:
    """FID as it would be for infinitely many images: its line over 1 / n, read at 0.

    Chong and Forsyth 2020 (arXiv:1911.07023, section 3). Both sets are thinned to the same n, from a third of the
    smaller one upwards, since the bias comes from both. Far fewer images than features leave a bias that is no line.

    Args:
        a: features (n, d).
        b: features (m, d).
        sizes: how many n the line goes through.
        draws: of each n, averaged.
        seed: of the draws.

    Raises:
        DiffAugError: fewer than 30 images on a side, or fewer than three sizes.
    """
    _check(a, b)
    most = min(len(a), len(b))
    if most < 30 or sizes < 3:
        raise DiffAugError(f"{most} images and {sizes} sizes make no line: give at least 30 of each and 3 sizes")
    generator = torch.Generator().manual_seed(seed)
    where = (1 / torch.linspace(1 / (most // 3), 1 / most, sizes, dtype=torch.float64)).round().long().tolist()
    rows = []
    for n in where:
        for _ in range(draws):
            x, y = (z[torch.randperm(len(z), generator=generator)[:n]] for z in (a, b))
            rows.append((1.0, 1 / n, fid(x, y)))
    table = torch.tensor(rows, dtype=torch.float64)
    return float(torch.linalg.lstsq(table[:, :2], table[:, 2:]).solution[0])


def sifid(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two single images by the places of one layer's maps (C, *S) (Shaham et al. 2019)."""
    return fid(a.flatten(1).T, b.flatten(1).T)


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
    """A score, its spread and 95 % interval, and the same of real against real at the same size ``n``."""

    score: float
    spread: float
    floor: float
    floor_spread: float
    n: int
    interval: tuple[float, float]
    floor_interval: tuple[float, float]

    def __str__(self) -> str:
        floor = f"real against real {self.floor:.4g} ± {self.floor_spread:.2g}"
        return f"{self.score:.4g} ± {self.spread:.2g} ({floor}, n = {self.n})"


def _half(groups: Sequence[str] | None, order: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Two sets of ``n`` positions that share no group, along ``order``."""
    if groups is None:
        return order[:n], order[n : 2 * n]
    names = list(dict.fromkeys(groups[i] for i in order.tolist()))
    first = set[str]()
    count = 0
    for name in names:
        if count >= len(order) // 2:
            break
        first.add(name)
        count += sum(g == name for g in groups)
    inside = torch.tensor([groups[i] in first for i in order.tolist()])
    return order[inside][:n], order[~inside][:n]


def drawn(
    score: Callable[[Tensor, Tensor], float],
    made: Tensor,
    real: Tensor,
    *,
    n: int | None = None,
    draws: int = 20,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Scores of made against real (draws,) and of real against real (draws,) by halves; and how large these were.

    The arguments are those of :func:`floored`.

    Raises:
        DiffAugError: there are too few images, or all real ones are of one patient.
    """
    n = min(n or len(real) // 2, len(real) // 2, len(made) // 2)
    if n < 2:
        raise DiffAugError(
            f"{len(made)} synthetic and {len(real)} real images cannot be scored: give at least 4 of each"
        )
    if groups is not None and len(set(groups)) < 2:
        raise DiffAugError("all real images are of one patient, so there is no floor: give images of several patients")
    generator = torch.Generator().manual_seed(seed)
    halves = [_half(groups, torch.randperm(len(real), generator=generator), n) for _ in range(draws)]
    n = min(n, *(len(side) for pair in halves for side in pair))
    scores, floors = [], []
    for one, two in halves:
        first, second = real[one[:n]], real[two[:n]]
        picked = made[torch.randperm(len(made), generator=generator)[:n]]
        scores.append(score(picked, first))
        floors.append(score(second, first))
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(floors, dtype=torch.float64), n


def of_draws(scores: Tensor, floors: Tensor, n: int) -> Floored:
    """Means, spreads and 95 % intervals of what :func:`drawn` gave."""
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = (torch.quantile(x, ends).tolist() for x in (scores, floors))
    return Floored(
        float(scores.mean()),
        float(scores.std()),
        float(floors.mean()),
        float(floors.std()),
        n,
        (low[0], low[1]),
        (high[0], high[1]),
    )


def floored(
    score: Callable[[Tensor, Tensor], float],
    made: Tensor,
    real: Tensor,
    *,
    n: int | None = None,
    draws: int = 20,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Floored:
    """``score`` of made against real features, and of real against real, on random halves of one size.

    Halves drawn without replacement spread as a bootstrap of the whole set does (Efron 1979, section 8, remark on
    half-samples), and hold no image twice, which would deceive scores that look at neighbors.

    Args:
        score: of two sets of features.
        made: features (N, d) of synthetic images.
        real: features (M, d) of real images.
        n: size of a half; half of the smaller set unless given, since two of real ones must not overlap.
        draws: number of halves.
        seed: of the halves.
        groups: whose each real image is; no patient is then on both sides of the floor.

    Raises:
        DiffAugError: there are too few images, or all real ones are of one patient.
    """
    return of_draws(*drawn(score, made, real, n=n, draws=draws, seed=seed, groups=groups))


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
