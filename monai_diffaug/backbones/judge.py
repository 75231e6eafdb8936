"""An independent classifier of real images: what a synthetic one shows, and how far it lies from real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Judge"]


class Judge:
    """Classes and features of images by a network that no generator was trained with.

    Args:
        module: a network from images (B, C, *S) in the contract's value range to logits (B, n).
        labels: the classes.
        head: name of the last linear layer; what goes into it are the features.
        config: ``_target_`` and arguments that rebuild the network; wanted by ``hub.save``.
    """

    def __init__(
        self, module: nn.Module, labels: Sequence[str], head: str = "fc", config: Mapping[str, Any] | None = None
    ):
        self.module = module.eval()
        self.labels = tuple(labels)
        self.head = head
        self.config = dict(config) if config else None

    def logits(self, images: Tensor) -> Tensor:
        """Scores (B, n) before the softmax; differentiable with respect to the images."""
        return self.module(images)

    def classify(self, images: Tensor) -> Tensor:
        """Probability (B, n) of each label."""
        return self.logits(images).softmax(-1)

    def features(self, images: Tensor) -> Tensor:
        """What the classifier's last layer sees: (B, D)."""
        seen: list[Tensor] = []
        hook = self.module.get_submodule(self.head).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with torch.no_grad():
                self.module(images)
        finally:
            hook.remove()
        return seen[0].flatten(1)
