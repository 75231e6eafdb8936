"""Re-identification: does a network that was taught to know patients again recognize one in a synthetic image.

Packhaeuser et al. 2023 (arXiv:2211.01323): a siamese verifier compares each synthetic image with the training images.
"""

from __future__ import annotations

import numpy as np

from ..backbones.verifier import Verifier
from ..metrics.proportion import wilson
from .findings import FAIL, OPEN, PASS, Figure, Section, over_patients
from .recognition import Patients

__all__ = ["reidentification"]

LEAST_BAR = 0.05  # share of unseen patients' images that a verifier may take for training patients'


def reidentification(verifier: Verifier, train: Patients, unseen: Patients, made: Patients) -> Section:
    """The share of synthetic images in which the verifier recognizes a training patient, against unseen patients'.

    A verifier that does not tell real visits apart well enough can find someone, but finding nobody proves nothing
    then: the verdict is ``not judged``.

    Args:
        verifier: of this kind of image.
        train: images of training patients, at its size.
        unseen: real images of other patients.
        made: synthetic images.
    """
    knows = verifier.remembering(train.images, train.ids)
    matches = knows.nearest(made.images)
    found = np.array([m.probability >= knows.threshold for m in matches])
    usual = np.array([m.probability >= knows.threshold for m in knows.nearest(unseen.images)])
    spans = over_patients(lambda i: {"share": float(usual[i].mean())}, unseen.patients)
    count, n = int(found.sum()), len(found)
    share, interval = count / n, wilson(count, n)
    bar = max(LEAST_BAR, spans["share"][1])
    figures = {
        "recognized": Figure(share, interval, float(usual.mean()), bar),
        "recognized_unseen": Figure(float(usual.mean()), spans["share"], None, LEAST_BAR),
    }
    if verifier.figures.get("auroc") is not None:
        low, high = verifier.figures.get("interval", (np.nan, np.nan))
        figures["verifier_auroc"] = Figure(float(verifier.figures["auroc"]), (float(low), float(high)), 0.5)
    order = sorted(range(n), key=lambda i: -matches[i].probability)[:12]
    closest = [
        {"image": made.ids[i], "nearest": matches[i].nearest, "probability": round(matches[i].probability, 5)}
        for i in order
    ]
    said = f"a network trained to know patients again recognizes a training patient in {count} of {n} synthetic images"
    control = f"and in {usual.mean():.0%} of real images of patients who were not in the training data"
    why = verifier.withheld()
    if interval[0] > bar:
        verdict, says = FAIL, f"{said[0].upper()}{said[1:]}, {control}."
    elif why:
        verdict, says = OPEN, f"Not judged: {said}, {control}; {why}."
    else:
        verdict, says = PASS, f"{said[0].upper()}{said[1:]}, {control}: no more than by chance."
    return Section(verdict, says, figures, {"closest": closest})
