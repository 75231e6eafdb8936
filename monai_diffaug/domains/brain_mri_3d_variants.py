"""Volumes of heads with their lesions, and more of them: moved, mirrored, and with lesions that change places.

Lesions change places after CarveMix (Zhang et al. 2021, arXiv:2107.06774), which carves a lesion and its surroundings
out of one image into another. It departs: the head's own lesion is first covered with tissue of the other half, borders
are soft, and the lesion's brightness follows the head's. With 56 patients age alone tells who it is: without this the
lesion volume that is asked for is never needed, and not followed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import part_of

__all__ = ["Volumes", "exchanged", "joined", "lesion_volume", "training", "varied"]

LARGEST = 0.04  # of the box around the head: a lesion that fills this much, or more, is 1
NONE = 0.15  # of the heads are left without a lesion


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


def joined(sets: Sequence[Volumes]) -> Volumes:
    """Several sets as one."""
    return Volumes(
        torch.cat([s.images for s in sets]),
        torch.cat([s.masks for s in sets]),
        torch.cat([s.vectors for s in sets]),
        tuple(p for s in sets for p in s.patients),
    )


def training(volumes: Volumes, copies: int = 3, exchanges: int = 3) -> Volumes:
    """What the network is trained on: :func:`varied` volumes, and ``exchanges`` times as many with others' lesions."""
    base = varied(volumes, copies)
    return joined([base, *(exchanged(base, seed) for seed in range(exchanges))])


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


def exchanged(volumes: Volumes, seed: int = 0) -> Volumes:
    """Every head with another's lesion, or none; its volume is measured anew, age and sex stay.

    Where a lesion crosses the midline there is no healthy tissue to cover it with; that part stays, and stays in the
    mask.

    Args:
        volumes: those without a mask are left out, since nobody knows what would have to be covered.
        seed: of who gives to whom.
    """
    volumes = volumes.at([i for i, m in enumerate(volumes.masks) if m.any()])
    if not len(volumes):
        return volumes
    n, generator = len(volumes), torch.Generator().manual_seed(seed)
    giver = torch.randint(n, (n,), generator=generator)
    silent = torch.rand(n, generator=generator) < NONE
    images, masks = [], []
    for i in range(n):
        x, m = _covered(volumes.images[i : i + 1], volumes.masks[i : i + 1])
        if not silent[i]:
            j = int(giver[i])
            x, m = _carved(x, m, volumes.images[j : j + 1], volumes.masks[j : j + 1])
        images.append(x)
        masks.append(m)
    vectors = volumes.vectors.clone()
    vectors[:, 2] = lesion_volume(torch.cat(masks))
    return Volumes(torch.cat(images), torch.cat(masks), vectors, volumes.patients)


def _soft(mask: Tensor) -> Tensor:
    """The mask, one voxel larger and with a border two voxels wide."""
    return F.avg_pool3d(F.max_pool3d(mask, 3, 1, 1), 3, 1, 1)


def _inside(x: Tensor) -> Tensor:
    """Where nearly all that is near belongs to the head: not its skin, nor the air."""
    return (F.avg_pool3d((x > -0.85).float(), (9, 9, 5), 1, (4, 4, 2)) > 0.85).float()


def _level(x: Tensor, mask: Tensor) -> Tensor:
    """Brightness of the tissue inside, over black."""
    return (x[(_inside(x) > 0) & (mask == 0)] + 1).median().clamp(min=0.05)


def _covered(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Own lesion under tissue of the other half, as far as that has none."""
    share = _soft(mask) * (1 - _soft(mask.flip(2)))
    return torch.lerp(x, x.flip(2), share), mask * (share < 0.5)


def _carved(x: Tensor, mask: Tensor, of: Tensor, lesion: Tensor) -> tuple[Tensor, Tensor]:
    """Another's lesion, as bright over this head's tissue as it was over its own."""
    room = _inside(x)
    put = lesion * room
    like = (of + 1) * (_level(x, mask) / _level(of, lesion)) - 1
    return torch.lerp(x, like, _soft(put)).clamp(-1, 1), torch.maximum(mask, put)
