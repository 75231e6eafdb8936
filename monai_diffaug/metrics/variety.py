"""How much the images of a set differ, and how sure a classifier is of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import DiffAugError
from .similarity import foreground, ssim_of

__all__ = ["between_pairs", "inception_score", "perceptual", "vendi"]


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


def between_pairs(
    images: Tensor,
    score: str = "ms_ssim",
    pairs: int = 200,
    seed: int = 0,
    span: tuple[float, float] = (-1.0, 1.0),
    everywhere: bool = False,
) -> float:
    """Mean SSIM or MS-SSIM of random pairs of different images of a set (N, C, *S): lower is more varied.

    It is taken where one of the two shows more than air, unless ``everywhere``: on a background of zeros two heads that
    have nothing in common but their background score 0.8.
    """
    n = len(images)
    if n < 2:
        raise DiffAugError("one image has no pair: give at least two")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(n, (pairs,), generator=generator)
    second = (first + 1 + torch.randint(n - 1, (pairs,), generator=generator)) % n
    found = []
    for i, j in zip(first.split(32), second.split(32)):
        a, b = images[i], images[j]
        inside = None if everywhere else foreground(a, b, span)
        found.append(ssim_of(a, b, span, score == "ms_ssim", inside))
    return float(torch.cat(found).mean())


def perceptual(a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """Distance of each pair of images by their feature maps (B, C, *S), a list of layers each; (B,).

    LPIPS (Zhang et al. 2018, arXiv:1801.03924, eq. 1): maps of unit length at every place, squared difference, mean
    over places, sum over layers. ``weights`` are its learned ones, (C,) a layer; 1 unless given. Low between an edit
    and its source is faithful, high between the images of a set is varied.
    """
    total = torch.zeros(a[0].shape[0], dtype=torch.float64)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        x, y = (torch.nn.functional.normalize(z.double(), dim=1) for z in (x, y))
        apart = (x - y).square()
        if weights is not None:
            apart = apart * weights[i].double().reshape(1, -1, *[1] * (x.ndim - 2))
        total += apart.sum(1).flatten(1).mean(1)
    return total
