"""Whether a network has begun to repeat its training images.

A sample of a network that has learned the kind of image lies as near to patients that it was trained on as to patients
that it never saw. The ratio of the two distances says how far that has ceased to be so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Nearness", "Neighbors", "thumbnails"]


def thumbnails(images: Tensor) -> Tensor:
    """Images (N, C, *S) as unit vectors (N, D) of 24 voxels a side (12 in 3D): a copy is a copy whatever its gain."""
    side = 24 if images.ndim == 4 else 12
    pool = F.adaptive_avg_pool2d if images.ndim == 4 else F.adaptive_avg_pool3d
    small = pool(images.float(), side).flatten(1)
    small = small - small.mean(1, keepdim=True)
    return small / small.norm(dim=1, keepdim=True).clamp(min=1e-6)


@dataclass(frozen=True)
class Nearness:
    """How many times nearer samples are to training patients than to unseen ones, and the least that is certain.

    ``ratio`` is 1 for a network that repeats nothing and grows as it does; ``low`` the lower end of its one-sided 95 %
    interval, which is 0 where there are too few patients to tell.
    """

    ratio: float
    low: float


class Neighbors:
    """Distances of samples to groups of patients of equal size: one group unseen, the others from training.

    The groups have the same number of patients and of images, since the nearest of many images is near in any case.
    If nothing is repeated, the unseen group is one like the others; how they differ among each other tells how far it
    may lie off by chance.

    Args:
        train: images (N, C, *S) trained on.
        train_patients: whose they are.
        unseen: images (M, C, *S) of other patients.
        unseen_patients: whose they are.
        seed: of the grouping.
    """

    def __init__(
        self,
        train: Tensor,
        train_patients: Sequence[str],
        unseen: Tensor,
        unseen_patients: Sequence[str],
        seed: int = 0,
    ):
        generator = torch.Generator().manual_seed(seed)
        names = sorted(set(train_patients))
        order = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
        each = len(set(unseen_patients))
        groups = [set(order[i : i + each]) for i in range(0, len(order) - each + 1, each)]
        members = [[i for i, p in enumerate(train_patients) if p in group] for group in groups]
        n = min([len(unseen), *(len(m) for m in members)])
        vectors = thumbnails(train)
        self.groups = [vectors[_some(m, n, generator)] for m in members]
        self.unseen = thumbnails(unseen)[_some(range(len(unseen)), n, generator)]

    def nearness(self, samples: Tensor) -> Nearness:
        """Of samples (n, C, *S)."""
        made = thumbnails(samples)
        away = _mean_log_distance(made, self.unseen)
        near = torch.tensor([_mean_log_distance(made, g) for g in self.groups])
        if len(near) < 2:
            return Nearness(math.exp(away - float(near.mean())) if len(near) else 1.0, 0.0)
        from scipy.stats import t

        gap, k = away - float(near.mean()), len(near)
        margin = float(t.ppf(0.95, k - 1)) * float(near.std()) * math.sqrt(1 + 1 / k)
        return Nearness(math.exp(gap), math.exp(gap - margin))


def _some(members: Sequence[int], n: int, generator: torch.Generator) -> list[int]:
    return [members[i] for i in torch.randperm(len(members), generator=generator)[:n].tolist()]


def _mean_log_distance(made: Tensor, group: Tensor) -> float:
    return float(torch.cdist(made, group).min(1).values.clamp(min=1e-4).log().mean())
