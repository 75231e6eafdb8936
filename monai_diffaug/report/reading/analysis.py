"""What the answers of a reader study say, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.metrics import cohen_kappa_score

from ...types import DiffAugError
from .study import Study

__all__ = ["analyze", "fleiss", "wilson"]

MARGIN = 0.10  # of accuracy around 1/2, within which synthetic counts as not told from real

Row = Mapping[str, Any]


def wilson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z = float(norm.ppf(0.5 + level / 2))
    p = hits / n
    middle, half = p + z * z / (2 * n), z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def fleiss(counts: Sequence[Sequence[int]]) -> float:
    """Fleiss' kappa (1971) of a table: one row a picture, one column a category, how many readers chose it."""
    table = np.asarray(counts, float)
    n = table.sum(1)
    if len(table) == 0 or (n != n[0]).any() or n[0] < 2:
        raise DiffAugError("Fleiss' kappa wants every picture marked by the same two or more readers")
    agreed = ((table * table).sum(1) - n[0]) / (n[0] * (n[0] - 1))
    by_chance = float(((table.sum(0) / table.sum()) ** 2).sum())
    return 1.0 if by_chance == 1 else float((agreed.mean() - by_chance) / (1 - by_chance))


def _area(counts: np.ndarray) -> np.ndarray:
    """Area under the curve of marks from their counts (..., 2, 5): ties count half (Mann and Whitney 1947)."""
    real, made = counts[..., 0, :], counts[..., 1, :]
    below = np.cumsum(real, -1) - real
    pairs = real.sum(-1) * made.sum(-1)
    return np.divide((made * (below + real / 2)).sum(-1), pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)


def _auroc(truth: np.ndarray, marks: np.ndarray, tokens: np.ndarray, seed: int) -> dict[str, Any]:
    """Area under the curve of the marks, and its interval over pictures drawn with replacement."""
    names, where = np.unique(tokens, return_inverse=True)
    counts = np.zeros((len(names), 2, 5))
    np.add.at(counts, (where, truth, marks - 1), 1)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=2000)
    low, high = np.nanquantile(_area(np.tensordot(times, counts, 1)), [0.025, 0.975])
    return {"value": float(_area(counts.sum(0))), "interval": [float(low), float(high)]}


def _share(right: np.ndarray) -> dict[str, Any]:
    low, high = wilson(int(right.sum()), len(right))
    return {"value": float(right.mean()) if len(right) else None, "interval": [low, high], "n": len(right)}


def _detection(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """How well real was told from synthetic: 1 and 2 say real, 4 and 5 synthetic, 3 is half right."""
    truth = np.array([int(r["synthetic"]) for r in rows])
    marks = np.array([int(r["value"]) for r in rows])
    if len(set(truth)) < 2:
        return {"n": len(rows)}
    called = marks >= 4
    decided = marks != 3
    right = (called == (truth == 1)) & decided
    accuracy = _share(right[decided])
    low, high = wilson(int(right[decided].sum()), int(decided.sum()), 0.90)  # two one-sided tests at 5 %
    return {
        "n": len(rows),
        "auroc": _auroc(truth, marks, np.array([str(r["token"]) for r in rows]), seed),
        "sensitivity": _share(called[truth == 1]),
        "specificity": _share((marks <= 2)[truth == 0]),
        "accuracy": accuracy,
        "undecided": float((~decided).mean()),
        "not_told_apart": bool(decided.any() and low > 0.5 - MARGIN and high < 0.5 + MARGIN),
    }


def _kappa(pairs: Sequence[tuple[int, int]]) -> float | None:
    """Cohen's kappa with quadratic weights (1968); of marks that never differ it is 1."""
    if len(pairs) < 2:
        return None
    a, b = zip(*pairs, strict=True)
    if a == b:
        return 1.0
    return float(cohen_kappa_score(a, b, weights="quadratic", labels=[1, 2, 3, 4, 5]))


def _agreement(rows: Sequence[Row], question: str) -> dict[str, Any]:
    """Between readers on first showings, and of each with himself on repeats."""
    first: dict[str, dict[str, int]] = {}
    repeats: list[tuple[int, int]] = []
    mine = [r for r in rows if r["question"] == question]
    for r in sorted(mine, key=lambda r: int(r["again"])):
        seen = first.setdefault(str(r["reader"]), {})
        if r["again"]:
            if r["token"] in seen:
                repeats.append((seen[str(r["token"])], int(r["value"])))
        else:
            seen[str(r["token"])] = int(r["value"])
    found: dict[str, Any] = {"intra_reader": {"kappa": _kappa(repeats), "n": len(repeats)}}
    found["cohen"] = {
        f"{a} / {b}": _kappa([(first[a][t], first[b][t]) for t in first[a] if t in first[b]])
        for a, b in combinations(sorted(first), 2)
    }
    shared = set.intersection(*(set(s) for s in first.values())) if len(first) > 1 else set()
    if shared:
        counts = [[Counter(s[t] for s in first.values())[v] for v in range(1, 6)] for t in sorted(shared)]
        found["fleiss"] = {"kappa": fleiss(counts), "n": len(shared), "readers": len(first)}
    return found


def _marks(rows: Sequence[Row], question: str) -> dict[str, Any]:
    values = {k: [int(r["value"]) for r in rows if r["question"] == question and r["synthetic"] == k] for k in (0, 1)}
    return {
        name: {"mean": float(np.mean(v)), "n": len(v), "counts": [v.count(m) for m in range(1, 6)]}
        for name, v in (("real", values[0]), ("synthetic", values[1]))
        if v
    }


def analyze(study: Study, seed: int = 0) -> dict[str, Any]:
    """Detection by reader and pooled, marks by kind, agreement between readers and of each with himself.

    Detection has AUROC of the five-point marks with a bootstrap interval over pictures, sensitivity (synthetic called
    that), specificity and accuracy with Wilson's intervals, and ``not_told_apart``: whether accuracy lies within 10
    points of a half by two one-sided tests at 5 % (no difference found is no proof that there is none).

    Raises:
        DiffAugError: nobody has answered yet.
    """
    rows = study.table()
    if not rows:
        raise DiffAugError(f"{study.path} has no answers yet: let somebody read it")
    origin = [r for r in rows if r["question"] == "origin" and not r["again"]]
    readers = sorted({str(r["reader"]) for r in rows})
    return {
        "readers": {name: _detection([r for r in origin if r["reader"] == name], seed) for name in readers},
        "pooled": _detection(origin, seed),
        "marks": {q.key: _marks(rows, q.key) for q in study.questions if q.key != "origin"},
        "agreement": {q.key: _agreement(rows, q.key) for q in study.questions},
        "seconds": float(np.median([float(str(r["seconds"])) for r in rows if r["question"] == "origin"] or [0.0])),
    }
