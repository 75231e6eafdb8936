"""Radiomic features of images, and the distance of two sets by them.

After Konz et al. 2024 (Fréchet Radiomics Distance, arXiv:2412.01496): features with names, standardized on the real
images, compared by the logarithm of the Fréchet distance. Ours are fewer than theirs (first-order statistics and
co-occurrence textures of the image, of its wavelet bands and of two Laplacians of Gaussian), so figures do not compare
with published ones.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .distribution import fid

__all__ = ["features", "frd", "names"]

LEVELS = 16  # gray levels of the co-occurrence matrix
FIRST = ("mean", "std", "skewness", "kurtosis", "entropy", "p10", "median", "p90", "uniformity", "mad")
TEXTURE = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "texture_entropy")


def _bands(x: Tensor) -> dict[str, Tensor]:
    """The image (B, 1, *S), its Haar bands (one level; mixed ones averaged in 3D) and two Laplacians of Gaussian."""
    dims = x.ndim - 2
    found = {"original": x}
    even = x[(..., *(slice(0, s - s % 2) for s in x.shape[2:]))]
    low = F.avg_pool2d(even, 2) if dims == 2 else F.avg_pool3d(even, 2)
    found["low"] = low
    for d in range(dims):
        pairs = even.unfold(d + 2, 2, 2)
        found[f"detail_{d}"] = (pairs[..., 0] - pairs[..., 1]) / 2
    smooth = x
    for sigma in (1, 3):
        smoother = _smoothed(smooth, sigma)
        found[f"log_{sigma}"] = smooth - smoother  # difference of Gaussians, close to their Laplacian
        smooth = smoother
    return found


def _smoothed(x: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=x.dtype) / sigma) ** 2)
    taps = taps / taps.sum()
    dims = x.ndim - 2
    conv = F.conv2d if dims == 2 else F.conv3d
    for d in range(dims):
        shape = [1, 1] + [1] * dims
        shape[d + 2] = -1
        pad = [0, 0] * dims
        pad[2 * (dims - 1 - d)] = pad[2 * (dims - 1 - d) + 1] = reach
        x = conv(F.pad(x, pad, mode="replicate"), taps.reshape(shape))
    return x


def _first_order(x: Tensor) -> list[Tensor]:
    flat = x.flatten(1).double()
    mean, std = flat.mean(1), flat.std(1).clamp(min=1e-9)
    z = (flat - mean[:, None]) / std[:, None]
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    bins = ((flat - low) / (high - low).clamp(min=1e-9) * 31.999).long()
    p = F.one_hot(bins, 32).double().mean(1) if bins.shape[1] <= 1 << 14 else _histograms(bins)
    quantiles = torch.quantile(flat, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), dim=1)
    return [
        mean,
        std,
        z.pow(3).mean(1),
        z.pow(4).mean(1),
        -(p * p.clamp(min=1e-12).log2()).sum(1),
        *quantiles,
        p.square().sum(1),
        (flat - mean[:, None]).abs().mean(1),
    ]


def _histograms(bins: Tensor) -> Tensor:
    return torch.stack([torch.bincount(row, minlength=32).double() / len(row) for row in bins])


def _texture(x: Tensor) -> list[Tensor]:
    """Haralick's measures of the co-occurrence of neighbors along all axes (1973), symmetric, distance 1."""
    low, high = (f(x.flatten(1), 1, keepdim=True) for f in (torch.amin, torch.amax))
    shape = (-1, *[1] * (x.ndim - 1))
    level = ((x - low.reshape(shape)) / (high - low).clamp(min=1e-9).reshape(shape) * (LEVELS - 1e-3)).long()
    counts = torch.zeros(len(x), LEVELS * LEVELS, dtype=torch.float64)
    for d in range(2, x.ndim):
        n = x.shape[d] - 1
        a, b = level.narrow(d, 0, n).flatten(1), level.narrow(d, 1, n).flatten(1)
        for pair in (a * LEVELS + b, b * LEVELS + a):
            counts.scatter_add_(1, pair, torch.ones_like(pair, dtype=torch.float64))
    p = (counts / counts.sum(1, keepdim=True)).reshape(-1, LEVELS, LEVELS)
    i = torch.arange(LEVELS, dtype=torch.float64)
    gap = (i[:, None] - i[None]).abs()
    mean = (p.sum(2) * i).sum(1)
    variance = (p.sum(2) * (i - mean[:, None]).square()).sum(1).clamp(min=1e-9)
    off = (i[None] - mean[:, None])[:, :, None] * (i[None] - mean[:, None])[:, None]
    return [
        (p * gap.square()).sum((1, 2)),
        (p * gap).sum((1, 2)),
        (p / (1 + gap.square())).sum((1, 2)),
        p.square().sum((1, 2)).sqrt(),
        (p * off).sum((1, 2)) / variance,
        -(p * p.clamp(min=1e-12).log2()).sum((1, 2)),
    ]


def names(dims: int) -> list[str]:
    """What the columns of :func:`features` are."""
    bands = ["original", "low", *(f"detail_{d}" for d in range(dims)), "log_1", "log_3"]
    return [f"{band}_{name}" for band in bands for name in (*FIRST, *TEXTURE)]


def features(images: Tensor) -> Tensor:
    """Radiomic features (B, F) of images (B, C, *S), their channels averaged; named by :func:`names`."""
    gray = images.float().mean(1, keepdim=True)
    columns = [c for band in _bands(gray).values() for c in (*_first_order(band), *_texture(band))]
    return torch.stack(columns, dim=1)


def frd(made: Tensor, real: Tensor) -> float:
    """Logarithm of the Fréchet distance of radiomic features (n, F), standardized on the real ones."""
    mean, std = real.double().mean(0), real.double().std(0)
    kept = std > 1e-9
    scaled = [((x.double() - mean) / std.clamp(min=1e-9))[:, kept] for x in (made, real)]
    return math.log(max(fid(*scaled), 1e-12))
