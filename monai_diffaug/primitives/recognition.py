"""Training what looks at images beside a backbone: classifiers (judges) and image-text dual encoders (scorers)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .runs import Resumable, Settings, averaged, descend, pick
from .stages import ClassifierStage, walk

__all__ = ["train_classifier", "train_contrastive"]


def train_classifier(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    folder: Path,
    *,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> float:
    """Train a classifier (images (N, C, *S) -> logits) in place; returns the last training accuracy."""
    stage = ClassifierStage(module, settings, augment=augment)

    def batches(index: Tensor) -> dict[str, Tensor]:
        return {"image": images[index], "label": labels[index]}

    last = walk(stage, folder, batches, len(images))
    generators = [torch.Generator().manual_seed(settings.seed * 31 + i) for i in range(24)]
    stage.settle([batches(pick(len(images), settings.batch, g)) for g in generators])
    return last["accuracy"]


def train_contrastive(
    embed_images: Callable[[Tensor], Tensor],
    embed_texts: Callable[[Tensor], Tensor],
    module: nn.Module,
    scale: nn.Parameter,
    images: Tensor,
    texts: Tensor,
    settings: Settings,
    folder: Path,
) -> float:
    """Train an image-text dual encoder in place (Radford et al. 2021, arXiv:2103.00020, figure 3).

    Pairs with the same text count as matching too, since captions made from attributes repeat.

    Args:
        embed_images: images (B, C, *S) -> unit vectors (B, D).
        embed_texts: ids (B, L) -> unit vectors (B, D).
        module: holds both.
        scale: logarithm of the inverse temperature.
        images: (N, C, *S).
        texts: ids (N, L).
        settings: length, batch, rates.
        folder: where checkpoint and log go.

    Returns:
        the last batch accuracy of finding a text that fits the image.
    """
    average = averaged(module, settings.ema)
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)
    run = Resumable(folder, "scorer", settings, {"module": module, "average": average, "optimizer": optimizer})

    def one(step: int, generator: torch.Generator) -> dict[str, float]:
        index = pick(len(images), settings.batch, generator)
        ids = texts[index]
        logits = (embed_images(images[index]) @ embed_texts(ids).T).float() * scale.exp().clamp(max=50.0)
        same = (ids[:, None] == ids[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        loss = -0.5 * ((target * logits.log_softmax(1)).sum(1) + (target * logits.T.log_softmax(1)).sum(1)).mean()
        descend(optimizer, loss, settings, step, parameters)
        average.update_parameters(module)
        hit = same.gather(1, logits.argmax(1, keepdim=True)).mean()
        return {"loss": float(loss.detach()), "accuracy": float(hit)}

    run.walk(one)
    module.load_state_dict(average.module.state_dict())
    last: dict[str, float] = json.loads(run.lines[-1])
    return last["accuracy"]
