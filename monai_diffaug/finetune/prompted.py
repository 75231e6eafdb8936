"""Fine-tuning a text-to-image model on pairs of image and prompt, and writing it back in its own format.

After RoentGen (Chambon et al. 2022, arXiv:2211.12737): the network and the text encoder together, the autoencoder as it
is; or a low-rank adapter of the network alone. Any text backbone: a shipped one, a folder in the format of Stable
Diffusion, a hub id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones import growing, hub
from ..bundle import StageTrainer, batches, encoded
from ..primitives import concepts
from ..primitives.runs import Settings
from ..primitives.stages import NetworkStage, Told
from ..types import Backbone, Concept, Contract, DiffAugError
from .trainee import adapter_of, trainee

__all__ = ["Prompted", "finetune_on_prompts", "in_channels_of", "write"]

RATES = {"full": 5e-5, "lora": 1e-3}


@dataclass(frozen=True)
class Prompted:
    """The fine-tuned backbone; in mode ``lora`` the adapter alone as well; and the log of the losses."""

    backbone: Backbone
    adapter: Concept | None
    log: tuple[Mapping[str, float], ...]


def in_channels_of(image: Tensor, contract: Contract) -> Tensor:
    """A gray image (1, *S) in the channels that a backbone takes: gray films in red, green and blue alike.

    Raises:
        DiffAugError: it has another number of channels, or another size, than the backbone takes.
    """
    if image.shape[1:] != contract.size:
        raise DiffAugError(
            f"an image is {tuple(image.shape[1:])} and the backbone takes {contract.size}: fit it first, with "
            "primitives.fitting.fit"
        )
    if image.shape[0] == 1:
        return image.expand(contract.channels, *image.shape[1:])
    if image.shape[0] != contract.channels:
        raise DiffAugError(f"an image has {image.shape[0]} channels and the backbone takes {contract.channels}")
    return image


def finetune_on_prompts(
    backbone: Backbone,
    pairs: Sequence[Mapping[str, Any]],
    folder: str | Path,
    *,
    held_out: Sequence[Mapping[str, Any]] = (),
    mode: str = "full",
    rank: int = 8,
    steps: int = 1000,
    batch: int = 8,
    rate: float | None = None,
    drop: float = 0.1,
    seed: int = 0,
    precision: torch.dtype = torch.bfloat16,
) -> Prompted:
    """Train a copy of ``backbone``; the backbone itself stays as it is.

    Args:
        backbone: told prompts. Words that it lacks are added to it, where its tokenizer has one token a word.
        pairs: ``image`` (C or 1, *S) in the contract's value range and size, ``prompt``.
        folder: of the run, which goes on from there after a kill.
        held_out: likewise, of other patients; their loss is in the log.
        mode: ``full``: network and text encoder. ``lora``: an adapter on the network; nothing else changes.
        rank: of the adapter.
        steps: of training.
        batch: images in a step.
        rate: learning rate; 5e-5 for ``full``, as in the paper, and 1e-3 for ``lora`` unless given.
        drop: how often a prompt is left out, so that guidance goes on working.
        seed: of everything.
        precision: that the network runs in.

    Raises:
        DiffAugError: the backbone is told no prompts, the mode is unknown, or an image does not fit.
    """
    if mode not in RATES:
        raise DiffAugError(f"mode {mode!r} is unknown: use {' or '.join(RATES)}")
    grown = growing.with_prompts(backbone, [str(p["prompt"]) for p in pairs])
    taught = trainee(grown, mode, rank=rank, seed=seed)
    model, contract = taught.backbone, grown.contract
    latents, unseen = (
        encoded(
            [{"image": in_channels_of(p["image"], contract), "prompt": str(p["prompt"])} for p in some],
            model.autoencoder,
        )
        for some in (pairs, held_out)
    )
    settings = Settings(
        steps=steps,
        batch=batch,
        lr=rate or RATES[mode],
        warmup=min(100, steps // 10),
        ema=min(0.999, max(0.9, 1 - 20 / steps)),
        seed=seed,
        precision=precision,
        log_every=max(1, steps // 40),
        checkpoint_seconds=60.0,
    )
    stage = NetworkStage(
        model.network,
        model.schedule,
        settings,
        told=Told(model.conditioner, {"prompt": "prompt"}, {"tokens": drop}),
        with_modules=taught.modules,
        held_out=batches(unseen) if len(unseen) else (),
        parameters=taught.parameters,
    )
    trainer = StageTrainer(stage, latents, folder, device=backbone.device)
    trainer.run()
    adapter = adapter_of(taught, grown, {"alpha": None, "mode": mode, "rank": rank})
    return Prompted(taught.result(), adapter, tuple(json.loads(line) for line in trainer.run_of_it.lines))


def write(made: Prompted, folder: str | Path, precision: torch.dtype = torch.float32) -> Path:
    """Write what was learned: of a full run the whole checkpoint, in the format of the one that it came from.

    A pipeline of diffusers becomes one again, for ``StableDiffusionPipeline.from_pretrained`` and ``hub.load`` alike;
    in float32, since of half-precision files transformers makes half-precision networks and diffusers does not.
    Of an adapter only the adapter is written, ``adapter.safetensors``; put it on with ``--concept``.
    """
    place = Path(folder)
    if made.adapter is not None:
        return concepts.save(made.adapter, place / "adapter.safetensors")
    return hub.save(made.backbone, place, precision)
