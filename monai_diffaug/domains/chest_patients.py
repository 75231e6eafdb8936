"""Chest X-rays by patient: what a network that tells patients apart is trained and measured on.

The films are those of :mod:`.chest_xray`. Only ``cxr_covid`` has films of several visits; of ``mednist6`` and
``cxr_pneumonia28`` nobody knows which films are of one patient, so that each counts as a patient of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import chest_xray

__all__ = ["SHARES", "items", "labeled"]

SHARES = {"cxr_covid": 0.2, "mednist6": 0.4, "cxr_pneumonia28": 0.4}
"""How often training sees each set."""


def items(data: str | Path, part: str) -> list[dict[str, Any]]:
    """The films of ``train``, ``validation`` or ``test`` patients, or ``unlearned`` ones.

    Films for non-commercial use are measured on and never learned from: ``validation`` and ``test`` have them,
    ``train`` has not. ``unlearned`` are the patients of the training part of whom there are no others; as they were
    never seen, they make up for the few test patients who came twice.

    Returns:
        items with ``image`` (1, 64, 64) in [-1, 1], ``patient``, ``id`` (set and film), ``source`` (the set) and
        ``label`` (0 normal, 1 pneumonia, -1 not known).

    Raises:
        DiffAugError: a set is not there.
    """
    if part != "unlearned":
        return _read(chest_xray.items(data, part, noncommercial=part != "train"))
    learned = {item["patient"] for item in chest_xray.items(data, "train")}
    every = chest_xray.items(data, "train", noncommercial=True)
    return _read([item for item in every if item["patient"] not in learned])


def _read(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    once: dict[str, dict[str, Any]] = {}  # some films are in a set twice, and would pass for two visits
    for item in found:
        file = item["image"]
        name = Path(file).stem if isinstance(file, str | Path) else item["patient"].rpartition("/")[2][:16]
        once.setdefault(f"{item['source']}/{name}", item)
    kept = ("image", "patient", "source", "label")
    return [
        {"id": name, **{k: film[k] for k in kept}}
        for name, film in zip(once, chest_xray.films([*once.values()]), strict=True)
    ]


def labeled(data: str | Path, part: str) -> tuple[Tensor, Tensor]:
    """Films (N, 1, 64, 64) of children and whether they show pneumonia: 0 or 1 (N,)."""
    known = [item for item in items(data, part) if item["label"] >= 0]
    images = torch.stack([torch.as_tensor(item["image"]) for item in known])
    return images, torch.tensor([item["label"] for item in known])
