"""Training a backbone: the autoencoder, then the network on its latents, and classifiers beside them.

A run may be stopped at any moment and started again: every step draws from a generator seeded by the run's seed and the
step's number, so that it goes on as if nothing had happened. What is known of a run lies in one folder: ``<name>.ckpt``
and ``<name>.jsonl``, one line of losses every ``log_every`` steps.
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
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..types import Condition, DiffAugError, Network, Schedule

__all__ = ["Settings", "min_snr", "psnr", "train_autoencoder", "train_classifier", "train_contrastive", "train_network"]


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


Step = Callable[[int, torch.Generator], Mapping[str, float]]


class _Run:
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
        scratch = self.checkpoint.with_suffix(".part")
        torch.save({"step": step, **{k: p.state_dict() for k, p in self.state.items()}}, scratch)
        os.replace(scratch, self.checkpoint)

    def walk(self, one: Step, check: Callable[[int], Mapping[str, float]] | None = None, check_every: int = 0) -> None:
        settings, sums, since = self.settings, dict[str, float](), time.monotonic()
        began = since
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task(self.name, total=settings.steps, completed=self.done)
            for step in range(self.done, settings.steps):
                generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
                for key, value in one(step, generator).items():
                    sums[key] = sums.get(key, 0.0) + value
                progress.update(bar, completed=step + 1)
                ended = step + 1 == settings.steps
                if (step + 1) % settings.log_every == 0 or ended:
                    row = {k: round(v / ((step % settings.log_every) + 1), 6) for k, v in sums.items()}
                    if check is not None and ((step + 1) % max(check_every, 1) == 0 or ended):
                        row |= check(step + 1)
                    seconds = round(time.monotonic() - began, 1)
                    self.lines.append(json.dumps({"step": step + 1, "seconds": seconds, **row}))
                    sums = {}
                    self.log.write_text("".join(line + "\n" for line in self.lines))
                    progress.update(bar, description=f"{self.name} " + " ".join(f"{k} {v:.4g}" for k, v in row.items()))
                if (time.monotonic() - since > settings.checkpoint_seconds and not sums) or ended:
                    self.save(step + 1)
                    since = time.monotonic()


def _update(
    optimizer: torch.optim.Optimizer, loss: Tensor, settings: Settings, step: int, parameters: Sequence[nn.Parameter]
) -> None:
    if not bool(torch.isfinite(loss)):
        raise DiffAugError(
            f"training left the finite numbers at step {step}: lower the learning rate ({settings.lr:g})"
        )
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
    optimizer.step()


def _pick(n: int, batch: int, generator: torch.Generator) -> Tensor:
    return torch.randint(n, (batch,), generator=generator)


def _averaged(module: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))


def psnr(a: Tensor, b: Tensor, span: float) -> Tensor:
    """Peak signal-to-noise ratio in dB, one number an image (B,), for intensities that span ``span``."""
    return 10 * torch.log10(span**2 / (a - b).float().pow(2).flatten(1).mean(1).clamp(min=1e-12))


# ------------------------------------------------------------------------------------------------------- autoencoder


def _crops(images: Tensor, size: int | None, generator: torch.Generator) -> Tensor:
    """One random window of ``size`` voxels a side for the whole batch; all of it where ``size`` is None."""
    if size is None:
        return images
    spans = [slice(None), slice(None)]
    for side in images.shape[2:]:
        start = int(torch.randint(max(side - size, 0) + 1, (), generator=generator))
        spans.append(slice(start, start + size))
    return images[tuple(spans)]


def _edges(x: Tensor) -> list[Tensor]:
    return [x.diff(dim=d) for d in range(2, x.ndim)]


def _reconstruct(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and regularizer: KL of an ``AutoencoderKL`` per latent voxel, commitment of a ``VQVAE``."""
    out = module(x)
    if len(out) == 2:
        return out[0], out[1]
    image, mu, sigma = out
    mu, sigma = mu.float(), sigma.float()
    kl = 0.5 * (mu.pow(2) + sigma.pow(2) - (sigma.pow(2) + 1e-12).log() - 1)
    return image, kl.mean()


