"""Volumes of heads with their lesions, and more of them: mirrored, turned, scaled and moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import part_of

__all__ = ["Volumes", "lesion_volume", "varied"]

LARGEST = 0.04  # of the box around the head: a lesion that fills this much, or more, is 1


@dataclass(frozen=True)
class Volumes:
    """``images`` (N, 1, 64, 64, 32) in [-1, 1], ``masks`` (N, 1, 64, 64, 32) of 0 and 1, ``vectors`` (N, 3), what is
    known of each in the order of ``NAMES`` (NaN: not known); ``patients``, one a volume.
    """

    images: Tensor
    masks: Tensor
    vectors: Tensor
    patients: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def at(self, which: Sequence[int]) -> Volumes:
        """Those at the given positions, in that order."""
        index = list(which)
        people = tuple(self.patients[i] for i in index)
        return Volumes(self.images[index], self.masks[index], self.vectors[index], people)

    def part(self, name: str) -> Volumes:
        """``train``, ``validation`` or ``test``."""
        return self.at([i for i, p in enumerate(self.patients) if part_of(p) == name])


def lesion_volume(masks: Tensor) -> Tensor:
    """Lesion volume (N,) in [0, 1] of masks (N, 1, *S) in the box around the head.

    The square root of the box's fraction that is lesion, so that small and large ones spread evenly; 4 % is 1.
    """
    return (masks.float().flatten(1).mean(1) / LARGEST).sqrt().clamp(max=1.0)


def varied(volumes: Volumes, copies: int, seed: int = 0) -> Volumes:
    """Every volume and its mirror image, then ``copies`` - 1 more of each: turned by up to 6 degrees in the slice,
    scaled by up to 5 % and moved by up to 2 voxels; the lesion is measured anew where it is known.
    """
    generator = torch.Generator().manual_seed(seed)
    images, masks, vectors = [], [], []
    for copy in range(copies):
        for side in range(2):
            x, m, v = volumes.images, volumes.masks, volumes.vectors.clone()
            if side:
                x, m = x.flip(2), m.flip(2)
            if copy:
                x, m = _moved(x, m, generator)
                known = volumes.masks.flatten(1).any(1)
                v[known, 2] = lesion_volume(m)[known]
            images.append(x)
            masks.append(m)
            vectors.append(v)
    return Volumes(torch.cat(images), torch.cat(masks), torch.cat(vectors), volumes.patients * (2 * copies))


def _moved(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    n = len(images)

    def between(reach: float, *shape: int) -> Tensor:
        return reach * (2 * torch.rand(n, *shape, generator=generator) - 1)

    angle, scale = between(math.radians(6)), 1 + between(0.05, 3)
    matrix = torch.zeros(n, 3, 4)  # affine_grid counts axes from the last: slices, rows (y), columns (x)
    matrix[:, 0, 0] = scale[:, 0]
    matrix[:, 1, 1], matrix[:, 1, 2] = scale[:, 1] * angle.cos(), -angle.sin()
    matrix[:, 2, 1], matrix[:, 2, 2] = angle.sin(), scale[:, 2] * angle.cos()
    matrix[:, :, 3] = between(2 / (images.shape[2] / 2), 3)
    out = []
    for x, m, a in zip(images, masks, matrix, strict=True):
        grid = F.affine_grid(a[None], [1, 1, *x.shape[1:]], align_corners=False)
        both = F.grid_sample(torch.cat([x + 1, m])[None], grid, align_corners=False)[0]
        out.append((both[:1] - 1, (both[1:] >= 0.5).float()))
    return torch.stack([x for x, _ in out]), torch.stack([m for _, m in out])
