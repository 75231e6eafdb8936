"""Training a backbone: the autoencoder, then the network on its latents. Either may be stopped at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import Condition, DiffAugError, Network, Schedule
from .recognition import train_classifier, train_contrastive
from .runs import Resumable, Settings, averaged, descend, pick

__all__ = ["Settings", "min_snr", "psnr", "train_autoencoder", "train_classifier", "train_contrastive", "train_network"]


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
    average = averaged(module, settings.ema)
    parameters, judges = list(module.parameters()), list(discriminator.parameters())
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99))
    opponent = torch.optim.AdamW(judges, settings.lr, weight_decay=settings.weight_decay, betas=(0.5, 0.99))
    state = {"module": module, "average": average, "discriminator": discriminator}
    run = Resumable(folder, "autoencoder", settings, {**state, "optimizer": optimizer, "opponent": opponent})
    begin = int(adversarial_from * settings.steps)

    def one(step: int, generator: torch.Generator) -> dict[str, float]:
        x = _crops(images[pick(len(images), settings.batch, generator)], crop, generator).to(device)
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
        descend(optimizer, loss, settings, step, parameters)
        average.update_parameters(module)
        if step >= begin and (adversarial or matching):
            with settings.autocast(device):
                fake, real = discriminator(y.detach()), discriminator(x)
            hinge = F.relu(1 + fake[-1].float()).mean() + F.relu(1 - real[-1].float()).mean()
            descend(opponent, 0.5 * hinge, settings, step, judges)
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
    average = averaged(parts, settings.ema)
    parameters = [p for p in parts.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99))
    run = Resumable(folder, "network", settings, {"parts": parts, "average": average, "optimizer": optimizer})
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
        index = pick(len(latents), settings.batch, generator)
        loss = error(latents[index].to(device), conditions(index, generator).to(device), generator)
        descend(optimizer, loss, settings, step, parameters)
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
