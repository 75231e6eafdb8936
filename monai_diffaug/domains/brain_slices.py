"""Slices of brains with and without glioma, as files: what the studies of use are of.

Data: ``brain_lgg_2d``, TCGA-LGG (The Cancer Imaging Archive, CC BY 3.0) with the masks of Buda et al. 2019 (CC BY-NC-SA
4.0); FLAIR is the second channel. Slices without tumor come from patients with one, and lie more often near the skull
base. Age and gender come from ``brain_lgg_3d``, whose patients are the same; what the gender codes mean is not said.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ..types import DiffAugError

__all__ = ["FLAIR", "files"]

FLAIR = 1
MIDDLE_AGE = 45


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise DiffAugError(f"{path} is missing: give the folder that holds {path.parent.parent.name} as --data")
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def files(data: Path | str) -> list[dict[str, Any]]:
    """Entries of a datalist with ``image``, ``mask``, ``class``, ``patient``, ``site``, ``gender`` and ``age``.

    Args:
        data: the folder that holds ``brain_lgg_2d`` and ``brain_lgg_3d``.

    Raises:
        DiffAugError: one of the two is not there.
    """
    folder, volumes = Path(data) / "brain_lgg_2d" / "dev", Path(data) / "brain_lgg_3d" / "dev"
    people = {row["patient"]: row for row in _rows(volumes / "labels.csv")}
    return [
        {
            "image": str(folder / row["file"]),
            "mask": str(folder / row["mask"]),
            "class": "tumor" if row["tumour"] == "1" else "healthy",
            "patient": row["patient"],
            "site": row["site"],
            **_person(people.get(row["patient"], {})),
        }
        for row in _rows(folder / "labels.csv")
    ]


def _person(row: dict[str, str]) -> dict[str, str]:
    age, gender = row.get("age", ""), row.get("gender", "")
    return {
        "gender": f"code {int(float(gender))}" if gender else "not known",
        "age": ("not known" if not age else f"below {MIDDLE_AGE}" if float(age) < MIDDLE_AGE else f"from {MIDDLE_AGE}"),
    }
