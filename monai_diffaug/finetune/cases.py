"""The images to fine-tune on, fitted to the backbone: what is told of each, and parts that share no patient."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones import growing
from ..domains import part_of
from ..io import datalist
from ..io import images as files
from ..io.datalist import Item
from ..primitives.fitting import fit
from ..types import Backbone, Contract, DiffAugError

__all__ = ["PARTS", "Cases", "gathered", "parted", "read"]

PARTS = ("train", "validation", "test")
FEW = 100
"""Training images; with fewer, a run is likely to learn them by heart before it learns their kind."""

LEAST = 3
"""Patients: one in each part."""

ROUGH = 4
"""Patients in a part; with fewer, figures tell of these patients rather than of their kind."""

_SECTIONS = {"training": "train", "validation": "validation", "test": "test", "testing": "test"}
_PATIENT = ("patient", "patient_id", "subject", "case", "PatientID")


@dataclass(frozen=True)
class Cases:
    """Images (N, C, *S) in the value range and, one for each, whose it is and in which part.

    ``told`` holds what the conditioner takes: ``label`` and ``prompt`` as lists (``""``: not told), ``mask``
    (N, 1, *S) and ``vector`` (N, D) as tensors; ``masked`` (N,) says which masks are there. ``notes`` are remarks for
    the user.
    """

    images: Tensor
    told: Mapping[str, Any]
    patients: tuple[str, ...]
    parts: tuple[str, ...]
    masked: Tensor
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def part(self, *names: str) -> Cases:
        """Those of one part, or several."""
        return self.at([i for i, p in enumerate(self.parts) if p in names])

    def at(self, which: Sequence[int]) -> Cases:
        """Those at the given positions."""
        which = list(which)
        told = {k: v[which] if isinstance(v, Tensor) else [v[i] for i in which] for k, v in self.told.items()}
        return replace(
            self,
            images=self.images[which],
            told=told,
            patients=tuple(self.patients[i] for i in which),
            parts=tuple(self.parts[i] for i in which),
            masked=self.masked[which],
        )

    def spread(self, n: int, seed: int = 0) -> Cases:
        """At most ``n`` of them, of as many patients as there are: every patient's first, then everyone's second."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        turn: Counter[str] = Counter()
        ranked = list[tuple[int, int, int]]()
        for i in order:
            ranked.append((turn[self.patients[i]], len(ranked), i))
            turn[self.patients[i]] += 1
        return self.at([i for _, _, i in sorted(ranked)[:n]])

    def counts(self) -> dict[str, dict[str, int]]:
        """Images and patients in each part."""
        return {
            p: {
                "images": self.parts.count(p),
                "patients": len({w for w, q in zip(self.patients, self.parts) if q == p}),
            }
            for p in PARTS
        }


# -------------------------------------------------------------------------------------------------------- who is where


def gathered(source: str | Path, base: str | Path | None = None) -> list[tuple[Item, str | None]]:
    """The items of every section of a datalist, each with its part; of a folder or a list of one section, without.

    An item's own field ``part`` (or ``split``) says the same.
    """
    sections = [s for s in _SECTIONS if s in datalist.sections(source)] or ["training"]
    several = len(sections) > 1
    out = []
    for section in sections:
        for item in datalist.read(source, section=section, base=base):
            said = item.fields.get("part", item.fields.get("split"))
            if said is not None and str(said) not in PARTS and str(said) not in _SECTIONS:
                raise DiffAugError(f"{item.image}: its part is {said!r}: use one of {', '.join(PARTS)}")
            own = None if said is None else _SECTIONS.get(str(said), str(said))
            out.append((item, own or (_SECTIONS[section] if several else None)))
    return out


def patient_of(item: Item) -> str | None:
    """Whose image it is, if the datalist says so."""
    return next((str(item.fields[k]) for k in _PATIENT if item.fields.get(k) not in (None, "")), None)


