"""From an image's latent back to noise, exactly enough to return.

A plan's rows are walked backwards with ``eta = kappa = 0``. Taking the noise at the known, cleaner end of a step (plain
DDIM inversion) loses a third of the image at 20 steps; here each step is solved for the point from which the sampler
would really have come, by fixed-point iteration to a residual that is given back with the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..types import Denoiser, Plan, Row

__all__ = ["Inverted", "invert"]


@dataclass(frozen=True)
class Inverted:
    """What inversion found.

    ``latent`` (B, C, *S) at the plan's first level; ``plan`` the deterministic rows that lead back to the image;
    ``trajectory[i]`` the latent at row i's level (so ``trajectory[0]`` is ``latent``); ``residual`` the largest relative
    error of any step, and ``calls`` the number of network calls that it took.
    """

    latent: Tensor
    plan: Plan
    trajectory: tuple[Tensor, ...]
    residual: float
    calls: int


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

    Each step solves ``x_t = (alpha / alpha') (x' - (sigma' - alpha' sigma / alpha) eps(x_t, t))`` by fixed-point
    iteration (Pan et al. 2023, arXiv:2309.04907; Anderson-accelerated with memory 1) until the relative change falls
    below ``tolerance``. ``iterations=1`` is plain DDIM inversion (Dhariwal and Nichol 2021, appendix F).

    Stochastic and multistep rows are made deterministic and first order first, since only those have an inverse that
    depends on one point; use the returned ``plan`` to go back.
    """
    rows = [replace(r, eta=0.0, kappa=0.0) for r in plan if not r.jump and not _stays(r)]
    trajectory: list[Tensor] = []
    worst, calls = 0.0, 0
    with torch.no_grad():
        for row in reversed(rows):
            x, residual, used = _solve(denoiser, x, row, tolerance, iterations)
            worst, calls = max(worst, residual), calls + used
            trajectory.append(x)
            if callback is not None:
                callback(x, row)
    return Inverted(x, tuple(rows), tuple(reversed(trajectory)), worst, calls)


def _stays(row: Row) -> bool:
    """Whether this is a corrector row, which moves nothing once its kappa is dropped."""
    return row.alpha == row.level.alpha and row.sigma == row.level.sigma


def _solve(
    denoiser: Denoiser, target: Tensor, row: Row, tolerance: float, iterations: int
) -> tuple[Tensor, float, int]:
    level = row.level
    back = level.alpha / row.alpha
    slope = level.sigma - back * row.sigma  # x_t = back x' + slope eps
    dims = tuple(range(1, target.ndim))
    x, x_before, f_before = target, None, None
    best, best_error = target, float("inf")
    residual, used = float("inf"), 0
    for _ in range(iterations):
        image = back * target + slope * denoiser(x, level).eps
        used += 1
        f = image - x
        norm = image.pow(2).mean(dims).sqrt().clamp(min=1e-12)
        residual = float((f.pow(2).mean(dims).sqrt() / norm).max())
        if used > 1 and residual < best_error:
            best, best_error = image, residual
        if residual < tolerance and used > 1:
            break
        if x_before is None or f_before is None or iterations == 1:
            x_before, f_before, x = x, f, image
            continue
        # Anderson, memory 1: mix the last two images so that the mixed residual is least. Per image of the batch.
        df = f - f_before
        w = (f * df).sum(dims, keepdim=True) / df.pow(2).sum(dims, keepdim=True).clamp(min=1e-20)
        mixed = image - w.clamp(-1.0, 1.0) * (image - (x_before + f_before))
        x_before, f_before, x = x, f, mixed
    if iterations == 1 or best_error == float("inf"):
        return image, residual, used
    return best, best_error, used
