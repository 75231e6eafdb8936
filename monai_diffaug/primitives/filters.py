"""Which synthetic images to keep: that show what they should, are no copies, and look like real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types import Backbone, DiffAugError

__all__ = ["LIMITS", "Sieve", "Verdict", "check_limits"]

LIMITS = {"label": 0.5, "novelty": 0.27, "quality": 1.4, "reidentification": 1.0}
"""Filters and where each of them draws the line unless told. See :class:`Sieve`."""

NEIGHBORS = 3
REMEMBERED = 5  # nearest remembered images whose patients are compared
BATCH = 32


@dataclass(frozen=True)
class Verdict:
    """Whether an image passes, its scores, and the names of the filters that it failed."""

    passed: bool
    scores: Mapping[str, float]
    failed: tuple[str, ...] = ()


def check_limits(limits: Mapping[str, float], backbone: Backbone) -> None:
    """Refuse filters that do not exist, or for which the backbone has no judge.

    Raises:
        DiffAugError: naming what there is.
    """
    for name, value in limits.items():
        if name not in LIMITS:
            raise DiffAugError(f"there is no filter {name!r}: use {', '.join(LIMITS)}")
        if not value >= 0:
            raise DiffAugError(f"the limit of filter {name!r} is {value}: give a number from 0")
    if "quality" in limits and backbone.judge is None:
        raise DiffAugError(f"filter 'quality' wants a judge and {backbone.name!r} has none: leave that filter out")
    if "reidentification" in limits and backbone.verifier is None:
        raise DiffAugError(
            f"filter 'reidentification' wants a verifier of patients and {backbone.name!r} has none: train one (bundle "
            "anonymous_chest_xray shows how), or leave that filter out"
        )
    if "label" in limits and backbone.judge is None and backbone.scorer is None:
        raise DiffAugError(
            f"filter 'label' wants a judge or a scorer and {backbone.name!r} has neither: leave that filter out"
        )


class Sieve:
    """Judges synthetic images by real ones.

    ``label``: probability that the judge (or, without one, the scorer among the given classes) gives to the class that
    the image should show; at least the limit. ``novelty``: root mean square difference to the nearest real image, over
    the median of what real images differ from their nearest real image by; at least the limit. ``quality``: mean
    distance to the ``NEIGHBORS`` nearest real images in the judge's features, over the 95th percentile of the same for
    real images; at most the limit. ``reidentification``: probability that the image shows the patient of one of the
    nearest images that the verifier remembers, or of the nearest of ``real``, over the verifier's threshold; below the
    limit (Packhaeuser et al. 2023, arXiv:2211.01323, section 2.3).

    Args:
        backbone: with a judge or scorer, as the filters want.
        real: (N, C, *S) in the value range, at least two; what an image's own distances are compared with.
        limits: filter -> limit.
        classes: for the scorer: prompt of each class.

    Raises:
        DiffAugError: a filter is unknown or has no judge; too few real images.
    """

    def __init__(
        self,
        backbone: Backbone,
        real: Tensor | None,
        limits: Mapping[str, float],
        classes: Mapping[str, str] | None = None,
    ):
        check_limits(limits, backbone)
        self.backbone, self.limits = backbone, dict(limits)
        self.classes = dict(classes or {})
        if {"novelty", "quality"} & set(limits):
            if real is None or real.shape[0] < 2:
                raise DiffAugError("filters 'novelty' and 'quality' compare with real images: give two or more")
            if "novelty" in limits:
                self.real = real.flatten(1)
                self.usual = max(float(_nearest(self.real, self.real, 1, own=True).median()), 1e-6)
            if "quality" in limits:
                self.real_features = self._features(real)
                spread = _nearest(self.real_features, self.real_features, NEIGHBORS, own=True)
                self.far = max(float(torch.quantile(spread, 0.95)), 1e-6)
        if "reidentification" in limits:
            self.verifiers = _remembering(backbone, real)

    def __call__(self, images: Tensor, kinds: Sequence[str | None]) -> list[Verdict]:
        """Judge images (B, C, *S) in the value range, which should show ``kinds``."""
        images = images.detach().float().cpu().clamp(*self.backbone.contract.value_range)
        rows: list[dict[str, float]] = [{} for _ in kinds]
        if "label" in self.limits:
            for row, p in zip(rows, self._agreement(images, kinds), strict=True):
                row["label"] = p
        if "novelty" in self.limits:
            for row, d in zip(rows, _nearest(images.flatten(1), self.real, 1).tolist(), strict=True):
                row["novelty"] = d / self.usual
        if "quality" in self.limits:
            found = _nearest(self._features(images), self.real_features, NEIGHBORS)
            for row, d in zip(rows, found.tolist(), strict=True):
                row["quality"] = d / self.far
        if "reidentification" in self.limits:
            for row, p in zip(rows, self._recognized(images), strict=True):
                row["reidentification"] = p / max(self.backbone.verifier.threshold, 1e-6)
        return [self._verdict({k: round(v, 4) for k, v in row.items()}) for row in rows]

    def _verdict(self, scores: dict[str, float]) -> Verdict:
        failed = tuple(name for name, value in scores.items() if _fails(name, value, self.limits[name]))
        return Verdict(not failed, scores, failed)

    def _recognized(self, images: Tensor) -> list[float]:
        found = [[m.probability for m in v.nearest(images, REMEMBERED)] for v in self.verifiers]
        return [max(each) for each in zip(*found, strict=True)]

    def _features(self, images: Tensor) -> Tensor:
        parts = images.split(BATCH)
        return torch.cat([self.backbone.judge.features(p.to(self.backbone.device)).float().cpu() for p in parts])

    def _agreement(self, images: Tensor, kinds: Sequence[str | None]) -> list[float]:
        judge = self.backbone.judge
        labels = list(judge.labels) if judge is not None else list(self.classes)
        unknown = sorted({str(k) for k in kinds if k not in labels})
        if unknown:
            raise DiffAugError(
                f"filter 'label' cannot judge {unknown[0]!r}, only {', '.join(labels)}: correct the class, or leave "
                "that filter out"
            )
        with torch.no_grad():
            x = images.to(self.backbone.device)
            if judge is not None:
                p = judge.classify(x)
            else:
                p = self.backbone.scorer.classify(x, list(self.classes.values()))
        return [float(p[i, labels.index(str(kind))]) for i, kind in enumerate(kinds)]


def _fails(name: str, value: float, limit: float) -> bool:
    if name == "reidentification":
        return value >= limit
    return value > limit if name == "quality" else value < limit


def _remembering(backbone: Backbone, real: Tensor | None) -> list[Any]:
    """Verifiers of what an image may not show again: the backbone's training images, and the user's real ones."""
    own = backbone.verifier
    found = [own] if own.index is not None else []
    if real is not None:
        found.append(own.remembering(real, range(len(real))))
    if not found:
        raise DiffAugError(
            "filter 'reidentification' compares with real images and the verifier remembers none: give some"
        )
    return found


def _nearest(points: Tensor, real: Tensor, k: int, own: bool = False) -> Tensor:
    """Root mean square distance of (n, D) to the nearest of (N, D), mean over the ``k`` nearest: (n,).

    With ``own``, ``points`` are ``real`` and each leaves itself out.
    """
    scale = real.shape[1] ** 0.5
    out = []
    for start in range(0, points.shape[0], BATCH):
        d = torch.cdist(points[start : start + BATCH], real, compute_mode="donot_use_mm_for_euclid_dist") / scale
        if own:
            rows = torch.arange(d.shape[0])
            d[rows, rows + start] = torch.inf
        most = min(k, real.shape[0] - (1 if own else 0))
        out.append(d.topk(most, largest=False).values.mean(1))
    return torch.cat(out)
