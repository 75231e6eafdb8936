"""An image file, perhaps with a mask, that is not DICOM: one piece of an import."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from ...types import DiffAugError
from .. import images
from ..atomic import write_bytes
from ..burned_in import writing_in
from ..problems import BadInput, Problem
from ..pseudonyms import Pseudonyms
from ..volumes import codes_of, nifti_bytes, resampled
from ..work import Result, Rules

__all__ = ["Case", "nifti_of"]

ALIGNED = 1e-2  # mm between where image and mask say they are


@dataclass(frozen=True)
class Case:
    """One image of one or more channel files.

    Attributes:
        paths: one file for each channel.
        key: tells the cases of a patient apart.
        fields: what the source says of it and may be handed on (no names).
        personal: age and sex, handed on if they may stay.
    """

    paths: tuple[Path, ...]
    patient: str
    key: str
    mask: Path | None = None
    split: str = ""
    modality: str = ""
    mask_key: str = "label"
    fields: Mapping[str, Any] = field(default_factory=dict)
    personal: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """A file to name it by."""
        return self.paths[0]

    def name(self, names: Pseudonyms) -> str:
        """Patient and case, as pseudonyms."""
        return f"{names.patient(self.patient)}_{names.token(f'{self.patient} {self.key}')}"

    def content(self, names: Pseudonyms) -> str:
        """Hash over names, sizes and times of the files."""
        stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in (*self.paths, self.mask) if p and p.exists()]
        text = f"{stats} {self.split} {dict(self.fields)}"
        return hashlib.sha256(names.token(text).encode()).hexdigest()[:16]

    def run(self, rules: Rules) -> Result:
        """Write the image and its mask."""
        result = Result(files=len(self.paths) + (self.mask is not None))
        try:
            pieces = (
                self._volume(rules, result) if images.ending(self.place).startswith(".nii") else self._picture(rules)
            )
        except BadInput as error:
            result.problems.append(error.problem)
            return result
        name = self.name(rules.names)
        for i, (image, mask, more) in enumerate(pieces, 1):
            stem = name if len(pieces) == 1 else f"{name}_{i:04d}"
            end = ".png" if "spacing" not in more else rules.ending
            entry: dict[str, Any] = {"image": f"images/{stem}{end}"}
            if mask is not None:
                entry[self.mask_key] = f"masks/{stem}{end}"
                write_bytes(rules.out / entry[self.mask_key], mask)
            write_bytes(rules.out / entry["image"], image)
            entry["patient"] = rules.names.patient(self.patient)
            entry["modality"] = rules.modality or self.modality or "OT"
            personal = self.personal if rules.policy.characteristics else {}
            result.entries.append({**entry, **more, **self.fields, **personal})
        return result

    # ------------------------------------------------------------------------------------------------- volumes

    def _volume(self, rules: Rules, result: Result) -> list[tuple[bytes, bytes | None, dict[str, Any]]]:
        channels, affine = zip(*(nifti_of(p) for p in self.paths))
        if any(c.shape != channels[0].shape for c in channels):
            text = "its channels differ in size: resample them to one grid"
            raise BadInput(Problem("channels differ", self.place, text))
        voxels = channels[0] if len(channels) == 1 else np.stack([c.reshape(c.shape[:3]) for c in channels], -1)
        voxels = voxels.reshape(*voxels.shape, *(1,) * (3 - voxels.ndim)) if voxels.ndim < 3 else voxels
        _usable(voxels, self.place)
        mask = self._mask_volume(voxels.shape[:3], affine[0], result)
        count = voxels.shape[2]
        if count == 1 and rules.dims == 3:
            raise BadInput(Problem("one slice", self.place, "the volume has one slice: left out because of --dims 3"))
        parts = [slice(i, i + 1) for i in range(count)] if rules.dims == 2 else [slice(None)]
        step = np.sqrt((affine[0][:3, :3] ** 2).sum(0))
        if rules.dims != 2 and count > 1 and not rules.spacing and step.max() > 3 * step.min():
            size = " x ".join(f"{s:.3g}" for s in step)
            text = f"its voxels are {size} mm: --spacing {step.min():.2g} makes them cubes, if the method needs that"
            result.problems.append(Problem("anisotropic", self.place, text, lost=False))
        out = []
        for part in parts:
            moved = affine[0].copy()
            moved[:3, 3] += moved[:3, 2] * (part.start or 0)
            out.append(_encoded(voxels[:, :, part], None if mask is None else mask[:, :, part], moved, rules))
        return out

    def _mask_volume(self, shape: Sequence[int], affine: np.ndarray, result: Result) -> np.ndarray | None:
        if self.mask is None:
            return None
        mask, where = nifti_of(self.mask)
        mask = mask.reshape(*mask.shape, *(1,) * max(0, 3 - mask.ndim))
        if tuple(mask.shape[:3]) != tuple(shape):
            sizes = " and its image ".join(" x ".join(map(str, s)) for s in (mask.shape[:3], shape))
            raise BadInput(Problem("mask differs", self.mask, f"is {sizes}: resample one of them"))
        if np.abs(where - affine).max() > ALIGNED:
            text = "says that it lies elsewhere than its image does: the image's place is taken for both"
            result.problems.append(Problem("mask differs", self.mask, text, lost=False))
        if mask.dtype.kind == "f":
            mask = mask.astype(np.int16) if np.array_equal(mask, np.rint(mask)) else mask
        return mask

    # ------------------------------------------------------------------------------------------------ pictures

    def _picture(self, rules: Rules) -> list[tuple[bytes, bytes | None, dict[str, Any]]]:
        pixels = _pixels(self.place)
        if writing_in(pixels) and not rules.allow_burned_in:
            text = "seems to have writing burned in: look at it, and give --allow-burned-in if it names nobody"
            raise BadInput(Problem("burned-in text", self.place, text))
        mask = None if self.mask is None else _pixels(self.mask, mask=True)
        if mask is not None and mask.shape[:2] != pixels.shape[:2]:
            raise BadInput(Problem("mask differs", self.mask or self.place, "is not of its image's size: resample it"))
        return [(_png(pixels), None if mask is None else _png(mask), {})]


def nifti_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in the file's units (its number format where nothing is scaled) and affine.

    Raises:
        BadInput: it is no NIfTI file, or damaged.
    """
    try:
        image: Any = nib.load(path)
        slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
        array = np.asanyarray(image.dataobj.get_unscaled() if (slope, inter) == (1, 0) else image.dataobj)
    except Exception as error:  # a damaged file may end in any error of gzip, struct or numpy
        text = f"is corrupt or truncated ({type(error).__name__}): copy it again"
        raise BadInput(Problem("unreadable", path, text)) from None
    if array.dtype.names or np.iscomplexobj(array):
        raise BadInput(Problem("unreadable", path, f"holds {array.dtype} voxels: convert it to one number a voxel"))
    known = {"float64": np.float32, "float16": np.float32, "int64": np.int32, "uint64": np.int32}
    return array.astype(known.get(array.dtype.name, array.dtype), copy=False), np.asarray(image.affine, float)


