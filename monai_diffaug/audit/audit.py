"""Does it leak: every section of the audit of one set of synthetic images, and of the model that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..backbones.verifier import Verifier
from ..types import Backbone, DiffAugError
from .asking import round_trip
from .attributes import Values, attributes
from .copies import Embed
from .copying import copying
from .extraction import extraction
from .findings import FAIL, PASS, Section, not_judged
from .membership import membership
from .recognition import Patients
from .reidentification import reidentification

__all__ = ["SECTIONS", "Asked", "Audit", "Progress", "Sets", "apart", "audited", "few_of", "quiet"]

SECTIONS = ("copies", "reidentification", "membership", "extraction", "attributes", "fairness")

LIMITATIONS = (
    "A pass says that these attacks found nothing on these images; another attack may.",
    "What passes for a copy is judged by the unseen patients given: they must be of the same kind and source.",
)


@dataclass(frozen=True)
class Sets:
    """Training images, real images of other patients, and synthetic images at one size; and the class of each."""

    train: Patients
    unseen: Patients
    made: Patients | None = None
    kinds: tuple[Sequence[str], Sequence[str]] | None = None


@dataclass(frozen=True)
class Asked:
    """What the audit is to look at, beside copies.

    ``model`` with ``model_sets`` at its size, ``reference`` with ``reference_sets``; ``verifier`` with
    ``verifier_sets``; ``attributes`` as :func:`.attributes.attributes` takes them; ``fairness`` makes that section of
    the one on copies. ``extract`` are samples over training images, ``most_samples`` in all, ``most_attacked`` the
    images of each side of the membership attack.
    """

    model: Backbone | None = None
    model_sets: Sets | None = None
    reference: Backbone | None = None
    reference_sets: Sets | None = None
    verifier: Verifier | None = None
    verifier_sets: Sets | None = None
    attributes: Mapping[str, tuple[Values, Values, Values]] | None = None
    fairness: Callable[[Section], Section] | None = None
    extract: float = 10
    most_samples: int = 500
    most_attacked: int = 300
    steps: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Audit:
    """All sections, the closest pairs, and what a reader must know besides."""

    sections: Mapping[str, Section]
    pairs: tuple[Mapping[str, Any], ...]
    limitations: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """``fail`` if any section fails, else ``pass``."""
        return FAIL if any(s.verdict == FAIL for s in self.sections.values()) else PASS

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": self.verdict,
            "sections": {k: s.to_dict() for k, s in self.sections.items()},
            "pairs": [dict(p) for p in self.pairs],
            "limitations": list(self.limitations),
            **self.settings,
        }


Progress = Callable[[str, int], Callable[[int], None]]
"""``(what, how many) -> advance``: told of every piece of work before it begins."""


def quiet(what: str, total: int) -> Callable[[int], None]:
    """Progress that nobody looks at."""
    return lambda n: None


def few_of(given: Patients, most: int, seed: int = 0) -> tuple[Patients, list[int]]:
    """At most so many images, of as many patients as there are, and their positions."""
    import torch

    order = torch.randperm(len(given.ids), generator=torch.Generator().manual_seed(seed)).tolist()
    turn: dict[str, int] = {}
    ranked = []
    for place, i in enumerate(order):
        n = turn[given.patients[i]] = turn.get(given.patients[i], 0) + 1
        ranked.append((n, place, i))
    which = sorted(i for _, _, i in sorted(ranked)[:most])
    flags = set(which)
    return given.only([i in flags for i in range(len(given.ids))]), which


def audited(
    sets: Sets,
    embed: Embed | None = None,
    rate: float = 0.02,
    asked: Asked | None = None,
    progress: Progress = quiet,
    settings: Mapping[str, Any] | None = None,
) -> Audit:
    """Every section that can be judged.

    Args:
        sets: training, unseen and synthetic images at the size that copies are looked for at.
        embed: images -> vectors, for copies and attributes.
        rate: share of unseen images that may pass for copies.
        asked: what else to look at.
        progress: told of the work.
        settings: added to the JSON.

    Raises:
        DiffAugError: patients are on both sides, or there are too few images.
    """
    asked = asked or Asked()
    apart(sets.train, sets.unseen)
    if sets.made is None:
        raise DiffAugError("there are no synthetic images to audit: give some")
    through = None
    if asked.model is not None and tuple(sets.train.images.shape[1:]) == (
        asked.model.contract.channels,
        *asked.model.contract.size,
    ):
        through = partial(round_trip, asked.model)
    twice = 1 if through is None else 2
    compared = twice * len(sets.unseen.ids) + len(sets.made.ids) + 6 * 24
    section, pairs = copying(
        sets.train, sets.unseen, sets.made, embed, rate, through, progress("looking for copies", compared)
    )
    sections = {"copies": section}
    sections["reidentification"] = _reidentified(asked) or not_judged(
        "no network that knows patients again was given for this kind of image (--verifier)"
    )
    attacked = _attacked(asked, rate, progress)
    for name in ("membership", "extraction"):
        missing = f"the model was not given (--model), and {name} is a property of the model"
        sections[name] = attacked.get(name) or not_judged(missing)
    sections["attributes"] = attributes(sets.train, sets.unseen, sets.made, asked.attributes or {}, embed)
    unasked = not_judged("no attribute was named (--attribute), by which groups of patients could be compared")
    sections["fairness"] = unasked if asked.fairness is None else asked.fairness(section)
    warnings = [w for s in sections.values() for w in s.more.get("warnings", ())]
    unjudged = [n for n, s in sections.items() if s.verdict not in (FAIL, PASS)]
    limits = [*LIMITATIONS, *(w[0].upper() + w[1:] + "." for w in warnings)]
    if unjudged:
        limits.append(f"Not judged: {', '.join(unjudged)}.")
    return Audit(sections, tuple(pairs), tuple(limits), dict(settings or {}))


def apart(train: Patients, unseen: Patients) -> None:
    """Refuse patients that are on both sides.

    Raises:
        DiffAugError: naming the first.
    """
    shared = sorted(set(train.patients) & set(unseen.patients))
    if shared:
        raise DiffAugError(
            f"{len(shared)} patients or images are on both sides (first: {shared[0]}): give images of other "
            "patients as --unseen"
        )


def _reidentified(asked: Asked) -> Section | None:
    if asked.verifier is None or asked.verifier_sets is None or asked.verifier_sets.made is None:
        return None
    sets = asked.verifier_sets
    assert sets.made is not None
    return reidentification(asked.verifier, sets.train, sets.unseen, sets.made)


def _attacked(asked: Asked, rate: float, progress: Progress) -> dict[str, Section]:
    """What wants the model: membership and extraction."""
    model, sets = asked.model, asked.model_sets
    if model is None or sets is None:
        return {}
    (train, i), (unseen, j) = (few_of(p, asked.most_attacked, asked.seed) for p in (sets.train, sets.unseen))
    kinds = None if sets.kinds is None else ([sets.kinds[0][k] for k in i], [sets.kinds[1][k] for k in j])
    twin: tuple[Tensor, Tensor] | None = None
    if asked.reference_sets is not None:
        twin = asked.reference_sets.train.images[i], asked.reference_sets.unseen.images[j]
    passes = (len(train.ids) + len(unseen.ids)) * (1 if asked.reference is None else 2)
    attack = membership(
        model,
        train,
        unseen,
        kinds,
        asked.reference,
        twin,
        seed=asked.seed,
        advance=progress("attacking the model", passes),
    )
    samples = max(1, min(asked.most_samples, round(asked.extract * len(sets.train.ids))))
    drawn, _ = extraction(
        model,
        sets.train,
        sets.unseen,
        None if sets.kinds is None else sets.kinds[0],
        times=asked.extract,
        most=asked.most_samples,
        steps=asked.steps,
        rate=rate,
        seed=asked.seed,
        advance=progress("drawing samples", samples),
    )
    note = {"members": len(train.ids), "non_members": len(unseen.ids)}
    return {"membership": replace(attack, more={**attack.more, **note}), "extraction": drawn}
