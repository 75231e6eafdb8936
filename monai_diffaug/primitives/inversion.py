"""From an image's latent back to noise, exactly enough to return.

A plan's rows are walked backwards with ``eta = kappa = 0``. Taking the noise at the known, cleaner end of a step (plain
DDIM inversion) loses a third of the image at 20 steps; here each step is solved for the point from which the sampler
would really have come, and how far the sampler would miss the known end from there is given back with the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..types import Denoiser, Plan, Row
from .sampler import step

__all__ = ["Inverted", "arrivals", "invert"]


@dataclass(frozen=True)
class Inverted:
    """What inversion found.

    ``latent`` (B, C, *S) at the plan's first level; ``plan`` the deterministic rows that lead back to the image;
    ``trajectory[i]`` the latent at row i's level (so ``trajectory[0]`` is ``latent``); ``residuals`` one number per
    image, the largest relative miss of any step as measured at the point returned; ``calls`` the network calls made.
    """

    latent: Tensor
    plan: Plan
    trajectory: tuple[Tensor, ...]
    residuals: tuple[float, ...]
    calls: int
    tolerance: float

    @property
    def residual(self) -> float:
        """The worst image's residual; 0 for an empty plan."""
        return max(self.residuals, default=0.0)

    @property
    def converged(self) -> bool:
        """Whether every step of every image came within the tolerance."""
        return self.residual <= self.tolerance


def invert(
    denoiser: Denoiser,
    x: Tensor,
    plan: Plan,
    *,
    tolerance: float = 1e-4,
    iterations: int = 12,
    callback: Callable[[Tensor, Row], None] | None = None,
) -> Inverted:
    """Walk ``plan`` backwards from the clean latent ``x`` (B, C, *S).

    Each step looks for the ``x_t`` from which the sampler's step arrives at the known point, the fixed point of
    ``x_t = (alpha / alpha') x' + (sigma - alpha sigma' / alpha') eps(x_t, t)`` (Pan et al. 2023, arXiv:2309.04907). It
    starts from the noise of the step before (plain DDIM inversion; Dhariwal and Nichol 2021, appendix F) and is refined
    by Anderson acceleration (Walker and Ni 2011) until the step from there misses ``x'`` by less than ``tolerance``,
    relative to ``x'`` in root mean square. Each image is refined for itself, whatever the others in its batch need.

    Stochastic and multistep rows are made deterministic and first order first, since only those have an inverse that
    depends on one point; use the returned ``plan`` to go back.

    Args:
        denoiser: plain or guided, as it will be used on the way back.
        x: the clean latent.
        plan: the rows to undo; an empty plan returns ``x``.
        tolerance: relative miss of a step that counts as none.
        iterations: refinements of a step at most; 0 is plain DDIM inversion. A step that does not converge within them
            keeps the best point found, and the residual says so.
        callback: called after every step with the new latent and the row that was undone.
    """
    rows = [replace(r, eta=0.0, kappa=0.0) for r in plan if not r.jump and not _stays(r)]
    trajectory: list[Tensor] = []
    worst = torch.zeros(x.shape[0], dtype=torch.float64)
    eps: Tensor | None = None
    calls = 0
    with torch.no_grad():
        for row in reversed(rows):
            if eps is None:
                eps, calls = denoiser(x, row.level).eps, 1
            x, eps, error, used = _solve(denoiser, x, eps, row, tolerance, iterations)
            worst, calls = torch.maximum(worst, error), calls + used
            trajectory.append(x)
            if callback is not None:
                callback(x, row)
    return Inverted(x, tuple(rows), tuple(reversed(trajectory)), tuple(worst.tolist()), calls, tolerance)


def arrivals(inverted: Inverted, x: Tensor) -> Iterator[Tensor]:
    """The latent that each row of ``inverted.plan`` arrives at on the way back, ``x`` (the clean one) last.

    Editors hold the source to this path, which is exact where the steps themselves leave a residual and at any guidance
    (Ju et al. 2023, arXiv:2310.01506, "direct inversion").
    """
    return iter((*inverted.trajectory[1:], x))


def _stays(row: Row) -> bool:
    """Whether this is a corrector row, which moves nothing once its kappa is dropped."""
    return row.alpha == row.level.alpha and row.sigma == row.level.sigma


def _rms(x: Tensor) -> Tensor:
    return x.double().flatten(1).pow(2).mean(1).sqrt().cpu()


def _solve(
    denoiser: Denoiser, target: Tensor, eps: Tensor, row: Row, tolerance: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The point at ``row.level`` from which ``row`` leads to ``target``, its noise, its error (B,), and the calls."""
    level = row.level
    back = level.alpha / row.alpha
    slope = level.sigma - back * row.sigma
    size = _rms(target).clamp(min=1e-12)
    x = back * target + slope * eps
    best, best_eps, best_error = x, eps, torch.full(size.shape, torch.inf, dtype=torch.float64)
    history: list[tuple[Tensor, Tensor]] = []
    for used in range(1, iterations + 2):
        prediction = denoiser(x, level)
        error = _rms(step(row, prediction, None, None) - target) / size
        better = _column(error < best_error, x)
        best, best_eps = torch.where(better, x, best), torch.where(better, prediction.eps, best_eps)
        best_error = torch.minimum(best_error, error.nan_to_num(nan=torch.inf))
        if used > iterations or bool((best_error <= tolerance).all()):
            break
        history = [*history[-MEMORY:], (x, back * target + slope * prediction.eps - x)]
        x = torch.where(_column(best_error <= tolerance, x), best, _anderson(history))
    return best, best_eps, best_error, used


MEMORY = 3  # differences of iterates that the acceleration looks back on


def _column(flags: Tensor, like: Tensor) -> Tensor:
    return flags.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _anderson(history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The next iterate from pairs (x, f(x) - x): the mix of the last ones whose residual is least, per image."""
    x, f = history[-1]
    if len(history) == 1:
        return x + f
    steps = torch.stack([(b[0] - a[0]).flatten(1) for a, b in zip(history, history[1:], strict=False)], 2).double()
    drops = torch.stack([(b[1] - a[1]).flatten(1) for a, b in zip(history, history[1:], strict=False)], 2).double()
    gram = drops.transpose(1, 2) @ drops  # (B, m, m)
    ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-30)
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram, drops.transpose(1, 2) @ f.flatten(1).double()[:, :, None])
    return x + f - ((steps + drops) @ weights)[:, :, 0].reshape(x.shape).to(x)