def _usable(voxels: np.ndarray, path: Path) -> None:
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise BadInput(Problem("not finite", path, "holds NaN or infinity: clean it or leave it out"))
    if voxels.size == 0 or voxels.min() == voxels.max():
        raise BadInput(Problem("constant", path, "holds one value everywhere: leave it out"))


def _encoded(
    voxels: np.ndarray, mask: np.ndarray | None, affine: np.ndarray, rules: Rules
) -> tuple[bytes, bytes | None, dict[str, Any]]:
    turned = affine
    if rules.spacing:
        planes = [voxels[..., c] for c in range(voxels.shape[3])] if voxels.ndim > 3 else [voxels]
        done = [resampled(p, affine, rules.spacing) for p in planes]
        voxels, turned = (np.stack([d[0] for d in done], -1) if voxels.ndim > 3 else done[0][0]), done[0][1]
        mask = None if mask is None else resampled(mask, affine, rules.spacing, labels=True)[0]
    spacing = [round(float(v), 4) for v in np.sqrt((turned[:3, :3] ** 2).sum(0))]
    more = {"spacing": spacing, "orientation": codes_of(turned)}
    label = None if mask is None else nifti_bytes(mask, turned, rules.compress)
    return nifti_bytes(voxels, turned, rules.compress), label, more


def _pixels(path: Path, mask: bool = False) -> np.ndarray:
    try:
        scan = images.read(path, dims=2, mask=mask)
    except DiffAugError as error:
        raise BadInput(Problem("unreadable", path, str(error).removeprefix(str(path)).lstrip(": "))) from None
    array = scan.image.numpy()
    array = array.astype(np.uint16 if array.dtype.itemsize > 1 else np.uint8)
    return array[0] if array.shape[0] == 1 else np.moveaxis(array[:3], 0, 2)


def _png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()
