"""How far readers agree: kappas with intervals, and what part of the marks' variance is the readers'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...types import DiffAugError

__all__ = ["agreement", "components", "fleiss", "kappa"]

Row = Mapping[str, Any]
Floats = NDArray[np.float64]

DRAWS = 1000


def _times(n: int, seed: int) -> Floats:
    """How often each of n counts (1 + draws, n): once, then in draws with replacement."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    return np.concatenate([np.ones((1, n)), drawn]).astype(float)


def _told(values: Floats) -> dict[str, Any]:
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"kappa": float(values[0]), "interval": [float(low), float(high)]}


def _fleiss(counts: Floats, times: Floats) -> Floats:
    n = counts.sum(1)
    agreed = ((counts * counts).sum(1) - n) / (n * (n - 1))
    total = times.sum(1)
    share = times @ counts / (total[:, None] * n[0])
    chance = (share**2).sum(1)
    found = np.ones(len(times))  # marks that never differ agree
    some = chance < 1 - 1e-12
    found[some] = ((times @ agreed / total - chance)[some]) / (1 - chance[some])
    return found


def fleiss(counts: Sequence[Sequence[int]], seed: int = 0) -> dict[str, Any]:
    """Fleiss' kappa (1971) of a table: one row a picture, one column a category, how many readers chose it.

    Returns:
        ``kappa`` and its ``interval`` over pictures drawn with replacement.

    Raises:
        DiffAugError: the pictures were not marked by one number of two or more readers.
    """
    table = np.asarray(counts, float)
    n = table.sum(1)
    if len(table) == 0 or (n != n[0]).any() or n[0] < 2:
        raise DiffAugError("Fleiss' kappa wants every picture marked by the same two or more readers")
    return _told(_fleiss(table, _times(len(table), seed)))


def kappa(pairs: Sequence[tuple[int, int]], seed: int = 0) -> dict[str, Any]:
    """Cohen's kappa with quadratic weights (1968) of pairs of marks from 1 to 5; of marks that never differ it is 1.

    Returns:
        ``kappa`` and its ``interval`` over pairs drawn with replacement, both ``None`` for fewer than two; and ``n``.
    """
    if len(pairs) < 2:
        return {"kappa": None, "interval": None, "n": len(pairs)}
    at = np.asarray(pairs) - 1
    seen = np.zeros((len(at), 5, 5))
    seen[np.arange(len(at)), at[:, 0], at[:, 1]] = 1
    counts = np.tensordot(_times(len(at), seed), seen, 1)
    weight = (np.arange(5)[:, None] - np.arange(5)) ** 2
    by_chance = np.einsum("da,db,ab->d", counts.sum(2), counts.sum(1), weight) / counts.sum((1, 2))
    differ = (counts * weight).sum((1, 2))
    found = np.where(by_chance > 0, 1 - differ / np.where(by_chance > 0, by_chance, 1), 1.0)
    return {**_told(found), "n": len(pairs)}


def components(marks: Sequence[Sequence[float]]) -> dict[str, float]:
    """Variances of marks (R, P) of R readers on P pictures: of readers, of pictures, and what is left.

    Two-way random effects from mean squares (Shrout and Fleiss 1979), none below 0. ``icc`` is the correlation of one
    reader's marks with another's, ICC(2,1).

    Raises:
        DiffAugError: fewer than two readers or pictures.
    """
    x = np.asarray(marks, float)
    if x.ndim != 2 or min(x.shape) < 2:
        raise DiffAugError(f"marks {x.shape} hold no variance of both readers and pictures: give two or more of each")
    readers, pictures = x.shape
    mean = x.mean()
    by_reader = pictures * ((x.mean(1) - mean) ** 2).sum() / (readers - 1)
    by_picture = readers * ((x.mean(0) - mean) ** 2).sum() / (pictures - 1)
    left = ((x - x.mean(1, keepdims=True) - x.mean(0) + mean) ** 2).sum() / ((readers - 1) * (pictures - 1))
    reader, picture = max((by_reader - left) / pictures, 0.0), max((by_picture - left) / readers, 0.0)
    total = reader + picture + left
    return {
        "reader": float(reader),
        "picture": float(picture),
        "residual": float(left),
        "icc": float(picture / total) if total > 0 else 1.0,
    }


def agreement(rows: Sequence[Row], question: str, seed: int = 0) -> dict[str, Any]:
    """Between readers on first showings, and of each with himself on repeats."""
    first: dict[str, dict[str, int]] = {}
    repeats: dict[str, list[tuple[int, int]]] = {}
    mine = [r for r in rows if r["question"] == question]
    for r in sorted(mine, key=lambda r: int(r["again"])):
        reader, token = str(r["reader"]), str(r["token"])
        seen = first.setdefault(reader, {})
        if not r["again"]:
            seen[token] = int(r["value"])
        elif token in seen:
            repeats.setdefault(reader, []).append((seen[token], int(r["value"])))
    found: dict[str, Any] = {"intra_reader": kappa([p for pairs in repeats.values() for p in pairs], seed)}
    found["intra_reader"]["readers"] = {name: kappa(pairs, seed) for name, pairs in repeats.items()}
    pairs = {
        f"{a} / {b}": kappa([(first[a][t], first[b][t]) for t in first[a] if t in first[b]], seed)
        for a, b in combinations(sorted(first), 2)
    }
    found["cohen"] = {name: k["kappa"] for name, k in pairs.items()}
    found["cohen_interval"] = {name: k["interval"] for name, k in pairs.items()}
    shared = sorted(set.intersection(*(set(s) for s in first.values()))) if len(first) > 1 else []
    if shared:
        counts = [[Counter(s[t] for s in first.values())[v] for v in range(1, 6)] for t in shared]
        found["fleiss"] = {**fleiss(counts, seed), "n": len(shared), "readers": len(first)}
    if len(shared) > 1:
        found["variance"] = components([[s[t] for t in shared] for s in first.values()])
    return found
