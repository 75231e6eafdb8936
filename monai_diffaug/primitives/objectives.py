"""Objectives by name: how far images are from what is asked for, as a loss that guidance can follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..types import Backbone, DiffAugError

__all__ = ["Objective", "named"]

Objective = Callable[[Tensor], Tensor]


def _scorer(backbone: Backbone, target: str | Sequence[str]) -> Objective:
    """One minus the cosine similarity of image and words."""
    words = [target] if isinstance(target, str) else list(target)
    with torch.no_grad():
        wanted = backbone.scorer.embed_prompts(words)
    return lambda images: 1.0 - (backbone.scorer.embed_images(images) * wanted).sum(-1)


def _judge(backbone: Backbone, target: str | Sequence[str]) -> Objective:
    """Minus the logarithm of the class's probability."""
    labels = list(backbone.judge.labels)
    names = [target] if isinstance(target, str) else list(target)
    unknown = [n for n in names if n not in labels]
    if unknown:
        raise DiffAugError(f"the judge knows no class {unknown[0]!r}: it knows {', '.join(labels)}")
    places = torch.tensor([labels.index(n) for n in names])

    def loss(images: Tensor) -> Tensor:
        likely = backbone.judge.logits(images).log_softmax(-1)
        return -likely.gather(1, places.to(likely.device).expand(len(images))[:, None])[:, 0]

    return loss


_NAMED = {"scorer": _scorer, "judge": _judge}


def named(objective: str | Objective, backbone: Backbone, target: str | Sequence[str] | None = None) -> Objective:
    """An objective ``loss(images (B, C, *S)) -> (B,)``, differentiable.

    Args:
        objective: ``scorer`` (the backbone's image-text encoder), ``judge`` (its classifier) or the loss itself.
        backbone: whose scorer or judge.
        target: what they shall see, one or one per image; for a loss of one's own, nothing.

    Raises:
        DiffAugError: the backbone has no such network, the name is unknown, or there is no target.
    """
    if not isinstance(objective, str):
        return objective
    if objective not in _NAMED:
        raise DiffAugError(f"objective {objective!r} is unknown: use {' or '.join(_NAMED)}, or a function of images")
    if getattr(backbone, objective, None) is None:
        raise DiffAugError(f"backbone {backbone.name!r} has no {objective}: give `objective` as a function of images")
    if target is None:
        raise DiffAugError(f"the {objective} was not told what to see: give `target`")
    return _NAMED[objective](backbone, target)
