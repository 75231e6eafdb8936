"""A backbone is four parts and a contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .condition import Condition
from .contract import Contract
from .errors import DiffAugError
from .noise import Denoiser, NoiseLevel, Prediction, Schedule, at_level

__all__ = ["Autoencoder", "Backbone", "Conditioner", "Network"]


class Autoencoder(Protocol):
    """Image (B, C, *S) in the contract's value range <-> latent (B, c, *S / factor), already scaled."""

    module: nn.Module

    def encode(self, image: Tensor) -> Tensor:
        """The scaled posterior mean."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Undo the scale and decode."""
        ...


class Network(Protocol):
    """A denoising network of some library, as it is."""

    module: nn.Module

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Raw output for noisy latents ``x`` (B, c, *S) at network times ``t`` (B,)."""
        ...

    def attention_sites(self) -> Mapping[str, tuple[nn.Module, str]]:
        """Name -> (module that makes exactly one fused-attention call, ``self`` or ``cross``), in call order."""
        ...

    def feature_sites(self) -> Mapping[str, nn.Module]:
        """Name -> module whose output map may be read or replaced: ``down.i``, ``bottleneck``, ``up.i``."""
        ...


class Conditioner(Protocol):
    """From what a user says to a ``Condition``."""

    module: nn.Module
    accepts: frozenset[str]  # of "prompt", "label", "mask", "vector", "image"

    def __call__(
        self,
        batch: int,
        *,
        prompt: str | Sequence[str] | None = None,
        label: Sequence[Any] | Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> Condition:
        """Encode. Unknown words and classes are refused, naming the nearest that is known. ``None`` means not told."""
        ...


@dataclass(frozen=True)
class Backbone:
    """Four parts and their contract. Methods see this and nothing of the libraries behind it."""

    name: str
    autoencoder: Autoencoder
    network: Network
    conditioner: Conditioner
    schedule: Schedule
    contract: Contract
    digest: str = ""
    precision: torch.dtype = torch.float32
    scorer: Any = None  # image-text dual encoder: callable (images, prompts) -> similarity (B,)
    judge: Any = None  # classifier that has seen only real images: labels, classify(images), features(images)
    guide: Any = None  # classifier of noisy latents: labels, towards(labels)(x_t, level)
    verifier: Any = None  # tells patients apart and remembers the training images: nearest(images, k), threshold

    def modules(self) -> dict[str, nn.Module]:
        """The parts that hold weights, by name."""
        return {
            "autoencoder": self.autoencoder.module,
            "network": self.network.module,
            "conditioner": self.conditioner.module,
        }

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        p = next(iter(self.network.module.parameters()), None)
        return torch.device("cpu") if p is None else p.device

    def offers(self) -> frozenset[str]:
        """What a method may need of a backbone (the words of a decorator's ``needs``)."""
        sites = [kind for _, kind in self.network.attention_sites().values()]
        found = {f"{kind}_attention" for kind in sites} | {f"{c}_condition" for c in self.conditioner.accepts}
        if "bottleneck" in self.network.feature_sites():
            found.add("features")
        if any(p.numel() for p in self.network.module.parameters()):
            found.add("weights")
        if hasattr(self.network, "control_branch"):
            found.add("control_branch")
        if self.scorer is not None:
            found.add("scorer")
        if self.judge is not None:
            found.add("judge")
        if self.guide is not None:
            found.add("guide")
        if self.verifier is not None:
            found.add("verifier")
        if self.scorer is not None or self.judge is not None:
            found.add("objective")
        if hasattr(self.conditioner, "token_embedding"):
            found.add("text_encoder")
        return frozenset(found)

    def condition(self, batch: int, **what: Any) -> Condition:
        """Encode what the result should show; with no argument the null condition."""
        given = {k: v for k, v in what.items() if v is not None}
        refused = sorted(set(given) - set(self.conditioner.accepts))
        if refused:
            takes = ", ".join(sorted(self.conditioner.accepts)) or "no condition"
            raise DiffAugError(f"backbone {self.name!r} takes {takes}; it cannot be told {', '.join(refused)}")
        return self.conditioner(batch, **given).to(self.device)

    def output(self, x: Tensor, t: float | Tensor, condition: Condition) -> Tensor:
        """One network call: raw output in the dtype of ``x``, run in the backbone's precision."""
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        times = torch.as_tensor(t, dtype=precise, device=x.device)
        times = times.expand(x.shape[0]) if times.ndim == 0 else times
        mixed = self.precision != torch.float32 and x.dtype == torch.float32
        with torch.autocast(x.device.type, dtype=self.precision) if mixed else nullcontext():
            out = self.network(x, times, condition)
        return out.to(x.dtype)

    def denoiser(self, condition: Condition) -> Denoiser:
        """The plain denoiser under one condition: one network call a step."""

        def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
            with at_level(level):
                out = self.output(x, level.t, condition)
            return self.schedule.convert(out, x, level.alpha, level.sigma)

        return denoise

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, C, *S) to scaled latent; no gradient is kept from outside."""
        return self.autoencoder.encode(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent to image, in the contract's value range (not clipped)."""
        return self.autoencoder.decode(latent)

    def with_precision(self, precision: torch.dtype) -> Backbone:
        """The same parts, run in another precision."""
        return replace(self, precision=precision)

    def with_memory(self, gigabytes: float, exact: bool = False) -> Backbone:
        """The same parts; decoding keeps within a budget, in slabs or tiles where the whole does not fit.

        Args:
            gigabytes: for decoding, beside what is there already (1 GB is 2^30 bytes).
            exact: refuse tiles, which only come close.

        Raises:
            DiffAugError: the budget is nothing, or the autoencoder cannot be decoded piece by piece.
        """
        if gigabytes <= 0:
            raise DiffAugError(f"{gigabytes:g} GB is no memory to decode in: give more than 0")
        within = getattr(self.autoencoder, "within", None)
        if within is None:
            raise DiffAugError(f"the autoencoder of {self.name!r} decodes only in one piece: leave the memory out")
        return replace(self, autoencoder=within(int(gigabytes * 2**30), exact))
