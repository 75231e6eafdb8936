"""A scan in; its healthy counterfactual, a map of what had to change and a lesion score out, as files.

A slice is taken as it is. A volume goes through a 2D backbone slice by slice, each with its own intensity window, as in
training; slices that show next to no head stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from .. import registry
from ..io import atomic, images
from ..io.datalist import stem_of
from ..io.images import Scan
from ..metrics import lesions
from ..primitives.fitting import Fitted, fit
from ..types import Backbone, DiffAugError, NoiseSource

__all__ = ["Localized", "localize"]

LEAST = 0.12
"""Share of a slice that must be brighter than a tenth of the scan's range."""

AXIAL = "LPS"  # x to the left and y to the back: rows and columns of an axial slice on a screen, once transposed


@dataclass(frozen=True)
class Localized:
    """Files written for one scan, and what was found in it."""

    source: Path
    healthy: Path
    map: Path
    mask: Path
    record: Path
    score: float
    lesion_share: float


def localize(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    backbone: Backbone,
    method: str = "healthy_counterfactual",
    *,
    threshold: float,
    sign: int = 1,
    voxels: int = 9,
    batch: int = 16,
    **settings: Any,
) -> list[Localized]:
    """Look for lesions in scans.

    Args:
        source: a NIfTI, PNG or JPEG file, several, or a folder of them.
        out: a folder. For ``scan.nii.gz`` it gets ``scan_healthy.nii.gz``, ``scan_map.nii.gz`` (in the contract's
            units; a PNG map is scaled so that white is a change of the whole value range), ``scan_lesion.nii.gz``
            (where the map reaches the threshold) and ``scan_lesion.json``.
        backbone: a 2D backbone.
        method: of shape ``edit``, that makes healthy what is diseased.
        threshold: of the map, found on validation patients.
        sign: see :func:`monai_diffaug.metrics.lesions.change_map`.
        voxels: likewise.
        batch: slices at once.
        settings: of the method.

    Returns:
        what was written; ``score`` is the map's highest value.

    Raises:
        DiffAugError: a file cannot be used, or the backbone is not 2D.
    """
    if backbone.contract.spatial_dims != 2:
        raise DiffAugError(f"backbone {backbone.name!r} is {backbone.contract.spatial_dims}D: give one of slices")
    registry.check(method, backbone, settings)
    done = []
    for path in _files(source):
        scan = images.read(path)
        if scan.kind in ("dicom", "seg"):
            raise DiffAugError(f"{path} is DICOM: convert it with `diffaug import` first")
        flat = scan.image.ndim == 3
        if not flat:
            scan = images.read(path, orientation=AXIAL)
        slices = list(_slices(scan, backbone))
        if not slices:
            raise DiffAugError(f"{path} shows no head: every slice is nearly empty")
        found = [*_changed(backbone, method, slices, sign, voxels, batch, settings, path.name)]
        done.append(_write(path, Path(out), scan, slices, found, threshold, backbone, method, settings))
    return done


def _files(source: str | Path | Sequence[str | Path]) -> Iterable[Path]:
    many = [source] if isinstance(source, str | Path) else list(source)
    for path in (Path(p).expanduser() for p in many):
        inside = [p for p in sorted(path.iterdir()) if images.ending(p)] if path.is_dir() else [path]
        if not inside:
            raise DiffAugError(f"{path} holds no image: give NIfTI, PNG or JPEG files")
        yield from inside


