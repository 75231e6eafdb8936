"""Volumes in the page: all slices as one PNG, from which the page's script cuts three planes; a still of the middle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .pictures import Plane, bytes_of, uri

__all__ = ["VOXELS", "Volume", "packed"]

VOXELS = 96  # most voxels a side
GAP = 2  # pixels between the planes of a still


@dataclass(frozen=True)
class Volume:
    """A volume of the page, its axes LPS.

    ``slices`` is a PNG with axial slices row by row, ``columns`` in a row; ``size`` and ``spacing`` are of the volume
    as it is in the page, ``at`` the voxel where the planes cross first; ``still`` is what is seen without the script.
    """

    slices: str
    columns: int
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    at: tuple[int, ...]
    still: str
    still_size: tuple[int, int]
    alt: str


def packed(volume: Plane, ends: tuple[float, float], alt: str, at: tuple[float, ...] | None = None) -> Volume:
    """Bring a volume (X, Y, Z) into the page: 8 bits, at most ``VOXELS`` a side.

    Args:
        volume: its axes turned to LPS.
        ends: black and white.
        alt: what it shows.
        at: where the planes cross, as fractions of the size; the middle by default.
    """
    before = volume.values.shape
    size = tuple(min(n, VOXELS) for n in before)
    values = torch.from_numpy(volume.values)[None, None]
    small = F.adaptive_avg_pool3d(values, size)[0, 0].numpy() if size != before else volume.values
    spacing = tuple(s * b / n for s, b, n in zip(volume.spacing, before, size, strict=True))
    gray = bytes_of(small, ends)
    columns = int(np.ceil(np.sqrt(size[2])))
    rows = -(-size[2] // columns)
    sheet = np.zeros((rows * size[1], columns * size[0]), np.uint8)
    for k in range(size[2]):
        r, c = divmod(k, columns)
        sheet[r * size[1] : (r + 1) * size[1], c * size[0] : (c + 1) * size[0]] = gray[:, :, k].T
    where = tuple(min(n - 1, int(f * n)) for f, n in zip(at or (0.5, 0.5, 0.5), size, strict=True))
    still, width, height = uri(_still(gray, spacing, where))
    return Volume(uri(sheet)[0], columns, size, spacing, where, still, (width, height), alt)


def _still(gray: np.ndarray, spacing: tuple[float, ...], at: tuple[int, ...]) -> np.ndarray:
    """Axial, coronal and sagittal plane side by side, as on a viewer's screen, in true proportions."""
    x, y, z = at
    planes = [
        (gray[:, :, z].T, spacing[1], spacing[0]),
        (gray[:, y, :].T[::-1], spacing[2], spacing[0]),
        (gray[x, :, :].T[::-1], spacing[2], spacing[1]),
    ]
    fine = min(spacing)
    shown = []
    for plane, down, across in planes:
        rows, columns = plane.shape
        shown.append(_stretched(plane, (max(1, round(rows * down / fine)), max(1, round(columns * across / fine)))))
    tall = max(p.shape[0] for p in shown)
    parts = []
    for p in shown:
        above = (tall - p.shape[0]) // 2
        parts += [np.pad(p, ((above, tall - p.shape[0] - above), (0, 0))), np.zeros((tall, GAP), np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def _stretched(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if plane.shape == size:
        return plane
    values = torch.from_numpy(plane.astype(np.float32))[None, None]
    wide = F.interpolate(values, size, mode="bilinear", align_corners=False)[0, 0]
    return wide.round().clamp(0, 255).byte().numpy()
