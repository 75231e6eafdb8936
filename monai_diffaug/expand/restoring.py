"""A scan in, the same scan restored out: slice by slice, in Hounsfield units, on the scan's own grid.

What is written is of the kind that was read: DICOM as a derived series of its own, NIfTI with its affine, PNG.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from .. import registry
from ..io import atomic, images, sidecar, volumes
from ..io.datalist import stem_of
from ..io.images import Scan
from ..provenance import Record
from ..types import Backbone, DiffAugError, NoiseSource

__all__ = ["restore_scans"]

AXIAL = "LPS"


def restore_scans(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    backbone: Backbone,
    method: str = "low_dose_ct_denoising",
    *,
    offset: float = 1024.0,
    seed: int = 0,
    **settings: Any,
) -> list[Path]:
    """Restore scans.

    A slice of twice the backbone's size and more is averaged down by a whole number, restored there, and brought back
    to its grid by interpolation: the noise that the network knows is that of its own pixels. What lies outside the
    window stays as it is.

    Args:
        source: a DICOM file, the folder of a series, a NIfTI file in Hounsfield units, a 16-bit PNG; or several.
        out: a folder: ``<name>_restored`` with the source's ending, a sidecar that says how it was made, and, for more
            than one draw, ``<name>_std.nii.gz`` (HU) if the source has a place in space.
        backbone: a 2D backbone told an image, with ``extra["window"]`` in its contract.
        method: of shape ``edit``.
        offset: what PNG files add to the Hounsfield units.
        seed: of the first slice; the others count up.
        settings: of the method.

    Returns:
        the restored files.

    Raises:
        DiffAugError: the backbone has no window or is not 2D, or a file cannot be used.
    """
    contract = backbone.contract
    registry.check(method, backbone, settings)
    if contract.spatial_dims != 2 or "window" not in contract.extra:
        raise DiffAugError(
            f"backbone {backbone.name!r} is not one of CT slices: give one with a window in its contract"
        )
    done: list[Path] = []
    for path in _several(source):
        scan = images.read(path)
        if scan.image.ndim == 4:
            scan = images.read(path, orientation=AXIAL)
        if scan.image.shape[0] != 1 or (scan.kind not in ("dicom", "nifti") and scan.dtype != "uint16"):
            raise DiffAugError(f"{path} is no CT in Hounsfield units: give DICOM, NIfTI or a 16-bit PNG")
        shift = offset if scan.kind not in ("dicom", "nifti") else 0.0
        restored, spread = _restored(scan, shift, backbone, method, seed, settings)
        made = Record(source=path.name, method=method, parameters={**settings}, backbone=backbone.name,
                      backbone_digest=backbone.digest, seed=seed)  # fmt: skip
        done.append(_write(path, Path(out), scan, restored, spread, made))
    return done


def _several(source: str | Path | Sequence[str | Path]) -> Iterable[Path]:
    many = [source] if isinstance(source, str | Path) else list(source)
    return [Path(p).expanduser() for p in many]


def _restored(
    scan: Scan, shift: float, backbone: Backbone, method: str, seed: int, settings: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The scan in its own units, and the draws' standard deviation in Hounsfield units, both shaped like it."""
    flat = scan.image.ndim == 3
    slices = scan.image[..., None] if flat else scan.image.transpose(1, 2)
    out, spread = slices.float().clone(), torch.zeros(slices.shape)
    for k in track(range(slices.shape[-1]), description=scan.path.name, disable=slices.shape[-1] == 1):
        one, std = _one(slices[None, ..., k].float() - shift, backbone, method, seed + k, settings)
        out[..., k], spread[..., k] = one[0] + shift, std[0]
    return (out[..., 0], spread[..., 0]) if flat else (out.transpose(1, 2), spread.transpose(1, 2))


def _one(x: Tensor, backbone: Backbone, method: str, seed: int, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """One slice (1, 1, H, W) in Hounsfield units."""
    low, high = (float(v) for v in backbone.contract.extra["window"])
    factor = max(1, max(x.shape[2:]) // max(backbone.contract.size))
    unit = factor * 8  # the network halves twice; 8 leaves it something to halve
    height, width = x.shape[2:]
    full = F.pad(x, (0, -width % unit, 0, -height % unit), mode="replicate")
    values = (F.avg_pool2d(full, factor) - low) / (high - low) * 2 - 1
    entry = registry.get(method)
    with torch.no_grad():
        told = entry.function(
            backbone, values.clamp(-1, 1).to(backbone.device), generator=NoiseSource([seed]), **settings
        )
    wide: list[Tensor] = []
    for y in (told.image.clamp(-1, 1), told.map):
        y = y.float().cpu()
        y = F.interpolate(y, scale_factor=factor, mode="bilinear") if factor > 1 else y
        wide.append(y[..., :height, :width])
    restored = (wide[0] + 1) / 2 * (high - low) + low
    return torch.where((x < low) | (x > high), x, restored), wide[1] / 2 * (high - low)


def _write(path: Path, out: Path, scan: Scan, restored: Tensor, spread: Tensor, made: Record) -> Path:
    stem = stem_of(path.name)
    target = out / f"{stem}_restored{scan.ending}"
    record = json.loads(made.to_json())
    images.write(target, restored, scan, remark=f"restored by monai-diffaug {made.method}", record=record)
    sidecar.write(target, record)
    if scan.affine is not None and bool(spread.any()):
        if scan.kind == "nifti":
            like = replace(images.mask_like(scan), image=spread, dtype="float32")
            images.write(out / f"{stem}_std.nii.gz", spread, like, remark="standard deviation of the draws")
        else:
            plane = spread[0].numpy()
            plane = plane if scan.turn is None else images.turned_back(plane, scan.turn)
            data = volumes.nifti_bytes(plane.reshape((*scan.shape, 1)[:3]), scan.affine)
            atomic.write_bytes(out / f"{stem}_std.nii.gz", data)
    return target
