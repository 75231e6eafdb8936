"""Fairness: are synthetic images as real for every group of patients, and are some groups repeated more than others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backbones.extractors import Extractor
from ..evaluation.groups import GroupScore, of_groups
from ..evaluation.images import Pictures
from ..metrics.proportion import wilson
from ..types import DiffAugError
from .findings import FAIL, OPEN, PASS, Figure, Section, not_judged

__all__ = ["fairness"]

QUALITY = ("kid", "coverage", "kid_2.5d", "coverage_2.5d")


def fairness(
    unseen: Pictures,
    made: Pictures,
    attributes: Sequence[str],
    extractor: Extractor | str,
    repeated: Sequence[str] = (),
    train_groups: dict[str, dict[str, str]] | None = None,
    draws: int = 20,
) -> Section:
    """Gaps of quality between groups against those of real images, and how many training images of each are repeated.

    Args:
        unseen: real images of patients that the generator never saw.
        made: synthetic images.
        attributes: fields of the datalists.
        extractor: whose features quality is measured by.
        repeated: ids of the training images that a synthetic image repeats.
        train_groups: attribute -> id of each training image -> group.
        draws: of the scores.
    """
    if not attributes:
        return not_judged("no attribute was named, give fields of the datalists such as sex or age as --attribute")
    figures: dict[str, Figure] = {}
    rows: list[GroupScore] = []
    silent, apart = list[str](), list[str]()
    for name in attributes:
        figures |= _repeated(name, repeated, (train_groups or {}).get(name, {}))
        try:
            found = of_groups(unseen, made, name, extractor=extractor, draws=draws)
        except DiffAugError as error:
            silent.append(str(error))
            continue
        rows += found
        gaps = [r for r in found if r.group == "gap" and r.score in QUALITY]
        for r in gaps:
            figures[f"{name}_gap_{r.score}"] = Figure(r.value, r.interval, r.floor, r.floor_interval[1])
        if any(r.value > r.floor_interval[1] for r in gaps):
            apart.append(name)
        elif not gaps:
            silent.append(f"only one group of {name!r} is large enough to be judged")
    more: dict[str, Any] = {"groups": [vars(r) for r in rows], "warnings": silent}
    judged = [n for n in attributes if any(k.startswith(f"{n}_gap") for k in figures)]
    if apart:
        says = f"Synthetic images are less real for some groups by {' and '.join(apart)} than for others."
        return Section(FAIL, says, figures, more)
    if not judged:
        return Section(OPEN, f"Not judged: {'; '.join(silent)}.", figures, more)
    says = f"Groups by {' and '.join(judged)} differ in quality no more than real images of such groups do."
    return Section(PASS, says, figures, more)


def _repeated(name: str, repeated: Sequence[str], groups: dict[str, str]) -> dict[str, Figure]:
    """Share of each group's training images that are repeated."""
    total, hit = dict[str, int](), dict[str, int]()
    known = set(repeated)
    for image, group in groups.items():
        total[group] = total.get(group, 0) + 1
        hit[group] = hit.get(group, 0) + (image in known)
    whole = len(known & set(groups)) / max(len(groups), 1)
    return {f"{name}_repeated_{g}": Figure(hit[g] / n, wilson(hit[g], n), whole) for g, n in sorted(total.items())}
