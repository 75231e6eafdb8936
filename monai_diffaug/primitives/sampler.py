"""The one loop that walks a plan."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..types import Denoiser, DiffAugError, NoiseSource, Plan, Prediction, Row, StepCallback

__all__ = ["noised", "sample", "step"]


def step(row: Row, prediction: Prediction, previous: Tensor | None, z: Tensor | None) -> Tensor:
    """``alpha' x0 + sqrt(sigma'^2 - eta^2) eps + eta z + kappa (x0 - x0_previous)``."""
    x0, eps = prediction
    x = row.alpha * x0
    if row.sigma > row.eta:
        x = x + math.sqrt(row.sigma**2 - row.eta**2) * eps
    if row.eta and z is not None:
        x = x + row.eta * z
    if row.kappa and previous is not None:
        x = x + row.kappa * (x0 - previous)
    return x


def sample(
    denoiser: Denoiser,
    x: Tensor,
    plan: Plan,
    *,
    noise: NoiseSource | None = None,
    callback: StepCallback | None = None,
    grad: bool = False,
) -> Tensor:
    """Walk ``plan`` from ``x``.

    Args:
        denoiser: ``(x, level) -> (x0, eps)``, plain or wrapped in guidance.
        x: latent (B, C, *S) at the first row's noise level. Its dtype is the solver's: keep it float32 or wider.
        plan: the rows; an empty plan returns ``x``.
        noise: one random stream per image; needed when a row has ``eta`` or jumps.
        callback: called after every row with the new ``x``, the row and the prediction (``None`` on a jump); what it
            returns, if anything, becomes ``x``.
        grad: keep the graph of the whole walk (costly).

    Returns:
        The latent at the last row's arrival, shaped like ``x``.

    Raises:
        DiffAugError: the plan draws noise and none was given, or the walk left the finite numbers.
    """
    if noise is None and any(row.eta or row.jump for row in plan):
        raise DiffAugError("this plan draws noise: give `generator`, one seed per image")
    previous: Tensor | None = None
    with torch.set_grad_enabled(grad):
        for row in plan:
            prediction: Prediction | None = None
            if row.jump:
                assert noise is not None
                keep = row.alpha / row.level.alpha
                x = keep * x + math.sqrt(max(0.0, row.sigma**2 - (keep * row.level.sigma) ** 2)) * noise.normal(x)
                previous = None
            else:
                prediction = denoiser(x, row.level)
                z = noise.normal(x) if row.eta and noise is not None else None
                x = step(row, prediction, previous, z)
                previous = prediction.x0
            if callback is not None:
                changed = callback(x, row, prediction)
                x = x if changed is None else changed
    if plan and not bool(torch.isfinite(x).all()):
        raise DiffAugError("sampling left the finite numbers: lower the guidance scale or use more steps")
    return x


def noised(x0: Tensor, plan: Plan, noise: NoiseSource) -> Tensor:
    """``x0`` brought to the plan's first noise level (SDEdit's splice). An empty plan leaves it as it is."""
    if not plan:
        return x0
    level = plan[0].level
    return level.alpha * x0 + level.sigma * noise.normal(x0)
