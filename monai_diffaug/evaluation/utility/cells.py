"""The cells of a study (arm, labeled patients, ratio, seed), each trained once and kept as one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ...io import atomic
from .arms import Batches, borrowed, others_than
from .data import Pool, labeled
from .downstream import task_of, trained
from .study import Arm, Study

__all__ = ["CellTrainer", "Done", "StudyCell", "cells_of"]

FORMAT = 1
"""Goes up when a training comes out otherwise for the same study: cells of before are then trained anew."""


@dataclass(frozen=True)
class StudyCell:
    """One training."""

    arm: Arm
    patients: int | str
    ratio: float
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        ratio = f", {self.ratio:g} to 1" if self.ratio else ""
        return f"{self.arm.name}, {self.patients} patients{ratio}, seed {self.seed}"


@dataclass(frozen=True)
class Done:
    """A cell that was trained: ``images`` it was trained on (real and added), what it said, seconds it took."""

    cell: StudyCell
    images: tuple[int, int]
    outputs: Mapping[str, Any]
    seconds: float


def cells_of(study: Study) -> list[StudyCell]:
    """All of them, seed by seed, so that a study that was stopped shows every arm."""
    return [
        StudyCell(arm, n, float(ratio), seed)
        for seed in study.seeds
        for n in study.patients
        for arm in study.arms
        if n in study.patients_of(arm)
        for ratio in study.ratios_of(arm)
    ]


class Made(Protocol):
    """The synthetic images of an arm for the labeled patients of a cell."""

    def __call__(self, arm: Arm, cell: StudyCell, patients: list[str]) -> Pool:
        """A pool that may be larger than the cell wants."""
        ...


class CellTrainer:
    """Trains cells, or reads what was trained before.

    Args:
        study: the study.
        pools: real images, ``train``, ``validation`` and ``test``.
        folder: where the cells' files are.
        made: the synthetic images of an arm for the labeled patients of a cell.
    """

    def __init__(self, study: Study, pools: Mapping[str, Pool], folder: Path, made: Made):
        self.study, self.pools, self.folder, self.made = study, pools, folder, made
        self.task = task_of(study)
        self._test = pools["test"].digest

    def added(self, cell: StudyCell, patients: list[str], real: Pool) -> Pool | None:
        """What a cell's arm adds to the real images."""
        arm = cell.arm
        if not arm.synthetic:
            return None
        needs = arm.kind not in ("duplicated", "oracle")
        pool = self.made(self.study.source_of(arm), cell, patients) if needs else real.at([])
        others = others_than(patients, self.pools["train"], self.pools["validation"])
        return borrowed(arm, pool, real, others, cell.ratio, cell.seed)

    def batches(self, cell: StudyCell, added: Pool | None = None) -> Batches:
        """Of a cell, with what its arm adds."""
        real = self.pools["train"].of(labeled(self.pools["train"], cell.patients, cell.seed))
        return Batches(self.study, cell.arm, real, added, cell.ratio, cell.seed)

    def __call__(self, cell: StudyCell) -> Done:
        """Train a cell unless its file is there."""
        patients = labeled(self.pools["train"], cell.patients, cell.seed)
        real = self.pools["train"].of(patients)
        added = self.added(cell, patients, real)
        batches = self.batches(cell, added)
        batches.check()
        key = self._key(cell, real, added, batches.limited)
        file = self.folder / f"{key[:20]}.json"
        known = _read(file, key)
        images = (0 if cell.arm.kind == "synthetic_only" else len(real), 0 if added is None else len(added))
        if known is None:
            module, seconds = trained(self.task, self.study.training, batches, cell.seed)
            with torch.no_grad():
                outputs = self.task.outputs(module, self.pools["test"])
            known = {"key": key, "cell": cell.name, "images": images, "outputs": outputs, "seconds": round(seconds, 2)}
            atomic.write_json(file, known)
        return Done(cell, images, known["outputs"], float(known["seconds"]))

    def _key(self, cell: StudyCell, real: Pool, added: Pool | None, limited: Mapping[int, float]) -> str:
        """Digest of everything that the outcome depends on."""
        what = {
            "format": FORMAT,
            "task": self.study.task,
            "size": self.study.size,
            "classes": self.study.classes,
            "training": asdict(self.study.training),
            "kind": cell.arm.kind,
            "classical": cell.arm.classical,
            "ratio": [cell.ratio, sorted(limited.items())] if limited else cell.ratio,
            "seed": cell.seed,
            "real": real.digest,
            "added": None if added is None else added.digest,
            "test": self._test,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _read(file: Path, key: str) -> dict[str, Any] | None:
    try:
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if known.get("key") == key else None
