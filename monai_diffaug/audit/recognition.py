"""How well a verifier tells patients apart, where it draws the line, and how often it recognizes one.

Every figure is of patients that it was not trained on; the line is drawn on others than those it is measured on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ..backbones.verifier import Verifier
from ..primitives.runs import Draws
from ..primitives.verification import visits
from ..types import DiffAugError

__all__ = [
    "Pairs",
    "Patients",
    "auroc",
    "calibrated",
    "copies",
    "interval",
    "pairs_of_views",
    "pairs_of_visits",
    "recognized",
    "uncalibrated",
]

View = Callable[[Tensor, Draws], Tensor]


@dataclass(frozen=True)
class Patients:
    """Images (N, C, *S), whose patient each shows, and its id."""

    images: Tensor
    patients: tuple[str, ...]
    ids: tuple[str, ...]

    @classmethod
    def of(cls, items: Sequence[Any]) -> Patients:
        """From items with ``image`` (C, *S), ``patient`` and ``id``."""
        if not items:
            raise DiffAugError("there are no images to tell patients apart on: give a data set with a part for this")
        images = torch.stack([torch.as_tensor(i["image"]).as_subclass(Tensor).float() for i in items])
        return cls(images, tuple(str(i["patient"]) for i in items), tuple(str(i["id"]) for i in items))

    def several(self) -> Patients:
        """Those sources whose patients were seen more than once lie in: images of one source at least."""
        often = {p for p in self.patients if self.patients.count(p) > 1}
        sources = {i.rpartition("/")[0] for i, p in zip(self.ids, self.patients, strict=True) if p in often}
        return self.only([i.rpartition("/")[0] in sources for i in self.ids])

    def joined(self, others: Patients) -> Patients:
        """These and others."""
        images = torch.cat([self.images, others.images])
        return Patients(images, self.patients + others.patients, self.ids + others.ids)

    def only(self, keep: Sequence[bool]) -> Patients:
        """Those whose flag is set."""
        which = [n for n, k in enumerate(keep) if k]
        return Patients(self.images[which], tuple(self.patients[n] for n in which), tuple(self.ids[n] for n in which))


@dataclass(frozen=True)
class Pairs:
    """Logits (P,) of one patient, whether it is one, and the numbers of the two patients."""

    logits: np.ndarray
    same: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def count(self) -> tuple[int, int]:
        """Pairs of one patient, and the patients that these come from."""
        return int(self.same.sum()), len(set(self.first[self.same].tolist()))


def _numbers(patients: Sequence[str]) -> np.ndarray:
    order = {p: i for i, p in enumerate(dict.fromkeys(patients))}
    return np.array([order[p] for p in patients])


def _logits(verifier: Verifier, a: Tensor, b: Tensor) -> np.ndarray:
    """(A, B) logits of signatures (A, E + D) and (B, E + D)."""
    net: Any = verifier.module
    with torch.no_grad():
        return torch.stack([net.same(row, b) for row in a]).double().numpy()


def pairs_of_visits(verifier: Verifier, given: Patients) -> Pairs:
    """Every image with every other: two visits of a patient, or two patients."""
    number, seen = _numbers(given.patients), verifier.seen(given.images)
    i, j = np.triu_indices(len(number), 1)
    return Pairs(_logits(verifier, seen, seen)[i, j], number[i] == number[j], number[i], number[j])


def pairs_of_views(verifier: Verifier, given: Patients, view: View, seed: int = 0) -> Pairs:
    """Every image with a changed view of itself, and with one of every other patient's."""
    number, seen = _numbers(given.patients), verifier.seen(given.images)
    changed = verifier.seen(view(given.images, Draws.of(seed, 0)))
    i, j = (a.flatten() for a in np.indices((len(number), len(number))))
    use = (i == j) | (number[i] != number[j])
    i, j = i[use], j[use]
    return Pairs(_logits(verifier, seen, changed)[i, j], i == j, number[i], number[j])


def copies(images: Tensor, draws: Draws) -> Tensor:
    """Copies, changed: turned by up to 4 degrees, shifted by up to 6 %, exposed anew, with noise and blocks."""
    return visits(images, draws, 0.35)


