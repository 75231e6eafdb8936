"""The figures of a study, from what the networks said of the test images and how often each image counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...metrics import classification, overlap
from ...metrics.detection import Boxes, Matches, matched
from .data import Pool
from .detector import boxes_of
from .study import Study

__all__ = ["LOWER_IS_BETTER", "Figures"]

Floats = NDArray[np.float64]
LOWER_IS_BETTER = ("false_positive_area",)


class Figures:
    """Figures of one test set.

    Args:
        study: for task, metrics and groups.
        test: the test patients' images.
    """

    def __init__(self, study: Study, test: Pool):
        self.study, self.test = study, test
        self.truth = test.labels.numpy()
        self.people = tuple(dict.fromkeys(test.patients))
        self.patient = np.array([self.people.index(p) for p in test.patients])
        if study.task == "detection":
            assert test.masks is not None
            self.boxes = [_boxes(boxes_of(m)) for m in test.masks]

    def values(self, outputs: Mapping[str, Any], weights: Floats) -> dict[str, Floats]:
        """Each metric of the study, (D,), for weights (D, N) of the images."""
        if self.study.task == "classification":
            p = np.array(outputs["probabilities"])
            return {m: classification.macro_figures(p, self.truth, weights, m) for m in self.study.metrics}
        if self.study.task == "segmentation":
            both, drawn, true = (np.array(outputs[k], float) for k in ("both", "drawn", "true"))
            pixels = self.study.size**2
            return {
                m: overlap.false_positive_area(drawn, true, pixels, weights)
                if m == "false_positive_area"
                else overlap.overlap(both, drawn, true, weights, m)
                for m in self.study.metrics
            }
        found = self._matches(outputs)
        ious = {"map": {}, "ap50": {"ious": (0.5,)}}
        return {m: np.array([found.map(w, **ious[m]) for w in weights]) for m in self.study.metrics}

    def _matches(self, outputs: Mapping[str, Any]) -> Matches:
        return matched([_boxes(b) for b in outputs["boxes"]], self.boxes)

    def point(self, outputs: Mapping[str, Any]) -> dict[str, float]:
        """Each metric, every image counting once."""
        return {m: float(v[0]) for m, v in self.values(outputs, np.ones((1, len(self.test)))).items()}

    def per_class(self, outputs: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Of each class ``precision``, ``recall``, ``f1`` and ``auroc`` against the rest; nothing for one structure."""
        if self.study.task != "classification":
            return {}
        p, ones = np.array(outputs["probabilities"]), np.ones((1, len(self.test)))
        each = classification.class_figures(p, self.truth, ones)
        return {
            name: {
                **{m: float(v[0, k]) for m, v in each.items()},
                "auroc": float(classification.auroc(p[:, k], self.truth == k, ones)[0]),
            }
            for k, name in enumerate(self.study.classes)
        }

    def per_group(self, outputs: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
        """Of each group's values the metrics that are defined there, and how many patients it has."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for group in self.study.groups:
            values = [str(f[group]) for f in self.test.fields]
            for value in sorted(set(values)):
                weights = np.array([[float(v == value) for v in values]])
                metrics = {m: float(v[0]) for m, v in self.values(outputs, weights).items() if np.isfinite(v[0])}
                people = len({p for p, v in zip(self.test.patients, values) if v == value})
                found.setdefault(group, {})[value] = {**metrics, "patients": people}
        return found


def _boxes(boxes: list[list[float]]) -> Boxes:
    """From left, top, width, height and perhaps a score."""
    b = torch.tensor(boxes, dtype=torch.float64).reshape(len(boxes), -1 if boxes else 4)
    corners = torch.cat([b[:, :2], b[:, :2] + b[:, 2:4]], 1)
    return Boxes(corners, torch.zeros(len(b), dtype=torch.long), b[:, 4] if b.shape[1] > 4 else torch.zeros(len(b)))
