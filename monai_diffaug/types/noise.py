"""Noise as a pair (alpha, sigma): levels, schedules, the rows of a plan, and what a denoiser says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from .errors import DiffAugError

__all__ = [
    "Denoiser",
    "NoiseLevel",
    "Plan",
    "Prediction",
    "Row",
    "Schedule",
    "StepCallback",
    "at_level",
    "current_level",
]


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


StepCallback = Callable[[Tensor, Row, Prediction | None], Tensor | None]


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
