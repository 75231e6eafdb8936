"""Masks: resizing to latents, growing, blending, and finding them in differences of noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Backbone, Denoiser, DiffAugError, NoiseLevel, NoiseSource, Prediction, Row

__all__ = ["blend", "from_noise_difference", "grow", "keep_outside", "shrink", "soften", "to_latent"]


def check(mask: Tensor, image: Tensor) -> Tensor:
    """A mask (B or 1, 1, *S) of 0 and 1 for ``image`` (B, C, *S), as float; anything else is refused."""
    if mask.ndim != image.ndim or mask.shape[2:] != image.shape[2:] or mask.shape[1] != 1:
        raise DiffAugError(
            f"mask {tuple(mask.shape)} does not fit image {tuple(image.shape)}: give (B, 1, *spatial) of the same size"
        )
    mask = mask.to(image)
    if bool((mask < 0).any()) or bool((mask > 1).any()):
        raise DiffAugError("mask has values outside 0 and 1: binarize it, 1 where the image may change")
    return mask.expand(image.shape[0], *mask.shape[1:])


def to_latent(mask: Tensor, latent: Tensor, *, cover: bool = False) -> Tensor:
    """Mask (B, 1, *S) at the latent's size: latent voxels covered by half, or with ``cover`` touched at all."""
    size = latent.shape[2:]
    pool = F.adaptive_max_pool2d if len(size) == 2 else F.adaptive_max_pool3d
    mean = F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d
    small = pool(mask, size) if cover else (mean(mask, size) >= 0.5).to(mask)
    return small.to(latent)


def grow(mask: Tensor, voxels: int) -> Tensor:
    """Grow by ``voxels`` in every direction (box element)."""
    pool = F.max_pool2d if mask.ndim == 4 else F.max_pool3d
    return pool(mask, 2 * voxels + 1, stride=1, padding=voxels) if voxels > 0 else mask


def shrink(mask: Tensor, voxels: int) -> Tensor:
    """Shrink by ``voxels``."""
    return 1 - grow(1 - mask, voxels)


def soften(mask: Tensor, voxels: int) -> Tensor:
    """Blur the edge over about ``voxels`` without moving where it is 0.5."""
    pool = F.avg_pool2d if mask.ndim == 4 else F.avg_pool3d
    return pool(mask, 2 * voxels + 1, stride=1, padding=voxels, count_include_pad=False) if voxels > 0 else mask


def blend(inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """``mask`` inside + (1 - ``mask``) outside."""
    return mask * inside + (1 - mask) * outside


def keep_outside(
    source: Tensor, mask: Tensor | Callable[[Row], Tensor], noise: NoiseSource | Tensor
) -> Callable[[Tensor, Row, Prediction | None], Tensor]:
    """A sampler callback that puts the noised source back outside ``mask`` after every row.

    Args:
        source: clean latent (B, C, *S).
        mask: (B, 1, *S) at latent size, 1 where the sampler may change things; or a function that says it for a row.
        noise: the images' random streams, for new noise at every row (RePaint, Blended Latent Diffusion); or one draw
            shaped like ``source``, kept for all rows (SDEdit with a mask).
    """

    def callback(x: Tensor, row: Row, _: Prediction | None) -> Tensor:
        z = noise if isinstance(noise, Tensor) else noise.normal(source)
        inside = mask if isinstance(mask, Tensor) else mask(row)
        return blend(x, row.alpha * source + row.sigma * z, inside)

    return callback


def from_noise_difference(
    backbone: Backbone,
    latent: Tensor,
    towards: Denoiser,
    away: Denoiser,
    level: NoiseLevel,
    noise: NoiseSource,
    *,
    draws: int = 10,
    threshold: float = 0.5,
    clamp: float = 3.0,
) -> Tensor:
    """Where two conditions disagree about the noise (DiffEdit, arXiv:2210.11427, section 3.2): (B, 1, *S), 0 or 1.

    ``mean |eps_towards - eps_away|`` over draws and channels, clipped at ``clamp`` times its mean, scaled to [0, 1].
    """
    total = torch.zeros_like(latent[:, :1])
    with torch.no_grad():
        for _ in range(draws):
            x = level.alpha * latent + level.sigma * noise.normal(latent)
            total += (towards(x, level).eps - away(x, level).eps).abs().mean(1, keepdim=True)
    dims = tuple(range(1, latent.ndim))
    top = clamp * total.mean(dims, keepdim=True)
    return ((total.clamp(max=top) / top.clamp(min=1e-12)) >= threshold).to(latent)
