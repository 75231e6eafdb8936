"""Volumes as slices of three planes, for networks and scores that know pictures only: 2.5D."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backbones.extractors import Extractor

__all__ = ["by_plane", "cuts_of", "features_of"]

PLANES = 3
CUTS = 5  # slices of each plane of a volume, over its middle three fifths

Pair = Callable[[Tensor, Tensor], float]


def cuts_of(volumes: Tensor) -> Tensor:
    """(N, 3 planes, CUTS, C, side, side): slices of volumes (N, C, S, S, S) along each axis."""
    side = volumes.shape[2]
    where = torch.linspace(0.2 * (side - 1), 0.8 * (side - 1), CUTS).round().long().tolist()
    planes = [torch.stack([volumes.select(axis, k) for k in where], dim=1) for axis in (2, 3, 4)]
    return torch.stack(planes, dim=1)


def features_of(found: Extractor, images: Tensor) -> Tensor:
    """(N, D); of volumes with a 2D network (N, planes x cuts x D), see :func:`by_plane`."""
    if images.ndim == 4 or found.dims == 3:
        return found(images)
    cuts = cuts_of(images)
    return found(cuts.flatten(0, 2)).reshape(len(images), -1)


def by_plane(score: Pair, a: Tensor, b: Tensor) -> float:
    """A score of slices, averaged over the three planes: the 2.5D form of NVIDIA's MAISI and others."""
    sets = [x.reshape(len(x), PLANES, CUTS, -1).transpose(0, 1).flatten(1, 2) for x in (a, b)]
    return sum(score(x, y) for x, y in zip(*sets, strict=True)) / PLANES
