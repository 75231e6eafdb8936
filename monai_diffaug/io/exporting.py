"""A job's NIfTI and PNG images as DICOM: each a derived series of its own, its mask a segmentation of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread

from ..types import DiffAugError
from . import dicom_out, dicom_seg, images
from .atomic import claimed, clear
from .datalist import LISTS, stem_of

__all__ = ["export"]

Progress = Callable[[int, int, str], None]


def export(
    source: str | Path,
    out: str | Path,
    *,
    modality: str | None = None,
    burned_in: bool = False,
    flag: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the synthetic images of a datalist as DICOM.

    Args:
        source: what a job wrote: its folder or its datalist.
        out: a folder; ``NAME.dcm`` or, for a volume, ``NAME/`` is written into it, and ``NAME_mask.dcm``.
        modality: such as ``MR``; ``OT`` unless given.
        burned_in: draw the word SYNTHETIC into a corner of each image.
        flag: write Synthetic Data (0008,001C).
        progress: called with images done, images in all and the name of the last.

    Returns:
        the images, in the order of the datalist. What an earlier run has written is left as it is.

    Raises:
        DiffAugError: there is no such datalist, an entry is not synthetic, or a file cannot be read or written.
    """
    path = Path(source).expanduser()
    path = next((path / name for name in LISTS if (path / name).is_file()), path)
    entries = _entries(path)
    made = []
    with claimed(out) as folder:
        clear(folder)
        for i, entry in enumerate(entries, 1):
            image = path.parent / entry["image"]
            target = _named(folder, image)
            known = next((p for p in (target.with_name(f"{target.name}.dcm"), target) if p.exists()), None)
            written = known or _image(image, target, entry["provenance"], modality, burned_in, flag)
            mask = entry.get("mask", entry.get("label"))
            if isinstance(mask, str) and images.ending(mask):
                _mask(path.parent / mask, image, written, target.with_name(f"{target.name}_mask.dcm"), entry)
            made.append(written)
            if progress is not None:
                progress(i, len(entries), target.name)
    return made


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["training"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DiffAugError(f"{path} is no datalist of `diffaug expand` or `generate`: give its folder") from None
    for entry in entries:
        if entry.get("synthetic") is not True or "provenance" not in entry:
            raise DiffAugError(
                f"{path} lists {entry.get('image')}, which is not synthetic: only what diffaug made goes out"
            )
    return list(entries)


def _named(folder: Path, image: Path) -> Path:
    return folder / stem_of(image.name)


def _image(
    image: Path, target: Path, record: Mapping[str, Any], modality: str | None, burned_in: bool, flag: bool
) -> Path:
    scan = images.read(image)
    if scan.kind == "dicom":
        raise DiffAugError(f"{image} is DICOM already: send it as it is")
    pixels = _slices(scan, scan.image.numpy())
    if scan.dtype == "uint8" and pixels.dtype != np.uint8:
        pixels = pixels.astype(np.uint8)
    if len(pixels) == 1:
        pixels, target = pixels[0], target.with_name(f"{target.name}.dcm")
    told: dict[str, Any] = {"modality": modality, "burned_in": burned_in, "flag": flag}
    dicom_out.write_series(target, pixels, record=record, affine=scan.affine, **told)
    return target


def _slices(scan: images.Scan, image: np.ndarray) -> np.ndarray:
    """(slices, rows, columns), or (1, rows, columns, 3) in color, as DICOM has them."""
    if scan.kind != "nifti":
        return np.moveaxis(image, 0, 2)[None] if image.shape[0] == 3 else image
    if image.shape[0] != 1:
        raise DiffAugError(
            f"{scan.path} has {image.shape[0]} channels: DICOM holds one image a series, save them apart"
        )
    plane = image[0] if scan.turn is None else images.turned_back(image[0], scan.turn)
    return np.ascontiguousarray(plane.reshape((*scan.shape, 1, 1)[:3]).transpose(2, 1, 0))


def _mask(mask: Path, image: Path, written: Path, target: Path, entry: Mapping[str, Any]) -> None:
    if target.exists():
        return
    scan = images.read(mask, mask=True)
    labels = _slices(scan, scan.image[:1].numpy())
    if len(np.unique(labels)) <= 2:
        labels = labels > 0
    files = sorted(written.glob("*.dcm")) if written.is_dir() else [written]
    datasets = [dcmread(file, stop_before_pixels=True) for file in files]
    name = entry.get("class")
    segments = [dicom_seg.Segment.named(str(name))] if isinstance(name, str) and labels.dtype == bool else ()
    dicom_seg.write_mask(target, labels, datasets, record=entry["provenance"], segments=segments)
