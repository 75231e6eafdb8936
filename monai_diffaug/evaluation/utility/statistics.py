"""Is the difference between two arms more than chance? Patients are drawn, not images, and the same for both arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Comparison", "Difference", "corrected", "difference", "patient_weights"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Arm minus control, with its 95 % interval and two-sided p."""

    difference: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Comparison:
    """One arm against one control under one metric; ``p_corrected`` after Holm over the arms of its family."""

    arm: str
    control: str
    patients: int | str
    ratio: float
    metric: str
    difference: float
    interval: tuple[float, float]
    p: float
    p_corrected: float
    n_patients: int

    def to_dict(self) -> dict[str, Any]:
        """Serialize."""
        return asdict(self)


def patient_weights(patient: NDArray[np.int64], draws: int, seed: int = 0) -> Floats:
    """How often each image counts: once in the first row, then in ``draws`` drawings of patients with replacement.

    Args:
        patient: (N,), the number of each image's patient, from 0.
        draws: of patients.
        seed: of the drawings.

    Returns:
        (1 + draws, N). All images of a patient count alike.
    """
    n = int(patient.max()) + 1
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    weights: Floats = np.concatenate([np.ones((1, n)), counts.astype(float)])[:, patient]
    return weights


def difference(arm: Sequence[Floats], control: Sequence[Floats]) -> Difference:
    """Of the means over seeds.

    Args:
        arm: for each seed (1 + draws,), the figure under the weights of :func:`patient_weights`.
        control: likewise, under the same weights and seeds.
    """
    apart = np.mean(np.stack(arm), axis=0) - np.mean(np.stack(control), axis=0)
    drawn = apart[1:][np.isfinite(apart[1:])]  # a drawing may leave one class only
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = 1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Difference(float(apart[0]), (float(low), float(high)), min(1.0, 2 * tail / (len(drawn) + 1)))


def corrected(p: Mapping[Any, float]) -> dict[Any, float]:
    """Holm's step-down correction (Holm 1979) of a family of p values."""
    order = sorted(p, key=lambda k: p[k])
    found, largest = {}, 0.0
    for i, key in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - i) * p[key]))
        found[key] = largest
    return found
