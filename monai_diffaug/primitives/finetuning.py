"""The short training loop of ``learn`` methods: a few images, a few hundred steps, a named set of parameters.

Training a whole backbone is :mod:`.training`'s; here everything but the parameters given stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..types import Backbone, DiffAugError, NoiseSource, Schedule
from . import guidance, plans
from .sampler import sample

__all__ = ["Lesson", "batches", "check_settings", "curve", "drawn", "finetune", "latents_of", "watched"]

Output = Callable[[Tensor, Tensor, Tensor], Tensor]
Watcher = Callable[[int, int, float], None]
_WATCHER: ContextVar[Watcher | None] = ContextVar("diffaug_watcher", default=None)


@dataclass(frozen=True)
class Lesson:
    """Images and what the network says of them.

    ``latents`` (N, c, *S); ``output(x, t, picks)`` is the raw output for noisy latents ``x`` (n, c, *S) at times ``t``
    (n,), made of the latents at ``picks`` (n,); ``weight`` is the lesson's share of the loss.
    """

    latents: Tensor
    output: Output
    weight: float = 1.0


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Within the block, ``watcher(step, steps, loss)`` is called after every step of every :func:`finetune`."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def check_settings(steps: int, rate: float, batch: int) -> None:
    """Refuse, before any work, what cannot be trained with."""
    if steps < 0 or rate <= 0 or batch < 1:
        raise DiffAugError(
            f"steps is {steps}, rate {rate:g}, batch_size {batch}: give steps >= 0, rate > 0, batch_size >= 1"
        )


def finetune(
    schedule: Schedule,
    lessons: Sequence[Lesson],
    parameters: Iterable[nn.Parameter | Tensor],
    *,
    steps: int,
    rate: float,
    batch: int = 4,
    decay: float = 1e-2,
    clip: float = 1.0,
    warmup: int = 0,
    seed: int = 0,
    after: Callable[[], Tensor | None] | None = None,
) -> list[float]:
    """Minimize ``sum_i w_i E |output - target|^2`` with AdamW; ``t`` and the noise are drawn for each lesson alone.

    Args:
        schedule: the backbone's.
        lessons: every step draws ``batch`` latents of each.
        parameters: what is trained, and nothing else.
        steps: number of updates; 0 trains nothing.
        rate: learning rate, constant after the warm-up.
        batch: images of each lesson per step.
        decay: AdamW's weight decay.
        clip: largest norm of the gradient.
        warmup: steps over which the rate grows.
        seed: of picks, times and noise.
        after: a term added to the loss of every step.

    Returns:
        the loss of every step.

    Raises:
        DiffAugError: there are no images, or the loss left the finite numbers.
    """
    check_settings(steps, rate, batch)
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=decay)
    generator = torch.Generator().manual_seed(seed)
    orders = [batches(lesson.latents.shape[0], batch, generator) for lesson in lessons]
    losses: list[float] = []
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (i + 1) / max(warmup, 1))
        with torch.enable_grad():
            terms = [s.weight * _loss(schedule, s, next(o), generator) for s, o in zip(lessons, orders, strict=True)]
            extra = None if after is None else after()
            loss = torch.stack(terms if extra is None else [*terms, extra]).sum()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise DiffAugError(f"the loss left the finite numbers at step {i + 1}: lower `rate` (it is {rate:g})")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        watcher = _WATCHER.get()
        if watcher is not None:
            watcher(i + 1, steps, losses[-1])
    return losses


def _loss(schedule: Schedule, lesson: Lesson, picks: Tensor, generator: torch.Generator) -> Tensor:
    clean = lesson.latents[picks]
    index = torch.randint(len(schedule.times), (picks.numel(),), generator=generator)
    column = (-1, *[1] * (clean.ndim - 1))
    tables = (schedule.times, schedule.alphas, schedule.sigmas)
    times, alpha, sigma = (torch.tensor(table, dtype=torch.float64)[index].to(clean) for table in tables)
    alpha, sigma = alpha.reshape(column), sigma.reshape(column)
    eps = torch.randn(clean.shape, generator=generator).to(clean)
    output = lesson.output(alpha * clean + sigma * eps, times, picks)
    return (output - schedule.target(clean, eps, alpha, sigma)).square().mean()


def batches(n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices (batch,) without end: every image once before any comes again."""
    if n < 1:
        raise DiffAugError("there is nothing to learn from: give at least one image")
    pool: list[int] = []
    while True:
        while len(pool) < batch:
            pool += torch.randperm(n, generator=generator).tolist()
        yield torch.tensor(pool[:batch])
        pool = pool[batch:]


def latents_of(backbone: Backbone, images: Tensor, flip: bool = False, at_once: int = 16) -> Tensor:
    """Latents (N, c, *S) of images (N, C, *S), followed with ``flip`` by those of their mirror images: (2 N, ...)."""
    both = torch.cat([images, images.flip(-1)]) if flip else images
    with torch.no_grad():
        return torch.cat([backbone.encode(part.to(backbone.device)) for part in both.split(at_once)]).float()


def drawn(backbone: Backbone, n: int, seed: int, *, scale: float = 1.0, steps: int = 20, **what: Any) -> Tensor:
    """Latents (n, c, *S) that the backbone itself makes of ``what`` (as for ``backbone.condition``), 16 at a time."""
    plan = plans.make(backbone.schedule, steps)
    contract = backbone.contract
    made = []
    for first in range(0, n, 16):
        noise = NoiseSource(seed + i for i in range(first, min(first + 16, n)))
        like = torch.empty(len(noise), contract.latent_channels, *contract.latent_size, device=backbone.device)
        told = backbone.condition(len(noise), **what)
        denoise = guidance.classifier_free(backbone, told, scale, batch=len(noise))
        made.append(sample(denoise, plan[0].level.sigma * noise.normal(like), plan, noise=noise))
    return torch.cat(made)


def curve(losses: Sequence[float], points: int = 20) -> list[float]:
    """The losses as a few means, for the record."""
    if not losses:
        return []
    size = max(1, math.ceil(len(losses) / points))
    return [round(sum(part) / len(part), 6) for part in (losses[i : i + size] for i in range(0, len(losses), size))]