def train_autoencoder(
    module: nn.Module,
    discriminator: nn.Module,
    images: Tensor,
    held_out: Tensor,
    settings: Settings,
    folder: Path,
    *,
    crop: int | None = None,
    kl: float = 1e-4,
    edges: float = 0.5,
    adversarial: float = 0.05,
    matching: float = 0.5,
    adversarial_from: float = 0.5,
    span: float = 2.0,
) -> dict[str, float]:
    """Train an ``AutoencoderKL`` or ``VQVAE`` in place (Rombach et al. 2022, arXiv:2112.10752, section 3.1 and eq. 25).

    L1, plus L1 of finite differences, plus a patch discriminator's hinge loss (Isola et al. 2017) and matching of its
    feature maps (Wang et al. 2018, arXiv:1711.11585, eq. 4), which stands in for a downloaded perceptual network.

    Args:
        module: the autoencoder; ends with its averaged weights.
        discriminator: returns a list of feature maps, the last its verdict.
        images: (N, C, *S) in the value range.
        held_out: images not trained on, for the PSNR that is watched.
        settings: length, batch, rates.
        folder: where checkpoint and log go.
        crop: side of the random windows trained on; whole images if None.
        kl: weight of the regularizer.
        edges: weight of the finite differences.
        adversarial: weight of the discriminator's verdict, from ``adversarial_from`` of the steps on.
        matching: weight of feature matching, likewise.
        adversarial_from: fraction of the steps after which the two begin.
        span: width of the value range.

    Returns:
        ``psnr`` (held out, dB), ``spread``: least standard deviation of a latent channel.

    Raises:
        DiffAugError: the autoencoder collapsed; the message says how it was noticed and what to change.
    """
    device = next(module.parameters()).device
    average = _averaged(module, settings.ema)
    parameters, judges = list(module.parameters()), list(discriminator.parameters())
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99))
    opponent = torch.optim.AdamW(judges, settings.lr, weight_decay=settings.weight_decay, betas=(0.5, 0.99))
    state = {"module": module, "average": average, "discriminator": discriminator}
    run = _Run(folder, "autoencoder", settings, {**state, "optimizer": optimizer, "opponent": opponent})
    begin = int(adversarial_from * settings.steps)

    def one(step: int, generator: torch.Generator) -> dict[str, float]:
        x = _crops(images[_pick(len(images), settings.batch, generator)], crop, generator).to(device)
        torch.manual_seed(settings.seed * 7919 + step)  # the posterior's noise is drawn by the module
        with settings.autocast(device):
            y, regularizer = _reconstruct(module, x)
        y = y.float()
        l1 = (y - x).abs().mean()
        edge = torch.stack([(a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True)]).mean()
        loss = l1 + edges * edge + kl * regularizer.float()
        row = {"l1": float(l1.detach()), "edge": float(edge.detach()), "kl": float(regularizer.detach())}
        if step >= begin and (adversarial or matching):
            with settings.autocast(device):
                fake, real = discriminator(y), discriminator(x)
            verdict = -fake[-1].float().mean()
            alike = torch.stack([(f - r.detach()).abs().float().mean() for f, r in zip(fake[:-1], real[:-1])]).mean()
            loss = loss + adversarial * verdict + matching * alike
            row |= {"verdict": float(verdict.detach()), "match": float(alike.detach())}
        _update(optimizer, loss, settings, step, parameters)
        average.update_parameters(module)
        if step >= begin and (adversarial or matching):
            with settings.autocast(device):
                fake, real = discriminator(y.detach()), discriminator(x)
            hinge = F.relu(1 + fake[-1].float()).mean() + F.relu(1 - real[-1].float()).mean()
            _update(opponent, 0.5 * hinge, settings, step, judges)
            row["hinge"] = float(hinge.detach())
        return row

    def check(step: int) -> dict[str, float]:
        found = _health(average.module, held_out.to(device), span)
        if step >= settings.steps // 4:
            _refuse_collapse(found)
        return found

    run.walk(one, check, check_every=10 * settings.log_every)
    module.load_state_dict(average.module.state_dict())
    return _health(module, held_out.to(device), span)


