"""Whether a figure is the same for all: by subgroup, the gaps between them, and who pays when a gap closes.

Rates and their gaps as Hardt et al. 2016 (arXiv:1610.02413, eq. 4) define equalized odds; shares of generated groups
corrected for the classifier that counted them as epidemiology corrects a prevalence for an imperfect test (Rogan and
Gladen 1978, eq. 1, for any number of groups).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..types import DiffAugError
from .classification import area
from .lesions import Interval

__all__ = ["FIGURES", "Change", "Fairness", "Subgroup", "by_group", "changed", "confusion", "corrected"]

FIGURES = ("sensitivity", "specificity", "auroc", "ece")
_LOW_IS_GOOD = ("ece",)
POINT = 0.01  # less than that is no change
TELLS = 0.25  # least singular value of a confusion that is taken back; of two groups sensitivity + specificity - 1
BINS = 15  # of the calibration error (Guo et al. 2017)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Subgroup:
    """Figures of one group of ``n`` images of ``patients`` patients; those that are not defined there are left out."""

    group: str
    n: int
    patients: int
    figures: dict[str, Interval]


@dataclass(frozen=True)
class Fairness:
    """Figures by subgroup, and how far the groups are apart.

    ``gaps`` are the largest less the smallest value of each figure; ``chance`` is the gap that 95 of 100 random
    partings of the same patients into groups of the same sizes stay below, for a gap is never below 0.
    ``equalized_odds`` is the larger gap of the true and of the false positive rate; ``worst`` names the group that is
    worst off by each figure. Groups that are too small are in ``left_out``.
    """

    groups: tuple[Subgroup, ...]
    gaps: dict[str, Interval]
    chance: dict[str, float]
    equalized_odds: Interval
    worst: dict[str, str]
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Serialize."""
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """What a second model (trained with synthetic images) does to each group, ``after`` less ``before``, paired.

    ``leveling_down``: the gap became smaller by more than a hundredth, and the group that had been best off lost more
    than that and more than the one that had been worst off gained.
    """

    figure: str
    gap_before: float
    gap_after: float
    gap: Interval
    groups: dict[str, Interval]
    leveling_down: bool

    def to_dict(self) -> dict[str, Any]:
        """Serialize."""
        return asdict(self)


@dataclass(frozen=True)
class _Cases:
    truth: NDArray[np.bool_]
    called: NDArray[np.bool_]
    scores: Floats
    groups: NDArray[np.int64]
    patients: NDArray[np.int64]  # whose each case is, from 0
    names: tuple[str, ...]

    @property
    def people(self) -> int:
        return int(self.patients.max()) + 1


def _cases(
    truth: ArrayLike, scores: ArrayLike, groups: Sequence[str], patients: Sequence[str], threshold: float, least: int
) -> tuple[_Cases, tuple[str, ...]]:
    t, s = np.asarray(truth, bool), np.asarray(scores, float)
    if not (t.ndim == 1 and t.shape == s.shape and len(t) == len(groups) == len(patients)):
        raise DiffAugError(
            f"{t.shape} truths, {s.shape} scores, {len(groups)} groups and {len(patients)} patients do not fit: give "
            "one of each a case"
        )
    if not np.isfinite(s).all():
        raise DiffAugError("some scores are not finite: leave out what the model could not judge")
    g, p = np.asarray(groups, str), np.asarray(patients, str)
    counts = {str(name): len(set(p[g == name])) for name in np.unique(g)}
    names = tuple(name for name, n in counts.items() if n >= least)
    if len(names) < 2:
        said = ", ".join(f"{name}: {n}" for name, n in counts.items())
        raise DiffAugError(f"fewer than two groups have {least} patients ({said}): give more, or join groups")
    kept = np.isin(g, names)
    where = np.searchsorted(names, g[kept])
    people = np.unique(p[kept], return_inverse=True)[1]
    left = tuple(f"{name} ({n} patients)" for name, n in counts.items() if n < least)
    return _Cases(t[kept], (s >= threshold)[kept], s[kept], where, people, names), left