def auroc(pairs: Pairs, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve of telling pairs of one patient from pairs of two.

    Raises:
        DiffAugError: there are pairs of one kind only.
    """
    if pairs.same.all() or not pairs.same.any():
        raise DiffAugError("an AUROC wants pairs of one patient and of two: give patients with several images")
    return float(roc_auc_score(pairs.same, pairs.logits, sample_weight=weights))


def interval(pairs: Pairs, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of :func:`auroc`, patients being drawn with replacement."""
    generator = np.random.default_rng(seed)
    n = int(max(pairs.first.max(), pairs.second.max())) + 1
    found = []
    for _ in range(draws):
        often = np.bincount(generator.integers(0, n, n), minlength=n)
        weight = np.where(pairs.same, often[pairs.first], often[pairs.first] * often[pairs.second])
        if weight[pairs.same].any() and weight[~pairs.same].any():
            found.append(auroc(pairs, weight))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def recognized(verifier: Verifier, images: Tensor, neighbors: int = 5) -> np.ndarray:
    """Whether each image (N, C, *S) is taken for a patient that the verifier remembers: (N,) of bool."""
    return np.array([m.probability >= verifier.threshold for m in verifier.nearest(images, neighbors)])


def uncalibrated(verifier: Verifier) -> Any:
    """A copy of the network with the logits that it was trained to give, from which training may go on."""
    net: Any = copy.deepcopy(verifier.module)
    line, slope = float(verifier.figures.get("line", 0.0)), float(verifier.figures.get("slope", 1.0))
    net.calibrate(-line * slope, 1 / slope)
    return net.requires_grad_(True)


def _slope(same: np.ndarray, other: np.ndarray) -> float:
    """Factor of logits under which they are the log odds of a balanced mixture, by logistic regression."""
    x, y = np.concatenate([same, other])[:, None], np.repeat([1, 0], [len(same), len(other)])
    spread = float(x.std()) or 1.0
    fitted = LogisticRegression(class_weight="balanced").fit(x / spread, y)
    return float(max(fitted.coef_[0, 0] / spread, 1e-3))


def calibrated(
    verifier: Verifier,
    train: Patients,
    validation: Patients,
    test: Patients,
    view: View,
    rate: float = 0.95,
    more: Patients | None = None,
) -> Verifier:
    """Draw the line on validation patients, measure on test patients, and remember the training images.

    Logits are shifted so that the line lies at a probability of one half, and scaled so that they fit (Platt 1999)
    views of validation images on one side and the nearest remembered images of other patients on the other: a network
    trained on as many pairs of one patient as of two thinks one far likelier than it is among thousands. The line is
    where ``rate`` of the changed views of validation images are known again; where two visits of a patient would have
    to be (``visits_line``, in the same units), is among the figures, with what it would cost.

    Args:
        verifier: as trained.
        train: what it shall remember.
        validation: other patients.
        test: other patients again.
        view: of an image, drawn anew.
        rate: share of true matches that shall be known.
        more: other patients whom training never saw; they count for ``auroc`` with the test patients, whose own is then
            ``test_auroc``.
    """
    net: Any = verifier.module
    views = pairs_of_views(verifier, validation, view)
    line = float(np.quantile(views.logits[views.same], 1 - rate))
    made = verifier.remembering(train.images, train.ids)
    others = np.array([m.logit for m in made.nearest(validation.images)])
    slope = _slope(views.logits[views.same] - line, others - line)
    net.calibrate(line, slope)
    made = Verifier(net, 0.5, None, None, verifier.config).remembering(train.images, train.ids)
    visits, seen = pairs_of_visits(made, test.several()), pairs_of_views(made, test, view, seed=1)
    own, own_interval, own_count = auroc(visits), interval(visits), visits.count()
    if more is not None:
        visits = pairs_of_visits(made, test.several().joined(more.several()))
    before = pairs_of_visits(made, validation.several())
    count, patients = visits.count()
    unseen = [m.probability for m in made.nearest(test.images)]
    visits_line = float(np.quantile(before.logits[before.same], 1 - rate))
    made.figures = {
        "auroc": auroc(visits),
        "interval": interval(visits),
        "pairs": count,
        "patients": patients,
        "test_auroc": own,
        "test_interval": own_interval,
        "test_pairs": own_count[0],
        "test_patients": own_count[1],
        "views_auroc": auroc(seen),
        "views_known": float((seen.logits[seen.same] >= 0).mean()),
        "visits_known": float((visits.logits[visits.same] >= 0).mean()),
        "unseen_rejected": float(np.mean(np.array(unseen) >= 0.5)),
        "true_match_rate": rate,
        "line": line,
        "slope": slope,
        "visits_line": visits_line,
        "unseen_rejected_at_visits_line": float(np.mean(np.array(unseen) >= 1 / (1 + np.exp(-visits_line)))),
        "remembered": len(train.ids),
        "test_images": len(test.ids),
    }
    return made
