"""What an audit says: figures with their intervals and controls, sections with a verdict and a sentence, and chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

__all__ = ["FAIL", "OPEN", "PASS", "Figure", "Section", "auroc", "not_judged", "over_patients"]

PASS, FAIL, OPEN = "pass", "fail", "not judged"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """A number, its 95 % interval, the same of what should show nothing, and where it begins to be bad."""

    value: float
    interval: Interval | None = None
    control: float | None = None
    bar: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        row = {k: None if v is None else round(float(v), 5) for k, v in asdict(self).items() if k != "interval"}
        return {**row, "interval": None if self.interval is None else [round(float(v), 5) for v in self.interval]}


@dataclass(frozen=True)
class Section:
    """One question: ``verdict`` (``pass``, ``fail``, ``not judged``), a sentence for a clinician, and figures."""

    verdict: str
    says: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = {k: f.to_dict() for k, f in self.figures.items()}
        return {"verdict": self.verdict, "says": self.says, "figures": figures, **self.more}


def not_judged(why: str) -> Section:
    """A section that could not be judged."""
    return Section(OPEN, f"Not judged: {why}.")


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """How often a number of the first kind is larger than one of the second; ties count one half."""
    order = np.sort(negative)
    below, up_to = np.searchsorted(order, positive, "left"), np.searchsorted(order, positive, "right")
    return float((below + up_to).mean() / (2 * len(order)))


def over_patients(
    statistic: Callable[..., Mapping[str, float]],
    *groups: Sequence[str],
    draws: int = 400,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % bootstrap intervals of figures, patients of each group being drawn with replacement.

    Args:
        statistic: positions in each group -> figures; NaN where it cannot be told.
        groups: for each, the patient of every position.
        draws: samples.
        seed: of the drawing.
    """
    generator = np.random.default_rng(seed)
    members = []
    for patients in groups:
        where: dict[str, list[int]] = {}
        for i, p in enumerate(patients):
            where.setdefault(p, []).append(i)
        members.append([np.array(w) for w in where.values()])
    rows: dict[str, list[float]] = {}
    for _ in range(draws):
        picks = [np.concatenate([m[i] for i in generator.integers(0, len(m), len(m))]) for m in members]
        for name, value in statistic(*picks).items():
            rows.setdefault(name, []).append(value)
    out = {}
    for name, values in rows.items():
        known = np.array(values)[~np.isnan(values)]
        if len(known):
            low, high = np.quantile(known, [0.025, 0.975])
            out[name] = (float(low), float(high))
    return out
