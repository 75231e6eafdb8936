"""Images as they go into the page: eight bits, small, in the text of the page itself."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from PIL import Image

from ...io import images
from ...types import DiffAugError

__all__ = ["SIDE", "Picture", "Plane", "difference", "drawn", "read", "window"]

SIDE = 192  # most pixels a side
FINE = 1e-3  # of a pixel: what an outline is written to
STRONG = 0.5  # of the real image's range: the end of the difference's colors


@dataclass(frozen=True)
class Picture:
    """A picture of the page: ``uri`` holds it whole; ``outline`` is the label's edge, an SVG path in its pixels."""

    uri: str
    width: int
    height: int
    alt: str
    outline: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Plane:
    """A slice or photograph (H, W) or (H, W, 3), or a volume (X, Y, Z) turned to LPS, with ``spacing`` if known."""

    values: np.ndarray
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    color: bool = False

    @property
    def volume(self) -> bool:
        """Whether it has three axes of space."""
        return self.values.ndim == 3 and not self.color


def read(path: Path, mask: bool = False) -> Plane:
    """An image's first channel, or its three colors.

    Raises:
        DiffAugError: it cannot be read.
    """
    scan = images.read(path, orientation="LPS", mask=mask)
    values = scan.image.double().numpy()
    if scan.kind in ("png", "jpeg") and values.shape[0] == 3:
        if (values == values[:1]).all():
            return Plane(values[0])
        return Plane(np.moveaxis(values, 0, -1), color=True)
    return Plane(values[0], _spacing(scan))


def _spacing(scan: images.Scan) -> tuple[float, ...]:
    """Voxel size along the axes as they were turned; 1 where the file does not say."""
    if scan.affine is None:
        return (1.0, 1.0, 1.0)
    sizes = np.sqrt((np.asarray(scan.affine, float)[:3, :3] ** 2).sum(0))
    if scan.turn is not None:
        turned = sizes.copy()
        for i, (axis, _) in enumerate(np.asarray(scan.turn)[:3]):
            turned[int(axis)] = sizes[i]
        sizes = turned
    return tuple(float(s) if np.isfinite(s) and s > 0 else 1.0 for s in sizes)


def window(like: Plane) -> tuple[float, float]:
    """Black and white of a picture: its darkest value and the one that only one voxel in a thousand passes."""
    if like.color:
        return 0.0, 255.0
    low, high = float(like.values.min()), float(np.quantile(like.values, 0.999))
    return (low, high) if high > low else (low, low + 1.0)


def bytes_of(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Values as eight bits."""
    low, high = ends
    scaled: np.ndarray = np.clip((values - low) / (high - low), 0, 1) * 255
    return np.rint(scaled).astype(np.uint8)


def uri(picture: np.ndarray, side: int = 0) -> tuple[str, int, int]:
    """A PNG as text, and its width and height; made smaller if a side is longer than ``side``."""
    image = Image.fromarray(picture)
    longest = max(image.size)
    if side and longest > side:
        new = [max(1, round(n * side / longest)) for n in image.size]
        image = image.resize((new[0], new[1]), Image.Resampling.LANCZOS)
    out = BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode(), image.width, image.height


def flat(plane: Plane, at: int | None = None) -> np.ndarray:
    """A picture (H, W) or (H, W, 3); of a volume the axial slice ``at``, by default the middle."""
    if not plane.volume:
        return plane.values
    depth = plane.values.shape[2]
    cut: np.ndarray = plane.values[:, :, min(depth // 2 if at is None else at, depth - 1)].T
    return cut


def drawn(
    plane: Plane, ends: tuple[float, float], alt: str, mask: Plane | None = None, at: int | None = None
) -> Picture:
    """A slice with its label's outline."""
    picture = flat(plane, at)
    text, width, height = uri(bytes_of(picture, ends), SIDE)
    return Picture(text, width, height, alt, _outline(mask, picture.shape[:2], (height, width), at))


def _outline(mask: Plane | None, shape: tuple[int, ...], size: tuple[int, int], at: int | None) -> str:
    """The edge of a mask as an SVG path; pixel centers lie at halves."""
    if mask is None:
        return ""
    area = flat(mask, at)
    area = area.max(-1) if area.ndim == 3 else area
    if area.shape != shape or not (area > 0).any():
        return ""
    padded = np.pad((area > 0).astype(float), 1)
    scale = np.array([size[1] / shape[1], size[0] / shape[0]])
    lines = contour_generator(z=padded).lines(0.5)
    return "".join(_path((np.asarray(line) - 0.5) * scale) for line in lines)


def _path(points: np.ndarray) -> str:
    said = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"M{said}Z"


def difference(real: Plane, made: Plane, ends: tuple[float, float], alt: str, at: int | None = None) -> Picture | None:
    """Synthetic minus real in blue and red, which the color-blind tell apart; nothing for images of unlike size."""
    if real.values.shape != made.values.shape or real.color or made.color:
        return None
    from matplotlib import colormaps

    change = (flat(made, at) - flat(real, at)) / (ends[1] - ends[0])
    shades: Any = colormaps["RdBu_r"](np.clip(change / STRONG, -1, 1) / 2 + 0.5)
    text, width, height = uri(np.rint(shades[..., :3] * 255).astype(np.uint8), SIDE)
    return Picture(text, width, height, alt)


def deepest(mask: Plane | None, of: Plane) -> int | None:
    """The axial slice of a volume with most of the mask, else the middle; nothing for a slice."""
    if not of.volume:
        return None
    if mask is not None and mask.volume and mask.values.shape == of.values.shape and (mask.values > 0).any():
        return int((mask.values > 0).sum((0, 1)).argmax())
    return int(of.values.shape[2] // 2)


def perhaps(path: Path | None, mask: bool = False) -> Plane | None:
    """Like :func:`read`; nothing if it cannot be read."""
    if path is None or not path.exists():
        return None
    try:
        return read(path, mask)
    except DiffAugError:
        return None