def _health(module: nn.Module, images: Tensor, span: float) -> dict[str, float]:
    """Held-out PSNR of the posterior mean's reconstruction, and the least spread of a latent channel."""
    net: Any = module
    was = module.training
    module.eval()
    with torch.no_grad():
        found = []
        for x in images[:64].split(16):
            out = net.encode(x)
            mean = out[0] if isinstance(out, tuple) else net.quantize(out)[0]
            found.append((mean, psnr(net.decode_stage_2_outputs(mean), x, span)))
    module.train(was)
    latents = torch.cat([m for m, _ in found])
    spread = latents.transpose(0, 1).flatten(1).std(1)
    return {"psnr": float(torch.cat([p for _, p in found]).mean()), "spread": float(spread.min() / spread.max())}


def _refuse_collapse(found: Mapping[str, float]) -> None:
    if found["spread"] < 0.02:
        raise DiffAugError(
            f"the autoencoder collapsed: a latent channel spreads only {found['spread']:.3f} of the widest; "
            "lower the KL weight or the number of latent channels"
        )
    if found["psnr"] < 12.0:
        raise DiffAugError(
            f"the autoencoder does not reconstruct (held-out PSNR {found['psnr']:.1f} dB at a quarter of the steps): "
            "lower the learning rate or the adversarial weight"
        )


# ----------------------------------------------------------------------------------------------------------- network


