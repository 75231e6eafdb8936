"""What the answers of a reader study say, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom, norm

from ...metrics.proportion import wilson
from ...types import DiffAugError
from .agreement import agreement
from .study import Study

__all__ = ["analyze", "equivalent"]

MARGIN = 0.10  # of accuracy around 1/2, within which synthetic counts as not told from real

Row = Mapping[str, Any]


def _area(counts: np.ndarray) -> np.ndarray:
    """Area under the curve of marks from their counts (..., 2, 5): ties count half (Mann and Whitney 1947)."""
    real, made = counts[..., 0, :], counts[..., 1, :]
    below = np.cumsum(real, -1) - real
    pairs = real.sum(-1) * made.sum(-1)
    return np.divide((made * (below + real / 2)).sum(-1), pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)


def equivalent(hits: int, n: int, margin: float = MARGIN) -> bool:
    """Whether accuracy lies within ``margin`` of a half: two one-sided exact binomial tests at 5 %.

    At an accuracy at the margin it is wrongly said in at most 5 of 100 studies, whatever ``n``.
    """
    too_good, too_bad = binom.cdf(hits, n, 0.5 + margin), binom.sf(hits - 1, n, 0.5 - margin)
    return bool(n > 0 and too_good <= 0.05 and too_bad <= 0.05)


def _drawn(n: int, seed: int, draws: int = 2000) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)


def _auroc(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Area under the curve of the marks, and its interval over pictures, and readers if three or more, redrawn."""
    names, where = np.unique([str(r["token"]) for r in rows], return_inverse=True)
    people, who = np.unique([str(r["reader"]) for r in rows], return_inverse=True)
    counts = np.zeros((len(people), len(names), 2, 5))
    truth, marks = (np.array([int(r[key]) for r in rows]) for key in ("synthetic", "value"))
    np.add.at(counts, (who, where, truth, marks - 1), 1)
    pictures = _drawn(len(names), seed)
    readers = _drawn(len(people), seed + 1) if len(people) > 2 else np.ones((len(pictures), len(people)))
    drawn = np.einsum("dr,rdkm->dkm", readers, np.stack([np.tensordot(pictures, c, 1) for c in counts]))
    low, high = np.nanquantile(_area(drawn), [0.025, 0.975])
    return {"value": float(_area(counts.sum((0, 1)))), "interval": [float(low), float(high)]}


def _share(right: np.ndarray) -> dict[str, Any]:
    low, high = wilson(int(right.sum()), len(right))
    return {"value": float(right.mean()) if len(right) else None, "interval": [low, high], "n": len(right)}


def _detection(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """How well real was told from synthetic: 1 and 2 say real, 4 and 5 synthetic, 3 is undecided."""
    truth = np.array([int(r["synthetic"]) for r in rows])
    marks = np.array([int(r["value"]) for r in rows])
    if len(set(truth)) < 2:
        return {"n": len(rows)}
    called = marks >= 4
    decided = marks != 3
    right = (called == (truth == 1)) & decided
    accuracy = _share(right[decided])
    low, high = _by_picture([str(r["token"]) for r in rows], right, decided, seed)
    inside = low > 0.5 - MARGIN and high < 0.5 + MARGIN
    called_made, called_real = _rate(called[truth == 1]), _rate(called[truth == 0])
    return {
        "n": len(rows),
        "auroc": _auroc(rows, seed),
        "sensitivity": _share(called[truth == 1]),
        "specificity": _share((marks <= 2)[truth == 0]),
        "accuracy": accuracy,
        "undecided": float((~decided).mean()),
        "d_prime": float(norm.ppf(called_made) - norm.ppf(called_real)),
        "seconds": float(np.median([float(r.get("seconds", 0.0)) for r in rows])),
        "not_told_apart": bool(inside and equivalent(int(right[decided].sum()), int(decided.sum()))),
    }


def _rate(called: np.ndarray) -> float:
    """A share kept off 0 and 1 (Hautus 1995), where d' has no end."""
    return (float(called.sum()) + 0.5) / (len(called) + 1)


def _by_picture(tokens: Sequence[str], right: np.ndarray, decided: np.ndarray, seed: int) -> tuple[float, float]:
    """The 90 % interval of accuracy over pictures: several readers' decisions on one are not independent."""
    names, where = np.unique(tokens, return_inverse=True)
    hits, total = np.zeros(len(names)), np.zeros(len(names))
    np.add.at(hits, where, right)
    np.add.at(total, where, decided)
    times = _drawn(len(names), seed)
    seen = times @ total
    shares = np.divide(times @ hits, seen, out=np.full(len(times), np.nan), where=seen > 0)
    if not np.isfinite(shares).any():
        return 0.0, 1.0
    low, high = np.nanquantile(shares, [0.05, 0.95])
    return float(low), float(high)


def _marks(rows: Sequence[Row], question: str) -> dict[str, Any]:
    mine = [r for r in rows if r["question"] == question and not r["planted"]]
    values = {k: [int(r["value"]) for r in mine if r["synthetic"] == k] for k in (0, 1)}
    return {
        name: {"mean": float(np.mean(v)), "n": len(v), "counts": [v.count(m) for m in range(1, 6)]}
        for name, v in (("real", values[0]), ("synthetic", values[1]))
        if v
    }


def _captions(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Wrong captions planted on real pictures: how many were marked as misleading (1 or 2), and how many right ones."""
    mine = [r for r in rows if r["question"] == "semantic" and not r["again"] and not r["synthetic"] and r["caption"]]
    wrong = np.array([int(r["planted"]) == 1 for r in mine], bool)
    if not wrong.any():
        return None
    misled = np.array([int(r["value"]) <= 2 for r in mine])
    return {"sensitivity": _share(misled[wrong]), "specificity": _share(~misled[~wrong])}


def analyze(study: Study, seed: int = 0) -> dict[str, Any]:
    """Detection by reader and pooled, marks by kind, agreement between readers and of each with himself.

    Detection has AUROC of the five-point marks with a bootstrap interval over pictures (and over readers, if there are
    three), sensitivity (synthetic called that), specificity and accuracy with Wilson's intervals, d', the median time,
    and ``not_told_apart``: whether accuracy lies within 10 points of a half by two one-sided exact tests at 5 %, and by
    the 90 % interval over pictures as well (no difference found is no proof that there is none). ``captions`` says how
    many wrong captions were caught, where some were planted.

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
        "agreement": {q.key: agreement(rows, q.key, seed) for q in study.questions},
        "captions": _captions(rows),
        "seconds": float(np.median([float(str(r["seconds"])) for r in rows if r["question"] == "origin"] or [0.0])),
    }