def _slices(scan: Scan, backbone: Backbone) -> Iterator[tuple[int, Fitted]]:
    """Every slice that shows a head, fitted to the backbone, with its place."""
    planes = scan.image
    if planes.ndim == 3:
        gray = planes[:1] if bool((planes == planes[:1]).all()) else planes
        yield 0, fit(gray, backbone.contract, axes="yx")
        return
    values = planes.float()
    low, high = (
        float(torch.quantile(values.flatten()[:: max(1, values.numel() // 1_000_000)], q)) for q in (0.005, 0.995)
    )
    for k in range(planes.shape[-1]):
        one = planes[..., k].transpose(-1, -2)
        if float((one.float() > low + 0.1 * (high - low)).float().mean()) >= LEAST:
            yield k, fit(one.contiguous(), backbone.contract, axes="yx")


def _changed(
    backbone: Backbone,
    method: str,
    slices: Sequence[tuple[int, Fitted]],
    sign: int,
    voxels: int,
    batch: int,
    settings: Mapping[str, Any],
    what: str,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Counterfactual, reconstruction (C, *size) and map (1, *size) of each slice."""
    for first in track(range(0, len(slices), batch), description=what):
        part = slices[first : first + batch]
        x = torch.stack([f.tensor for _, f in part]).to(backbone.device)
        seeds = NoiseSource([k for k, _ in part])
        with torch.no_grad():
            after = registry.call(method, backbone, x, generator=seeds, **settings).image
            before = backbone.decode(backbone.encode(x))
        yield from zip(after.cpu(), before.cpu(), lesions.change_map(before, after, sign, voxels).cpu(), strict=True)


def _write(
    path: Path,
    out: Path,
    scan: Scan,
    slices: Sequence[tuple[int, Fitted]],
    found: Sequence[tuple[Tensor, Tensor, Tensor]],
    threshold: float,
    backbone: Backbone,
    method: str,
    settings: Mapping[str, Any],
) -> Localized:
    low, high = backbone.contract.value_range
    healthy, heat = scan.image.clone(), torch.zeros(scan.image[:1].shape)
    for (k, fitted), (after, before, change) in zip(slices, found, strict=True):
        image = fitted.restore(after, before)
        # the map comes back the way images do, with a window of its own
        blank = replace(fitted, source=torch.zeros(fitted.source[:1].shape), window=((low, high),), excess=None)
        back = blank.restore(change)
        if scan.image.ndim == 3:
            healthy, heat = image.expand_as(scan.image).to(scan.image.dtype), back
        else:
            healthy[..., k], heat[..., k] = image.transpose(-1, -2), back.transpose(-1, -2)
    lesion = heat >= threshold
    stem, kind = stem_of(path.name), ".nii.gz" if scan.kind == "nifti" else ".png"
    files = {name: out / f"{stem}_{name}{kind}" for name in ("healthy", "map", "lesion")}
    like = images.mask_like(scan)
    remark = f"synthetic, made by monai-diffaug {method}"
    target = files["healthy"] if scan.kind != "jpeg" else out / f"{stem}_healthy{images.ending(path)}"
    images.write(target, healthy, scan, remark=remark)
    if scan.kind == "nifti":
        images.write(files["map"], heat, replace(like, image=heat, dtype="float32"), remark="map of change")
        images.write(files["lesion"], lesion.float(), like, remark="lesion found by monai-diffaug")
    else:
        images.write(files["map"], (heat / (high - low)).clamp(0, 1) * 255, like, remark="map of change")
        images.write(files["lesion"], lesion.float() * 255, like, remark="lesion found by monai-diffaug")
    peaks = {str(k): round(float(c.max()), 5) for (k, _), (_, _, c) in zip(slices, found, strict=True)}
    score, share = max(peaks.values()), float(lesion.float().mean())
    record = out / f"{stem}_lesion.json"
    said = {
        **{"source": path.name, "synthetic": True, "score": score, "threshold": threshold, "lesion_share": share},
        **{"slices": peaks, "method": method, "settings": dict(settings)},
        **{"backbone": backbone.name, "backbone_digest": backbone.digest},
        "files": {"healthy": target.name, "map": files["map"].name, "lesion": files["lesion"].name},
    }
    atomic.write_bytes(record, (json.dumps(said, indent=1) + "\n").encode())
    return Localized(path, target, files["map"], files["lesion"], record, score, share)
