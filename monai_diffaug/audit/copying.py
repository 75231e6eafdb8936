"""The section on copies: how many synthetic images repeat a training image, and whether that would have been seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scipy.stats import fisher_exact
from torch import Tensor

from ..metrics.proportion import wilson
from .calibration import REQUIRED, c_t, false_alarms, recall
from .copies import CopyFinder, Embed, Found
from .findings import FAIL, OPEN, PASS, Figure, Section
from .recognition import Patients

__all__ = ["copying", "section_of"]

BLIND = 0.8  # of planted copies; a search that finds fewer vouches for nothing
SHOWN = 12  # pairs
SURE = 0.01  # chance of so many copies, were they the false alarms that unseen patients raise

Advance = Callable[[int], None]


def copying(
    train: Patients,
    unseen: Patients,
    made: Patients,
    embed: Embed | None = None,
    rate: float = 0.02,
    through: Callable[[Tensor], Tensor] | None = None,
    advance: Advance | None = None,
) -> tuple[Section, list[dict[str, Any]]]:
    """Compare synthetic images with training images.

    Args:
        train: what could have been copied.
        unseen: real images of other patients.
        made: synthetic images.
        embed: images -> vectors.
        rate: share of unseen images that may pass for copies.
        through: what a model's autoencoder leaves of an image; copies are then looked for among both forms.
        advance: called with the number of images compared.

    Returns:
        the section, and the closest pairs, closest first.
    """
    known, names, others = train.images, train.ids, unseen
    if through is not None:
        known, names = _both(train.images, through), (*train.ids, *train.ids)
        others = Patients(_both(unseen.images, through), unseen.patients * 2, unseen.ids * 2)
    finder = CopyFinder(known, others.images, embed, names, rate, advance)
    near = finder.nearest(made.images)
    found = finder.judged(near)
    tests = {s: c_t(values, finder.usual[s][0], others.patients) for s, (values, _) in near.items()}
    alarms = false_alarms(finder, others.patients)
    section = section_of(found, len(train.ids), rate, alarms, recall(finder), tests)
    order = sorted(range(len(found)), key=lambda i: (found[i].rare, -_most(found[i], finder)))
    pairs = [_pair(made.ids[i], found[i]) for i in order[:SHOWN]]
    more = {"rate": rate, "found": [{"image": i, **vars(f)} for i, f in zip(made.ids, found, strict=True)]}
    return Section(section.verdict, section.says, section.figures, {**section.more, **more}), pairs


def _both(images: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
    import torch

    return torch.cat([images, through(images)])


def _most(found: Found, finder: CopyFinder) -> float:
    """How far beyond the nearest held-out image, in the space where it is nearest."""
    return found.scores[found.space] - float(finder.usual[found.space][0].max())


def _pair(name: str, found: Found) -> dict[str, Any]:
    where = {"image": name, "nearest": found.nearest, "space": found.space, "rare": round(found.rare, 5)}
    return {**where, "scores": found.scores, "copy": found.copy, "certain": found.certain}


def section_of(
    found: Sequence[Found],
    n_train: int,
    rate: float,
    alarms: tuple[int, int],
    planted: dict[str, float],
    tests: dict[str, dict[str, float]],
) -> Section:
    """Figures, verdict and sentence of what was found."""
    n, copies = len(found), [f for f in found if f.copy]
    certain = [f for f in copies if f.certain]
    k = len(copies)
    repeated = len({f.nearest for f in copies})
    figures = {
        "copies": Figure(k / n, wilson(k, n), alarms[0] / alarms[1], rate),
        "certain_copies": Figure(len(certain) / n, wilson(len(certain), n), None, 0.0),
        "repeated_training_images": Figure(repeated / n_train, wilson(repeated, n_train)),
        "false_alarms": Figure(alarms[0] / alarms[1], wilson(*alarms), rate, 0.05),
    }
    figures |= {f"planted_{c}": Figure(v) for c, v in planted.items()}
    for space, test in tests.items():
        figures[f"nearer_{space}"] = Figure(test["nearer"], None, 0.5)
        figures[f"c_t_z_{space}"] = Figure(test["z"], None, 0.0)
        figures[f"c_t_p_{space}"] = Figure(test["p"])
    least = min(planted[c] for c in REQUIRED)
    would = f"planted copies (moved, mirrored, brightened) are found in {least:.0%} of cases or more"
    more_than_usual = float(fisher_exact([[k, n - k], [alarms[0], alarms[1] - alarms[0]]], "greater").pvalue) < SURE
    if certain or (more_than_usual and k / n > rate):
        verdict, says = FAIL, (
            f"{k} of {n} synthetic images repeat a training image ({repeated} different ones); a real image of another "
            f"patient comes as near in {rate:.0%} of cases."
        )  # fmt: skip
    elif least < BLIND:
        verdict, says = OPEN, (
            f"Not judged: {k} of {n} synthetic images were found to repeat a training image, but of planted copies "
            f"only {least:.0%} are found; give more unseen images, of other patients."
        )  # fmt: skip
    else:
        verdict, says = PASS, (
            f"{k} of {n} synthetic images lie as near to a training image as {rate:.0%} of real images of other "
            f"patients do, which is no more than chance gives; {would}."
        )  # fmt: skip
    warnings = []
    if alarms[0] / alarms[1] > 0.05:
        warnings.append(
            f"the line is not sure: {alarms[0]} of {alarms[1]} unseen images pass for copies where it is drawn "
            "without their patients; give images of more patients"
        )
    return Section(verdict, says, figures, {"warnings": warnings, "calibration": {"planted": planted}})
