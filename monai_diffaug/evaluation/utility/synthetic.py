"""The synthetic images of a study: each set made once, whichever cells share it, by whoever can make images."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...io import datalist
from .cells import StudyCell, cells_of
from .data import Pool, labeled, pool_of
from .study import Arm, Study

__all__ = ["Order", "Produce", "Synthetic"]

SEED = 7
"""Of the images; the seeds of the study draw patients, weights and order, and share the images."""


@dataclass(frozen=True)
class Order:
    """What is to be made.

    Attributes:
        arm: with method, parameters, filters, what is learned first.
        backbone: name or folder.
        source: datalist of the real images that it starts from, or learns from.
        out: the folder.
        copies: of each real image, for methods that edit.
        count: images of each class, for methods that generate.
        classes: of the images, for a method that learns a word for each.
        seed: of the images.
    """

    arm: Arm
    backbone: str
    source: Path
    out: Path
    copies: int
    count: Mapping[str, int]
    classes: tuple[str, ...] = ()
    seed: int = SEED


class Produce(Protocol):
    """Fills an order; resumable. ``monai_diffaug.expand.studied.produce`` does it with ``diffaug expand``."""

    def __call__(self, order: Order) -> Path:
        """The datalist of what was made."""
        ...


@dataclass
class Synthetic:
    """Sets of synthetic images, as the cells ask for them.

    A method that starts from an image, or from none, makes the same whoever else is labeled: one set serves all cells,
    each taking what comes of its own patients. A method that learns from the labeled patients makes a set for each.

    Attributes:
        study: the study.
        lists: datalists of the real images.
        train: the training patients' images.
        folder: where the sets go.
        produce: makes them.
    """

    study: Study
    lists: Mapping[str, Path]
    train: Pool
    folder: Path
    produce: Produce
    digests: dict[str, str] = field(default_factory=dict)
    _pools: dict[str, Pool] = field(default_factory=dict)

    def __call__(self, arm: Arm, cell: StudyCell, patients: list[str]) -> Pool:
        """The images of ``arm`` that belong to the labeled patients of a cell."""
        order = self.order(arm, cell if arm.learn else None)
        key = order.out.name
        if key not in self._pools:
            made = self.produce(order)
            self._pools[key] = pool_of(made, self.study)
            self._note(order, made)
        pool = self._pools[key]
        return pool if order.count or arm.learn else pool.of(patients)

    def order(self, arm: Arm, cell: StudyCell | None = None) -> Order:
        """What must be made for all cells that use an arm's images, or for one."""
        users = [c for c in cells_of(self.study) if self.study.source_of(c.arm) is arm]
        cells = users if cell is None else [c for c in users if (c.patients, c.seed) == (cell.patients, cell.seed)]
        who = sorted({p for c in cells for p in labeled(self.train, c.patients, c.seed)})
        ratio = max(c.ratio for c in cells)
        largest = max(len(self.train.of(labeled(self.train, c.patients, c.seed))) * c.ratio for c in cells)
        source, said = self._source(arm, who)
        kinds = tuple(dict.fromkeys(str(i.kind) for i in datalist.read(source)))
        count = {}
        if arm.method == "generate" or not _edits(arm):
            count = dict.fromkeys(kinds, math.ceil(largest / len(kinds)))
        backbone = arm.backbone or (self.study.generator.backbone if self.study.generator else "")
        copies = math.ceil(ratio)
        recipe = [
            arm.method,
            arm.parameters,
            arm.keep,
            arm.learn,
            arm.regions,
            Path(backbone).name,
            copies,
            count,
            said,
        ]
        key = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:10]
        return Order(arm, backbone, source, self.folder / f"{_plain(arm.name)}-{key}", copies, count, kinds)

    def size(self, order: Order) -> int:
        """How many images an order is for."""
        return sum(order.count.values()) or order.copies * len(datalist.read(order.source))

    def _source(self, arm: Arm, patients: list[str]) -> tuple[Path, str]:
        """A datalist of some patients, beside that of all, and its digest."""
        whole = self.lists["moved" if arm.regions == "moved" and "moved" in self.lists else "train"]
        rows = [r for r in json.loads(whole.read_text(encoding="utf-8"))["training"] if r["patient"] in set(patients)]
        said = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:10]
        path = whole.with_name(f"{whole.stem}-{said}.json")
        if not path.is_file():
            datalist.write(path, rows)
        return path, said

    def _note(self, order: Order, made: Path) -> None:
        first: Mapping[str, Any] = datalist.read(made)[0].fields.get("provenance") or {}
        self.digests.setdefault(Path(order.backbone).name, str(first.get("backbone_digest", "")))


def _edits(arm: Arm) -> bool:
    from ... import registry

    return registry.get(arm.method).shape in ("edit", "expand")


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
