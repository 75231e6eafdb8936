"""Which groups synthetic images show, and how far that is from what they should show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..backbones.extractors import DEFAULT, Extractor
from ..backbones.extractors import extractor as named
from ..metrics import fairness
from ..metrics.lesions import Interval
from ..types import DiffAugError
from .attributes import UNKNOWN, labels_of
from .images import Pictures
from .planes import features_of

__all__ = ["Generated", "drawn_shares", "ends_of", "generated", "owners_of"]


@dataclass(frozen=True)
class Generated:
    """Which groups synthetic images show, by a classifier that knows real images, corrected for its mistakes.

    ``predicted`` is what it calls them, ``shares`` that corrected, both (K,) in the order of ``groups``; ``target``
    what they should be, ``discrepancy`` the Euclidean distance of the two. ``accuracy`` is the classifier's balanced
    accuracy on patients that it was not fitted on.
    """

    attribute: str
    groups: tuple[str, ...]
    predicted: tuple[float, ...]
    shares: tuple[Interval, ...]
    target: tuple[float, ...]
    discrepancy: Interval
    accuracy: float


def drawn_shares(labels: Sequence[str], owners: Sequence[str], names: Sequence[str], seed: int) -> Tensor:
    """Shares (1001, K) of groups: of all, then of owners drawn with replacement."""
    known = sorted(set(owners))
    counts = np.zeros((len(known), len(names)))
    np.add.at(counts, ([known.index(o) for o in owners], [names.index(g) for g in labels]), 1)
    times = np.random.default_rng(seed).multinomial(len(known), np.full(len(known), 1 / len(known)), size=1000)
    sums = np.concatenate([np.ones((1, len(known))), times]) @ counts
    return torch.from_numpy(sums / sums.sum(1, keepdims=True))


def ends_of(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of draws (D,)."""
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def owners_of(made: Pictures) -> list[str]:
    """Images made of one real image are not independent of each other."""
    return [str(s) if s is not None else f"#{i}" for i, s in enumerate(made.sources)]


def _scaled(real: Tensor, made: Tensor) -> tuple[np.ndarray, np.ndarray]:
    mean, std = real.mean(0), real.std(0).clamp(min=1e-6)
    return ((real - mean) / std).numpy(), ((made - mean) / std).numpy()


def generated(
    real: Pictures,
    synthetic: Pictures,
    attribute: str,
    *,
    target: Mapping[str, float] | None = None,
    extractor: Extractor | str = DEFAULT,
    draws: int = 200,
    seed: int = 0,
) -> Generated:
    """Shares of the groups that synthetic images show, by a classifier fitted to the real ones and corrected for it.

    A logistic regression on the extractor's features is fitted to real images; its confusion comes from patients that
    were left out of the fit (five folds), and ``p = C^-1 p_hat`` takes its mistakes back. What the synthetic datalist
    says of the attribute is not used.

    Args:
        real: whose fields say the attribute, several patients of each group.
        synthetic: whatever was generated.
        attribute: as for :func:`of_groups`.
        target: the share that each group should have; as among the real images unless given.
        extractor: whose features are read.
        draws: of patients and of images, for the intervals.
        seed: of folds and draws.

    Raises:
        DiffAugError: fewer than two groups have five patients, or the groups cannot be told apart.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    found = extractor if isinstance(extractor, Extractor) else named(extractor)
    labels, patients = np.array(labels_of(real, attribute, "real")), np.array(real.patients)
    names = [str(g) for g in np.unique(labels) if g != UNKNOWN and len(set(patients[labels == g])) >= 5]
    if len(names) < 2:
        raise DiffAugError(f"fewer than two groups of {attribute!r} have five real patients: give more patients")
    kept = np.isin(labels, names)
    truth = np.array([names.index(g) for g in labels[kept]])
    x, z = _scaled(features_of(found, real.images[torch.from_numpy(kept)]), features_of(found, synthetic.images))
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    called = cross_val_predict(model, x, truth, groups=patients[kept], cv=folds)
    seen = model.fit(x, truth).predict(z)
    wanted = _target(target, names, truth)
    values = [_corrected(truth, called, seen, len(names))]
    rng, owners = np.random.default_rng(seed), np.array(owners_of(synthetic))
    for _ in range(draws):
        i, j = _again(patients[kept], rng), _again(owners, rng)
        try:
            values.append(_corrected(truth[i], called[i], seen[j], len(names)))
        except DiffAugError:
            continue  # a draw without a group
    shares = np.stack(values)
    apart = np.linalg.norm(shares - wanted, axis=1)
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    ends = np.quantile(apart, [0.025, 0.975])
    return Generated(
        attribute,
        tuple(names),
        tuple(float(v) for v in np.bincount(seen, minlength=len(names)) / len(seen)),
        tuple(Interval(float(s), float(a), float(b)) for s, a, b in zip(shares[0], low, high, strict=True)),
        tuple(float(v) for v in wanted),
        Interval(float(apart[0]), float(ends[0]), float(ends[1])),
        float(np.diag(fairness.confusion(truth, called, len(names))).mean()),
    )


def _target(target: Mapping[str, float] | None, names: Sequence[str], truth: np.ndarray) -> np.ndarray:
    if target is None:
        return np.bincount(truth, minlength=len(names)) / len(truth)
    if set(target) != set(names):
        raise DiffAugError(f"target names {sorted(target)}, the groups are {list(names)}: give a share of each")
    wanted = np.array([target[g] for g in names], float)
    return wanted / wanted.sum()


def _corrected(truth: np.ndarray, called: np.ndarray, seen: np.ndarray, k: int) -> np.ndarray:
    return fairness.corrected(np.bincount(seen, minlength=k) / len(seen), fairness.confusion(truth, called, k))


def _again(owners: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions of what belongs to owners drawn with replacement."""
    names, where = np.unique(owners, return_inverse=True)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[where]
    return np.repeat(np.arange(len(owners)), times)
