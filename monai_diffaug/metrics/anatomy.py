"""What can be measured on a scan with a ruler: how large the body, its dark and its bright parts and its lesion are."""

from __future__ import annotations

import torch
from scipy import ndimage
from scipy.stats import wasserstein_distance
from torch import Tensor

from ..types import DiffAugError

__all__ = ["apart", "measures"]

BODY = 0.15  # of the value range above its lower end


def _otsu(values: Tensor) -> float:
    """The threshold that parts values (N,) in [0, 1] best (Otsu 1979)."""
    counts = torch.histc(values, 128, 0.0, 1.0).double()
    p = counts / counts.sum().clamp(min=1)
    centers = (torch.arange(128, dtype=torch.float64) + 0.5) / 128
    weight, first = p.cumsum(0), (p * centers).cumsum(0)
    between = (first[-1] * weight - first).square() / (weight * (1 - weight)).clamp(min=1e-9)
    return float(centers[between >= between.max() * (1 - 1e-9)].mean())  # the middle, where none lies between two modes


def measures(images: Tensor, masks: Tensor | None = None, span: tuple[float, float] = (-1.0, 1.0)) -> dict[str, Tensor]:
    """Figures of each image (B, C, *S) whose intensities span ``span``; each (B,).

    ``body``: share of the picture that is brighter than air, holes filled (a head's size). ``dark_inside``: share of
    the body that Otsu's threshold calls dark (lung fields on a chest film, ventricles in a brain). ``symmetry``:
    correlation of left and right halves within the picture. ``lesion``: share of the picture in the mask.
    """
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
    if masks is not None:
        if len(masks) != len(images):
            raise DiffAugError(f"{len(images)} images have {len(masks)} masks: give every image its mask, or none")
        found["lesion"] = (masks > 0).float().flatten(1).mean(1)
    return found


def apart(made: Tensor, real: Tensor) -> float:
    """Wasserstein distance of two sets of figures (n,), (m,) over the real ones' standard deviation: 0 is alike."""
    spread = float(real.double().std().clamp(min=1e-9))
    return float(wasserstein_distance(made.double().numpy(), real.double().numpy())) / spread
