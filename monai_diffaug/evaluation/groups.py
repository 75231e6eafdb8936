"""Is it as real for everyone: quality of synthetic images by sex, age, site or class, and who is made how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..backbones.extractors import DEFAULT, Extractor
from ..backbones.extractors import extractor as named
from ..metrics import anatomy
from ..metrics.distribution import drawn, kid, of_draws
from ..metrics.neighbors import prdc
from ..types import DiffAugError
from .attributes import UNKNOWN, group_of, labels_of
from .images import Pictures
from .planes import by_plane, features_of
from .shares import drawn_shares, ends_of, generated, owners_of

__all__ = ["GroupScore", "generated", "group_of", "of_groups"]


@dataclass(frozen=True)
class GroupScore:
    """A score of one group's synthetic against its real images, and the floor: its real against its real images.

    ``group`` is ``"gap"`` for the largest less the smallest value among the groups; its floor is the same of the
    floors, for halves of a few images are never quite alike. Of ``share`` and ``share_corrected`` (what part of all
    images a group is) the floor is the share among real images; of ``told_apart`` it is chance.
    """

    attribute: str
    group: str
    n: int
    score: str
    value: float
    interval: tuple[float, float]
    floor: float
    floor_interval: tuple[float, float]


def _gap_of(draws: Mapping[str, Tensor]) -> Tensor:
    values = torch.stack(list(draws.values()))
    return values.amax(0) - values.amin(0)


def _coverage(made: Tensor, real: Tensor) -> float:
    return prdc(made, real, k=min(5, len(made) - 1))["coverage"]


def _apart(made: Tensor, real: Tensor) -> float:
    return anatomy.apart(made[:, 0], real[:, 0])


def _spaces(
    real: Pictures, made: Pictures, found: Extractor, region: str | None
) -> list[tuple[str, Any, Tensor, Tensor]]:
    """Name, score and what it is taken of: (N, D) of synthetic and of real images."""
    flat = made.images.ndim == 4 or found.dims == 3
    a, b = (features_of(found, p.images) for p in (made, real))
    kind = "" if flat else "_2.5d"
    spaces = [
        (f"{n}{kind}", s if flat else partial(by_plane, s), a, b) for n, s in (("kid", kid), ("coverage", _coverage))
    ]
    masks = real.masks is not None and made.masks is not None
    seen = [anatomy.measures(p.images, p.masks if masks else None, region=region) for p in (made, real)]
    return spaces + [(f"anatomy_{n}", _apart, seen[0][n][:, None], seen[1][n][:, None]) for n in seen[0]]


def of_groups(
    real: Pictures,
    synthetic: Pictures,
    attribute: str,
    *,
    extractor: Extractor | str = DEFAULT,
    least: int = 12,
    draws: int = 20,
    seed: int = 0,
    region: str | None = None,
) -> tuple[GroupScore, ...]:
    """KID, coverage and anatomy of each group with floors and intervals, the gap between groups, and their shares.

    All groups are judged at one number of images, since coverage depends on it; groups with fewer than ``least`` real
    or synthetic images, or of one patient, have only the row of their share.

    Args:
        real: of patients that the generator never saw; their fields say the group.
        synthetic: likewise; what is made of a real image has the fields of that image.
        attribute: a field of the datalists (``sex``, ``age``, ``site``, ``class``), or several joined by ``+``.
        extractor: whose features are compared.
        least: images of a group.
        draws: halves.
        seed: of the halves.
        region: ``chest`` or ``brain``, whose anatomy is measured as well.

    Raises:
        DiffAugError: no image says the attribute, it has too many values, or no group is large enough.
    """
    found = extractor if isinstance(extractor, Extractor) else named(extractor)
    theirs, ours = (labels_of(p, attribute, w) for p, w in ((real, "real"), (synthetic, "synthetic")))
    names = sorted(set(theirs) | set(ours))
    at = {g: tuple(torch.tensor([i for i, x in enumerate(s) if x == g]) for s in (ours, theirs)) for g in names}
    people = {g: [real.patients[i] for i in at[g][1].tolist()] for g in names}
    judged = [
        g for g in names if UNKNOWN not in g.split() and min(map(len, at[g])) >= least and len(set(people[g])) > 1
    ]
    if not judged:
        said = ", ".join(f"{g}: {len(a)} synthetic, {len(b)} real" for g, (a, b) in at.items())
        raise DiffAugError(f"no group of {attribute!r} has {least} images of both kinds ({said}): give more images")
    n = min(len(x) // 2 for g in judged for x in at[g])
    rows = []
    for name, score, a, b in _spaces(real, synthetic, found, region):
        kept: dict[str, tuple[Tensor, Tensor]] = {}
        for g in judged:
            one, two, own = drawn(
                score, a[at[g][0]], b[at[g][1]], n=n, draws=draws, seed=seed, groups=_parted(people[g])
            )
            kept[g] = (one, two)
            rows.append(_row(attribute, g, name, one, two, own))
        if len(judged) > 1:
            gaps = [_gap_of({g: v[side] for g, v in kept.items()}) for side in (0, 1)]
            rows.append(_row(attribute, "gap", name, gaps[0], gaps[1], n))
    return (*rows, *_shares(real, synthetic, attribute, names, ours, theirs, found, seed))


def _parted(patients: Sequence[str]) -> Sequence[str] | None:
    return patients if len(set(patients)) < len(patients) else None


def _row(attribute: str, group: str, name: str, scores: Tensor, floors: Tensor, n: int) -> GroupScore:
    f = of_draws(scores, floors, n)
    return GroupScore(attribute, group, n, name, f.score, f.interval, f.floor, f.floor_interval)


def _shares(
    real: Pictures,
    made: Pictures,
    attribute: str,
    names: Sequence[str],
    ours: Sequence[str],
    theirs: Sequence[str],
    found: Extractor,
    seed: int,
) -> list[GroupScore]:
    """Shares by the datalists, and by what the images show where a classifier can tell."""
    a, b = drawn_shares(ours, owners_of(made), names, seed), drawn_shares(theirs, real.patients, names, seed)
    rows = [
        GroupScore(
            attribute, g, ours.count(g), "share", float(a[0, k]), ends_of(a[1:, k]), float(b[0, k]), ends_of(b[1:, k])
        )
        for k, g in enumerate(names)
    ]
    fair = [torch.linalg.vector_norm(x[1:] - b[0], dim=1) for x in (a, b)]
    apart = float(torch.linalg.vector_norm(a[0] - b[0]))
    rows.append(
        GroupScore(
            attribute, "all", len(made), "discrepancy", apart, ends_of(fair[0]), float(fair[1].mean()), ends_of(fair[1])
        )
    )
    try:
        seen = generated(real, made, attribute, extractor=found, seed=seed)
    except DiffAugError:
        return rows  # no classifier tells these groups apart: the row `told_apart` is missing
    known = [names.index(g) for g in seen.groups]
    chance = 1 / len(known)
    for k, g, share in zip(known, seen.groups, seen.shares, strict=True):
        ends = (share.low, share.high)
        rows.append(
            GroupScore(attribute, g, len(made), "share_corrected", share.value, ends, float(b[0, k]), ends_of(b[1:, k]))
        )
    told = (seen.accuracy, seen.accuracy)
    rows.append(GroupScore(attribute, "all", len(real), "told_apart", seen.accuracy, told, chance, (chance, chance)))
    return rows
