"""Training a network that outlines a structure in images: an instrument that measures, also in synthetic ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .runs import Draws, Settings, averaged, descend
from .stages import Batch, plain

__all__ = ["SegmentationStage", "dice"]


def dice(a: Tensor, b: Tensor) -> Tensor:
    """Overlap (B,) of masks (B, 1, *S) of 0 and 1; 1 where both are empty."""
    both, sizes = (a * b).flatten(1).sum(1), a.flatten(1).sum(1) + b.flatten(1).sum(1)
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1e-6), torch.ones_like(both))


class SegmentationStage:
    """A segmentation network (B, C, *S) -> logits (B, 1, *S), by cross-entropy and soft Dice (Milletari et al. 2016).

    Args:
        module: the network; ends with its averaged weights.
        settings: length, batch, rates.
        augment: ``(images, masks, generator) -> (images, masks)``.
        held_out: batches with ``image`` and ``mask`` not trained on.
        name: of the checkpoint.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Settings,
        *,
        augment: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None = None,
        held_out: Sequence[Batch] = (),
        name: str = "segmenter",
    ):
        self.module, self.settings, self.augment, self.name = module.train(), settings, augment, name
        self.held_out = held_out
        self.average = averaged(module, settings.ema)
        self.optimizer = torch.optim.AdamW(module.parameters(), settings.lr, weight_decay=settings.weight_decay)
        self.state: Mapping[str, Any] = {"module": module, "average": self.average, "optimizer": self.optimizer}

    def step(self, batch: Batch, step: int, draws: Draws) -> dict[str, float]:
        """One step on ``batch["image"]`` (B, C, *S) and ``batch["mask"]`` (B, 1, *S)."""
        device = next(self.module.parameters()).device
        x, y = plain(batch["image"]), plain(batch["mask"]).float()
        if self.augment is not None:
            x, y = self.augment(x, y, draws.generator)
        with self.settings.autocast(device):
            logits = self.module(x.to(device)).float()
        y = y.to(device)
        p = logits.sigmoid()
        overlap = (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)  # of the batch: stable where a lesion is small
        loss = F.binary_cross_entropy_with_logits(logits, y) + 1 - overlap
        descend(self.optimizer, loss, self.settings, step, list(self.module.parameters()))
        self.average.update_parameters(self.module)
        return {"loss": float(loss.detach()), "overlap": float(overlap.detach())}

    def check(self, step: int) -> dict[str, float]:
        """``held_out_dice`` of the averaged network, a mean over the held-out images."""
        found = []
        self.average.module.eval()
        with torch.no_grad():
            for batch in self.held_out:
                drawn = (self.average.module(plain(batch["image"])) > 0).float()
                found.append(dice(drawn, plain(batch["mask"]).float()))
        return {"held_out_dice": float(torch.cat(found).mean())} if found else {}

    def finish(self) -> None:
        """Averaged weights go in."""
        self.module.load_state_dict(self.average.module.state_dict())
        self.module.eval()
