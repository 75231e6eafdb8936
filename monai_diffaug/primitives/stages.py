"""What is trained, one step at a time: a stage, and those of denoising networks and classifiers.

A stage owns its networks, optimizers and averages; whoever walks it (:mod:`.training` over tensors in memory, the
trainer of ``monai_diffaug.bundle`` over MONAI's datasets) gives it batches and the step's number. Every random number
comes from the step's :class:`~.runs.Draws`, so that a run goes on after a kill, or on several devices, as if nothing
had happened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import Condition, Conditioner, DiffAugError, Network, Schedule
from .runs import Draws, Resumable, Settings, averaged, descend, pick

__all__ = ["Batch", "ClassifierStage", "NetworkStage", "Stage", "Told", "min_snr", "plain", "walk"]

Batch = Mapping[str, Any]


class Stage(Protocol):
    """One thing to train.

    ``name`` is what its checkpoint is called; ``state`` everything that a checkpoint must hold, by name.
    """

    name: str
    settings: Settings
    state: Mapping[str, Any]

    def step(self, batch: Batch, step: int, draws: Draws) -> Mapping[str, float]:
        """Take one step down; returns what the log should show of it."""
        ...

    def check(self, step: int) -> Mapping[str, float]:
        """Figures on held-out images, for the log. ``step`` steps were taken."""
        ...

    def finish(self) -> None:
        """The last step was taken: averaged weights take the place of the last ones."""
        ...


def plain(x: Any) -> Tensor:
    """Without a MetaTensor's meta data, whose bookkeeping every operation of a training step would pay for."""
    return x.as_subclass(Tensor) if isinstance(x, Tensor) else torch.as_tensor(x)


def walk(stage: Stage, folder: Path, batches: Callable[[Tensor], Mapping[str, Any]], n: int) -> dict[str, float]:
    """Take a stage's steps, or those that are left, over ``n`` images; returns the last row of the log.

    Args:
        stage: what is trained.
        folder: where checkpoint and log go.
        batches: the images at the given positions (B,) and what goes with them.
        n: how many there are.
    """
    run = Resumable(folder, stage.name, stage.settings, stage.state)

    def one(step: int, generator: torch.Generator) -> Mapping[str, float]:
        index = pick(n, stage.settings.batch, generator)
        return stage.step(batches(index), step, Draws(generator))

    run.walk(one, stage.check, check_every=10 * stage.settings.log_every)
    stage.finish()
    last: dict[str, float] = json.loads(run.lines[-1])
    return last


# ----------------------------------------------------------------------------------------------------------- network


