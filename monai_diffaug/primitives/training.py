"""Training a backbone's parts over tensors in memory. Each run may be stopped at any moment and goes on.

What a step does is told in :mod:`.stages`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..types import Condition, Network, Schedule
from .recognition import train_classifier, train_contrastive
from .reconstruction import AutoencoderStage, psnr
from .runs import Settings
from .stages import NetworkStage, min_snr, walk

__all__ = ["Settings", "min_snr", "psnr", "train_autoencoder", "train_classifier", "train_contrastive", "train_network"]


def train_autoencoder(
    module: nn.Module,
    discriminator: nn.Module,
    images: Tensor,
    held_out: Tensor,
    settings: Settings,
    folder: Path,
    **options: Any,
) -> dict[str, float]:
    """Train an autoencoder in place on ``images`` (N, C, *S); ``options`` are those of :class:`.AutoencoderStage`.

    Returns:
        ``psnr`` (held out, dB), ``spread``: least standard deviation of a latent channel over the widest.

    Raises:
        DiffAugError: the autoencoder collapsed; the message says how it was noticed and what to change.
    """
    stage = AutoencoderStage(module, discriminator, settings, held_out=held_out, **options)
    walk(stage, folder, lambda index: {"image": images[index]}, len(images))
    return stage.check(settings.steps)


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
    unseen = held_out if held_out is not None else latents[:0]
    stage = NetworkStage(
        network,
        schedule,
        settings,
        told=lambda batch, draws: batch["told"](batch["index"], draws.generator),
        with_modules=with_modules,
        gamma=gamma,
        held_out=[
            {"image": unseen[i], "index": i, "told": held_out_conditions or conditions}
            for i in torch.arange(min(len(unseen), 256)).split(64)
            if len(i)
        ],
    )
    last = walk(stage, folder, lambda i: {"image": latents[i], "index": i, "told": conditions}, len(latents))
    return {k: v for k, v in last.items() if k in ("loss", "held_out")}
