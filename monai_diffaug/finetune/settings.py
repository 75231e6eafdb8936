"""What a run of fine-tuning is asked to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..io import atomic
from ..primitives.runs import Settings
from ..types import Contract, DiffAugError
from .trainee import MODES

__all__ = ["Ask", "Say"]

Say = Callable[[str], None]
AUTOENCODER = ("auto", "keep", "train")
STEPS = {"full": 1200, "lora": 1200, "private": 300}
PIPELINE = 5e-5
RATES = {"full": 2e-4, "lora": 1e-3, "private": 1e-3}


@dataclass(frozen=True)
class Ask:
    """Everything that changes the result. ``None`` is for the mode or the backbone to decide.

    ``batch`` are images in a step, in mode ``private`` patients on average; ``rank`` that of the adapter (``private``
    with 0 trains the weights themselves); ``epsilon``, ``noise``, ``delta`` and ``clip`` the terms of privacy;
    ``samples`` the images made for every figure; ``patience`` and ``memorized`` see :class:`.stopping.Rules`;
    ``checkpoint_seconds`` the time that a kill can cost.
    """

    mode: str = "full"
    steps: int | None = None
    batch: int | None = None
    rate: float | None = None
    rank: int = 8
    autoencoder: str = "auto"
    autoencoder_steps: int = 600
    epsilon: float | None = None
    noise: float | None = None
    delta: float | None = None
    clip: float = 1.0
    patience: int = 4
    memorized: float = 1.15
    samples: int = 96
    seed: int = 0
    precision: str = "bfloat16"
    checkpoint_seconds: float = 30.0

    def check(self) -> None:
        """Refuse what cannot work, before anything is read.

        Raises:
            DiffAugError: a setting is out of its range, or belongs to another mode.
        """
        self._check_mode()
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DiffAugError(f"{name} is {value}: give 1 or more")
        if self.samples < 8:
            raise DiffAugError(f"samples is {self.samples}: give 8 or more, since figures are made of them")
        if (self.rate is not None and self.rate <= 0) or self.clip <= 0 or self.rank < 0:
            raise DiffAugError("give a rate and a clip above 0 and a rank of 0 or more")
        if self.precision not in ("float32", "bfloat16"):
            raise DiffAugError(f"precision {self.precision!r} is unknown: use float32 or bfloat16")

    def _check_mode(self) -> None:
        if self.mode not in MODES:
            raise DiffAugError(f"mode {self.mode!r} is unknown: use {', '.join(MODES)}")
        if self.autoencoder not in AUTOENCODER:
            raise DiffAugError(f"autoencoder {self.autoencoder!r} is unknown: use {', '.join(AUTOENCODER)}")
        if self.mode != "private" and any(x is not None for x in (self.epsilon, self.noise, self.delta)):
            raise DiffAugError("--epsilon, --noise and --delta are terms of privacy: add --mode private")
        if self.mode != "full" and self.autoencoder == "train":
            raise DiffAugError(f"mode {self.mode} leaves the autoencoder as it is: use --mode full, or keep it")
        if self.epsilon is not None and self.noise is not None:
            raise DiffAugError("epsilon follows from the noise: give one of --epsilon and --noise")
        if self.mode == "lora" and self.rank < 1:
            raise DiffAugError("rank is 0: give at least 1, or use --mode full")

    def training(self, contract: Contract, pipeline: bool = False) -> Settings:
        """Length, batch and rates of the network's stage; a ``pipeline`` of diffusers is trained at RoentGen's rate."""
        steps = self.steps or STEPS[self.mode]
        private = self.mode == "private"
        return Settings(
            steps=steps,
            batch=1 if private else self.images_at_once(contract),
            lr=self.rate or (PIPELINE if pipeline and self.mode == "full" else RATES[self.mode]),
            warmup=min(100, steps // 10),
            ema=min(0.999, max(0.9, 1 - 20 / steps)),
            seed=self.seed,
            precision=torch.float32 if private or self.precision == "float32" else torch.bfloat16,
            log_every=max(1, steps // 48),
            checkpoint_seconds=self.checkpoint_seconds,
        )

    def images_at_once(self, contract: Contract) -> int:
        """Images in a step."""
        return self.batch or (16 if contract.spatial_dims == 2 else 4)

    def keep(self, path: Path, more: dict[str, Any]) -> None:
        """Write the settings down, or compare with those that a run in this folder began with.

        Raises:
            DiffAugError: the run there was begun with others; the message names the first that differs.
        """
        wanted = json.loads(json.dumps({**asdict(self), **more}))
        if not path.is_file():
            atomic.write_json(path, wanted)
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        for key, value in wanted.items():
            if before.get(key) != value:
                raise DiffAugError(
                    f"{path.parent} holds a run with {key} {_short(before.get(key))}, this one has {_short(value)}: "
                    "give another --out, or delete that folder"
                )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."
