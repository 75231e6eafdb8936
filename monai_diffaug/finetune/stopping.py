"""When to stop, and what to keep: the rules that a run is watched by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Rules", "Watch"]


@dataclass(frozen=True)
class Rules:
    """A run ends when the held-out loss has not fallen for ``patience`` checks, or when it repeats training images.

    The loss must fall by ``least`` of itself to count as better. Images are repeated when, at two checks in a row,
    samples are nearer to training patients than to unseen ones, for certain (the interval of the ratio lies above 1),
    and the ratio is ``memorized`` times that of the first check, since unseen patients may be unlike the others to
    begin with. 0 turns either rule off.
    """

    patience: int = 4
    memorized: float = 1.15
    least: float = 0.002


@dataclass
class Watch:
    """What the checks of a run found; part of its checkpoint.

    ``best`` are the weights at the best check, by name; ``why`` says, in a few words, what ended the run.
    """

    rules: Rules
    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_step: int = 0
    best_loss: float = math.inf
    why: str = ""

    def see(self, step: int, loss: float, ratio: float, low: float, weights: Mapping[str, Tensor]) -> None:
        """Take in a check; ``weights`` are copied if it is the best so far."""
        self.rows.append({"step": float(step), "held_out": loss, "ratio": ratio, "low": low})
        if loss < self.best_loss * (1 - self.rules.least) or not self.best:
            self.best_loss, self.best_step = loss, step
            self.best = {k: v.detach().clone() for k, v in weights.items()}
        self.why = self.why or self._verdict(step)

    def _verdict(self, step: int) -> str:
        rules, last = self.rules, self.rows[-2:]
        first = self.rows[0]["ratio"]
        repeats = [r["ratio"] > rules.memorized * first and r["low"] > 1.0 for r in last]
        if rules.memorized and len(last) == 2 and all(repeats) and len(self.rows) > 2:
            ratio = last[-1]["ratio"]
            return (
                f"memorizing at step {step}: samples lie {ratio:.2f} times nearer to training patients than to unseen "
                f"ones (at least {last[-1]['low']:.2f}, and {first:.2f} at first); step {self.best_step} was kept"
            )
        since = sum(r["step"] > self.best_step for r in self.rows)
        if rules.patience and since >= rules.patience:
            return (
                f"no better at step {step}: the held-out loss was least at step {self.best_step} "
                f"({self.best_loss:.4g}), which was kept"
            )
        return ""

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {k: getattr(self, k) for k in ("rows", "best", "best_step", "best_loss", "why")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint."""
        for key, value in state.items():
            setattr(self, key, value)
