"""A data set of real and synthetic images in the form that another program wants: there whole, or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...types import DiffAugError
from .. import atomic, datalist, images
from ..datalist import Item
from ..problems import BadInput, Problem
from ..volumes import nifti_bytes
from .case import _pixels, _png, _usable, nifti_of

__all__ = ["FORMATS", "Ready", "check_format", "read_item", "write"]

FORMATS = ("datalist", "nnunet", "bids")
Say = Callable[[str], None]


@dataclass
class Ready:
    """An item, read: channels (X, Y, Z) with ``affine``, or one picture (rows, columns[, 3]) without; and its mask."""

    item: Item
    name: str
    channels: list[np.ndarray]
    affine: np.ndarray | None
    mask: np.ndarray | None

    @property
    def synthetic(self) -> bool:
        """Whether it was made."""
        return bool(self.item.fields.get("synthetic"))

    @property
    def patient(self) -> str:
        """Whose it is; its own name where the list does not say."""
        return str(self.item.fields.get("patient") or self.item.fields.get("source") or self.item.id)

    def encoded(self, array: np.ndarray) -> bytes:
        """A channel or a mask as a file."""
        return _png(array) if self.affine is None else nifti_bytes(array, self.affine)

    @property
    def ending(self) -> str:
        """Of its files."""
        return ".png" if self.affine is None else ".nii.gz"


@dataclass
class Sink:
    """Where a writer puts its files."""

    root: Path
    said: list[str] = field(default_factory=list)

    def file(self, name: str, data: bytes) -> None:
        atomic.write_bytes(self.root / name, data)

    def json(self, name: str, data: Any) -> None:
        atomic.write_json(self.root / name, data)


def check_format(text: str) -> tuple[str, int]:
    """A format and, for nnU-Net, the number of the data set: ``nnunet``, ``nnunet:12``, ``bids``, ``datalist``.

    Raises:
        DiffAugError: there is no such format.
    """
    name, _, number = text.partition(":")
    if name not in FORMATS or (number and not (name == "nnunet" and number.isdigit() and 0 < int(number) < 1000)):
        raise DiffAugError(f"--format {text} is not known: give {', '.join(FORMATS)}, or nnunet:12 for Dataset012")
    return name, int(number or 1)


def write(
    items: Sequence[Item],
    layout: str,
    folder: str | Path,
    *,
    name: str = "data",
    head: Mapping[str, Any] | None = None,
    say: Say | None = None,
) -> Path:
    """Write items in the layout of another program.

    Args:
        items: real and synthetic ones; the synthetic say ``synthetic`` in their fields.
        layout: see :func:`check_format`.
        folder: under which ``nnUNet_raw/DatasetNNN_name`` or ``bids`` is made, in place of an earlier one.
        name: of the data set.
        head: of the datalist: ``licence``, and ``labels`` and ``channel_names`` where they are known.
        say: called with a line for each item that is left out.

    Returns:
        the folder, or for ``datalist`` the file.

    Raises:
        DiffAugError: the items do not fit the layout; nothing is written then.
    """
    kind, number = check_format(layout)
    folder, head, say = Path(folder), dict(head or {}), say or (lambda line: None)
    if kind == "datalist":
        return _list(items, folder, head)
    from .bids import write_bids
    from .nnunet import write_nnunet

    safe = re.sub(r"[^A-Za-z0-9]+", "", name.title()) or "Data"
    target = folder / "nnUNet_raw" / f"Dataset{number:03d}_{safe}" if kind == "nnunet" else folder / "bids"
    part = target.parent / f".{target.name}{atomic.PART}d"
    shutil.rmtree(part, ignore_errors=True)
    try:
        (write_nnunet if kind == "nnunet" else write_bids)(items, Sink(part), head, say)
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _list(items: Sequence[Item], folder: Path, head: Mapping[str, Any]) -> Path:
    entries = []
    for item in items:
        entry = {"image": str(item.image), **item.fields}
        entry |= {} if item.kind is None else {item.kind_key: item.kind}
        entry |= {} if item.mask is None else {item.mask_key: str(item.mask)}
        entries.append(entry)
    datalist.write(folder / "real_and_synthetic.json", entries, head)
    return folder / "real_and_synthetic.json"


def read_item(item: Item, name: str) -> Ready:
    """Read an image and its mask.

    Raises:
        BadInput: one of them cannot be used.
    """
    if images.ending(item.image) in ("", ".dcm"):
        raise BadInput(Problem("unreadable", item.image, "is DICOM: bring it in with `diffaug import` first"))
    if not images.ending(item.image).startswith(".nii"):
        pixels = _pixels(item.image)
        mask = None if item.mask is None else _pixels(item.mask, mask=True)
        _same(mask, pixels.shape[:2], item)
        return Ready(item, name, [pixels], None, mask if mask is None or mask.ndim == 2 else mask[..., 0])
    voxels, affine = nifti_of(item.image)
    voxels = voxels.reshape(*voxels.shape, *(1,) * max(0, 3 - voxels.ndim))
    _usable(voxels, item.image)
    flat = voxels.reshape(*voxels.shape[:3], -1)
    mask = None if item.mask is None else nifti_of(item.mask)[0]
    if mask is not None:
        mask = mask.reshape(*mask.shape, *(1,) * max(0, 3 - mask.ndim))[..., 0] if mask.ndim > 3 else mask
        mask = mask.reshape(*mask.shape, *(1,) * max(0, 3 - mask.ndim))
        _same(mask, flat.shape[:3], item)
    return Ready(item, name, [flat[..., c] for c in range(flat.shape[3])], affine, mask)


def _same(mask: np.ndarray | None, shape: Sequence[int], item: Item) -> None:
    if mask is not None and tuple(mask.shape[: len(shape)]) != tuple(shape):
        raise BadInput(Problem("mask differs", item.mask or item.image, "is not of its image's size: resample it"))
