"""Chest CT: single axial slices, neck to upper abdomen, in Hounsfield units.

Data: TCGA-LUAD and TCGA-LUSC (The Cancer Imaging Archive, CC BY 3.0), 38 patients, 256 x 256, 16-bit PNG that hold HU +
1024. What is learned from it is under CC BY 4.0, with credit to TCIA and both collections.
"""

from __future__ import annotations

import csv
import hashlib
import math
from pathlib import Path
from typing import Any

from ..backbones.monai_unet import MonaiUNet
from ..types import Contract, DiffAugError

__all__ = ["CONTRACT", "OFFSET", "WINDOW", "items", "local", "part_of", "repeated"]

WINDOW = (-1000.0, 1000.0)
"""Hounsfield units at the ends of the value range."""

OFFSET = 1024
"""What the PNG files add to the Hounsfield units."""

SIZE = 256

CONTRACT = Contract(
    name="chest_ct",
    modality="CT",
    spatial_dims=2,
    channels=1,
    size=(SIZE, SIZE),
    latent_channels=1,
    latent_scale=1.0,
    factor=1,
    orientation="axial, patient's front up",
    license="CC BY 4.0",
    data="TCGA-LUAD and TCGA-LUSC (TCIA, CC BY 3.0), 48 slices of 25 patients at simulated doses",
    extra={"window": list(WINDOW)},
)


def part_of(patient: str) -> str:
    """``train``, ``validation`` or ``test``, by the hash that all domains use.

    With 38 patients its eighths are small, so a second eighth tests here: no test patient of any domain is trained on.
    """
    place = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) % 8
    return {0: "test", 6: "test", 1: "validation"}.get(place, "train")


def items(data: Path | str, part: str | None = None) -> list[dict[str, Any]]:
    """A MONAI datalist of ``<data>/ct_tcga_lung/dev``.

    Args:
        data: the folder that holds ``ct_tcga_lung``.
        part: ``train``, ``validation``, ``test``, or None for all.

    Returns:
        ``image`` (a 16-bit PNG of HU + 1024), ``pixel`` (mm), ``patient``, ``contrast`` (0, 1), and ``dicom``, the
        original file, where it is there.

    Raises:
        DiffAugError: the folder or its ``labels.csv`` is not there.
    """
    folder = Path(data) / "ct_tcga_lung" / "dev"
    if not (folder / "labels.csv").is_file():
        raise DiffAugError(f"{folder / 'labels.csv'} is missing: give the folder that holds ct_tcga_lung")
    found: list[dict[str, Any]] = []
    with (folder / "labels.csv").open(newline="") as f:
        for row in csv.DictReader(f):
            if part not in (None, part_of(row["patient"])):
                continue
            item: dict[str, Any] = {
                "image": str(folder / row["file"]),
                "pixel": float(row["pixel_mm_256"]),
                "patient": row["patient"],
                "contrast": int(row["contrast"]),
            }
            if row["dicom"] and (folder / row["dicom"]).is_file():
                item["dicom"] = str(folder / row["dicom"])
            found.append(item)
    return found


def repeated(
    datalist: list[dict[str, Any]], copies: int, dose: tuple[float, float] = (0.05, 0.4)
) -> list[dict[str, Any]]:
    """Every item ``copies`` times, each with a ``dose`` and a ``seed`` of its own, for ``LowDosed`` to go by.

    The doses are spread evenly over the range's logarithm, so that every item gets low ones and high ones.
    """
    low, high = (math.log(d) for d in dose)
    out: list[dict[str, Any]] = []
    for i, item in enumerate(datalist):
        for c in range(copies):
            place = (c + (i * 0.618034) % 1) / copies
            out.append({**item, "dose": round(math.exp(low + place * (high - low)), 4), "seed": i * 101 + c})
    return out


def local(network: MonaiUNet) -> MonaiUNet:
    """A U-Net whose middle attention adds nothing and stays so: it sees windows and whole slices alike.

    MONAI builds that attention in always. Trained on the 256 places of a window it would be asked about the 4,096 of a
    slice.
    """
    last: Any = network.module.get_submodule("middle_block.attention.attn.out_proj")
    for p in last.parameters():
        p.detach().zero_()
        p.requires_grad_(False)
    return network
