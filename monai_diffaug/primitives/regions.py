"""Regions to paint into: lesions as they are, and lesion shapes moved to where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Condition
from . import masks
from .runs import Draws

__all__ = ["Regions", "cut_out", "moved"]


def cut_out(image: Tensor, hole: Tensor, background: float = -1.0) -> Tensor:
    """``image`` (B, C, *S) with background in the hole (B, 1, *S)."""
    return torch.where(hole > 0, background, image)


def moved(shape: Tensor, allowed: Tensor, where: float) -> Tensor:
    """A lesion's shape moved into tissue.

    Args:
        shape: (1, H, W) of 0 and 1, not empty.
        allowed: (1, H, W) of 0 and 1: where the region may lie.
        where: number in [0, 1) that picks the voxel of ``allowed`` onto which the shape's middle comes.

    Returns:
        the part of the moved shape that lies in ``allowed``; of zeros where nothing is allowed.
    """
    places = allowed[0].nonzero()
    if not len(places):
        return torch.zeros_like(shape)
    target = places[int(where * len(places))]
    middle = shape[0].nonzero().float().mean(0).round().long()
    voxels = shape[0].nonzero() + (target - middle)
    size = torch.tensor(shape.shape[1:])
    voxels = voxels[((voxels >= 0) & (voxels < size)).all(1)]
    out = torch.zeros_like(shape)
    out[0, voxels[:, 0], voxels[:, 1]] = 1
    return out * allowed


class Regions:
    """What an inpainting network is told of training slices (Rouzrokh et al. 2022, arXiv:2210.12113, section 2).

    A slice with a lesion has the lesion cut out, at times with a lesion-free region as well, and its restoration asked
    for with the lesion's map; elsewhere shapes of other lesions are cut out of lesion-free tissue. So the network sees
    lesions only where they are asked for.

    Args:
        conditioner: a ``RegionConditioner`` of the two classes (lesion-free, lesion).
        encode: image -> latent.
        shapes: (N, 1, H, W), lesions of training patients.
        margins: (least, most) voxels by which the hole is larger than the region, drawn anew for each image.
        boxed: how often the hole is the region's bounding box instead, so that the network draws the outline.
        untold: how often the classes are left out, for classifier-free guidance.
        alone: how often nothing at all is told.
        tissue: intensity above which a slice is tissue.
    """

    def __init__(
        self,
        conditioner: Callable[..., Condition],
        encode: Callable[[Tensor], Tensor],
        shapes: Tensor,
        *,
        margins: tuple[int, int] = (1, 4),
        boxed: float = 0.15,
        untold: float = 0.15,
        alone: float = 0.1,
        tissue: float = -0.6,
        keys: Sequence[str] = ("image", "mask"),
    ):
        self.conditioner, self.encode, self.shapes = conditioner, encode, shapes
        self.margins, self.boxed, self.untold, self.alone, self.tissue = margins, boxed, untold, alone, tissue
        self.keys = tuple(keys)

    def __call__(self, batch: Mapping[str, Any], draws: Draws) -> Condition:
        """The condition of a batch of images (B, 1, H, W) and lesion masks (B, 1, H, W)."""
        image, mask = (torch.as_tensor(batch[k]).as_subclass(Tensor).float().cpu() for k in self.keys)
        maps = self.drawn(image, mask, draws)
        n = len(image)
        with torch.no_grad():
            known = self.encode(cut_out(image, maps[:, -1:]))
        told = self.conditioner(n, regions=maps, known=known)
        untold = torch.cat([torch.zeros_like(maps[:, :-1]), maps[:, -1:]], 1)
        told = told.dropped(self.conditioner(n, regions=untold, known=known), _all(draws.uniform(n) >= self.untold))
        return told.dropped(self.conditioner(n), _all(draws.uniform(n) >= self.alone))

    def drawn(self, image: Tensor, mask: Tensor, draws: Draws) -> Tensor:
        """Region maps (B, 3, H, W): lesion-free, lesion, hole."""
        n = len(image)
        dice = [draws.uniform(n) for _ in range(6)]
        smooth = F.avg_pool2d(image, 5, 1, 2)
        allowed = ((smooth > self.tissue) & (masks.grow(mask, 3) == 0)).float()
        found = []
        for i in range(n):
            kind, which, where, margin, boxed, mirrored = (float(d[i]) for d in dice)
            shape = self.shapes[int(which * len(self.shapes))]
            shape = shape.flip(-1) if mirrored < 0.5 else shape
            lesion = mask[i] if kind < 0.8 else torch.zeros_like(mask[i])
            free = (
                moved(shape, allowed[i], where) if kind >= 0.6 or not bool(lesion.any()) else torch.zeros_like(lesion)
            )
            low, high = self.margins
            hole = ((lesion + free) > 0).float()
            hole = masks.grow(hole[None], low + int(margin * (high - low + 1)))[0]
            if boxed < self.boxed and bool(hole.any()):
                hole = _box(hole)
            # a lesion that was not asked for stays as it is, outside the hole
            hole = torch.where((mask[i] > 0) & (lesion == 0), 0.0, hole)
            found.append(torch.cat([free, lesion, hole]))
        return torch.stack(found)


def _all(keep: Tensor) -> dict[str, Tensor]:
    return {"labels": keep, "concat": keep}


def _box(hole: Tensor) -> Tensor:
    rows, columns = hole[0].any(1).nonzero(), hole[0].any(0).nonzero()
    out = torch.zeros_like(hole)
    out[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = 1
    return out
