"""Extraction by over-sampling: what comes out again and again may be what went in.

Carlini et al. 2023 (arXiv:2301.13188, section 4.2 and 5.1): draw many samples, look for those that lie close together,
and compare these with the training images by a distance that is divided by what is usual around the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metrics.proportion import wilson
from ..types import Backbone
from .alignment import pooled, standardized
from .asking import drawn
from .findings import FAIL, PASS, Figure, Section, not_judged
from .recognition import Patients

__all__ = ["Extractable", "clusters", "extraction", "relative_distance"]

SIDE = {4: 32, 5: 16}  # voxels a side that distances are taken on, by number of axes
AROUND = 50  # neighbors that tell what is usual
SHARE = 0.5  # of what is usual (alpha of the paper)
CLOSE = 1e-3  # share of pairs of real patients that are closer than near-duplicates must be

Advance = Callable[[int], None]


def _points(images: Tensor) -> Tensor:
    return standardized(pooled(images, SIDE[images.ndim])).flatten(1)


def relative_distance(images: Tensor, train: Tensor, around: int = AROUND) -> tuple[Tensor, Tensor]:
    """Distance to the nearest training image, mirrored or not, over half the mean distance to the ``around`` nearest.

    Args:
        images: (B, C, *S).
        train: (N, C, *S).
        around: neighbors; all training images if there are fewer.

    Returns:
        the ratio (B,), small for a copy and near 2 for an image that is like all others, and which is nearest (B,).
    """
    known = _points(train)
    both = torch.stack([torch.cdist(_points(v), known) for v in (images, images.flip(-1))]).amin(0)
    near = both.topk(min(around, len(known)), largest=False)
    return near.values[:, 0] / (SHARE * near.values.mean(1)).clamp(min=1e-6), near.indices[:, 0]


def clusters(images: Tensor, limit: float) -> np.ndarray:
    """Number of the cluster of each image (N,), -1 for those with no other within ``limit``: connected components."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    points = _points(images)
    i, j = (torch.cdist(points, points) < limit).nonzero().T.numpy()
    count, label = connected_components(coo_matrix((np.ones(len(i)), (i, j)), shape=(len(points),) * 2), directed=False)
    alone = np.bincount(label, minlength=count)[label] < 2
    return np.where(alone, -1, label)


class Extractable:
    """What is usual among real images: how close two patients come, and how near an unseen one is to training."""

    def __init__(self, train: Tensor, unseen: Patients, rate: float = 0.02):
        self.train, self.rate = train, rate
        usual, _ = relative_distance(unseen.images, train)
        self.line = float(torch.quantile(usual, rate))
        points = _points(unseen.images)
        names = np.unique(np.array(unseen.patients), return_inverse=True)[1]
        apart = torch.from_numpy(names[:, None] != names[None])
        distances = torch.cdist(points, points)[apart]
        self.limit = float(np.quantile(distances.numpy(), CLOSE)) if len(distances) else 0.0

    def __call__(self, images: Tensor) -> dict[str, Any]:
        """Clusters among images (N, C, *S), and which of them repeat a training image."""
        label = clusters(images, self.limit)
        ratio, nearest = relative_distance(images, self.train)
        copied = (ratio < self.line).numpy()
        often = (label >= 0) & copied
        return {
            "clusters": len(set(label[label >= 0].tolist())),
            "clustered": int((label >= 0).sum()),
            "copied": int(copied.sum()),
            "extracted": len(set(nearest.numpy()[often].tolist())),
            "repeated": len(set(nearest.numpy()[copied].tolist())),
            "ratio": ratio,
            "nearest": nearest,
        }


def extraction(
    model: Backbone,
    train: Patients,
    unseen: Patients,
    kinds: Sequence[str] | None = None,
    *,
    times: float = 10,
    most: int = 500,
    steps: int = 20,
    rate: float = 0.02,
    seed: int = 0,
    advance: Advance | None = None,
) -> tuple[Section, Tensor]:
    """Draw ``times`` as many samples as there are training images, ``most`` at most, and look for these.

    Args:
        model: what samples are drawn of.
        train: images that it was trained on, at its size.
        unseen: real images of other patients.
        kinds: class of each training image; samples are told these in turn.
        times: samples over training images.
        most: samples in all.
        steps: of a chain.
        rate: share of unseen images that may pass for copies.
        seed: of the first sample.
        advance: called with the number of samples made.

    Returns:
        the section, and the samples (N, C, *S).
    """
    if len(unseen.ids) < 1 / rate:
        why = f"{len(unseen.ids)} unseen images cannot tell what {rate:.0%} of them is, give {int(1 / rate)} or more"
        return not_judged(why), unseen.images[:0]
    n = max(1, min(most, round(times * len(train.ids))))
    turn = torch.randperm(len(train.ids), generator=torch.Generator().manual_seed(seed)).tolist()
    asked = [(kinds[turn[i % len(turn)]] if kinds else "") for i in range(n)]
    made = drawn(model, asked, seed=seed, steps=steps, advance=advance)
    judge = Extractable(train.images, unseen, rate)
    found = judge(made)
    share, interval = found["copied"] / n, wilson(found["copied"], n)
    figures = {
        "samples": Figure(n),
        "samples_over_training": Figure(n / len(train.ids)),
        "clusters": Figure(found["clusters"]),
        "clustered_samples": Figure(found["clustered"] / n, wilson(found["clustered"], n)),
        "copied_samples": Figure(share, interval, rate, rate),
        "extracted_images": Figure(
            found["extracted"] / len(train.ids), wilson(found["extracted"], len(train.ids)), None, 0.0
        ),
    }
    drew = f"{n} samples were drawn, {n / len(train.ids):.1f} times the number of training images"
    fails = interval[0] > rate
    if fails:
        says = (
            f"{drew}: {found['copied']} of them repeat one of {found['repeated']} training images, "
            f"{found['extracted']} of which came out more than once."
        )
    else:
        says = f"{drew}: no more of them lie near a training image than real images of other patients do."
    return Section(FAIL if fails else PASS, says, figures, {"samples_asked": round(times * len(train.ids))}), made
