"""Read the noise off any MONAI or diffusers scheduler config.

A config says how the network was trained, whichever solver class it names: only the table of (alpha, sigma) is kept.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.types import DiffAugError, Schedule

__all__ = ["BRAIN_LDM", "schedule_from_config"]

BRAIN_LDM: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "beta_end": 0.0205,
    "prediction_type": "epsilon",
}
"""The schedule of MONAI's brain latent diffusion model, used where nothing else is asked for."""


def _linear(T: int, start: float, end: float, config: Mapping[str, Any]) -> Tensor:
    return torch.linspace(start, end, T, dtype=torch.float64)


def _scaled_linear(T: int, start: float, end: float, config: Mapping[str, Any]) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2


def _sigmoid(T: int, start: float, end: float, config: Mapping[str, Any]) -> Tensor:
    reach = float(config.get("sig_range", 6))
    return torch.sigmoid(torch.linspace(-reach, reach, T, dtype=torch.float64)) * (end - start) + start


def _cosine(T: int, start: float, end: float, config: Mapping[str, Any]) -> Tensor:
    s = float(config.get("s", 8e-3))
    x = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    kept = torch.cos((x + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(0.0, 0.999)


_BETAS = {
    "linear": _linear,
    "linear_beta": _linear,
    "scaled_linear": _scaled_linear,
    "scaled_linear_beta": _scaled_linear,
    "sigmoid": _sigmoid,
    "sigmoid_beta": _sigmoid,
    "cosine": _cosine,
    "squaredcos_cap_v2": _cosine,
}


def _without_terminal_signal(kept: Tensor) -> Tensor:
    """Shift and scale sqrt(kept) so that the last entry is zero and the first stays (Lin et al. 2024, algorithm 1)."""
    root = kept.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """The noise table of a scheduler.

    Args:
        config: the arguments of a MONAI scheduler (with or without ``_target_``) or a diffusers
            ``scheduler_config.json``.

    Returns:
        variance-preserving: ``num_train_timesteps`` entries at times 0, 1, ...; rectified flow: one more, from clean
        (time 0) to pure noise (time ``num_train_timesteps``).

    Raises:
        DiffAugError: the beta schedule is unknown.
    """
    T = int(config.get("num_train_timesteps", 1000))
    kind = str(config.get("_target_", config.get("_class_name", ""))).rsplit(".", 1)[-1]
    if "RFlow" in kind or "FlowMatch" in kind:
        times = [float(i) for i in range(T + 1)]
        alphas = [1.0 - t / T for t in times]
        prediction = "data_velocity" if "RFlow" in kind else "velocity"
        sigmas = [1.0 - a for a in alphas]
        return Schedule(tuple(alphas), tuple(sigmas), prediction, tuple(times), dict(config))
    if config.get("trained_betas") is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    else:
        name = str(config.get("schedule", config.get("beta_schedule", "linear")))
        if name not in _BETAS:
            near = difflib.get_close_matches(name, _BETAS, 1) or ["scaled_linear"]
            raise DiffAugError(
                f"beta schedule {name!r} is unknown: use {near[0]!r} or give the betas themselves as trained_betas"
            )
        betas = _BETAS[name](T, float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 2e-2)), config)
    kept = torch.cumprod(1.0 - betas, 0)
    if config.get("rescale_betas_zero_snr"):
        kept = _without_terminal_signal(kept)
    prediction = str(config.get("prediction_type", "epsilon"))
    return Schedule(tuple(kept.sqrt().tolist()), tuple((1 - kept).sqrt().tolist()), prediction, (), dict(config))
