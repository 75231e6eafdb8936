"""Decoding an ``AutoencoderKL`` within a memory budget, in overlapping tiles that are blended.

The first levels, whose maps are small, run on the whole, then the rest tile by tile. All tiles share the group norms'
statistics, averaged over a first pass, so that neighbors agree; where tiles overlap they are blended.
:mod:`.slabs` is exact, and takes more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.backbones.decoder import Moments, factor_of, is_residual, is_upsampling, kernel_of, parts, scaled
from monai_diffaug.types import DiffAugError

__all__ = ["in_tiles", "tiles_peak"]

Norm = Callable[[nn.GroupNorm, Tensor], Tensor]


def _through(blocks: Sequence[Any], x: Tensor, norm: Norm) -> Tensor:
    for block in blocks:
        if is_residual(block):
            h = block.conv1(F.silu(norm(block.norm1, x), inplace=True))
            h = block.conv2(F.silu(norm(block.norm2, h), inplace=True))
            x = block.nin_shortcut(x) + h
            del h
        else:
            x = norm(block, x) if isinstance(block, nn.GroupNorm) else block(x)
    return x


def _own(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return norm(x)


def _begins(size: int, tile: int, overlap: int) -> list[int]:
    if size <= tile:
        return [0]
    n = -(-(size - overlap) // (tile - overlap))
    return [round(i * (size - tile) / (n - 1)) for i in range(n)]


def _ramp(length: int, overlap: int, first: bool, last: bool) -> Tensor:
    """Weight along one axis: up over the overlap, flat, down again; flat to the very edge of the map."""
    up = (torch.arange(length) + 0.5) / max(overlap, 1)
    ones = torch.ones(length)
    return torch.minimum(ones if first else up, ones if last else up.flip(0)).clamp(max=1.0)


def in_tiles(
    module: nn.Module, latent: Tensor, *, tile: int, overlap: int, whole: int = 0, share: bool = True
) -> Tensor:
    """Decode in overlapping tiles, blended where they overlap.

    Args:
        module: an ``AutoencoderKL``.
        latent: (B, c, *S), not scaled.
        tile: side of a tile, on the grid on which the tiles are cut (see ``whole``).
        overlap: of neighbors, on that grid.
        whole: upsamplings that are made on the whole map first; the tiles are cut just before the next one.
        share: take the group norms' statistics over all tiles, in a pass of its own, rather than each tile's.

    Returns:
        (B, C, *S * factor).

    Raises:
        DiffAugError: tiles that are no larger than what they overlap.
    """
    if tile <= overlap:
        raise DiffAugError(f"tiles of {tile} cannot overlap by {overlap}: give larger tiles")
    blocks = parts(module)
    ups = [i for i, block in enumerate(blocks) if is_upsampling(block)]
    cut = ups[min(whole, len(ups) - 1)] if ups else 0
    with torch.no_grad():
        return torch.cat([_blended(blocks, cut, z[None], tile, overlap, share) for z in latent])


def tiles_peak(module: nn.Module, latent: Tensor, tile: int, whole: int, peak_of: Callable[[Any], int]) -> int:
    """Bytes that :func:`in_tiles` takes, from its two parts; ``latent`` (1, c, *S) and the weights on ``meta``."""
    blocks = parts(module)
    ups = [i for i, block in enumerate(blocks) if is_upsampling(block)]
    cut = ups[min(whole, len(ups) - 1)] if ups else 0
    before = peak_of(lambda: _through(blocks[:cut], latent, _own))
    x = _through(blocks[:cut], latent, _own)
    piece = x[(slice(None), slice(None), *(slice(0, tile) for _ in x.shape[2:]))]
    image = 4 * math.prod(s * factor_of(blocks[cut:]) for s in x.shape[2:])
    return max(before, x.nbytes + 2 * image + peak_of(lambda: _through(blocks[cut:], piece, _own)))


def _blended(blocks: Sequence[Any], cut: int, latent: Tensor, tile: int, overlap: int, share: bool) -> Tensor:
    x = _through(blocks[:cut], latent, _own)
    rest, size = blocks[cut:], x.shape[2:]
    factor = factor_of(rest)
    places = list(itertools.product(*(_begins(s, tile, overlap) for s in size)))
    sides = [min(tile, s) for s in size]

    def piece(place: Sequence[int]) -> Tensor:
        return x[(slice(None), slice(None), *(slice(a, a + n) for a, n in zip(place, sides, strict=True)))]

    norm: Norm = _own
    if share and len(places) > 1:
        norm = _shared(rest, [piece(p) for p in itertools.product(*(_begins(s, tile, 0) for s in size))])
    channels = int(kernel_of(rest[-1]).out_channels)
    total = torch.zeros(1, channels, *(s * factor for s in size), device=x.device)
    weights = torch.zeros(total.shape[2:], device=x.device)
    for place in places:
        weight = torch.ones((), device=x.device)
        for a, n, s in zip(place, sides, size, strict=True):
            weight = weight[..., None] * _ramp(n * factor, overlap * factor, a == 0, a + n == s).to(x.device)
        where = tuple(slice(a * factor, (a + n) * factor) for a, n in zip(place, sides, strict=True))
        total[(slice(None), slice(None), *where)] += _through(rest, piece(place), norm).mul_(weight)
        weights[where] += weight
    return total.div_(weights)


def _shared(blocks: Sequence[Any], pieces: Sequence[Tensor]) -> Norm:
    """Group norms with the moments of all pieces together, each piece normalized by its own on the way there."""
    found: dict[int, Moments] = {}

    def record(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        found.setdefault(id(norm), Moments()).add(x)
        return norm(x)

    for part in pieces:
        _through(blocks[:-1], part, record)
    scales: dict[int, tuple[Tensor, Tensor]] = {}

    def apply(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        if id(norm) not in scales:
            scales[id(norm)] = found[id(norm)].onto(norm)
        return scaled(x, *scales[id(norm)])

    return apply