def min_snr(schedule: Schedule, alpha: Tensor, sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight of the network's squared error at each noise level (Hang et al. 2023, arXiv:2303.09556, eq. 8).

    The paper weights the error of x0 by ``min(SNR, gamma)``; what the network predicts decides how that reads.
    """
    snr = (alpha / sigma).pow(2)
    kept = snr.clamp(max=gamma)
    if schedule.prediction == "epsilon":
        return kept / snr
    if schedule.prediction == "v_prediction":
        return kept / (snr + 1)
    if schedule.prediction == "sample":
        return kept
    # Velocity eps - x0 of a flow, alpha = 1 - sigma: its error is that of x0 over sigma.
    return kept * sigma.pow(2)


class Told:
    """What a network is told of a training image: fields of the batch, through the backbone's conditioner.

    Args:
        conditioner: of the backbone.
        fields: what the conditioner takes (``label``, ``mask``, ``prompt``, ``vector``) -> the batch's key for it.
        drop: part of the condition (``labels``, ``concat``, ``tokens``) -> how often it is not told, so that the
            network learns to do without. Parts that are not named are always told.
    """

    def __init__(self, conditioner: Conditioner, fields: Mapping[str, str], drop: Mapping[str, float] | None = None):
        self.conditioner, self.fields, self.drop = conditioner, dict(fields), dict(drop or {})

    def __call__(self, batch: Batch, draws: Draws) -> Condition:
        """The condition of a batch."""
        n = len(batch["image"])
        given = {name: _sent(batch, key) for name, key in self.fields.items()}
        told = self.conditioner(n, **given)
        keep = {part: draws.uniform(n) >= chance for part, chance in self.drop.items()}
        return told.dropped(self.conditioner(n), keep) if keep else told


def _sent(batch: Batch, key: str) -> Any:
    if key not in batch:
        raise DiffAugError(f"the training images have no {key!r}: add it to every item of the datalist")
    return plain(batch[key]) if isinstance(batch[key], Tensor) else batch[key]


class NetworkStage:
    """A denoising network on latents (Ho et al. 2020, arXiv:2006.11239, eq. 14, weighted by :func:`min_snr`).

    Args:
        network: an adapted network; ends with its averaged weights.
        schedule: noise and prediction type.
        settings: length, batch, rates.
        told: ``(batch, draws) -> Condition``; it drops conditions itself. Nothing is told if None.
        with_modules: further modules trained along, such as the text encoder that ``told`` calls.
        gamma: of min-SNR weighting.
        held_out: batches not trained on, as the steps get them; their loss shows memorizing.
        encode: image -> latent, where the batches hold images; latents (B, c, *S) if None.
        parameters: what is trained; everything in the network and ``with_modules`` that wants a gradient if None.
    """

    name = "network"

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        settings: Settings,
        *,
        told: Callable[[Batch, Draws], Condition] | None = None,
        with_modules: Mapping[str, nn.Module] | None = None,
        gamma: float = 5.0,
        held_out: Sequence[Batch] = (),
        encode: Callable[[Tensor], Tensor] | None = None,
        parameters: Sequence[nn.Parameter] | None = None,
    ):
        self.network, self.schedule, self.settings, self.told = network, schedule, settings, told
        self.gamma, self.held_out, self.encode = gamma, held_out, encode
        self.parts = nn.ModuleDict({"network": network.module, **(with_modules or {})})
        self.average = averaged(self.parts, settings.ema)
        self.parameters = list(parameters or [p for p in self.parts.parameters() if p.requires_grad])
        if not self.parameters:
            raise DiffAugError("nothing is to be trained: call requires_grad_(True) on the network")
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
        )
        self.state: Mapping[str, Any] = {"parts": self.parts, "average": self.average, "optimizer": self.optimizer}
        self.device = next(network.module.parameters()).device
        self._table = [
            torch.tensor(x, dtype=torch.float32, device=self.device)
            for x in (schedule.alphas, schedule.sigmas, schedule.times)
        ]

    def loss(self, batch: Batch, draws: Draws) -> Tensor:
        """Weighted squared error, one number an image (B,)."""
        x0 = plain(batch["image"]).to(self.device)
        if self.encode is not None:
            with torch.no_grad():
                x0 = self.encode(x0)
        condition = Condition() if self.told is None else self.told(batch, draws).to(self.device)
        alphas, sigmas, times = self._table
        where = (draws.spread(len(x0)) * len(times)).long().to(self.device)
        noise = draws.normal(x0)
        shape = (-1, *[1] * (x0.ndim - 1))
        alpha, sigma = alphas[where].reshape(shape), sigmas[where].reshape(shape)
        with self.settings.autocast(self.device):
            out = self.network(alpha * x0 + sigma * noise, times[where], condition)
        off = (out.float() - self.schedule.target(x0, noise, alpha, sigma)).pow(2).flatten(1).mean(1)
        return min_snr(self.schedule, alphas[where], sigmas[where], self.gamma) * off

    def step(self, batch: Batch, step: int, draws: Draws) -> dict[str, float]:
        """One step on ``batch["image"]`` (B, C, *S) and what is told of it."""
        loss = self.loss(batch, draws).mean()
        descend(self.optimizer, loss, self.settings, step, self.parameters)
        self.average.update_parameters(self.parts)
        return {"loss": float(loss.detach())}

    def check(self, step: int) -> dict[str, float]:
        """``held_out``: the mean loss of the held-out batches, always under the same noise."""
        draws = Draws(torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = [self.loss(batch, draws).mean() for batch in self.held_out]
        return {"held_out": float(torch.stack(found).mean())} if found else {}

    def finish(self) -> None:
        """Averaged weights go in."""
        self.parts.load_state_dict(self.average.module.state_dict())
        self.parts.eval()


# -------------------------------------------------------------------------------------------------------- classifier


class ClassifierStage:
    """A classifier of images, or of noisy latents (Dhariwal and Nichol 2021, arXiv:2105.05233, section 4).

    Args:
        module: (B, C, *S) -> logits (B, n); with a schedule it is called ``module(x, timesteps=t)``, as MONAI's
            ``DiffusionModelEncoder`` is. Ends with its averaged weights.
        settings: length, batch, rates.
        augment: ``(images, generator) -> images``.
        schedule: noise that is added first, a level drawn for every image; none for clean images.
        encode: image -> latent, where noisy latents are classified and the batches hold images.
        target: the batch's key of the classes, integers (B,); -1 is not learned from.
        name: of the checkpoint.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Settings,
        *,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        schedule: Schedule | None = None,
        encode: Callable[[Tensor], Tensor] | None = None,
        held_out: Sequence[Batch] = (),
        target: str = "label",
        name: str = "judge",
    ):
        self.module, self.settings, self.augment, self.name = module.train(), settings, augment, name
        self.schedule, self.encode, self.held_out, self.target = schedule, encode, held_out, target
        self.average = averaged(module, settings.ema)
        self.optimizer = torch.optim.AdamW(module.parameters(), settings.lr, weight_decay=settings.weight_decay)
        self.state: Mapping[str, Any] = {"module": module, "average": self.average, "optimizer": self.optimizer}

    def _logits(self, module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        device = next(module.parameters()).device
        x = plain(batch["image"]).to(device)
        x = x if self.augment is None else self.augment(x, draws.generator)
        if self.encode is not None:
            with torch.no_grad():
                x = self.encode(x)
        if self.schedule is None:
            with self.settings.autocast(device):
                return module(x)
        where = (draws.spread(len(x)) * len(self.schedule.times)).long()
        shape = (-1, *[1] * (x.ndim - 1))
        alpha, sigma, t = (
            torch.tensor(table, dtype=torch.float32)[where].to(device)
            for table in (self.schedule.alphas, self.schedule.sigmas, self.schedule.times)
        )
        x = alpha.reshape(shape) * x + sigma.reshape(shape) * draws.normal(x)
        with self.settings.autocast(device):
            return module(x, timesteps=t)

    def step(self, batch: Batch, step: int, draws: Draws) -> dict[str, float]:
        """One step on ``batch["image"]`` and the classes in ``batch[target]``."""
        classes = plain(batch[self.target])
        logits = self._logits(self.module, batch, draws)
        known = (classes >= 0).to(logits.device)
        loss = F.cross_entropy(
            logits.float(), classes.to(logits.device), label_smoothing=0.05, ignore_index=-1, reduction="sum"
        ) / known.sum().clamp(min=1)
        descend(self.optimizer, loss, self.settings, step, list(self.module.parameters()))
        self.average.update_parameters(self.module)
        right = (logits.argmax(1).cpu() == classes)[known.cpu()].float()
        return {"loss": float(loss.detach()), "accuracy": float(right.mean()) if len(right) else 0.0}

    def check(self, step: int) -> dict[str, float]:
        """``held_out_accuracy`` over the held-out batches whose class is known."""
        right = list[Tensor]()
        draws = Draws(torch.Generator().manual_seed(0))
        was = self.module.training
        self.module.eval()
        with torch.no_grad():
            for batch in self.held_out:
                classes = plain(batch[self.target])
                right.append((self._logits(self.module, batch, draws).argmax(1).cpu() == classes)[classes >= 0])
        self.module.train(was)
        return {"held_out_accuracy": float(torch.cat(right).float().mean())} if right else {}

    def finish(self) -> None:
        """Averaged weights go in; batch norms then want :meth:`settle`."""
        self.module.load_state_dict(self.average.module.state_dict())
        self.module.eval()

    def settle(self, batches: Sequence[Batch]) -> None:
        """Batch-norm statistics that belong to the averaged weights, as a plain mean over ``batches``."""
        norms = [m for m in self.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return
        for m in norms:
            m.reset_running_stats()
            m.momentum = None
        self.module.train()
        with torch.no_grad():
            for i, batch in enumerate(batches):
                self._logits(self.module, batch, Draws(torch.Generator().manual_seed(self.settings.seed * 31 + i)))
        self.module.eval()