def min_snr(schedule: Schedule, alpha: Tensor, sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight of the network's squared error at each noise level (Hang et al. 2023, arXiv:2303.09556, eq. 8).

    The paper weights the error of x0 by ``min(SNR, gamma)``; what the network predicts decides how that reads.
    """
    snr = (alpha / sigma).pow(2)
    kept = snr.clamp(max=gamma)
    if schedule.prediction == "epsilon":
        return kept / snr
    if schedule.prediction == "sample":
        return kept
    if schedule.prediction == "v_prediction":
        return kept / (snr + 1)
    return torch.ones_like(snr)  # velocities of a flow are weighted evenly


def train_network(
    network: Network,
    schedule: Schedule,
    latents: Tensor,
    conditions: Callable[[Tensor, torch.Generator], Condition],
    settings: Settings,
    folder: Path,
    *,
    with_modules: Mapping[str, nn.Module] | None = None,
    gamma: float = 5.0,
    held_out: Tensor | None = None,
    held_out_conditions: Callable[[Tensor, torch.Generator], Condition] | None = None,
) -> dict[str, float]:
    """Train a denoising network in place; it ends with its averaged weights.

    Args:
        network: an adapted network.
        schedule: noise and prediction type.
        latents: (N, c, *S), posterior means, already scaled.
        conditions: ``(indices (B,), generator) -> Condition``; it drops conditions itself, so that the network learns
            to do without.
        settings: length, batch, rates.
        folder: where checkpoint and log go.
        with_modules: further modules trained along, such as the text encoder that ``conditions`` calls.
        gamma: of min-SNR weighting.
        held_out: latents not trained on; their loss shows memorizing.
        held_out_conditions: as ``conditions``, for them.

    Returns:
        the last ``loss`` and ``held_out`` loss.
    """
    device = next(network.module.parameters()).device
    parts = nn.ModuleDict({"network": network.module, **(with_modules or {})})
    average = _averaged(parts, settings.ema)
    parameters = [p for p in parts.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99))
    run = _Run(folder, "network", settings, {"parts": parts, "average": average, "optimizer": optimizer})
    alphas = torch.tensor(schedule.alphas, dtype=torch.float32, device=device)
    sigmas = torch.tensor(schedule.sigmas, dtype=torch.float32, device=device)
    times = torch.tensor(schedule.times, dtype=torch.float32, device=device)

    def error(x0: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
        b = len(x0)
        # One draw from each b-th part of the schedule: less noise in the loss than b free draws.
        where = ((torch.arange(b) + torch.rand(b, generator=generator)) / b * len(times)).long().to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        shape = (-1, *[1] * (x0.ndim - 1))
        alpha, sigma = alphas[where].reshape(shape), sigmas[where].reshape(shape)
        with settings.autocast(device):
            out = network(alpha * x0 + sigma * noise, times[where], condition)
        off = (out.float() - schedule.target(x0, noise, alpha, sigma)).pow(2).flatten(1).mean(1)
        return (min_snr(schedule, alphas[where], sigmas[where], gamma) * off).mean()

    def one(step: int, generator: torch.Generator) -> dict[str, float]:
        index = _pick(len(latents), settings.batch, generator)
        loss = error(latents[index].to(device), conditions(index, generator).to(device), generator)
        _update(optimizer, loss, settings, step, parameters)
        average.update_parameters(parts)
        return {"loss": float(loss.detach())}

    def check(step: int) -> dict[str, float]:
        if held_out is None:
            return {}
        generator = torch.Generator().manual_seed(0)
        told = held_out_conditions or conditions
        losses = []
        with torch.no_grad():
            for index in torch.arange(min(len(held_out), 256)).split(64):
                losses.append(float(error(held_out[index].to(device), told(index, generator).to(device), generator)))
        return {"held_out": sum(losses) / len(losses)}

    run.walk(one, check, check_every=10 * settings.log_every)
    parts.load_state_dict(average.module.state_dict())
    last: dict[str, float] = json.loads(run.lines[-1])
    return {k: v for k, v in last.items() if k in ("loss", "held_out")}


# ------------------------------------------------------------------------------------------- judges and dual encoders


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
    device = next(module.parameters()).device
    average = _averaged(module, settings.ema)
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)
    run = _Run(folder, "judge", settings, {"module": module, "average": average, "optimizer": optimizer})

    def one(step: int, generator: torch.Generator) -> dict[str, float]:
        index = _pick(len(images), settings.batch, generator)
        x = images[index].to(device)
        x = x if augment is None else augment(x, generator)
        with settings.autocast(device):
            logits = module(x)
        loss = F.cross_entropy(logits.float(), labels[index].to(device), label_smoothing=0.05)
        _update(optimizer, loss, settings, step, parameters)
        average.update_parameters(module)
        right = float((logits.argmax(1).cpu() == labels[index]).float().mean())
        return {"loss": float(loss.detach()), "accuracy": right}

    run.walk(one)
    _adopt(module, average, images, settings, augment)
    last: dict[str, float] = json.loads(run.lines[-1])
    return last["accuracy"]


def _adopt(
    module: nn.Module,
    average: AveragedModel,
    images: Tensor,
    settings: Settings,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None,
) -> None:
    """Take the averaged weights, and batch-norm statistics that belong to them."""
    module.load_state_dict(average.module.state_dict())
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain mean over the batches below
    module.train()
    with torch.no_grad():
        for i in range(24):
            generator = torch.Generator().manual_seed(settings.seed * 31 + i)
            x = images[_pick(len(images), settings.batch, generator)]
            module(x if augment is None else augment(x, generator))
    module.eval()


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
    average = _averaged(module, settings.ema)
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)
    run = _Run(folder, "scorer", settings, {"module": module, "average": average, "optimizer": optimizer})

    def one(step: int, generator: torch.Generator) -> dict[str, float]:
        index = _pick(len(images), settings.batch, generator)
        ids = texts[index]
        logits = (embed_images(images[index]) @ embed_texts(ids).T).float() * scale.exp().clamp(max=50.0)
        same = (ids[:, None] == ids[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        loss = -0.5 * ((target * logits.log_softmax(1)).sum(1) + (target * logits.T.log_softmax(1)).sum(1)).mean()
        _update(optimizer, loss, settings, step, parameters)
        average.update_parameters(module)
        hit = same.gather(1, logits.argmax(1, keepdim=True)).mean()
        return {"loss": float(loss.detach()), "accuracy": float(hit)}

    run.walk(one)
    module.load_state_dict(average.module.state_dict())
    last: dict[str, float] = json.loads(run.lines[-1])
    return last["accuracy"]
