"""Membership inference: can an attacker who has the model and an image tell whether it was trained on it.

Two attacks. *Loss*: the error of predicting the noise, which is lower for an image that was learned by heart
(Matsumoto et al. 2023, arXiv:2302.03262; Carlini et al. 2023, arXiv:2301.13188, section 5.2). *Likelihood ratio*: the
same against a reference model that did not see the image, which takes away how hard the image is (Carlini et al. 2022,
arXiv:2112.03570, the offline test with one reference; Watson et al. 2022, arXiv:2111.08440).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ..types import Backbone, at_level
from .asking import latents, told
from .findings import FAIL, OPEN, PASS, Figure, Section, auroc, not_judged, over_patients
from .recognition import Patients

__all__ = ["TIMES", "errors", "membership", "simple_statistics", "strength"]

TIMES = (0.05, 0.1, 0.2, 0.3, 0.4)  # of the schedule's length
AUROC_BAR, TPR_BAR = 0.7, 0.1
LEAST = 8  # patients on either side
BATCH = 32

Advance = Callable[[int], None]


def errors(
    model: Backbone,
    images: Tensor,
    kinds: Sequence[str],
    *,
    times: Sequence[float] = TIMES,
    draws: int = 4,
    seed: int = 0,
    advance: Advance | None = None,
) -> np.ndarray:
    """Logarithm of the mean squared error of the predicted noise, (N, T), at several noise levels.

    All images get the same noise: what differs between them is then the image, not the draw.

    Args:
        model: the backbone.
        images: (N, C, *S) at the model's size.
        kinds: class of each, told if the model knows it.
        times: fractions of the schedule's length.
        draws: noises at each level.
        seed: of the noises.
        advance: called with the number of images looked at.
    """
    z, end = latents(model, images), model.schedule.times[-1]
    generator = torch.Generator().manual_seed(seed)
    noises = torch.randn(len(times), draws, *z.shape[1:], generator=generator)
    rows = []
    with torch.no_grad():
        for start in range(0, len(z), BATCH):
            x0 = z[start : start + BATCH].to(model.device)
            condition = told(model, list(kinds[start : start + BATCH])).to(model.device)
            row = []
            for fraction, some in zip(times, noises, strict=True):
                level = model.schedule.at(fraction * end)
                found = []
                for noise in some.to(model.device):
                    x = level.alpha * x0 + level.sigma * noise
                    with at_level(level):
                        out = model.output(x, level.t, condition)
                    eps = model.schedule.convert(out, x, level.alpha, level.sigma).eps
                    found.append((eps - noise).square().flatten(1).mean(1))
                row.append(torch.stack(found).mean(0).clamp(min=1e-12).log())
            rows.append(torch.stack(row, 1).cpu())
            if advance is not None:
                advance(len(x0))
    return torch.cat(rows).double().numpy()


def _rate_at(members: np.ndarray, others: np.ndarray, rate: float) -> float:
    """Share of members above the score that at most ``rate`` of the others exceed."""
    allowed = int(np.floor(rate * len(others)))
    line = np.sort(others)[::-1][allowed]
    return float((members > line).mean())


def strength(members: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """How well scores (n,) and (m,), higher for members, tell the two apart.

    ``auroc``; ``balanced_accuracy`` at the line that was best on the other half; ``tpr_at_1``, ``tpr_at_01``: share of
    members that are found while at most 1 % and 0.1 % of the others are taken for members.
    """
    halves = []
    for a in (0, 1):
        lines = np.sort(np.concatenate([members[a::2], others[a::2]]))
        known, unknown = np.sort(members[a::2]), np.sort(others[a::2])
        right = 1 - np.searchsorted(known, lines) / len(known) + np.searchsorted(unknown, lines) / len(unknown)
        line = lines[int(right.argmax())]
        halves.append(((members[1 - a :: 2] >= line).mean() + (others[1 - a :: 2] < line).mean()) / 2)
    return {
        "auroc": auroc(members, others),
        "balanced_accuracy": float(np.mean(halves)),
        "tpr_at_1": _rate_at(members, others, 0.01),
        "tpr_at_01": _rate_at(members, others, 0.001),
    }


def simple_statistics(members: Patients, others: Patients) -> np.ndarray:
    """Out-of-fold scores (n + m,) of a classifier that knows mean, spread, size and place of what is shown alone.

    If these tell members from others, so may any attack, without the model's having learned anyone by heart.
    """
    rows = []
    for x in (members.images, others.images):
        flat = x.flatten(1)
        low = flat.amin(1, keepdim=True)
        bright = (flat > low + 0.1 * (flat.amax(1, keepdim=True) - low)).float()
        quarters = torch.quantile(flat, torch.tensor([0.25, 0.5, 0.75]), dim=1).T
        rows.append(torch.cat([flat.mean(1)[:, None], flat.std(1)[:, None], bright.mean(1)[:, None], quarters], 1))
    x = torch.cat(rows).double().numpy()
    y = np.repeat([1, 0], [len(members.ids), len(others.ids)])
    groups = np.array([f"1{p}" for p in members.patients] + [f"0{p}" for p in others.patients])
    scores = np.zeros(len(y))
    for train, test in GroupKFold(min(5, len(set(groups)))).split(x, y, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", C=0.3))
        scores[test] = model.fit(x[train], y[train]).decision_function(x[test])
    return scores


def _random_labels(scores: np.ndarray, patients: Sequence[str], share: float, draws: int = 200) -> dict[str, Any]:
    """Strength of the same scores when patients are called members by lot: mean and 97.5 % quantile."""
    generator = np.random.default_rng(1)
    names, index = np.unique(np.array(patients), return_inverse=True)
    rows = []
    for _ in range(draws):
        drawn = generator.permutation(len(names)) < max(1, min(len(names) - 1, round(share * len(names))))
        is_member = drawn[index]
        rows.append(strength(scores[is_member], scores[~is_member]))
    return {k: (float(np.mean([r[k] for r in rows])), float(np.quantile([r[k] for r in rows], 0.975))) for k in rows[0]}


@dataclass(frozen=True)
class _Attack:
    """One attack's strength, intervals, and strength under random labels (mean, 97.5 %)."""

    found: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    chance: dict[str, tuple[float, float]]

    @property
    def succeeds(self) -> bool:
        """Whether it is stronger than the bars allow, and than chance."""
        beyond = {k: self.found[k] > self.chance[k][1] for k in self.found}
        average = self.found["auroc"] >= AUROC_BAR and beyond["auroc"]
        return average or (self.found["tpr_at_1"] >= TPR_BAR and beyond["tpr_at_1"] and beyond["auroc"])

    def figures(self, name: str) -> dict[str, Figure]:
        bars = {"auroc": AUROC_BAR, "tpr_at_1": TPR_BAR}
        return {
            f"{name}_{k}": Figure(v, self.intervals.get(k), self.chance[k][0], bars.get(k))
            for k, v in self.found.items()
        }


