"""The nouns that everything else is made of.

A backbone is four parts (autoencoder, network, conditioner, schedule). Noise is a pair (alpha, sigma). A denoiser maps
a noisy latent to a pair (x0, eps). A plan is a table of rows; a sampler walks it. Nothing here knows MONAI or diffusers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

__all__ = [
    "Autoencoder",
    "Backbone",
    "Concept",
    "Condition",
    "Conditioner",
    "Contract",
    "Denoiser",
    "DiffAugError",
    "Network",
    "NoiseLevel",
    "NoiseSource",
    "Plan",
    "Prediction",
    "Row",
    "Sample",
    "Schedule",
]


class DiffAugError(ValueError):
    """Anything the user can mend. The message is one sentence that names the remedy."""


# ------------------------------------------------------------------------------------------------------------ noise


@dataclass(frozen=True)
class NoiseLevel:
    """Where on the noise schedule a network call is: ``x_t = alpha x0 + sigma eps``.

    ``t`` is what the network is told (it may be fractional). ``index`` of ``total`` is the place in the plan, 0 the
    noisiest. ``branches`` names the conditions stacked along the batch in this call, conditions-major: rows
    ``[i * B, (i + 1) * B)`` belong to ``branches[i]``.
    """

    t: float
    alpha: float
    sigma: float
    index: int = 0
    total: int = 1
    branches: tuple[str, ...] = ("condition",)

    @property
    def log_snr(self) -> float:
        """``log(alpha / sigma)``: half of the logarithm of the signal-to-noise ratio."""
        return math.log(max(self.alpha, 1e-12)) - math.log(max(self.sigma, 1e-12))

    @property
    def progress(self) -> float:
        """Fraction of the plan that lies behind this call, in [0, 1)."""
        return self.index / max(self.total, 1)


@dataclass(frozen=True)
class Row:
    """One step: ``x' = alpha x0 + sqrt(sigma^2 - eta^2) eps + eta z + kappa (x0 - x0_previous)``.

    ``level`` is where the network is called; ``alpha`` and ``sigma`` are those of the level the step arrives at. With
    ``jump`` the row goes up in noise without a network call: ``x' = (alpha / level.alpha) x + (what sigma lacks) z``.
    """

    level: NoiseLevel
    alpha: float
    sigma: float
    eta: float = 0.0
    kappa: float = 0.0
    jump: bool = False


Plan = tuple[Row, ...]


class Prediction(NamedTuple):
    """What a denoiser says of ``x_t``: the clean latent and the noise, each shaped like ``x_t``."""

    x0: Tensor
    eps: Tensor


Denoiser = Callable[[Tensor, NoiseLevel], Prediction]


@dataclass(frozen=True)
class Schedule:
    """A table of (alpha, sigma) over network time, read between its entries by linear interpolation of log-SNR.

    Args:
        alphas: alpha at ``times``, falling.
        sigmas: sigma at ``times``, rising.
        prediction: what the network returns: ``epsilon``, ``v_prediction``, ``sample``, ``velocity`` (rectified flow,
            ``eps - x0``, as in diffusers) or ``data_velocity`` (``x0 - eps``, as in MONAI's ``RFlowScheduler``).
        times: network time of each entry; ``0, 1, ... T - 1`` unless given.
    """

    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    prediction: str = "epsilon"
    times: tuple[float, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.times:
            object.__setattr__(self, "times", tuple(float(i) for i in range(len(self.alphas))))
        known = ("epsilon", "v_prediction", "sample", "velocity", "data_velocity")
        if self.prediction not in known:
            raise DiffAugError(f"prediction type {self.prediction!r} is unknown: use one of {', '.join(known)}")

    @property
    def is_flow(self) -> bool:
        """Whether this is a rectified flow (alpha + sigma = 1) rather than variance preserving."""
        mid = len(self.alphas) // 2
        return abs(self.alphas[mid] + self.sigmas[mid] - 1.0) < 1e-4

    @cached_property
    def _log_snrs(self) -> list[float]:
        return [
            math.log(max(a, 1e-12)) - math.log(max(s, 1e-12)) for a, s in zip(self.alphas, self.sigmas, strict=True)
        ]

    def at(self, t: float) -> NoiseLevel:
        """The noise level at network time ``t``; outside the table the nearest end."""
        from bisect import bisect_right

        times = self.times
        if t <= times[0]:
            return NoiseLevel(float(t), self.alphas[0], self.sigmas[0])
        if t >= times[-1]:
            return NoiseLevel(float(t), self.alphas[-1], self.sigmas[-1])
        i = bisect_right(times, t) - 1
        w = (t - times[i]) / (times[i + 1] - times[i])
        if w == 0:
            return NoiseLevel(float(t), self.alphas[i], self.sigmas[i])
        if self.is_flow:
            alpha = self.alphas[i] + w * (self.alphas[i + 1] - self.alphas[i])
            return NoiseLevel(float(t), alpha, 1.0 - alpha)
        lam = self._log_snrs
        return self._from_log_snr(float(t), lam[i] + w * (lam[i + 1] - lam[i]))

    def at_log_snr(self, log_snr: float) -> NoiseLevel:
        """The noise level whose ``log(alpha / sigma)`` is given, clamped to the table."""
        lam = self._log_snrs  # falling
        if log_snr >= lam[0]:
            return NoiseLevel(self.times[0], self.alphas[0], self.sigmas[0])
        if log_snr <= lam[-1]:
            return NoiseLevel(self.times[-1], self.alphas[-1], self.sigmas[-1])
        lo, hi = 0, len(lam) - 1
        while hi - lo > 1:
            mid = (lo + hi) // 2
            lo, hi = (mid, hi) if lam[mid] >= log_snr else (lo, mid)
        w = (lam[lo] - log_snr) / (lam[lo] - lam[hi])
        return self._from_log_snr(self.times[lo] + w * (self.times[hi] - self.times[lo]), log_snr)

    def _from_log_snr(self, t: float, log_snr: float) -> NoiseLevel:
        if self.is_flow:
            alpha = 1.0 / (1.0 + math.exp(-log_snr))
            return NoiseLevel(t, alpha, 1.0 - alpha)
        alpha = math.sqrt(1.0 / (1.0 + math.exp(-2.0 * log_snr)))
        return NoiseLevel(t, alpha, math.sqrt(1.0 - alpha * alpha))

    def convert(self, output: Tensor, x: Tensor, alpha: Any, sigma: Any) -> Prediction:
        """Turn a network output at noise (alpha, sigma) into ``(x0, eps)``; alpha and sigma broadcast against ``x``."""
        if self.prediction == "epsilon":
            return Prediction((x - sigma * output) / alpha, output)
        if self.prediction == "sample":
            return Prediction(output, (x - alpha * output) / sigma)
        if self.prediction == "v_prediction":  # v = alpha eps - sigma x0, on alpha^2 + sigma^2 = 1
            return Prediction(alpha * x - sigma * output, sigma * x + alpha * output)
        if self.prediction == "data_velocity":
            output = -output
        return Prediction(x - sigma * output, x + alpha * output)  # velocity = eps - x0, on alpha + sigma = 1

    def target(self, x0: Tensor, eps: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """What the network should have returned for ``alpha x0 + sigma eps``: the training target."""
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "sample":
            return x0
        if self.prediction == "v_prediction":
            return alpha * eps - sigma * x0
        return x0 - eps if self.prediction == "data_velocity" else eps - x0


class NoiseSource:
    """One random stream per image, so that an image does not depend on what else is in its batch.

    Args:
        seeds: one integer per batch item.
    """

    def __init__(self, seeds: Iterable[int]):
        self.seeds = tuple(int(s) for s in seeds)
        self._streams = [torch.Generator().manual_seed(s % (2**63)) for s in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def _each(self, n: int) -> list[torch.Generator]:
        if n != len(self._streams):
            raise DiffAugError(f"{n} images were given {len(self._streams)} seeds: give one seed per image")
        return self._streams

    def expect(self, n: int) -> None:
        """Refuse, before any work, a batch of ``n`` images if there are more or fewer seeds."""
        self._each(n)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape, dtype and device of ``like`` (B, ...)."""
        rows = [torch.randn(like.shape[1:], generator=g) for g in self._each(like.shape[0])]
        return torch.stack(rows).to(like)

    def uniform(self, batch: int) -> Tensor:
        """One number in [0, 1) per image: (B,)."""
        return torch.stack([torch.rand((), generator=g) for g in self._each(batch)])

    def state(self) -> list[Tensor]:
        """The streams' states, for a method that must draw the same noise twice."""
        return [g.get_state() for g in self._streams]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Go back to what ``state`` returned."""
        for g, s in zip(self._streams, state, strict=True):
            g.set_state(s)

    def spawn(self, n: int) -> NoiseSource:
        """Streams for a batch of ``n`` copies of each image, copies-major: row ``c * B + b`` is copy c of image b."""
        return NoiseSource((s * 1_000_003 + 7919 * c + 1) % (2**62) for c in range(n) for s in self.seeds)


# -------------------------------------------------------------------------------------------------------- condition


@dataclass(frozen=True)
class Condition:
    """Every way in which a network can be told something. Absent parts are ``None``.

    Shapes: ``tokens (B, L, D)``, ``vector (B, D)``, ``concat (B, C, *spatial)`` at latent size, ``labels (B,)`` integers,
    ``residuals``: feature maps added inside the network (down blocks..., middle).
    """

    tokens: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None
    labels: Tensor | None = None
    residuals: tuple[Tensor, ...] | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Condition:
        """Apply ``fn`` to every tensor in it."""
        values: dict[str, Any] = {}
        for f in fields(self):
            v = getattr(self, f.name)
            values[f.name] = None if v is None else tuple(fn(r) for r in v) if isinstance(v, tuple) else fn(v)
        return Condition(**values)

    def to(self, *args: Any) -> Condition:
        """Move to a device; floating tensors also take a dtype."""
        return self.map(
            lambda t: (
                t.to(*args) if t.is_floating_point() else t.to(*[a for a in args if not isinstance(a, torch.dtype)])
            )
        )

    def __getitem__(self, index: Any) -> Condition:
        return self.map(lambda t: t[index])

    def repeat(self, n: int) -> Condition:
        """``n`` copies of the batch, one after the other."""
        return self.map(lambda t: t.repeat(n, *[1] * (t.ndim - 1)))

    @property
    def batch(self) -> int | None:
        """Number of rows, or ``None`` for the empty condition."""
        for f in fields(self):
            v = getattr(self, f.name)
            if v is not None:
                return int(v[0].shape[0] if isinstance(v, tuple) else v.shape[0])
        return None

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Stack conditions along the batch. All must have the same parts, so that none is dropped in silence."""
        values: dict[str, Any] = {}
        for f in fields(Condition):
            vs = [getattr(p, f.name) for p in parts]
            present = [v is not None for v in vs]
            if any(present) and not all(present):
                if f.name == "residuals":  # a branch without residuals is a branch with zeros
                    like = next(v for v in vs if v is not None)
                    vs = [v if v is not None else tuple(torch.zeros_like(r) for r in like) for v in vs]
                else:
                    raise DiffAugError(
                        f"conditions differ in {f.name!r}: make all of them with the same backbone's conditioner"
                    )
            elif not any(present):
                values[f.name] = None
                continue
            if isinstance(vs[0], tuple):
                values[f.name] = tuple(torch.cat(rs) for rs in zip(*vs, strict=True))
            else:
                values[f.name] = torch.cat(vs)
        return Condition(**values)


# --------------------------------------------------------------------------------------------------------- backbone


@dataclass(frozen=True)
class Contract:
    """What must be known to use a checkpoint. It lives in the checkpoint; loading without it is an error.

    ``size`` is the image size in voxels that the network was trained on, ``value_range`` the intensities that it sees
    and returns, ``crop`` how an image is fitted to ``size``: ``foreground`` (square box around the head, say) or ``none``.
    ``intensity`` are the percentiles of an image that go onto the ends of ``value_range`` (what MRI, which has no units,
    was trained with), or ``None`` when the data type's own range does (8-bit pictures).
    ``spacing`` in mm or ``None`` when the training data had none. ``labels`` are the class names, in the order of their
    integers; ``vocabulary`` the words that a prompt may use.
    """

    name: str
    modality: str
    spatial_dims: int
    channels: int
    size: tuple[int, ...]
    latent_channels: int
    latent_scale: float
    factor: int
    value_range: tuple[float, float] = (-1.0, 1.0)
    crop: str = "none"
    intensity: tuple[float, float] | None = None
    spacing: tuple[float, ...] | None = None
    orientation: str | None = None
    labels: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    license: str = ""
    data: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latent_size(self) -> tuple[int, ...]:
        """Spatial size of the latent."""
        return tuple(s // self.factor for s in self.size)

    def to_json(self) -> str:
        """Serialize."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Contract:
        """Read back what ``to_json`` wrote; a missing key is an error that names it."""
        required = [
            f
            for f in (
                "name",
                "modality",
                "spatial_dims",
                "channels",
                "size",
                "latent_channels",
                "latent_scale",
                "factor",
            )
        ]
        missing = [k for k in required if k not in d]
        if missing:
            raise DiffAugError(f"the checkpoint's contract lacks {', '.join(missing)}: add it to contract.json")
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in d.items() if k in known}
        return cls(**values)


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
        """Name -> (module whose forward makes exactly one fused-attention call, ``self`` or ``cross``), in call order."""
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


class _Precision(Protocol):
    def __call__(self) -> AbstractContextManager[Any]: ...


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


# The level of the call in progress, so that attention and feature rules know the step without threading it through
# networks that have never heard of it. A context variable, because guidance may call one denoiser inside another and
# each thread of a data loader has its own call in progress.
_LEVEL: ContextVar[NoiseLevel | None] = ContextVar("diffaug_level", default=None)


class at_level:  # noqa: N801 - used as a verb
    """Context in which :func:`current_level` answers ``level``."""

    def __init__(self, level: NoiseLevel):
        self.level = level
        self._tokens: list[Token[NoiseLevel | None]] = []

    def __enter__(self) -> None:
        self._tokens.append(_LEVEL.set(self.level))

    def __exit__(self, *exc: object) -> None:
        _LEVEL.reset(self._tokens.pop())


def current_level() -> NoiseLevel | None:
    """The noise level of the network call in progress."""
    return _LEVEL.get()


# ----------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Sample:
    """What a method returns. Tensors are batched (B, ...), except from an ``expand`` method, which yields single items.

    ``image`` in the contract's value range. ``mask`` is a label mask that belongs to the new image, ``map`` a float map
    (difference, anomaly), ``label`` class names, ``boxes`` (N, 2 * dims) voxel corners, ``info`` JSON-able remarks.
    """

    image: Tensor
    label: Any = None
    mask: Tensor | None = None
    map: Tensor | None = None
    boxes: Any = None
    prompt: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Concept:
    """What a ``learn`` method returns: tensors by name, and how they are put on a backbone.

    ``kind`` is one of ``tokens`` (rows for new words), ``lora`` (adapter weights), ``weights`` (replacement tensors of the
    network), ``controlnet``, ``direction`` (a shift of the bottleneck).
    """

    kind: str
    tensors: Mapping[str, Tensor]
    backbone_digest: str
    word: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)


Rule = Callable[..., Tensor | None]
StepCallback = Callable[[Tensor, Row, Prediction | None], Tensor | None]


def iterate(samples: Sample) -> Iterator[Sample]:
    """Split a batched sample into single ones, each still with a batch axis of 1."""
    for i in range(samples.image.shape[0]):
        pick: dict[str, Any] = {}
        for name in ("label", "mask", "map", "boxes", "prompt"):
            v = getattr(samples, name)
            pick[name] = v[i : i + 1] if isinstance(v, Tensor | list | tuple) else v
        yield replace(samples, image=samples.image[i : i + 1], **pick)
