"""The stage that is walked when a backbone is fine-tuned: plain or private."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..primitives.runs import Draws, Settings
from ..primitives.stages import Batch, NetworkStage, Told
from ..types import Backbone, Condition
from .cases import Cases
from .memorizing import Neighbors
from .stopping import Watch
from .trainee import Trainee

__all__ = ["CaseTold", "FinetuneStage", "told_of"]

DROP = {"labels": 0.15, "concat": 0.3, "tokens": 0.1}
"""How often each part of a condition is left out, so that the network keeps the way to do without."""

Drawer = Callable[[Backbone], Tensor]


class CaseTold(Told):
    """What is told of cases; a mask that is not there is not told."""

    def __call__(self, batch: Batch, draws: Draws) -> Condition:
        """The condition of a batch."""
        told = super().__call__(batch, draws)
        if "masked" in batch and not bool(torch.as_tensor(batch["masked"]).all()):
            keep = torch.as_tensor(batch["masked"]).bool()
            told = told.dropped(self.conditioner(len(batch["image"])), {"concat": keep})
        return told


def told_of(backbone: Backbone, cases: Cases, drop: bool) -> CaseTold | None:
    """How the conditioner is told what is known of the cases."""
    if not cases.told:
        return None
    null = backbone.conditioner(1)
    parts = [p for p in DROP if getattr(null, p) is not None] if drop else []
    return CaseTold(backbone.conditioner, {k: k for k in cases.told}, {p: DROP[p] for p in parts})


class FinetuneStage(NetworkStage):
    """A network on the latents of cases, watched on held-out patients.

    Args:
        taught: what is trained.
        settings: length, batch, rates.
        told: what the training images' conditions are; see :func:`told_of`.
        held_out: batches of patients not trained on.
        watch: rules, and what the checks found.
        neighbors: to compare samples with; none to go without.
        drawer: makes the samples (n, C, *S) of a backbone.
    """

    def __init__(
        self,
        taught: Trainee,
        settings: Settings,
        *,
        told: CaseTold | None,
        held_out: Sequence[Batch],
        watch: Watch,
        neighbors: Neighbors | None = None,
        drawer: Drawer | None = None,
        **more: Any,
    ):
        super().__init__(
            taught.backbone.network,
            taught.backbone.schedule,
            settings,
            told=told,
            with_modules=taught.modules,
            held_out=held_out,
            parameters=taught.parameters,
            **more,
        )
        self.taught, self.watch, self.neighbors, self.drawer = taught, watch, neighbors, drawer
        self.state = {**self.state, "watch": watch}

    def step(self, batch: Batch, step: int, draws: Draws) -> dict[str, float]:
        """One step down, in training mode (a check leaves the network in evaluation mode)."""
        self.parts.train()
        return super().step(batch, step, draws)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While open, the network has its averaged weights."""
        own = {k: v.clone() for k, v in self.parts.state_dict().items()}
        self.parts.load_state_dict(self.average.module.state_dict())
        self.parts.eval()
        try:
            yield
        finally:
            self.parts.load_state_dict(own)

    def check(self, step: int) -> dict[str, float]:
        """Held-out loss, and nearness to training patients, of the averaged weights."""
        with self.averaged(), torch.no_grad():
            found = super().check(step)
            near = None
            if self.neighbors is not None and self.drawer is not None:
                near = self.neighbors.nearness(self.drawer(self.taught.backbone))
            ratio, low = (1.0, 0.0) if near is None else (near.ratio, near.low)
            self.watch.see(step, found["held_out"], ratio, low, self._trained())
        return {**found, "ratio": ratio, "ratio_low": low}

    def _trained(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return {n: p for n, p in self.parts.named_parameters() if p.requires_grad}

    def finish(self) -> None:
        """The best weights go in."""
        super().finish()
        with torch.no_grad():
            for name, p in self._trained().items():
                if name in self.watch.best:
                    p.copy_(self.watch.best[name])

    def stop(self, step: int, row: Mapping[str, float]) -> str | None:
        """Why training ends here, if it does."""
        return self.watch.why or None
