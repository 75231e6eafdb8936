"""How much the images of a set differ, and how sure a classifier is of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric
from torch import Tensor

from ..types import DiffAugError

__all__ = ["between_pairs", "inception_score", "perceptual", "ssim_of", "vendi"]

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, table 1


def inception_score(probabilities: Tensor) -> float:
    """``exp E KL(p(y|x) || p(y))`` of class probabilities (n, k), in [1, k] (Salimans et al. 2016, arXiv:1606.03498).

    It knows nothing of real images and sees no loss of variety within a class; and it says as much as the classifier
    knows of what is shown.
    """
    p = probabilities.double().clamp(min=1e-12)
    return float((p * (p.log() - p.mean(0, keepdim=True).log())).sum(1).mean().exp())


def vendi(features: Tensor) -> float:
    """Effective number of different images among features (n, d) (Friedman and Dieng 2023, arXiv:2210.02410, eq. 1).

    The exponential of the entropy of the eigenvalues of the cosine similarities over n: 1 if all are alike, n if all
    are orthogonal.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    values = torch.linalg.svdvals(unit).square() / len(unit)
    values = values[values > 1e-12]
    return float((-(values * values.log()).sum()).exp())


def _scaled(images: Tensor, span: tuple[float, float]) -> Tensor:
    """To [0, 1], where SSIM's constants are meant: it is not the same in [-1, 1]."""
    return ((images.float() - span[0]) / (span[1] - span[0])).clamp(0, 1)


def ssim_of(a: Tensor, b: Tensor, span: tuple[float, float] = (-1.0, 1.0), multiscale: bool = False) -> Tensor:
    """SSIM or MS-SSIM of each pair of images (B, C, *S) whose intensities span ``span``; (B,).

    MS-SSIM uses as many of its five scales as the shorter side holds with a window of 7 below 161 voxels.

    Raises:
        DiffAugError: the images differ in shape, or are too small for a window.
    """
    if a.shape != b.shape:
        raise DiffAugError(f"images of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared: fit them first")
    side = min(a.shape[2:])
    dims = a.ndim - 2
    if side < 11:
        raise DiffAugError(f"images of {side} voxels a side are too small for SSIM's window of 11: compare larger ones")
    x, y = _scaled(a, span), _scaled(b, span)
    if not multiscale:
        return torch.as_tensor(SSIMMetric(dims, data_range=1.0)(x, y)).flatten()
    window, scales = (11, 5) if side > 160 else (7, max(1, int(torch.tensor(side / 7).log2().floor()) + 1))
    weights = torch.tensor(SCALES[: min(scales, 5)])
    metric = MultiScaleSSIMMetric(
        dims, data_range=1.0, kernel_size=window, weights=tuple((weights / weights.sum()).tolist())
    )
    return torch.as_tensor(metric(x, y)).flatten()


def between_pairs(
    images: Tensor, score: str = "ms_ssim", pairs: int = 200, seed: int = 0, span: tuple[float, float] = (-1.0, 1.0)
) -> float:
    """Mean SSIM or MS-SSIM of random pairs of different images of a set (N, C, *S): lower is more varied."""
    n = len(images)
    if n < 2:
        raise DiffAugError("one image has no pair: give at least two")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(n, (pairs,), generator=generator)
    second = (first + 1 + torch.randint(n - 1, (pairs,), generator=generator)) % n
    found = [ssim_of(images[i], images[j], span, score == "ms_ssim") for i, j in zip(first.split(32), second.split(32))]
    return float(torch.cat(found).mean())


def perceptual(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Distance of each pair of images by their feature maps (B, C, *S), a list of layers each; (B,).

    As LPIPS without its learned weights (Zhang et al. 2018, arXiv:1801.03924, eq. 1 with w = 1): maps of unit length at
    every place, squared difference, mean over places, sum over layers.
    """
    total = torch.zeros(a[0].shape[0], dtype=torch.float64)
    for x, y in zip(a, b, strict=True):
        x, y = (torch.nn.functional.normalize(z.double(), dim=1) for z in (x, y))
        total += (x - y).square().sum(1).flatten(1).mean(1)
    return total
