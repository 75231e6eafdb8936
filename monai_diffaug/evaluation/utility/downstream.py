"""The downstream networks, trained for the same number of steps whatever they are trained on, and what they say.

What a network says of the test images is kept, so that every figure can be computed anew and paired:

classification   ``probabilities`` (N, K)
segmentation     ``both``, ``drawn``, ``true`` (N,): pixels of the overlap, of the outline and of the mask
detection        ``boxes`` [(x, y, width, height, score), ...] of each image
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from monai.networks.nets import ResNet, UNet
from torch import Tensor, nn

from ...primitives.runs import Settings, descend
from .data import Pool
from .detector import Detection
from .study import Study, Training

__all__ = ["Task", "task_of", "trained"]

Outputs = Mapping[str, Any]


class Task(Protocol):
    """A kind of downstream network."""

    def network(self) -> nn.Module:
        """A fresh one; its weights come from torch's generator."""
        ...

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Of a batch's output and targets as the arms give them."""
        ...

    def outputs(self, module: nn.Module, pool: Pool) -> Outputs:
        """What the network says of images, fit for JSON."""
        ...


class Classification:
    """A small residual network (MONAI's ResNet); cross-entropy, targets may be mixed."""

    def __init__(self, study: Study):
        self.classes, self.widths = len(study.classes), study.training.channels or (16, 32, 64, 96)

    def network(self) -> nn.Module:
        """Images (B, 1, S, S) -> logits (B, K)."""
        module: nn.Module = ResNet(
            "basic",
            [1, 1, 1, 1],
            list(self.widths),
            spatial_dims=2,
            n_input_channels=1,
            conv1_t_size=5,
            conv1_t_stride=2,
            no_max_pool=True,
            num_classes=self.classes,
        )
        return module

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy with smoothed labels."""
        return F.cross_entropy(out, target, label_smoothing=0.05)

    def outputs(self, module: nn.Module, pool: Pool) -> Outputs:
        """Probabilities."""
        found = torch.cat([module(x).float().softmax(1) for x in pool.images.split(64)])
        return {"probabilities": [[round(p, 6) for p in row] for row in found.tolist()]}


class Segmentation:
    """MONAI's UNet; cross-entropy and soft Dice of the batch (Milletari et al. 2016), an outline at one half."""

    def __init__(self, study: Study):
        self.widths = study.training.channels or (16, 32, 64, 96)

    def network(self) -> nn.Module:
        """Images (B, 1, S, S) -> logits (B, 1, S, S)."""
        strides = [2] * (len(self.widths) - 1)
        module: nn.Module = UNet(2, 1, 1, list(self.widths), strides, norm="INSTANCE")
        return module

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Of the batch: stable where a lesion is small."""
        p = out.sigmoid()
        overlap = (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
        return F.binary_cross_entropy_with_logits(out, target) + 1 - overlap

    def outputs(self, module: nn.Module, pool: Pool) -> Outputs:
        """Pixels of overlap, outline and mask."""
        assert pool.masks is not None
        drawn = torch.cat([(module(x) > 0).float() for x in pool.images.split(64)])
        pairs = {"both": drawn * pool.masks, "drawn": drawn, "true": pool.masks}
        return {k: v.flatten(1).sum(1).long().tolist() for k, v in pairs.items()}


_TASKS: Mapping[str, Callable[[Study], Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": lambda study: Detection(study.training.channels or (16, 32, 64)),
}


def task_of(study: Study) -> Task:
    """The study's."""
    return _TASKS[study.task](study)


def _settings(training: Training, seed: int) -> Settings:
    return Settings(
        training.steps,
        training.batch,
        lr=training.lr,
        warmup=training.warmup,
        weight_decay=training.weight_decay,
        seed=seed,
        precision={"bfloat16": torch.bfloat16, "float32": torch.float32}[training.precision],
    )


def trained(
    task: Task,
    training: Training,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    seed: int,
    steps: int | None = None,
) -> tuple[nn.Module, float]:
    """Train a network from the seed's weights.

    Args:
        task: what is learned.
        training: steps, batch, rates.
        batches: images and targets of a step.
        seed: of the weights.
        steps: stop after so many, to see how long it takes.

    Returns:
        the network, ready to be asked, and the seconds that it took.
    """
    begin, settings = time.monotonic(), _settings(training, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = task.network().to(memory_format=torch.channels_last).train()
        parameters = list(module.parameters())
        optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)
        for step in range(settings.steps if steps is None else min(steps, settings.steps)):
            x, y = batches(step)
            with settings.autocast(torch.device("cpu")):
                out = module(x.contiguous(memory_format=torch.channels_last))
            descend(optimizer, task.loss(out.float(), y), settings, step, parameters)
    return module.eval(), time.monotonic() - begin