def _calibration(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Expected calibration error (D,) of probabilities, in equal bins; not defined for scores outside [0, 1]."""
    if scores.min() < 0 or scores.max() > 1:
        return np.full(len(weights), np.nan)
    inside = np.eye(BINS)[np.minimum((scores * BINS).astype(int), BINS - 1)]
    return np.abs(((truth - scores) * weights) @ inside).sum(1) / np.maximum(weights.sum(1), 1e-12)


def _figures(cases: _Cases, weights: Floats) -> dict[str, Floats]:
    """Each figure (D, G) of every group, patients counted ``weights`` (D, P) times."""
    found: dict[str, list[Floats]] = {name: [] for name in FIGURES}
    for g in range(len(cases.names)):
        mine = cases.groups == g
        w = weights[:, cases.patients[mine]]
        t, c, s = cases.truth[mine], cases.called[mine], cases.scores[mine]
        for name, right, of in (("sensitivity", c, t), ("specificity", ~c, ~t)):
            total = w @ of.astype(float)
            hit = w @ (right & of).astype(float)
            found[name].append(np.divide(hit, total, out=np.full(len(w), np.nan), where=total > 0))
        found["auroc"].append(area(s, t, w))
        found["ece"].append(_calibration(t, s, w))
    return {name: np.stack(columns, 1) for name, columns in found.items()}


def _gap(values: Floats) -> Floats:
    """Largest less smallest (D,) of (D, G); of groups that have the figure at all."""
    alive = np.isfinite(values).any(1)
    found = np.full(len(values), np.nan)
    found[alive] = np.nanmax(values[alive], 1) - np.nanmin(values[alive], 1)
    return found


def _interval(drawn: Floats) -> Interval:
    """The first row is the figure itself, the others are draws."""
    low, high = np.nanquantile(drawn[1:], [0.025, 0.975]) if np.isfinite(drawn[1:]).any() else (np.nan, np.nan)
    return Interval(float(drawn[0]), float(low), float(high))


def _weights(people: int, draws: int, seed: int) -> Floats:
    """(1 + draws, P): everyone once, then how often each is drawn with replacement."""
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=draws)
    return np.concatenate([np.ones((1, people)), drawn]).astype(float)


def _by_chance(cases: _Cases, partings: int, seed: int) -> dict[str, float]:
    """95th percentile of the gaps if groups meant nothing: whole patients change their group."""
    rng, once = np.random.default_rng(seed), np.ones((1, cases.people))
    first = np.unique(cases.patients, return_index=True)[1]
    gaps: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(partings):
        shuffled = rng.permutation(cases.groups[first])[cases.patients]
        parted = _Cases(cases.truth, cases.called, cases.scores, shuffled, cases.patients, cases.names)
        for name, values in _figures(parted, once).items():
            gaps[name].append(float(_gap(values)[0]))
    return {name: float(np.nanquantile(v, 0.95)) for name, v in gaps.items() if np.isfinite(v).any()}


def by_group(
    truth: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str],
    patients: Sequence[str],
    *,
    threshold: float = 0.5,
    least: int = 5,
    draws: int = 1000,
    partings: int = 200,
    seed: int = 0,
) -> Fairness:
    """Sensitivity, specificity, AUROC and calibration error of a binary classifier in each subgroup, and the gaps.

    The gap of sensitivity is also the under-diagnosis gap (Seyyed-Kalantari et al. 2021): the false positive rate of
    "no finding" is what sensitivity lacks.

    Args:
        truth: (n,), whether a case has the finding.
        scores: (n,), higher where the model believes it; probabilities, if ``ece`` is wanted.
        groups: (n,), such as ``"female"``.
        patients: (n,), whose each case is; intervals are of patients drawn with replacement.
        threshold: from which on a case is called; one for all groups, chosen on validation patients.
        least: patients that a group must have to be judged.
        draws: of patients.
        partings: random ones, for ``chance``.
        seed: of both.

    Raises:
        DiffAugError: the arguments do not fit, or fewer than two groups are large enough.
    """
    cases, left = _cases(truth, scores, groups, patients, threshold, least)
    drawn = _figures(cases, _weights(cases.people, draws, seed))
    rows = []
    for g, name in enumerate(cases.names):
        mine = cases.groups == g
        known = {f: _interval(v[:, g]) for f, v in drawn.items() if np.isfinite(v[0, g])}
        rows.append(Subgroup(name, int(mine.sum()), len(set(cases.patients[mine])), known))
    spread = {f: _gap(v) for f, v in drawn.items() if np.isfinite(v[0]).sum() > 1}
    rates = [spread[f] for f in ("sensitivity", "specificity") if f in spread]
    if not rates:
        raise DiffAugError("no two groups hold cases of one truth: give cases with and without the finding")
    worst = {f: cases.names[int((np.nanargmax if f in _LOW_IS_GOOD else np.nanargmin)(drawn[f][0]))] for f in spread}
    chance = _by_chance(cases, partings, seed)
    return Fairness(
        tuple(rows),
        {f: _interval(v) for f, v in spread.items()},
        {f: chance[f] for f in spread if f in chance},
        _interval(np.fmax.reduce(rates)),
        worst,
        left,
    )


def changed(
    truth: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    groups: Sequence[str],
    patients: Sequence[str],
    *,
    figure: str = "sensitivity",
    thresholds: tuple[float, float] = (0.5, 0.5),
    least: int = 5,
    draws: int = 1000,
    seed: int = 0,
) -> Change:
    """What a figure of each group gains from one model to another on the same cases, and whether a gap was closed down.

    Args:
        truth: (n,), as in :func:`by_group`.
        before: (n,) scores of the model without synthetic images.
        after: (n,) scores of the model with them.
        groups: (n,).
        patients: (n,); both models are tested on the same draws of them.
        figure: one of :data:`FIGURES`.
        thresholds: of the two models.
        least: patients that a group must have.
        draws: of patients.
        seed: of the draws.

    Raises:
        DiffAugError: as :func:`by_group`, or the figure is unknown or not defined in two groups.
    """
    if figure not in FIGURES:
        raise DiffAugError(f"figure {figure!r} is unknown: choose of {', '.join(FIGURES)}")
    values = []
    for scores, threshold in zip((before, after), thresholds, strict=True):
        cases, _ = _cases(truth, scores, groups, patients, threshold, least)
        values.append(_figures(cases, _weights(cases.people, draws, seed))[figure])
    first, second = values
    known = [g for g in range(len(cases.names)) if np.isfinite(first[0, g]) and np.isfinite(second[0, g])]
    if len(known) < 2:
        raise DiffAugError(f"{figure} is not defined in two groups: give groups with cases of both kinds")
    sign = -1 if figure in _LOW_IS_GOOD else 1
    gain = second - first
    best, worst = max(known, key=lambda g: sign * first[0, g]), min(known, key=lambda g: sign * first[0, g])
    gaps = [_gap(v) for v in values]
    closed = gaps[1][0] < gaps[0][0] - POINT
    lost, won = -sign * gain[0, best], sign * gain[0, worst]
    return Change(
        figure,
        float(gaps[0][0]),
        float(gaps[1][0]),
        _interval(gaps[1] - gaps[0]),
        {cases.names[g]: _interval(gain[:, g]) for g in known},
        bool(closed and lost > POINT and lost > won),
    )


def confusion(truth: ArrayLike, called: ArrayLike, groups: int) -> Floats:
    """How a classifier mistakes groups: row i is what (share of each) those of group i are called, (K, K).

    Raises:
        DiffAugError: a group has no case.
    """
    t, c = np.asarray(truth, int), np.asarray(called, int)
    counts = np.zeros((groups, groups))
    np.add.at(counts, (t, c), 1)
    total = counts.sum(1, keepdims=True)
    if (total == 0).any():
        raise DiffAugError(f"group {int((total == 0).argmax())} has no real case: give some, or leave the group out")
    return counts / total


def corrected(called: ArrayLike, mistakes: ArrayLike) -> Floats:
    """Shares of groups (K,) among cases of which ``called`` (K,) shares were called so: ``p_hat = C^T p`` solved for p.

    Args:
        called: shares that the classifier found.
        mistakes: (K, K) from :func:`confusion`, of cases that the classifier was not trained on.

    Raises:
        DiffAugError: the classifier cannot tell the groups apart, so that no correction is possible.
    """
    p, c = np.asarray(called, float), np.asarray(mistakes, float)
    if np.linalg.svd(c, compute_uv=False)[-1] < TELLS:
        raise DiffAugError(
            "the classifier hardly tells the groups apart, so their shares are unknown: give a better one"
        )
    solved = np.clip(np.linalg.solve(c.T, p), 0, None)
    return solved / solved.sum()