def parted(items: Iterable[tuple[Item, str | None]]) -> tuple[list[Item], list[str], list[str], list[str]]:
    """Items, patients and parts, and remarks. Every patient is in one part.

    Parts that the datalist gives are kept; a part that nobody is in is filled by hash of the patient's name from the
    training patients.

    Raises:
        DiffAugError: a patient is in two parts, or there are fewer than three patients.
    """
    pairs, notes = list(items), list[str]()
    named = [patient_of(item) for item, _ in pairs]
    if None in named:
        notes.append(
            f"{named.count(None)} of {len(named)} images do not say whose they are ('patient' in the datalist): each "
            "is taken for a patient of its own, and if that is wrong, every figure below is too good"
        )
    patients = [name or item.id for name, (item, _) in zip(named, pairs, strict=True)]
    given: dict[str, set[str]] = defaultdict(set)
    for name, (_, part) in zip(patients, pairs, strict=True):
        given[name].add(part or "")
    for name, found in sorted(given.items()):
        if len(found) > 1:
            both = " and ".join(sorted(p or "no part" for p in found))
            raise DiffAugError(f"patient {name!r} is in {both}: put all of a patient's images into one section")
    where = {name: next(iter(found)) for name, found in given.items()}
    if len(where) < LEAST:
        raise DiffAugError(
            f"there are {len(where)} patients: give at least {LEAST}, one for each of {', '.join(PARTS)}"
        )
    _fill(where)
    for part, use in (("validation", "when to stop"), ("test", "how much was gained")):
        there = sum(p == part for p in where.values())
        if there < ROUGH:
            notes.append(f"{there} {part} patient{'s' if there > 1 else ''}: {use} is told roughly; more patients help")
    return [item for item, _ in pairs], patients, [where[p] for p in patients], notes


