"""A classifier of noisy latents: what classifier guidance follows."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffaug.types import DiffAugError, NoiseLevel

__all__ = ["Guide"]


class Guide:
    """Classes of noisy latents, at every noise level (Dhariwal and Nichol 2021, arXiv:2105.05233, section 4).

    Args:
        module: called ``module(x_t, timesteps=t)`` for latents (B, c, *S) and network times (B,); returns logits
            (B, n). MONAI's ``DiffusionModelEncoder`` does.
        labels: the classes.
        config: ``_target_`` and arguments that rebuild the network; wanted by ``hub.save``.
    """

    def __init__(self, module: nn.Module, labels: Sequence[str], config: Mapping[str, Any] | None = None):
        self.module = module.eval()
        self.labels = tuple(labels)
        self.config = dict(config) if config else None

    @classmethod
    def of(
        cls, make: partial[nn.Module], labels: Sequence[str], device: str | torch.device = "cpu", seed: int = 0
    ) -> Guide:
        """From a config item with ``"_mode_": "callable"``; ``seed`` draws the weights."""
        torch.manual_seed(seed)
        target: Any = make.func
        config = {"_target_": f"{target.__module__}.{target.__qualname__}", **make.keywords}
        return cls(make().to(device), labels, config)

    def towards(self, labels: Sequence[str]) -> Callable[[Tensor, NoiseLevel], Tensor]:
        """What guidance follows: ``(x_t, level) -> (B,)``, the log-probability of each latent's class, differentiable.

        Args:
            labels: one for all latents, or one each.

        Raises:
            DiffAugError: a class is unknown; the message names the nearest.
        """
        for label in labels:
            if label not in self.labels:
                near = difflib.get_close_matches(label, self.labels, 1, 0.0)
                raise DiffAugError(f"the guide knows no class {label!r}: did you mean {near[0]!r}?")
        places = torch.tensor([self.labels.index(label) for label in labels])

        def log_prob(x: Tensor, level: NoiseLevel) -> Tensor:
            times = torch.full((x.shape[0],), float(level.t), dtype=torch.float32, device=x.device)
            likely = self.module(x.float(), timesteps=times).log_softmax(-1)
            return likely.gather(1, places.to(x.device).expand(len(likely))[:, None])[:, 0].to(x.dtype)

        return log_prob
