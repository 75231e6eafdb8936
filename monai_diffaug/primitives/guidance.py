"""Guidance: a denoiser around a denoiser. They compose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..types import Backbone, Condition, Denoiser, DiffAugError, NoiseLevel, Prediction, at_level

__all__ = ["classifier", "classifier_free", "loss", "thresholded"]

Scale = float | Callable[[NoiseLevel], float]


def classifier_free(
    backbone: Backbone,
    condition: Condition,
    scale: float,
    *,
    negative: Condition | None = None,
    also: Sequence[tuple[Condition, float]] = (),
    interval: tuple[float, float] = (0.0, 1.0),
    batch: int | None = None,
) -> Denoiser:
    """Classifier-free guidance: ``e_n + w (e_c - e_n) + sum_i w_i (e_i - e_n)`` (Ho and Salimans, arXiv:2207.12598).

    All conditions of a step go through the network in one batched call; outside the interval (Kynkäänniemi et al. 2024,
    arXiv:2404.07724) only ``condition`` does.

    Args:
        backbone: the model.
        condition: what to show; ``scale`` (w) 1 is purely conditional and costs one branch, 0 is purely negative.
        scale: guidance weight w.
        negative: what to move away from; the null condition unless given.
        also: further conditions with their own weights.
        interval: fractions of network time (0 clean, 1 noise) between which guidance acts.
        batch: batch size, when ``condition`` is empty and does not say.
    """
    low, high = interval
    if not 0.0 <= low <= high <= 1.0:
        raise DiffAugError(f"guidance interval {interval} is not low <= high within 0 and 1")
    if scale == 1.0 and not also:
        return backbone.denoiser(condition)
    n = condition.batch or batch or 1
    null = negative if negative is not None else backbone.condition(n)
    if null.batch == 1 and n > 1:
        null = null.repeat(n)
    terms: list[tuple[str, Condition, float]] = [("negative", null, 1.0 - scale - sum(w for _, w in also))]
    terms.append(("condition", condition, scale))
    terms += [(f"also_{i}", c, w) for i, (c, w) in enumerate(also)]
    if all(c.batch is None for _, c, _ in terms):
        return backbone.denoiser(condition)  # nothing to tell the branches apart
    names = tuple(name for name, _, _ in terms)
    stacked = Condition.cat([c for _, c, _ in terms])
    plain = backbone.denoiser(condition)
    end = backbone.schedule.times[-1]

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        if not low <= level.t / end <= high:
            return plain(x, level)
        k = len(terms)
        with at_level(replace(level, branches=names)):
            outputs = backbone.output(x.repeat(k, *[1] * (x.ndim - 1)), level.t, stacked).chunk(k)
        # The prediction types are all linear in the output, so the outputs may be combined instead of the noises.
        combined = torch.stack([w * o for (_, _, w), o in zip(terms, outputs, strict=True)]).sum(0)
        return backbone.schedule.convert(combined, x, level.alpha, level.sigma)

    return denoise


def _shift(x: Tensor, level: NoiseLevel, prediction: Prediction, gradient: Tensor) -> Prediction:
    """Move the noise by ``gradient`` and keep ``x = alpha x0 + sigma eps``."""
    eps = prediction.eps + gradient
    return Prediction((x - level.sigma * eps) / level.alpha, eps)


def _scale(scale: Scale, level: NoiseLevel) -> float:
    return scale(level) if callable(scale) else scale


def classifier(denoiser: Denoiser, log_prob: Callable[[Tensor, NoiseLevel], Tensor], scale: Scale) -> Denoiser:
    """Classifier guidance, ``eps - s sigma grad log p(y | x_t)`` (Dhariwal and Nichol, arXiv:2105.05233, algorithm 2).

    ``log_prob(x_t, level) -> (B,)`` must come from a classifier that knows noisy inputs.
    """

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        prediction = denoiser(x, level)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_prob(leaf, level).sum(), leaf)
        return _shift(x, level, prediction, -_scale(scale, level) * level.sigma * gradient)

    return denoise


def loss(denoiser: Denoiser, objective: Callable[[Tensor], Tensor], scale: Scale) -> Denoiser:
    """Guidance by any loss of the clean estimate (Bansal et al. 2023, arXiv:2302.07121, eq. 6).

    ``eps + s sigma grad_{x_t} objective(x0(x_t))``; the gradient runs through the denoiser. ``objective(x0) -> (B,)``.
    """

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            prediction = denoiser(leaf, level)
            (gradient,) = torch.autograd.grad(objective(prediction.x0).sum(), leaf)
        prediction = Prediction(*(p.detach() for p in prediction))
        return _shift(x, level, prediction, _scale(scale, level) * level.sigma * gradient)

    return denoise


def thresholded(denoiser: Denoiser, percentile: float = 0.995, floor: float | Tensor = 1.0) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487, section 2.3), per image and channel.

    ``x0`` is clipped to its own ``percentile`` of absolute values where that exceeds ``floor``, and divided by it times
    ``floor``; ``eps`` follows, so that ``x = alpha x0 + sigma eps`` still holds. ``floor`` is the largest value that
    data has: 1 for pixels; for latents, which know no such bound, (B, C) of the source's own largest values will do.
    """

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        x0, _ = denoiser(x, level)
        least = torch.as_tensor(floor, dtype=torch.float32, device=x0.device)
        bound = torch.quantile(x0.abs().flatten(2).float(), percentile, dim=2)
        bound = torch.maximum(bound, least)
        factor = least / bound
        bound, factor = (v.to(x0).reshape(*v.shape, *[1] * (x0.ndim - 2)) for v in (bound, factor))
        x0 = x0.clamp(-bound, bound) * factor
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoise
