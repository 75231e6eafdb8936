"""Real images as a model takes them, what the model is told of each, and samples that are told the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..primitives import guidance, plans
from ..primitives.sampler import sample
from ..types import Backbone, Condition, DiffAugError, NoiseSource

__all__ = ["drawn", "latents", "round_trip", "told"]

BATCH = 16

Advance = Callable[[int], None]


def told(model: Backbone, kinds: Sequence[str]) -> Condition:
    """The condition of images of these classes; a class that the model does not know is not told."""
    n, accepts = len(kinds), model.conditioner.accepts
    known = set(model.contract.labels)
    if "label" in accepts and known & set(kinds):
        return model.condition(n, label=[k if k in known else "" for k in kinds])
    if "prompt" in accepts and known & set(kinds):
        template = str(getattr(model.conditioner, "template", "{}"))
        return model.condition(n, prompt=[template.format(k) if k in known else "" for k in kinds])
    return model.condition(n)


def latents(model: Backbone, images: Tensor) -> Tensor:
    """Latents (N, c, *S / factor) of images (N, C, *S), which must be of the model's size."""
    contract = model.contract
    if tuple(images.shape[1:]) != (contract.channels, *contract.size):
        raise DiffAugError(
            f"images are {tuple(images.shape[1:])} and {model.name!r} takes {(contract.channels, *contract.size)}: fit "
            "them to the model"
        )
    with torch.no_grad():
        return torch.cat([model.encode(x.to(model.device)) for x in images.split(BATCH)]).float().cpu()


def round_trip(model: Backbone, images: Tensor) -> Tensor:
    """What is left of images (N, C, *S) by the model's autoencoder: how it would show an image that it repeats."""
    low, high = model.contract.value_range
    with torch.no_grad():
        parts = [model.decode(z.to(model.device)).clamp(low, high).cpu() for z in latents(model, images).split(BATCH)]
    return torch.cat(parts)


def drawn(
    model: Backbone, kinds: Sequence[str], *, seed: int = 0, steps: int = 20, advance: Advance | None = None
) -> Tensor:
    """One image (N, C, *S) of each class, without guidance, which would draw what is usual and not what is there.

    Args:
        model: the backbone.
        kinds: class of each image; ``""`` is not told.
        seed: of the first.
        steps: of the chain.
        advance: called with the number of images made, after each few.
    """
    contract, plan, made = model.contract, plans.make(model.schedule, steps), []
    with torch.no_grad():
        for start in range(0, len(kinds), BATCH):
            some = list(kinds[start : start + BATCH])
            noise = NoiseSource(range(seed + start, seed + start + len(some)))
            like = torch.empty(len(some), contract.latent_channels, *contract.latent_size, device=model.device)
            denoise = guidance.classifier_free(model, told(model, some), 1.0, batch=len(some))
            z = sample(denoise, plan[0].level.sigma * noise.normal(like), plan, noise=noise)
            made.append(model.decode(z).clamp(*contract.value_range).cpu())
            if advance is not None:
                advance(len(some))
    return torch.cat(made)
