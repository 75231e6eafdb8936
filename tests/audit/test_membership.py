"""Membership inference: a model that knows its images by heart is caught, labels by lot and swapped ones are not."""

import numpy as np
import pytest
import torch

from monai_diffaug.audit.findings import auroc, over_patients
from monai_diffaug.audit.membership import errors, membership, simple_statistics, strength
from monai_diffaug.metrics.proportion import wilson
from monai_diffaug.testing import ideal_backbone

from .sets import people


@pytest.fixture(scope="module")
def heads():
    """The exact denoiser of twelve images: nothing else can come out of it."""
    return ideal_backbone(2, size=16)


@pytest.fixture(scope="module")
def points(heads):
    return heads.network.module.points.float()


def others(points, n=24):
    """As bright and as smooth, of other patients: mixtures of the twelve, mirrored."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(len(points), (n,), generator=g) for _ in range(2))
    return (0.5 * (points[a] + points[b].flip(-1))).clamp(-1, 1) if n else points[:0]


def test_a_model_that_memorized_is_caught_and_swapping_the_sides_turns_the_sign(heads, points):
    members, strangers = people(points, "m"), people(others(points), "o")
    found = membership(heads, members, strangers)
    assert found.figures["loss_auroc"].value > 0.95
    assert found.figures["loss_tpr_at_1"].value > 0.5
    low, high = found.figures["loss_auroc"].interval
    assert 0.5 < low <= found.figures["loss_auroc"].value <= high
    assert abs(found.figures["loss_auroc"].control - 0.5) < 0.05, "labels by lot"
    swapped = membership(heads, strangers, members)
    assert swapped.figures["loss_auroc"].value == pytest.approx(1 - found.figures["loss_auroc"].value, abs=1e-6)
    assert swapped.verdict == "pass"


def test_a_model_that_knows_neither_side_tells_nobody(heads, points):
    x = others(points, 48)
    found = membership(heads, people(x[:24], "a"), people(x[24:], "b"))
    assert found.verdict == "pass"
    assert abs(found.figures["loss_auroc"].value - 0.5) < 0.25


def test_all_images_get_the_same_noise(heads, points):
    """Twice the same image, at other places of other batches, has twice the same error to the bit of its float."""
    x = torch.cat([points[:1], others(points, 40), points[:1]])
    rows = errors(heads, x, [""] * len(x), draws=2)
    assert np.allclose(rows[0], rows[-1], atol=1e-4)
    assert rows.shape == (42, 5)
    assert not np.allclose(rows, errors(heads, x, [""] * len(x), draws=2, seed=1))


def test_the_likelihood_ratio_takes_away_how_hard_an_image_is(heads, points):
    """Against a model of other heads it is as strong; against itself there is nothing left."""
    other = ideal_backbone(2, size=16, seed=5)
    members, strangers = people(points, "m"), people(others(points), "o")
    found = membership(heads, members, strangers, reference=other)
    assert found.figures["likelihood_ratio_auroc"].value > 0.9
    same = membership(heads, members, strangers, reference=heads)
    assert same.figures["likelihood_ratio_auroc"].value == pytest.approx(0.5, abs=0.01), "a model against itself"


def test_two_sets_that_differ_anyway_are_not_judged(heads, points):
    """Strangers from a darker scanner: brightness tells them, and the attack's success says nothing of the model."""
    dark = people((0.3 * others(points) - 0.6).clamp(-1, 1), "o")
    members = people(others(points, 40)[24:] * 1.0, "m")
    found = membership(heads, members, dark)
    assert found.figures["simple_statistics_auroc"].value > 0.9
    assert any("brightness" in w for w in found.more["warnings"])
    assert found.verdict != "fail"


def test_too_few_patients(heads, points):
    assert membership(heads, people(points[:4]), people(others(points), "o")).verdict == "not judged"


def test_strength_by_hand():
    s = strength(np.array([4.0, 3.0, 2.0, 1.0]), np.array([0.5, 2.5, 0.0, 0.1]))
    assert s["auroc"] == 14 / 16
    assert s["tpr_at_1"] == s["tpr_at_01"] == 0.5, "two members above every other"
    even = strength(np.arange(1000) / 1000 + 1e-4, np.arange(1000) / 1000)
    assert even["tpr_at_1"] == pytest.approx(0.01, abs=0.002)
    assert even["balanced_accuracy"] == pytest.approx(0.5, abs=0.01)


def test_chance():
    assert auroc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    low, high = wilson(0, 20)
    assert low == 0
    assert 0.1 < high < 0.2
    few, many = (
        over_patients(lambda i: {"m": float(np.tile([0, 1], 30)[i].mean())}, [str(k // g) for k in range(60)])["m"]
        for g in (10, 1)
    )
    assert many[1] - many[0] > few[1] - few[0], "patients with as many of either say more about the mean"


def test_statistics_alone_tell_nothing_of_like_sets(points):
    x = others(points, 80)
    scores = simple_statistics(people(x[:40], "a"), people(x[40:], "b"))
    assert 0.25 < auroc(scores[:40], scores[40:]) < 0.75
