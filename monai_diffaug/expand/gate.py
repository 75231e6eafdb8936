"""The gate of a job: what an audit would call a copy of a training image is not written, but made again or given up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..audit.copies import CopyFinder
from ..audit.run import EXTRACTOR
from ..backbones.extractors import extractor
from ..io import datalist
from ..io.datalist import Item
from ..primitives.filters import Sieve, Verdict
from ..types import Backbone, DiffAugError
from .making import open_source

__all__ = ["Gate", "Guarded", "Watch", "gate_digest", "gate_of", "guarded_by"]

KINDS = ("audit",)
MOST = 2000  # training images, and unseen ones, that are compared with


@dataclass(frozen=True)
class Gate:
    """What a job refuses to write: ``kind`` is ``audit`` (copies, see :class:`monai_diffaug.audit.copies.CopyFinder`).

    ``unseen`` are real images of patients that are neither in the job's source nor among the training images; ``train``
    those that the backbone was trained on, the job's source unless given; ``rate`` the share of unseen images that may
    pass for copies.
    """

    unseen: str | Path
    train: str | Path | None = None
    kind: str = "audit"
    rate: float = 0.02

    def check(self) -> None:
        """Refuse a gate that there is not.

        Raises:
            DiffAugError: naming what there is.
        """
        if self.kind not in KINDS:
            raise DiffAugError(f"there is no gate {self.kind!r}: use {', '.join(KINDS)}")


@dataclass(frozen=True)
class Guarded(Verdict):
    """A verdict that knows which training image a refused one repeats."""

    repeats: Mapping[str, Any] | None = None


def gate_of(kind: str | None, train: str | None, unseen: str | None) -> Gate | None:
    """A gate of what a command line says, if it says one.

    Raises:
        DiffAugError: it says half of one.
    """
    if kind is None:
        if train or unseen:
            raise DiffAugError(
                "--gate-train and --gate-unseen tell a gate what to compare with: give --gate audit, too"
            )
        return None
    if unseen is None:
        raise DiffAugError("the gate judges nearness by real images of other patients: give them as --gate-unseen")
    return Gate(unseen, train, kind)


class Watch:
    """Judges images as a :class:`Sieve` does, after one if there is one."""

    def __init__(self, finder: CopyFinder, sieve: Sieve | None = None):
        self.finder, self.sieve = finder, sieve

    def __call__(self, images: Tensor, kinds: Sequence[str | None]) -> list[Verdict]:
        """Judge images (B, C, *S) in the value range."""
        before = self.sieve(images, kinds) if self.sieve else [Verdict(True, {}) for _ in kinds]
        found = self.finder(images.detach().float().cpu())
        out: list[Verdict] = []
        for verdict, f in zip(before, found, strict=True):
            scores = {**verdict.scores, "audit": round(f.rare, 4)}
            failed = (*verdict.failed, "audit") if f.copy else verdict.failed
            out.append(Guarded(not failed, scores, failed, asdict(f) if f.copy else None))
        return out


def gate_digest(gate: Gate, source: str | Path) -> dict[str, Any]:
    """What a job's settings say of its gate."""
    lists = {"train": gate.train or source, "unseen": gate.unseen}
    said = {k: hashlib.sha256(datalist.digest(datalist.read(v)).encode()).hexdigest()[:16] for k, v in lists.items()}
    return {"kind": gate.kind, "rate": gate.rate, **said}


def guarded_by(gate: Gate, model: Backbone, source: Sequence[Item], sieve: Sieve | None) -> Watch:
    """The judge of a job.

    Args:
        gate: what is refused.
        model: whose size images are compared at.
        source: the job's images.
        sieve: filters that judge first.

    Raises:
        DiffAugError: a patient or an image is on both sides, or there are too few images.
    """
    dims = model.contract.spatial_dims
    train = list(source) if gate.train is None else datalist.read(gate.train, dims=dims)
    unseen = datalist.read(gate.unseen, dims=dims)
    known = {_whose(i) for i in train} | {_whose(i) for i in source}
    shared = sorted(known & {_whose(i) for i in unseen})
    if shared:
        raise DiffAugError(
            f"{len(shared)} patients or images are on both sides (first: {shared[0]}): give images of other patients "
            "as --gate-unseen"
        )
    ids, images = _fitted(train, model)
    _, others = _fitted(unseen, model)
    known_by = extractor(EXTRACTOR)
    embed = known_by if known_by.dims == dims else None
    return Watch(CopyFinder(images, others, embed, ids, gate.rate), sieve)


def _whose(item: Item) -> str:
    return str(item.fields.get("patient", item.image.resolve()))


def _fitted(items: Sequence[Item], model: Backbone) -> tuple[list[str], Tensor]:
    ids, images = [], []
    for item in items[:: -(-len(items) // MOST)]:
        try:
            images.append(open_source(item, model.contract).fitted.tensor)
            ids.append(item.id)
        except DiffAugError:
            continue  # the loop tells of those of the source
    if not images:
        raise DiffAugError("none of the gate's images can be read: give others")
    return ids, torch.stack(images)
