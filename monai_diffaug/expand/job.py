"""The output folder of a job: its settings, what is done already, and the datalist at the end.

job.json            the settings; a run with others is refused
audit/NAME.gate.json what the gate refused of a piece of work, for whoever holds the training images
images/ masks/      what was made; beside each image a JSON file that says how, but not of which source
records/NAME.json   one for each piece of work, written last: where it is, the piece is done
datalist.json       at the end, from the records
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io import atomic, datalist, images, sidecar
from ..io.datalist import Item
from ..io.images import Scan
from ..types import DiffAugError
from .making import Product

__all__ = ["Job", "Task"]

LIST = "datalist.json"


@dataclass(frozen=True)
class Task:
    """One piece of work: copy ``copy`` (from 1) of an image by the recipe called ``recipe``."""

    item: Item
    recipe: str
    copy: int
    name: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What its seed depends on."""
        return self.item.id, self.recipe, self.copy


class Job:
    """Reads and writes a job's folder, which must be claimed by the caller.

    Args:
        folder: where.
        settings: everything that the result depends on, fit for JSON.

    Raises:
        DiffAugError: the folder holds something else or a job with other settings, or cannot be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))
        atomic.clear(self.folder)
        file = self.folder / "job.json"
        if file.is_file():
            self._compare(file)
            return
        others = sorted(p.name for p in self.folder.iterdir())
        if others:
            raise DiffAugError(
                f"{self.folder} holds other files ({', '.join(others[:3])}): give a new or an empty folder"
            )
        atomic.write_json(file, self.settings)

    def _compare(self, file: Path) -> None:
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DiffAugError(f"{file} cannot be read: give a new output folder") from None
        there, here = _flat(before), _flat(self.settings)
        changed = [k for k in dict.fromkeys([*here, *there]) if there.get(k) != here.get(k)]
        if changed:
            what = "; ".join(f"{k}: {_short(there.get(k))} there, {_short(here.get(k))} here" for k in changed[:4])
            raise DiffAugError(
                f"{self.folder} holds a job with other settings ({what}): repeat those, or give a new output folder"
            )

    def record_of(self, task: Task) -> Path:
        """Where a task's record is."""
        return self.folder / "records" / f"{task.name}.json"

    def done(self, tasks: Iterable[Task]) -> set[str]:
        """Names of those of the tasks that have a record."""
        return {t.name for t in tasks if self.record_of(t).is_file()}

    def keep(self, task: Task, like: Scan, product: Product, record: Mapping[str, Any]) -> None:
        """Write an image as a file like ``like``, its label and, last, its record."""
        item, image = task.item, f"images/{task.name}{like.ending}"
        remark = f"synthetic, made by monai-diffaug {record['method']} seed {record['seed']}"
        images.write(self.folder / image, product.image, like, remark=remark, record=record)
        sidecar.write(self.folder / image, record)
        entry: dict[str, Any] = {"image": image}
        mask = self._keep_mask(task, product, self.folder / image, record)
        if product.kind is not None:
            entry[item.kind_key] = product.kind
        if mask is not None:
            entry["mask" if item.mask_key in entry else item.mask_key] = mask
        entry |= {k: v for k, v in item.fields.items() if k not in ("synthetic", "source", "source_mask", "provenance")}
        entry["synthetic"] = True
        if item.image != Path() and item.image.exists():
            entry["source"] = _relative(item.image, self.folder)
            if item.mask is not None:
                entry["source_mask"] = _relative(item.mask, self.folder)
        atomic.write_json(self.record_of(task), {**entry, "provenance": dict(record)})

    def _keep_mask(self, task: Task, product: Product, of: Path, record: Mapping[str, Any]) -> str | None:
        if product.mask is not None and product.mask_like is not None:
            name = f"masks/{task.name}{product.mask_like.ending}"
            remark = "label of a synthetic image, made by monai-diffaug"
            images.write(self.folder / name, product.mask, product.mask_like, remark=remark, record=record, of=of)
            return name
        if product.kept and task.item.mask is not None:
            name = f"masks/{task.name}{images.ending(task.item.mask)}"
            atomic.write_bytes(self.folder / name, task.item.mask.read_bytes())
            return name
        return None

    def audit(self, task: Task, found: Mapping[str, Any]) -> None:
        """Write down, apart from what goes with the image, which training images it was compared with."""
        atomic.write_json(self.folder / "audit" / f"{task.name}.json", dict(found))

    def refuse(self, task: Task, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Write down what the gate did not let through, and which training images it repeats."""
        said = {"image": task.name, "source": task.item.id, "refused": list(attempts)}
        atomic.write_json(self.folder / "audit" / f"{task.name}.gate.json", said)

    def reject(self, task: Task, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Write down that nothing that was made for a task passed the filters."""
        record = {"rejected": True, "method": task.recipe, "source": task.item.id, "attempts": list(attempts)}
        atomic.write_json(self.record_of(task), record)

    def finish(self, tasks: Sequence[Task], remarks: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
        """Write the datalist of what the records say, in the order of the tasks.

        Returns:
            the entries, and the names of tasks of which nothing passed the filters.
        """
        entries, rejected = [], []
        for task in tasks:
            if not self.record_of(task).is_file():
                continue
            record = json.loads(self.record_of(task).read_text(encoding="utf-8"))
            if record.get("rejected"):
                rejected.append(task.name)
            else:
                entries.append(record)
        head = {"description": "Synthetic images, made by monai-diffaug", "synthetic": True, **remarks}
        if rejected:
            head["rejected"] = rejected
        datalist.write(self.folder / LIST, entries, head)
        return entries, rejected


def _flat(data: Any, path: str = "") -> dict[str, Any]:
    """Nested JSON as ``methods.0.parameters.steps`` -> value."""
    if isinstance(data, dict | list) and data:
        pairs = data.items() if isinstance(data, dict) else enumerate(data)
        return {k: v for key, value in pairs for k, v in _flat(value, f"{path}.{key}" if path else str(key)).items()}
    return {path: data}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return path.resolve().as_posix()
