"""Figures of a verifier: AUROC over pairs, its interval over patients, where the line is drawn."""

import numpy as np
import pytest
import torch

from monai_diffaug.audit import recognition
from monai_diffaug.audit.recognition import Pairs, Patients, auroc, calibrated, interval
from monai_diffaug.types import DiffAugError

from ..verifying import by_pixels


def people(n, seed, films=2, size=8, noise=0.3):
    g = torch.Generator().manual_seed(seed)
    own = torch.randn(n, 1, size, size, generator=g)
    x = own.repeat_interleave(films, 0) + noise * torch.randn(n * films, 1, size, size, generator=g)
    names = [f"p{seed}_{i}" for i in range(n) for _ in range(films)]
    return Patients(x, tuple(names), tuple(f"set/{seed}_{i}" for i in range(n * films)))


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    pairs = Pairs(
        np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False]), np.arange(4), np.array([0, 1, 3, 2])
    )
    assert auroc(pairs) == 0.75
    assert pairs.count() == (2, 2)
    with pytest.raises(DiffAugError, match="patients with several images"):
        auroc(Pairs(pairs.logits[:2], pairs.same[:2], pairs.first[:2], pairs.second[:2]))


def test_the_interval_is_over_patients_and_so_wider_for_few():
    verifier = by_pixels(people(2, 9).images)
    few, many = (recognition.pairs_of_visits(verifier, people(n, 1, noise=2.5)) for n in (5, 30))
    (a, b), (c, d) = interval(few, 200), interval(many, 200)
    assert 0 < c < auroc(many) < d <= 1
    assert b - a > d - c


def test_views_of_other_images_of_the_same_patient_are_no_pairs():
    given = people(3, 0)
    pairs = recognition.pairs_of_views(by_pixels(given.images), given, lambda x, _: x)
    assert pairs.same.sum() == 6
    assert len(pairs.same) == 6 * 6 - 6


def test_the_line_lies_at_one_half_and_knows_as_many_views_as_it_should():
    train, validation, test = people(20, 0), people(20, 1), people(20, 2)

    def view(x, draws):
        return x + 0.8 * draws.normal(x)

    made = calibrated(by_pixels(train.images, line=0.5), train, validation, test, view, rate=0.9)
    again = recognition.pairs_of_views(made, validation, view)
    assert np.mean(again.logits[again.same] >= 0) == pytest.approx(0.9, abs=0.03)
    assert made.threshold == 0.5
    assert made.figures["auroc"] > 0.99
    assert made.figures["pairs"] == made.figures["patients"] == 20
    assert made.figures["unseen_rejected"] < 0.1
    assert made.withheld() == ""
    assert made.index.ids == train.ids
    raw = recognition.uncalibrated(made)
    logits = raw.same(made.seen(test.images)[:, None], made.seen(test.images)[None])
    plain = by_pixels(train.images, line=0.5).module
    signatures = plain.seen(test.images)
    assert torch.allclose(logits, plain.same(signatures[:, None], signatures[None]), atol=1e-2)
    assert recognition.recognized(made, train.images).all()
    assert recognition.recognized(made, people(20, 3).images).mean() < 0.1
