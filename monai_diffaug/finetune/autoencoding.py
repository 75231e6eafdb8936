"""Whether the backbone's autoencoder is good enough for the new images, and its decoder's training where it is not."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..backbones.monai_unet import MonaiAutoencoder
from ..backbones.weights import instantiate
from ..bundle import StageTrainer
from ..primitives.reconstruction import AutoencoderStage, psnr
from ..primitives.runs import Settings
from ..types import Backbone, DiffAugError
from .cases import Cases
from .settings import Ask, Say

__all__ = ["POOR", "fitted_autoencoder", "round_trip"]

POOR = 24.0
"""Decibels: with less, what the autoencoder loses is seen at a glance."""


def round_trip(backbone: Backbone, cases: Cases, most: int = 64) -> float:
    """Mean PSNR of ``decode(encode(image))``, in dB."""
    low, high = backbone.contract.value_range
    images = cases.spread(most).images
    with torch.no_grad():
        back = torch.cat([backbone.decode(backbone.encode(x.to(backbone.device))).cpu() for x in images.split(8)])
    return float(psnr(back.clamp(low, high), images, high - low).mean())


def fitted_autoencoder(
    backbone: Backbone, train: Cases, held_out: Cases, ask: Ask, folder: Path, say: Say
) -> tuple[Backbone, dict[str, Any]]:
    """The backbone, its decoder trained on the new images if it was asked for, or if the round trip is poor.

    The encoder stays: what the network has learned of its latents holds as before.

    Returns:
        the backbone and ``{"before": dB, "after": dB or None}`` on held-out images.

    Raises:
        DiffAugError: the decoder is to be trained and is of a kind that cannot be.
    """
    before = round_trip(backbone, held_out)
    figures = {"before": round(before, 2), "after": None}
    poor = before < POOR
    say(f"the autoencoder brings held-out images back at {before:.1f} dB{', which is poor' if poor else ''}")
    ours = isinstance(backbone.autoencoder, MonaiAutoencoder) and hasattr(backbone.autoencoder.module, "decoder")
    if ask.autoencoder == "train" and not ours:
        raise DiffAugError(f"the autoencoder of {backbone.name!r} cannot be trained here: use --autoencoder keep")
    if ask.autoencoder != "train" and not (ask.autoencoder == "auto" and poor and ask.mode == "full" and ours):
        if poor:
            say("details are lost: --mode full --autoencoder train fits its decoder to the new images")
        return backbone, figures
    autoencoder: Any = copy.copy(backbone.autoencoder)
    autoencoder.module = autoencoder._net = copy.deepcopy(autoencoder.module)
    stage = _stage(autoencoder.module, backbone, held_out, ask)
    StageTrainer(stage, [{"image": x} for x in train.images], folder, device=backbone.device).run()
    autoencoder.module.requires_grad_(False).eval()
    fitted = replace(backbone, autoencoder=autoencoder)
    after = round_trip(fitted, held_out)
    say(f"its decoder was trained: {after:.1f} dB")
    if after < before:
        say("that is no better: the old decoder stays")
        return backbone, figures
    return fitted, {**figures, "after": round(after, 2)}


def _stage(module: Any, backbone: Backbone, held_out: Cases, ask: Ask) -> AutoencoderStage:
    contract = backbone.contract
    dims, steps = contract.spatial_dims, ask.autoencoder_steps
    discriminator = instantiate(
        {
            "_target_": "monai.networks.nets.PatchDiscriminator",
            "spatial_dims": dims,
            "in_channels": contract.channels,
            "channels": 32,
            "num_layers_d": 2,
            "norm": ("GROUP", {"num_groups": 8}),
        }
    )
    precision = torch.float32 if ask.precision == "float32" else torch.bfloat16
    settings = Settings(
        steps=steps,
        batch=8 if dims == 2 else 2,
        lr=3e-4,
        warmup=steps // 10,
        ema=0.99,
        seed=ask.seed,
        precision=precision,
        log_every=max(1, steps // 20),
        checkpoint_seconds=ask.checkpoint_seconds,
    )
    low, high = contract.value_range
    crop = min(*contract.size, 64 if dims == 2 else 32)
    stage = AutoencoderStage(
        module, discriminator, settings, held_out=held_out.spread(32).images, crop=crop, span=high - low, kl=0.0
    )
    for name, p in module.named_parameters():
        p.requires_grad_(name.startswith(("decoder", "post_quant_conv")))
    return stage