def _attacked(members: np.ndarray, others: np.ndarray, known: Patients, unknown: Patients) -> _Attack:
    def again(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        return strength(members[a], others[b])

    scores, patients = np.concatenate([members, others]), [*known.patients, *unknown.patients]
    share = len(set(known.patients)) / len(set(patients))
    intervals = over_patients(again, known.patients, unknown.patients)
    return _Attack(strength(members, others), intervals, _random_labels(scores, patients, share))


def membership(
    model: Backbone,
    members: Patients,
    others: Patients,
    kinds: tuple[Sequence[str], Sequence[str]] | None = None,
    reference: Backbone | None = None,
    reference_images: tuple[Tensor, Tensor] | None = None,
    *,
    draws: int = 4,
    seed: int = 0,
    advance: Advance | None = None,
) -> Section:
    """Both attacks on a model, with what chance and plain image statistics reach.

    Args:
        model: what is attacked.
        members: images that it was trained on, at its size.
        others: real images of other patients from the same source.
        kinds: classes of the members and of the others.
        reference: a model that was trained on neither; the likelihood ratio wants one.
        reference_images: the same images at the reference's size, where that is another.
        draws: noises at each level.
        seed: of the noises.
        advance: called with the number of images looked at.
    """
    few = min(len(set(members.patients)), len(set(others.patients)))
    if few < LEAST:
        return not_judged(f"{few} patients on one side are too few to tell, give {LEAST} or more on both")
    told_of = kinds or ([""] * len(members.ids), [""] * len(others.ids))
    how: dict[str, Any] = {"draws": draws, "seed": seed, "advance": advance}
    seen = [errors(model, p.images, k, **how) for p, k in zip((members, others), told_of, strict=True)]
    attacks = {"loss": _attacked(-seen[0].mean(1), -seen[1].mean(1), members, others)}
    if reference is not None:
        shown = reference_images or (members.images, others.images)
        usual = [errors(reference, x, k, **how) for x, k in zip(shown, told_of, strict=True)]
        gain = [u - s for u, s in zip(usual, seen, strict=True)]
        spread = np.concatenate(gain).std(0).clip(min=1e-6)
        ratio = [(g / spread).mean(1) for g in gain]
        attacks["likelihood_ratio"] = _attacked(ratio[0], ratio[1], members, others)
    plain = simple_statistics(members, others)
    shift = _attacked(plain[: len(members.ids)], plain[len(members.ids) :], members, others)
    return _section(attacks, shift, members, others, reference)


def _section(
    attacks: dict[str, _Attack], shift: _Attack, members: Patients, others: Patients, reference: Backbone | None
) -> Section:
    figures = {k: f for name, attack in attacks.items() for k, f in attack.figures(name).items()}
    value, chance = shift.found["auroc"], shift.chance["auroc"]
    figures["simple_statistics_auroc"] = Figure(value, shift.intervals["auroc"], chance[0])
    best = max(attacks.values(), key=lambda a: a.found["auroc"])
    shifted = value > chance[1] and value >= 0.6
    warnings = []
    if shifted:
        warnings.append(
            f"brightness and size alone tell training images from unseen ones (AUROC {value:.2f}): the two sets "
            "differ, and an attack may detect that instead of membership"
        )
    if len(others.ids) < 1000:
        warnings.append(
            f"with {len(others.ids)} unseen images a false alarm rate of 0.1 % means none at all"
            + ("; so does 1 %" if len(others.ids) < 100 else "")
        )
    if reference is None:
        warnings.append("the likelihood-ratio attack was not made: give a model trained on other images as --reference")
    succeeds = any(a.succeeds for a in attacks.values())
    n, m = len(set(members.patients)), len(set(others.patients))
    measured = f"AUROC {best.found['auroc']:.2f} where 0.5 is guessing, {n} training and {m} unseen patients"
    if succeeds and shifted and value >= best.found["auroc"] - 0.05:
        verdict, says = OPEN, (
            "Not judged: training and unseen images already differ in brightness and size, so that an attack would "
            "succeed on any model; give unseen images from the same source."
        )  # fmt: skip
    elif succeeds:
        verdict, says = (
            FAIL,
            (
                "Someone who holds this model and a scan can tell whether that patient was in the training data "
                f"({measured})."
            ),
        )
    else:
        verdict, says = PASS, (
            f"Holding this model, one could not reliably tell whether a scan was among its training data ({measured})."
        )  # fmt: skip
    return Section(verdict, says, figures, {"warnings": warnings})
