"""Can synthetic images take the place of real ones: a classifier trained on either, tested on real patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ..primitives.recognition import train_classifier
from ..primitives.runs import Settings
from ..types import DiffAugError

__all__ = ["Substituted", "balanced", "substituted"]


@dataclass(frozen=True)
class Substituted:
    """AUROC of a classifier trained on real and of one trained on synthetic images, each with a bootstrap interval.

    ``share`` is the second over the first; ``images`` what each was trained on.
    """

    real: float
    real_interval: tuple[float, float]
    synthetic: float
    synthetic_interval: tuple[float, float]
    share: float
    images: tuple[int, int]


def substituted(
    network: Callable[[], nn.Module],
    real: tuple[Tensor, Tensor],
    synthetic: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    settings: Settings,
    folder: str | Path,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Substituted:
    """Train twice under the same settings and test on the same real images.

    Args:
        network: makes a fresh classifier, images (B, C, *S) -> logits (B, 2).
        real: images (N, C, *S) and classes 0 or 1 (N,) of training patients.
        synthetic: likewise, generated.
        test: likewise, of real patients that neither classifier nor generator saw.
        settings: of both trainings; the seed also draws the weights.
        folder: where checkpoints go, so that it can be resumed.
        augment: ``(images, generator) -> images``, for both.

    Raises:
        DiffAugError: one of the three holds one class only.
    """
    for name, (_, classes) in (("real", real), ("synthetic", synthetic), ("test", test)):
        if len(classes.unique()) != 2:
            raise DiffAugError(f"the {name} images are of one class only: a classifier wants two")
    scores = []
    for name, (images, classes) in (("real", real), ("synthetic", synthetic)):
        torch.manual_seed(settings.seed)
        module = network()
        x, y = balanced(images, classes)
        train_classifier(module, x, y, settings, Path(folder) / name, augment=augment)
        module.eval()
        with torch.no_grad():
            logits = torch.cat([module(x).float() for x in test[0].split(64)])
        scores.append((logits[:, 1] - logits[:, 0]).double().numpy())
    truth = test[1].numpy()
    found = [float(roc_auc_score(truth, s)) for s in scores]
    spans = [_interval(truth, s) for s in scores]
    return Substituted(found[0], spans[0], found[1], spans[1], found[1] / found[0], (len(real[0]), len(synthetic[0])))


def balanced(images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The images with those of the rarer class repeated, so that each class has as many."""
    of = [(classes == k).nonzero().flatten() for k in classes.unique()]
    most = max(len(i) for i in of)
    chosen = torch.cat([i[torch.arange(most) % len(i)] for i in of])
    return images[chosen], classes[chosen]


def _interval(truth: np.ndarray, scores: np.ndarray, draws: int = 1000) -> tuple[float, float]:
    generator, found = np.random.default_rng(0), []
    for _ in range(draws):
        i = generator.integers(0, len(truth), len(truth))
        if truth[i].min() != truth[i].max():
            found.append(roc_auc_score(truth[i], scores[i]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
