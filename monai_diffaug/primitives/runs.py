"""Runs of training that may be stopped at any moment: settings, draws, steps, checkpoints, averages.

Every step draws from a generator seeded by the run's seed and the step's number, so that a run goes on as if nothing
had happened. What is known of it lies in one folder: ``<name>.ckpt`` and ``<name>.jsonl``, one line of losses every
``log_every`` steps.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..types import DiffAugError

__all__ = ["Draws", "Resumable", "Settings", "averaged", "descend", "pick"]


@dataclass(frozen=True)
class Settings:
    """How long and how fast.

    ``ema`` is the decay of the averaged weights, which are what training returns; ``clip`` the largest gradient norm;
    ``precision`` what the networks run in, the losses being float32.
    """

    steps: int
    batch: int
    lr: float = 2e-4
    warmup: int = 200
    ema: float = 0.999
    clip: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    precision: torch.dtype = torch.bfloat16
    log_every: int = 50
    checkpoint_seconds: float = 120.0

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which networks run."""
        return nullcontext() if self.precision == torch.float32 else torch.autocast(device.type, dtype=self.precision)

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then half a cosine down to a twentieth."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


class Draws:
    """The random numbers of one step, the same however many processes share its batch.

    Every process draws for the whole batch and keeps every ``world``-th row from its ``rank`` on, which is how
    ``DistributedSampler`` deals out the images. So two processes take the same step as one.
    """

    def __init__(self, generator: torch.Generator, rank: int = 0, world: int = 1):
        self.generator, self.rank, self.world = generator, rank, world

    @classmethod
    def of(cls, seed: int, step: int, rank: int = 0, world: int = 1) -> Draws:
        """Those of a run's step."""
        return cls(torch.Generator().manual_seed(seed * 1_000_003 + step), rank, world)

    def uniform(self, batch: int) -> Tensor:
        """(batch,) in [0, 1)."""
        return torch.rand(batch * self.world, generator=self.generator)[self.rank :: self.world]

    def spread(self, batch: int) -> Tensor:
        """(batch,) in [0, 1), one from each equal part of it: less noise in a mean over the batch than free draws."""
        n = batch * self.world
        return ((torch.arange(n) + torch.rand(n, generator=self.generator)) / n)[self.rank :: self.world]

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape of ``like`` (B, ...)."""
        shape = (like.shape[0] * self.world, *like.shape[1:])
        return torch.randn(shape, generator=self.generator)[self.rank :: self.world].to(like.device)


Step = Callable[[int, torch.Generator], Mapping[str, float]]


class Resumable:
    """Walks the steps that are not done yet, logs, and writes checkpoints whole or not at all."""

    def __init__(self, folder: Path, name: str, settings: Settings, state: Mapping[str, Any]):
        self.settings, self.state, self.name = settings, state, name
        self.checkpoint, self.log = folder / f"{name}.ckpt", folder / f"{name}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.done = 0
        if self.checkpoint.is_file():
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            for key, part in state.items():
                part.load_state_dict(saved[key])
            self.done = int(saved["step"])
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        self.lines = [line for line in lines if json.loads(line)["step"] <= self.done]

    def save(self, step: int) -> None:
        """Write the checkpoint."""
        scratch = self.checkpoint.with_suffix(".part")
        torch.save({"step": step, **{k: p.state_dict() for k, p in self.state.items()}}, scratch)
        os.replace(scratch, self.checkpoint)

    def record(self, step: int, row: Mapping[str, float]) -> None:
        """Add a line to the log."""
        self.lines.append(json.dumps({"step": step, **{k: round(float(v), 6) for k, v in row.items()}}))
        self.log.write_text("".join(line + "\n" for line in self.lines))

    def walk(self, one: Step, check: Callable[[int], Mapping[str, float]] | None = None, check_every: int = 0) -> None:
        """Take the steps; ``check`` adds figures to the log every ``check_every`` steps and at the end."""
        settings, sums, since = self.settings, dict[str, float](), time.monotonic()
        began = since
        with progress() as shown:
            bar = shown.add_task(self.name, total=settings.steps, completed=self.done)
            for step in range(self.done, settings.steps):
                for key, value in one(step, Draws.of(settings.seed, step).generator).items():
                    sums[key] = sums.get(key, 0.0) + value
                shown.update(bar, completed=step + 1)
                ended = step + 1 == settings.steps
                if (step + 1) % settings.log_every == 0 or ended:
                    row = {k: v / ((step % settings.log_every) + 1) for k, v in sums.items()}
                    if check is not None and ((step + 1) % max(check_every, 1) == 0 or ended):
                        row |= check(step + 1)
                    self.record(step + 1, {"seconds": round(time.monotonic() - began, 1), **row})
                    sums = {}
                    shown.update(bar, description=described(self.name, row))
                if (time.monotonic() - since > settings.checkpoint_seconds and not sums) or ended:
                    self.save(step + 1)
                    since = time.monotonic()


def progress() -> Progress:
    """A bar on the error stream that tells what is trained, how far it is and what is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def described(name: str, row: Mapping[str, float]) -> str:
    """A stage's name and its latest figures."""
    return f"{name} " + " ".join(f"{k} {v:.4g}" for k, v in row.items())


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, settings: Settings, step: int, parameters: Sequence[nn.Parameter]
) -> None:
    """One step down the gradient, at the rate that the settings say for it."""
    if not bool(torch.isfinite(loss)):
        raise DiffAugError(
            f"training left the finite numbers at step {step}: lower the learning rate ({settings.lr:g})"
        )
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    _share_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
    optimizer.step()


def _share_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """The mean over all processes, if there are several. By hand, and not by ``DistributedDataParallel``, whose wrapper
    would hide the network's parts from the adapters.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(part.view_as(g))


def pick(n: int, batch: int, generator: torch.Generator) -> Tensor:
    """``batch`` numbers below ``n``."""
    return torch.randint(n, (batch,), generator=generator)


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a module's weights."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
