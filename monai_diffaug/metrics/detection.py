"""How well boxes are found: mean average precision as COCO defines it, and FROC, both for any weighting of the images.

pycocotools matches boxes to truth, image by image; what it then adds up is added up here, so that a thousand bootstrap
draws of patients cost one matching.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..types import DiffAugError

__all__ = ["IOUS", "RATES", "Boxes", "Matches", "matched"]

IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""Overlaps from which on a box is a hit (Lin et al. 2014)."""
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives an image at which FROC is read (LUNA16)."""
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # boxes of a class in an image that count

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image: ``boxes`` (n, 4) of left, top, right, bottom in pixels, ``labels`` (n,), ``scores`` (n,).

    Truth has no scores. A truth box in ``ignore`` (n,) is neither to be found nor a mistake if it is (COCO's crowds).
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    ignore: Tensor | None = None


@dataclass(frozen=True)
class _Class:
    """Boxes found of one class, best first: hits and ignored (T, D), their images (D,); truth of each image (I,)."""

    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    image: NDArray[np.int64]
    truth: Floats

    def curve(self, iou: int, weights: Floats) -> tuple[Floats, Floats, float]:
        """True and false positives as the score falls (D,), and how many boxes there are to be found."""
        counted = weights[self.image] * ~self.ignored[iou]
        hit = self.hit[iou]
        return np.cumsum(counted * hit), np.cumsum(counted * ~hit), float(weights @ self.truth)

    def precision(self, iou: int, weights: Floats) -> float:
        """Mean of the interpolated precision at 101 recalls; not a number where there is nothing to find."""
        hits, misses, total = self.curve(iou, weights)
        if total == 0:
            return float("nan")
        precision = hits / np.maximum(hits + misses, np.spacing(1))
        best = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(hits / total, RECALLS, side="left")
        return float(np.append(best, 0.0)[np.minimum(at, len(best))].mean())


@dataclass(frozen=True)
class Matches:
    """Which boxes of which images were found, by class; every figure takes how often each image (I,) counts."""

    labels: tuple[int, ...]
    images: int
    _classes: tuple[_Class, ...]
    _scores: tuple[Floats, ...]

    def precisions(self, weights: Floats | None = None, ious: Sequence[float] = IOUS) -> dict[int, float]:
        """Average precision of each class, mean over ``ious``; not a number for a class without truth."""
        w = self._weights(weights)
        at = [_at(i) for i in ious]
        return {
            label: float(np.mean([c.precision(i, w) for i in at]))
            for label, c in zip(self.labels, self._classes, strict=True)
        }

    def map(self, weights: Floats | None = None, ious: Sequence[float] = IOUS) -> float:
        """Mean average precision over the classes that have truth; ``ious=(0.5,)`` gives AP50."""
        found = np.array(list(self.precisions(weights, ious).values()))
        return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")

    def froc(
        self, weights: Floats | None = None, iou: float = 0.5, rates: Sequence[float] = RATES
    ) -> dict[float, float]:
        """Sensitivity over all classes at no more than so many false positives an image.

        MONAI's ``compute_froc_curve_data`` leaves out the lowest score, so that a detector that finds everything with
        one score gets 0; hence not that.
        """
        w = self._weights(weights)
        hits = {float(r): 0.0 for r in rates}
        total = float(sum(w @ c.truth for c in self._classes))
        if total == 0:
            return dict.fromkeys(hits, float("nan"))
        scores, counted, right = self._pooled(_at(iou), w)
        order = np.argsort(-scores, kind="stable")
        last = np.append(np.diff(scores[order]) != 0, True)  # a threshold takes all boxes of one score
        found = np.cumsum((counted * right)[order])[last]
        false = np.cumsum((counted * ~right)[order])[last] / w.sum()
        for r in hits:
            hits[r] = float(max(found[false <= r], default=0.0)) / total
        return hits

    def _weights(self, weights: Floats | None) -> Floats:
        w = np.ones(self.images) if weights is None else np.asarray(weights, float)
        if w.shape != (self.images,):
            raise DiffAugError(f"{w.shape} weights do not fit {self.images} images: give one an image")
        return w

    def _pooled(self, iou: int, w: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        return (
            np.concatenate(self._scores),
            np.concatenate([w[c.image] * ~c.ignored[iou] for c in self._classes]),
            np.concatenate([c.hit[iou] for c in self._classes]),
        )


def _at(iou: float) -> int:
    if round(iou, 2) not in IOUS:
        raise DiffAugError(f"an overlap of {iou} was not matched: choose of {', '.join(map(str, IOUS))}")
    return IOUS.index(round(iou, 2))


def _checked(boxes: Boxes, image: int, what: str) -> None:
    b, n = boxes.boxes, len(boxes.boxes)
    where = f"image {image}, {what}"
    if (
        b.ndim != 2
        or b.shape[1] != 4
        or not all(x is None or x.shape == (n,) for x in (boxes.labels, boxes.scores, boxes.ignore))
    ):
        raise DiffAugError(f"{where}: boxes {tuple(b.shape)} must be (n, 4), with one label, score and flag each")
    if not bool(torch.isfinite(b).all()) or bool((b[:, 2:] < b[:, :2]).any()):
        raise DiffAugError(f"{where}: a box ends before it begins: give left, top, right, bottom in pixels")
    if what == "found" and (boxes.scores is None or not bool(torch.isfinite(boxes.scores).all())):
        raise DiffAugError(f"{where}: boxes need finite scores: give the detector's confidence")


def _annotations(images: Sequence[Boxes], first: int) -> list[dict[str, Any]]:
    """As pycocotools wants them; ids start at 1, for it takes a match with id 0 for none."""
    found: list[dict[str, Any]] = []
    for image, boxes in enumerate(images):
        flags = torch.zeros(len(boxes.boxes)) if boxes.ignore is None else boxes.ignore
        scores = torch.ones(len(boxes.boxes)) if boxes.scores is None else boxes.scores
        for box, label, score, flag in zip(
            boxes.boxes.tolist(), boxes.labels.tolist(), scores.tolist(), flags.tolist()
        ):
            left, top, right, bottom = box
            size = [left, top, right - left, bottom - top]
            area = size[2] * size[3]
            rest = {"area": area, "iscrowd": int(flag), "score": score, "id": first + len(found)}
            found.append({"image_id": image, "category_id": int(label), "bbox": size, **rest})
    return found


def _database(annotations: list[dict[str, Any]], images: int, labels: Sequence[int]) -> Any:
    from pycocotools.coco import COCO

    known = COCO()
    known.dataset = {
        "images": [{"id": i} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": i} for i in labels],
    }
    known.createIndex()
    return known


def _joined(rows: Sequence[dict[str, Any]], images: int) -> tuple[_Class, Floats]:
    """One class over all images, by falling score, ties in the order of the images."""
    truth = np.zeros(images)
    for r in rows:
        truth[r["image_id"]] = (np.asarray(r["gtIgnore"]) == 0).sum()
    parts = [r for r in rows if r["dtScores"]]
    if not parts:
        none = np.zeros((len(IOUS), 0), bool)
        return _Class(none, none, np.zeros(0, int), truth), np.zeros(0)
    scores = np.concatenate([r["dtScores"] for r in parts]).astype(float)
    image = np.concatenate([[r["image_id"]] * len(r["dtScores"]) for r in parts]).astype(int)
    order = np.argsort(-scores, kind="stable")
    hit, ignored = (np.concatenate([r[k] for r in parts], 1)[:, order] for k in ("dtMatches", "dtIgnore"))
    return _Class(hit > 0, ignored.astype(bool), image[order], truth), scores[order]


def matched(found: Sequence[Boxes], truth: Sequence[Boxes]) -> Matches:
    """Match the boxes found in each image with those that are there, at ten overlaps.

    Args:
        found: one entry an image, with scores; an image without boxes has tensors of length 0.
        truth: one entry an image.

    Raises:
        DiffAugError: the numbers of images differ, boxes are none, no truth box exists, or pycocotools is missing.
    """
    if len(found) != len(truth):
        raise DiffAugError(f"{len(found)} images were searched and {len(truth)} have truth: give one of each an image")
    for i, (a, b) in enumerate(zip(found, truth, strict=True)):
        _checked(a, i, "found")
        _checked(b, i, "truth")
    if not sum(len(t.boxes) for t in truth):
        raise DiffAugError("no image has a truth box, so that nothing can be found: give images with objects")
    try:
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError:
        raise DiffAugError("pycocotools is not installed: pip install 'monai-diffaug[detection]'") from None
    labels = sorted({int(x) for b in (*found, *truth) for x in b.labels})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        both = [_database(_annotations(images, 1), len(truth), labels) for images in (truth, found)]
        matching = COCOeval(*both, "bbox")
        matching.params.areaRng, matching.params.areaRngLbl = [[0, 1e10]], ["all"]
        matching.params.maxDets = [MOST]
        matching.evaluate()
    kept: list[list[dict[str, Any]]] = [[] for _ in labels]
    for row in matching.evalImgs:
        if row is not None:
            kept[labels.index(int(row["category_id"]))].append(row)
    done = [_joined(rows, len(truth)) for rows in kept]
    return Matches(tuple(labels), len(truth), tuple(c for c, _ in done), tuple(s for _, s in done))
