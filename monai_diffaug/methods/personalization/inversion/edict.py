"""EDICT: exact inversion by two coupled latents.

Paper: Wallace, Gokul, Naik. EDICT: Exact Diffusion Inversion via Coupled Transformations. CVPR 2023. arXiv:2211.12446
Idea: two latents denoise each other in turn, so that every step is an affine map whose inverse is known exactly.
Changes: the sampler's walk (its own, over the rows of a DDIM plan) and what it starts from.
Departs: the two latents are float64, the network stays in its own precision (the paper runs it in float64 too), which
leaves the round trip exact since the same network input gives the same output; no attention control.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....primitives import guidance, plans
from ....registry import method
from ....types import Backbone, NoiseLevel, NoiseSource, Plan, Row, Sample

Noise = Callable[[Tensor, NoiseLevel], Tensor]


@method(labels="replaced", needs=["prompt_condition"], neutral={"strength": 0.0})
def edict(
    backbone: Backbone,
    image: Tensor,
    *,
    prompt: str | list[str],
    source_prompt: str | list[str] | None = None,
    strength: float = 0.8,
    scale: float = 3.0,
    mixing: float = 0.93,
    steps: int = 50,
    generator: NoiseSource | None = None,
) -> Sample:
    """Invert ``image`` (B, C, *S) exactly under ``source_prompt`` and denoise it under ``prompt``.

    Args:
        backbone: the model.
        image: in the contract's value range.
        prompt: what the result should show; the ``source_prompt`` gives the image back, at any scale.
        source_prompt: what the image shows; ``None`` is the null condition.
        strength: how far the image is inverted; 0 leaves it (up to the autoencoder).
        scale: classifier-free guidance weight, the same on both ways.
        mixing: p in (0, 1], how much of itself each latent keeps in a step; 1 lets the two drift apart.
        steps: steps of a full chain, two network calls each.
        generator: not drawn from, since both ways are deterministic.

    Returns:
        ``image``; ``info["gap"]``: the root mean square distance of the two latents at the end, one number an image.
    """
    batch = image.shape[0]
    z = backbone.encode(image)

    def noise(words: str | list[str] | None) -> Noise:
        told = backbone.condition(batch, prompt=words)
        denoise = guidance.classifier_free(backbone, told, scale if words is not None else 1.0)
        return lambda x, level: denoise(x.to(z.dtype), level).eps.double()

    plan = plans.ddim(backbone.schedule, steps, spacing="linspace", strength=strength)
    source, target = noise(source_prompt), noise(prompt)  # an unknown word is refused before the first step
    with torch.no_grad():
        x, y = _up(source, z.double(), z.double(), plan, mixing)
        x, y = _down(target, x, y, plan, mixing)
        out = backbone.decode(x.to(z.dtype))
    gap = (x - y).flatten(1).pow(2).mean(1).sqrt().tolist()
    return Sample(out, label=prompt, prompt=prompt, info={"gap": gap})


def _coefficients(row: Row) -> tuple[float, float]:
    """DDIM as ``x' = a x + b eps`` (eq. 9)."""
    a = row.alpha / row.level.alpha
    return a, row.sigma - a * row.level.sigma


def _down(noise: Noise, x: Tensor, y: Tensor, plan: Plan, p: float) -> tuple[Tensor, Tensor]:
    """Denoise the pair (eq. 14). Which of the two leads alternates from step to step."""
    for i, row in enumerate(plan):
        a, b = _coefficients(row)
        x, y = (y, x) if i % 2 else (x, y)
        x = a * x + b * noise(y, row.level)
        y = a * y + b * noise(x, row.level)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
        x, y = (y, x) if i % 2 else (x, y)
    return x, y


def _up(noise: Noise, x: Tensor, y: Tensor, plan: Plan, p: float) -> tuple[Tensor, Tensor]:
    """Undo :func:`_down` line by line (eq. 15)."""
    for i, row in reversed(list(enumerate(plan))):
        a, b = _coefficients(row)
        x, y = (y, x) if i % 2 else (x, y)
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        y = (y - b * noise(x, row.level)) / a
        x = (x - b * noise(y, row.level)) / a
        x, y = (y, x) if i % 2 else (x, y)
    return x, y
