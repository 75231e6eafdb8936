"""nnU-Net's raw data: what `nnUNetv2_plan_and_preprocess --verify_dataset_integrity` accepts.

dataset.json        channels, labels from 0 on without a gap, number of cases, ending of the files
imagesTr/           CASE_0000.nii.gz, one file for each channel (a color picture is one file)
labelsTr/           CASE.nii.gz, on the grid of the image
imagesTs/ labelsTs/ what is for the test
splits_final.json   five folds by patient, validated on real cases only; copy it to nnUNet_preprocessed/DatasetNNN_*
synthetic.json      which cases are synthetic, and how they were made
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...types import DiffAugError
from .. import datalist
from ..datalist import Item
from ..problems import BadInput
from .writing import Ready, Sink, read_item

__all__ = ["write_nnunet"]

FOLDS = 5


def write_nnunet(items: Sequence[Item], sink: Sink, head: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Write a data set.

    Args:
        items: real and synthetic ones.
        sink: where.
        head: ``labels`` and ``channel_names`` where they are known.
        say: called with a line for each item that is left out.

    Raises:
        DiffAugError: no item has a mask, or they differ in kind or number of channels.
    """
    values, kinds = _values(items, say)
    numbers, labels = _labels(sorted(values), head.get("labels"))
    training: dict[str, Ready] = {}
    for ready in _read(items, lambda line: None):
        part = "Ts" if ready.item.fields.get("split") == "test" and not ready.synthetic else "Tr"
        for c, channel in enumerate(ready.channels):
            sink.file(f"images{part}/{ready.name}_{c:04d}{ready.ending}", ready.encoded(channel))
        assert ready.mask is not None
        index = np.searchsorted(sorted(values), ready.mask)
        mask = np.asarray([numbers[v] for v in sorted(values)], np.uint8)[index]
        sink.file(f"labels{part}/{ready.name}{ready.ending}", ready.encoded(mask))
        if part == "Tr":
            training[ready.name] = Ready(ready.item, ready.name, [], ready.affine, None)
    ((ending, channels, color),) = kinds
    about = {
        "channel_names": _channel_names(items, head, 3 if color else channels, color),
        "labels": labels,
        "numTraining": len(training),
        "file_ending": ending,
        "licence": head.get("licence", "unknown"),
        "description": "real and synthetic cases; synthetic.json says which are synthetic",
    }
    sink.json("dataset.json", about)
    made = {n: r.item.fields.get("provenance", {}) for n, r in training.items() if r.synthetic}
    sink.json("synthetic.json", made)
    sink.json("splits_final.json", _folds(training))


def _read(items: Sequence[Item], say: Callable[[str], None]) -> Iterator[Ready]:
    """Items with masks, read one by one under names that nnU-Net takes."""
    used: set[str] = set()
    for item, plain in zip(items, datalist.names(items)):
        name = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-") or "case"
        name = ("synthetic-" if item.fields.get("synthetic") else "real-") + name
        while name in used:
            name += "x"
        used.add(name)
        if item.mask is None:
            say(f"{item.image}: has no mask, which nnU-Net needs: left out")
            continue
        try:
            yield read_item(item, name)
        except BadInput as error:
            say(str(error))


def _values(items: Sequence[Item], say: Callable[[str], None]) -> tuple[set[int], set[tuple[str, int, bool]]]:
    """Which values the masks have, and of which kind the images are: ending, channels, color."""
    values: set[int] = {0}
    kinds: set[tuple[str, int, bool]] = set()
    for ready in _read(items, say):
        assert ready.mask is not None
        found = np.unique(ready.mask)
        if not np.array_equal(found, np.rint(found)) or found.min() < 0:
            raise DiffAugError(
                f"{ready.item.mask} holds other values than whole numbers from 0 on: make labels of them"
            )
        values |= {int(v) for v in found}
        kinds.add((ready.ending, len(ready.channels), ready.channels[0].ndim == 3 and ready.affine is None))
    if not kinds:
        raise DiffAugError("no image has a mask, which nnU-Net needs: give --format bids or datalist, or add masks")
    if len(kinds) > 1:
        raise DiffAugError("nnU-Net wants all images in one format with the same channels: expand each kind by itself")
    return values, kinds


def _labels(values: Sequence[int], known: Any) -> tuple[dict[int, int], dict[str, int]]:
    """New number of each value, without gaps, and the names of the new numbers."""
    names: dict[int, str] = {}
    if isinstance(known, Mapping):  # nnU-Net says name: number, the decathlon number: name
        for a, b in known.items():
            number, name = (b, a) if isinstance(b, int) else (a, b)
            if str(number).isdigit():
                names[int(number)] = str(name)
    whole = sorted({*values, *(names if set(values) <= set(names) else ())})
    numbers = {v: i for i, v in enumerate(whole)}
    labels = {"background": 0}
    for value, number in numbers.items():
        if number:
            name = names.get(value, "lesion" if len(whole) == 2 else f"label_{value}")
            labels[name if name not in labels else f"{name}_{value}"] = number
    return numbers, labels


def _channel_names(items: Sequence[Item], head: Mapping[str, Any], count: int, color: bool) -> dict[str, str]:
    """By these nnU-Net chooses how to normalize: ``CT`` by the foreground's statistics, all else by z-score."""
    known = head.get("channel_names") or head.get("modality")
    if isinstance(known, Mapping) and len(known) == count:
        return {str(k): str(v) for k, v in known.items()}
    if color:
        return {"0": "R", "1": "G", "2": "B"}
    modality = str(next((i.fields["modality"] for i in items if i.fields.get("modality")), "") or "image")
    return {str(c): modality if count == 1 else f"{modality}_{c}" for c in range(count)}


def _folds(cases: Mapping[str, Ready]) -> list[dict[str, list[str]]]:
    """Train and validation cases of each fold; what was made from a validation patient is in neither."""
    patients = sorted({r.patient for r in cases.values()}, key=lambda p: hashlib.sha256(p.encode()).digest())
    count = min(FOLDS, len(patients))
    where = {p: i % max(count, 1) for i, p in enumerate(patients)}
    folds = []
    for k in range(count if count > 1 else 0):
        train = [n for n, r in cases.items() if where[r.patient] != k]
        val = [n for n, r in cases.items() if where[r.patient] == k and not r.synthetic]
        folds.append({"train": train, "val": val})
    return folds