def _fill(where: dict[str, str]) -> None:
    """Give everyone a part, in place."""
    if not all(where.values()):
        where.update({name: part_of(name) for name, part in where.items() if not part})
    ranked = sorted(where, key=lambda name: hashlib.sha256(f"{name}+".encode()).hexdigest())
    share = max(1, len(where) // 8)
    for missing in (p for p in ("validation", "test", "train") if p not in where.values()):
        largest = Counter(where.values()).most_common(1)[0][0]
        for name in [n for n in ranked if where[n] == largest][:share]:
            where[name] = missing


# ------------------------------------------------------------------------------------------------------------- reading


def read(
    source: str | Path, backbone: Backbone, *, base: str | Path | None = None, grow: bool = True
) -> tuple[Cases, Backbone]:
    """Images fitted to a backbone, and the backbone with the classes and words that it lacked.

    Args:
        source: a datalist JSON, a folder, or the name of a sample set.
        backbone: what is to be fine-tuned.
        base: folder that the datalist's paths start from.
        grow: whether classes and words that the backbone lacks are added to it; refused if not.

    Raises:
        DiffAugError: an image is bad or of other dimensions or channels, a patient or an image is in two parts, or
            something is told that the backbone cannot learn. The message names the file.
    """
    items, patients, parts, notes = parted(gathered(source, base))
    told, backbone = _told(items, backbone, notes, grow)
    contract = backbone.contract
    gray = hasattr(backbone.conditioner, "token_embedding")  # text models in color take films in gray
    pictures, masks, masked = [], [], []
    for item in items:
        picture, mask = _fitted(item, contract, "mask" in told, gray)
        pictures.append(picture)
        masked.append(mask is not None)
        masks.append(torch.zeros(1, *contract.size) if mask is None else mask)
    if "mask" in told:
        told["mask"] = torch.stack(masks)
    cases = Cases(torch.stack(pictures), told, tuple(patients), tuple(parts), torch.tensor(masked))
    _refuse_twins(cases, items)
    count = cases.counts()["train"]
    if count["images"] < FEW:
        notes.append(
            f"{count['images']} training images of {count['patients']} patients are few: expect the run to stop early, "
            "and prefer --mode lora"
        )
    return replace(cases, notes=tuple(notes)), backbone


def _fitted(item: Item, contract: Contract, with_mask: bool, gray: bool) -> tuple[Tensor, Tensor | None]:
    scan = files.read(item.image, dims=contract.spatial_dims, orientation=contract.orientation)
    image = scan.image.expand(contract.channels, *scan.image.shape[1:]) if gray and len(scan.image) == 1 else scan.image
    try:
        fitted = fit(image, contract)
        if not with_mask or item.mask is None:
            return fitted.tensor, None
        given = files.read(item.mask, dims=contract.spatial_dims, orientation=contract.orientation, mask=True)
        return fitted.tensor, (
            fit((given.image[:1] > 0).float(), contract, mask=True, like=fitted).tensor > 0.5
        ).float()
    except DiffAugError as error:
        raise error if str(item.image) in str(error) else DiffAugError(f"{item.image}: {error}") from None


def _refuse_twins(cases: Cases, items: Sequence[Item]) -> None:
    """One image under two patients' names would be in training and in the test alike."""
    seen: dict[str, int] = {}
    for i, picture in enumerate(cases.images):
        key = hashlib.sha256(picture.contiguous().numpy().tobytes()).hexdigest()
        first = seen.setdefault(key, i)
        if cases.parts[first] != cases.parts[i]:
            raise DiffAugError(
                f"{items[first].image} ({cases.parts[first]}) and {items[i].image} ({cases.parts[i]}) are the same "
                "image: list it once, under one patient"
            )


def _told(items: Sequence[Item], backbone: Backbone, notes: list[str], grow: bool) -> tuple[dict[str, Any], Backbone]:
    """What the conditioner takes of each item, and the backbone that can be told it."""
    told: dict[str, Any] = {}
    kinds = [_kind(item, backbone.contract.labels) for item in items]
    if any(kinds):
        names = sorted({k for k in kinds if k})
        before = backbone.contract.labels
        grown = growing.with_classes(backbone, names)
        fresh = grown.contract.labels[len(before) :]
        if fresh and not grow:
            raise DiffAugError(f"class {fresh[0]!r} is not the backbone's: give one of {', '.join(before) or 'none'}")
        if fresh:
            notes.append(f"new classes: {', '.join(fresh)}")
        backbone, told["label"] = grown, kinds
    prompts = [str(item.fields.get("prompt") or item.fields.get("caption") or "") for item in items]
    if any(prompts) and "prompt" in backbone.conditioner.accepts and hasattr(backbone.conditioner, "token_embedding"):
        backbone = growing.with_prompts(backbone, prompts) if grow else backbone
        told["prompt"] = prompts
    elif any(prompts):
        notes.append(f"backbone {backbone.name!r} is not told prompts: those of the datalist are not used")
    has_masks = any(item.mask is not None for item in items)
    if "mask" in backbone.conditioner.accepts:
        told["mask"] = None
    elif has_masks:
        notes.append(f"backbone {backbone.name!r} is not told masks: those of the datalist are not used")
    if "vector" in backbone.conditioner.accepts:
        told["vector"] = torch.stack([_numbers(item, backbone) for item in items])
    return told, backbone


def _kind(item: Item, labels: Sequence[str]) -> str:
    """The class of an item by name; a number is a position among the backbone's classes, if it has so many."""
    if item.kind is None or item.kind == "":
        return ""
    if isinstance(item.kind, bool | int) and 0 <= int(item.kind) < len(labels):
        return labels[int(item.kind)]
    if isinstance(item.kind, list | dict | float):
        raise DiffAugError(f"{item.image}: its class is {item.kind!r}: give one name")
    return str(item.kind)


def _numbers(item: Item, backbone: Backbone) -> Tensor:
    conditioner: Any = backbone.conditioner
    given = item.fields.get("vector")
    values = [item.fields.get(n) for n in conditioner.names] if given is None else list(given)
    try:
        return torch.tensor([float("nan") if v in (None, "") else float(v) for v in values])
    except (TypeError, ValueError):
        raise DiffAugError(
            f"{item.image}: {', '.join(conditioner.names)} are no numbers: correct the datalist"
        ) from None
