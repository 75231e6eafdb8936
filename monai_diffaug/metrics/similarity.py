"""How alike two images are, SSIM and MS-SSIM, over the whole picture or only where there is something to see."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..types import DiffAugError

__all__ = ["foreground", "scales_of", "ssim_of"]

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, table 1
AIR = 0.1  # of the span above its lower end, below which there is nothing
WINDOW = 11


def scales_of(side: int) -> tuple[int, int]:
    """Window and number of scales of MS-SSIM for images of that shorter side: 11 and 5 above 160, else 7 and fewer."""
    if side > 160:
        return WINDOW, len(SCALES)
    return 7, max(1, min(len(SCALES), int(math.log2(max(side, 7) / 7)) + 1))


def foreground(a: Tensor, b: Tensor, span: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Where either image of a pair (B, C, *S) shows more than air; (B, 1, *S)."""
    line = span[0] + AIR * (span[1] - span[0])
    return ((a > line) | (b > line)).any(1, keepdim=True)


def _unit(images: Tensor, span: tuple[float, float]) -> Tensor:
    """To [0, 1], where SSIM's constants are meant: it is not the same in [-1, 1]."""
    return ((images.detach().cpu().as_subclass(Tensor).float() - span[0]) / (span[1] - span[0])).clamp(0, 1)


def _pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2) if x.ndim == 4 else F.avg_pool3d(x, 2)


def _smooth(x: Tensor, taps: NDArray[np.float64]) -> Tensor:
    """Gaussian means (B, C, *S - window + 1), axis by axis: MONAI's whole kernel takes six times as long in 3D."""
    out, edge = x.numpy(), len(taps) // 2
    for axis in range(2, x.ndim):
        out = ndimage.correlate1d(out, taps, axis, mode="nearest")
    return torch.from_numpy(out[(..., *[slice(edge, -edge)] * (x.ndim - 2))])


def _maps(x: Tensor, y: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast part at every place that a whole window fits (Wang et al. 2004, eq. 13)."""
    taps = np.exp(-0.5 * ((np.arange(window) - window // 2) / 1.5) ** 2)
    taps = taps / taps.sum()
    mx, my, xx, yy, xy = (_smooth(z, taps) for z in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
    return (2 * mx * my + c1) / (mx * mx + my * my + c1) * contrast, contrast


def _mean(of: Tensor, inside: Tensor | None, window: int) -> Tensor:
    """Mean (B,) of a map; ``inside`` (B, 1, *S) is that of the images, whose border the windows did not reach."""
    if inside is None:
        return of.flatten(1).mean(1)
    edge = (slice(None), slice(None), *[slice(window // 2, -(window // 2))] * (of.ndim - 2))
    weight = inside[edge].float().expand_as(of).flatten(1)
    total = weight.sum(1)
    whole = of.flatten(1)
    return torch.where(total > 0, (whole * weight).sum(1) / total.clamp(min=1e-6), whole.mean(1))


def ssim_of(
    a: Tensor,
    b: Tensor,
    span: tuple[float, float] = (-1.0, 1.0),
    multiscale: bool = False,
    inside: Tensor | None = None,
) -> Tensor:
    """SSIM (Wang et al. 2004, eq. 13) or MS-SSIM (Wang et al. 2003, eq. 7) of each pair of images (B, C, *S); (B,).

    MS-SSIM uses as many of its five scales as the shorter side holds with a window of 7 below 161 voxels, see
    :func:`scales_of`: figures of different sides do not compare.

    Args:
        a: images whose intensities span ``span``.
        b: as many.
        span: the ends of the intensities, the same for both.
        multiscale: MS-SSIM.
        inside: (B, 1, *S), where to look, such as :func:`foreground`. Two pictures with a black background are alike
            for the most part whatever they show; everywhere if not given.

    Raises:
        DiffAugError: the images differ in shape, or are too small for a window.
    """
    if a.shape != b.shape:
        raise DiffAugError(f"images of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared: fit them first")
    side = min(a.shape[2:])
    if side < WINDOW:
        raise DiffAugError(f"images of {side} voxels a side are too small for SSIM's window of 11: compare larger ones")
    x, y = _unit(a, span), _unit(b, span)
    window, scales = scales_of(side) if multiscale else (WINDOW, 1)
    weights = torch.tensor(SCALES[:scales]) if multiscale else torch.ones(1)
    weights = weights / weights.sum()
    found = torch.ones(len(x))
    inside = None if inside is None else inside.cpu()
    for i, w in enumerate(weights):
        ssim, contrast = _maps(x, y, window)
        last = i == scales - 1
        value = _mean(ssim if last else contrast, inside, window)
        found = found * (value.clamp(min=0) ** w if multiscale else value)
        if not last:
            x, y = _pool(x), _pool(y)
            inside = None if inside is None else _pool(inside.float()) > 0
    return found
