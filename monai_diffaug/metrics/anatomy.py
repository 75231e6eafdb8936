"""What can be measured on a scan with a ruler: how large the body, its dark parts, its lungs, brain or lesion are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import wasserstein_distance
from torch import Tensor

from ..types import DiffAugError

__all__ = ["REGIONS", "apart", "brain", "lung_fields", "measures"]

REGIONS = ("chest", "brain")
"""Of which regions there are measures beside those that every scan has."""

BODY = 0.15  # of the value range above its lower end


def _otsu(values: Tensor) -> float:
    """The threshold that parts values (N,) in [0, 1] best (Otsu 1979)."""
    counts = torch.histc(values, 128, 0.0, 1.0).double()
    p = counts / counts.sum().clamp(min=1)
    centers = (torch.arange(128, dtype=torch.float64) + 0.5) / 128
    weight, first = p.cumsum(0), (p * centers).cumsum(0)
    between = (first[-1] * weight - first).square() / (weight * (1 - weight)).clamp(min=1e-9)
    return float(centers[between >= between.max() * (1 - 1e-9)].mean())  # the middle, where none lies between two modes


def _largest(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part, if there is any."""
    parts, n = ndimage.label(inside)
    return inside if n < 2 else parts == 1 + int(np.argmax(ndimage.sum(inside, parts, range(1, n + 1))))


def brain(unit: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a head's inside is, of a scan (*S) in [0, 1]: the head less a rim of skull and scalp (6 % of a side).

    At the level of eyes and nose it holds these too.
    """
    seen = torch.from_numpy(unit[unit > 0.02])
    if len(seen) == 0:
        return np.zeros(unit.shape, bool)
    head = _largest(ndimage.binary_fill_holes(unit > 0.5 * _otsu(seen)))
    return _largest(ndimage.binary_erosion(head, iterations=max(1, round(0.06 * unit.shape[-1]))))


def lung_fields(unit: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where the lungs are on a frontal film or an axial slice (H, W) in [0, 1]: in each half the largest part near its
    middle that is darker than what lies around it; air around the body does not count.
    """
    side = unit.shape[-1]
    air, _ = ndimage.label(unit < 0.06)
    rim = np.unique(np.concatenate([air[0], air[-1], air[:, 0], air[:, -1]]))
    inside = ~np.isin(air, rim[rim > 0])
    there = ndimage.gaussian_filter(inside.astype(np.float32), 0.2 * side)
    around = ndimage.gaussian_filter(unit * inside, 0.2 * side) / np.maximum(there, 1e-3)
    frame = max(1, round(0.06 * side))
    dark = inside & (ndimage.gaussian_filter(unit, 0.015 * side) < around - 0.02)
    dark[:frame] = dark[-frame:] = dark[:, :frame] = dark[:, -frame:] = False
    parts, n = ndimage.label(ndimage.binary_opening(dark, iterations=max(1, round(0.015 * side))))
    found = np.zeros(unit.shape, bool)
    for half in (slice(0, side // 2), slice(side // 2, side)):
        found[:, half] = _likeliest(parts[:, half], n, half.start / side, side)
    return found


def _likeliest(parts: NDArray[np.int32], n: int, start: float, side: int) -> NDArray[np.bool_]:
    """The part of a half picture that is large and near where a lung is: a little above the middle of it."""
    best, found = 0.0, np.zeros(parts.shape, bool)
    for k in range(1, n + 1):
        part = parts == k
        if not part.any():
            continue
        y, x = ndimage.center_of_mass(part)
        far = np.hypot(y / parts.shape[0] - 0.47, abs(start + x / side - 0.5) - 0.2)
        value = float(part.sum() * np.exp(-((far / 0.15) ** 2)))
        if value > best:
            best, found = value, part
    return found


def _of_region(unit: Tensor, region: str) -> dict[str, Tensor]:
    """``brain``; or ``lung_fields``, and the smaller over the larger as ``lung_balance``: shares."""
    pictures = [x.numpy() for x in unit]
    if region == "brain":
        return {"brain": torch.tensor([float(brain(x).mean()) for x in pictures])}
    masks = [lung_fields(x) for x in pictures]
    halves = [sorted((m[:, : m.shape[1] // 2].sum(), m[:, m.shape[1] // 2 :].sum())) for m in masks]
    return {
        "lung_fields": torch.tensor([float(m.mean()) for m in masks]),
        "lung_balance": torch.tensor([float(a / max(b, 1)) for a, b in halves]),
    }


def measures(
    images: Tensor,
    masks: Tensor | None = None,
    span: tuple[float, float] = (-1.0, 1.0),
    region: str | None = None,
) -> dict[str, Tensor]:
    """Figures of each image (B, C, *S) whose intensities span ``span``; each (B,).

    ``body``: share of the picture that is brighter than air, holes filled (a head's size). ``dark_inside``: share of
    the body that Otsu's threshold calls dark (lung fields on a chest film, ventricles in a brain). ``symmetry``:
    correlation of left and right halves within the picture. ``lesion``: share of the picture in the mask. Of a
    ``region`` in :data:`REGIONS` also ``brain``, or ``lung_fields`` and ``lung_balance`` (of pictures, not of volumes).

    Raises:
        DiffAugError: the region is unknown, or there are not as many masks as images.
    """
    if region not in (None, *REGIONS):
        raise DiffAugError(f"anatomy of {region!r} is not measured: choose of {', '.join(REGIONS)}")
    unit = ((images.float().mean(1) - span[0]) / (span[1] - span[0])).clamp(0, 1)
    body, dark, symmetry = [], [], []
    for x in unit:
        inside = torch.as_tensor(ndimage.binary_fill_holes((x > BODY).numpy()))
        body.append(float(inside.float().mean()))
        values = x[inside]
        dark.append(float((values < _otsu(values)).float().mean()) if len(values) > 1 else 0.0)
        pair = torch.stack([x.flatten(), x.flip(-1).flatten()]).double()
        symmetry.append(float(torch.corrcoef(pair)[0, 1].nan_to_num(0.0)))
    found = {"body": torch.tensor(body), "dark_inside": torch.tensor(dark), "symmetry": torch.tensor(symmetry)}
    if region is not None and (region == "brain" or images.ndim == 4):
        found |= _of_region(unit, region)
    if masks is not None:
        if len(masks) != len(images):
            raise DiffAugError(f"{len(images)} images have {len(masks)} masks: give every image its mask, or none")
        found["lesion"] = (masks > 0).float().flatten(1).mean(1)
    return found


def apart(made: Tensor, real: Tensor) -> float:
    """Wasserstein distance of two sets of figures (n,), (m,) over the real ones' standard deviation: 0 is alike."""
    spread = float(real.double().std().clamp(min=1e-9))
    return float(wasserstein_distance(made.double().numpy(), real.double().numpy())) / spread
