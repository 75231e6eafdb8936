"""Attribute inference: do synthetic images betray more about a training patient than about anybody else.

An attacker holds the image of a patient and the synthetic images with their attributes, and guesses the patient's sex,
age group, class or site: from the nearest synthetic images, and by a classifier trained on synthetic ones. What he
guesses of patients that the generator never saw is what the images teach about everyone; only what he guesses better of
training patients leaks (Stadler et al. 2022, arXiv:2011.07018, section 5.2; Yeom et al. 2018, arXiv:1709.01604).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from .alignment import pooled, standardized
from .copies import Embed
from .findings import FAIL, OPEN, PASS, Figure, Section, not_judged, over_patients
from .recognition import Patients

__all__ = ["attributes", "groups_of", "guessed"]

NEIGHBORS = 3
GROUPS = 3  # that numbers such as age are cut into
MANY = 6  # values from which on numbers are cut
LEAST = 8  # patients with the attribute on either side
BAR = 0.1  # of balanced accuracy, more on training patients than on others

Values = Sequence[Any]


def groups_of(*lists: Values) -> tuple[list[str], ...]:
    """Values as names of groups; numbers of many values are cut at the thirds of the first list; "" if not known."""
    known = [v for values in lists for v in values if v not in (None, "")]
    try:
        numbers = [float(v) for v in known]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or len(set(numbers)) < MANY:
        return tuple(["" if v in (None, "") else str(v) for v in values] for values in lists)
    first = [float(v) for v in lists[0] if v not in (None, "")] or numbers
    cuts = np.unique(np.quantile(first, [i / GROUPS for i in range(1, GROUPS)]))
    ends = ["", *(f"{c:g}" for c in cuts), ""]

    def name(value: Any) -> str:
        if value in (None, ""):
            return ""
        i = int(np.searchsorted(cuts, float(value), "right"))
        return f"{ends[i]}-{ends[i + 1]}"

    return tuple([name(v) for v in values] for values in lists)


def _features(images: Tensor, embed: Embed | None) -> Tensor:
    """What the attacker compares: coarse pixels, and what a network makes of the image."""
    parts = [F.normalize(standardized(pooled(images, 8 if images.ndim == 5 else 16)).flatten(1), dim=1)]
    if embed is not None:
        with torch.no_grad():
            parts.append(F.normalize(torch.cat([embed(x).flatten(1).float().cpu() for x in images.split(64)]), dim=1))
    return torch.cat(parts, 1)


def guessed(known: Tensor, groups: Sequence[str], asked: Tensor) -> dict[str, np.ndarray]:
    """The group of each asked image (N, D), by both attacks, from synthetic ones (M, D) of known groups."""
    names, y = np.unique(np.array(groups), return_inverse=True)
    near = (asked @ known.T).topk(min(NEIGHBORS, len(known)), 1).indices
    votes = F.one_hot(torch.from_numpy(y)[near], len(names)).sum(1).double()
    votes += 1e-3 * F.one_hot(torch.from_numpy(y)[near[:, 0]], len(names))  # the nearest decides among equals
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", C=0.05, max_iter=500))
    model.fit(known.numpy(), y)
    return {"nearest": names[votes.argmax(1).numpy()], "classifier": names[model.predict(asked.numpy())]}


def _balanced(truth: np.ndarray, said: np.ndarray) -> float:
    """Balanced accuracy."""
    return float(np.mean([(said[truth == g] == g).mean() for g in np.unique(truth)]))


def _one(
    name: str, features: Sequence[Tensor], values: Sequence[Values], patients: tuple[Sequence[str], Sequence[str]]
) -> tuple[dict[str, Figure], bool] | str:
    """Figures of one attribute and whether it leaks, or why it cannot be judged."""
    groups = [np.array(g) for g in groups_of(*values)]
    keep = [g != "" for g in groups]
    seen = [(f[torch.from_numpy(k)], g[k]) for f, g, k in zip(features, groups, keep, strict=True)]
    whose = [np.array(p)[k] for p, k in zip(patients, keep[:2], strict=True)]
    if min(len(set(w.tolist())) for w in whose) < LEAST:
        return f"too few patients on one side have {name!r} in the datalist"
    if len(set(seen[2][1].tolist())) < 2:
        return f"the synthetic images do not say {name!r}, or all the same"
    (train, truth), (unseen, other), (made, said) = seen
    figures: dict[str, Figure] = {}
    leaks = False
    by = {k: (guessed(made, said.tolist(), train)[k], guessed(made, said.tolist(), unseen)[k]) for k in _ATTACKS}
    for attack, (a, b) in by.items():

        def both(i: np.ndarray, j: np.ndarray, a: np.ndarray = a, b: np.ndarray = b) -> dict[str, float]:
            x, y = _balanced(truth[i], a[i]), _balanced(other[j], b[j])
            return {"training": x, "unseen": y, "leak": x - y}

        found = both(np.arange(len(a)), np.arange(len(b)))
        spans = over_patients(both, whose[0].tolist(), whose[1].tolist())
        guess = 1 / len(set(truth.tolist()))
        figures[f"{name}_{attack}_training"] = Figure(found["training"], spans["training"], guess)
        figures[f"{name}_{attack}_unseen"] = Figure(found["unseen"], spans["unseen"], guess)
        figures[f"{name}_{attack}_leak"] = Figure(found["leak"], spans["leak"], 0.0, BAR)
        leaks |= found["leak"] >= BAR and spans["leak"][0] > 0
    return figures, leaks


_ATTACKS = ("nearest", "classifier")


def attributes(
    train: Patients,
    unseen: Patients,
    made: Patients,
    values: Mapping[str, tuple[Values, Values, Values]],
    embed: Embed | None = None,
) -> Section:
    """How much better attributes of training patients are guessed than those of others.

    Args:
        train: images of the generator's training patients.
        unseen: real images of other patients.
        made: synthetic images.
        values: attribute -> its values for the three, one an image; ``None`` or ``""`` where it is not known.
        embed: images -> vectors, which the attacker may use besides pixels.
    """
    if not values:
        return not_judged("no attribute was named, give fields of the datalists such as sex or age as --attribute")
    features = [_features(p.images, embed) for p in (train, unseen, made)]
    figures: dict[str, Figure] = {}
    leaking, silent = [], []
    for name, each in values.items():
        found = _one(name, features, each, (train.patients, unseen.patients))
        if isinstance(found, str):
            silent.append(found)
            continue
        figures |= found[0]
        leaking += [name] if found[1] else []
    if not figures:
        return not_judged("; ".join(silent))
    judged = [n for n in values if any(f.startswith(f"{n}_") for f in figures)]
    if leaking:
        says = (
            f"From the synthetic images, {' and '.join(leaking)} of training patients can be guessed better than "
            "that of patients whom the generator never saw."
        )
    else:
        says = (
            f"From the synthetic images, {' and '.join(judged)} of training patients cannot be guessed better than "
            "that of patients whom the generator never saw."
        )
    verdict = FAIL if leaking else OPEN if silent and not judged else PASS
    return Section(verdict, says, figures, {"warnings": silent})
