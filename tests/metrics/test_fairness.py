"""Gaps between groups: the definitions, what chance alone gives, planted bias taken back, and leveling down."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monai_diffaug.metrics.fairness import by_group, changed, confusion, corrected
from monai_diffaug.types import DiffAugError


def cases(n=600, right=(0.9, 0.6), seed=0):
    """Two images a patient; the model is right as often as ``right`` says for the patient's group."""
    rng = np.random.default_rng(seed)
    patients = [f"p{i // 2}" for i in range(n)]
    groups = np.where((np.arange(n) // 2) % 2 == 0, "female", "male")
    truth = rng.random(n) < 0.4
    hit = rng.random(n) < np.where(groups == "female", *right)
    scores = np.where(hit == truth, rng.uniform(0.5, 1, n), rng.uniform(0, 0.5, n))
    return truth, scores, groups.tolist(), patients


def test_the_figures_are_their_definitions():
    truth, scores, groups, patients = cases()
    found = by_group(truth, scores, groups, patients, partings=20)
    g = np.array(groups)
    rates = {}
    for row in found.groups:
        t, s = truth[g == row.group], scores[g == row.group]
        called = s >= 0.5
        rates[row.group] = (called[t].mean(), called[~t].mean())
        assert row.figures["sensitivity"].value == pytest.approx(called[t].mean())
        assert row.figures["specificity"].value == pytest.approx(1 - called[~t].mean())
        assert row.figures["auroc"].value == pytest.approx(roc_auc_score(t, s))
        bins = np.minimum((s * 15).astype(int), 14)
        ece = sum(abs(t[bins == b].mean() - s[bins == b].mean()) * (bins == b).mean() for b in set(bins))
        assert row.figures["ece"].value == pytest.approx(ece)
        assert row.patients == 150
    apart = np.abs(np.subtract(*rates.values()))
    assert found.equalized_odds.value == pytest.approx(apart.max())  # Hardt et al.; as fairlearn's
    assert found.gaps["sensitivity"].value == pytest.approx(apart[0])
    assert found.worst["sensitivity"] == "male"
    assert found.gaps["sensitivity"].low > found.chance["sensitivity"] > 0


def test_ties_count_half_and_draws_are_of_patients():
    rng = np.random.default_rng(1)
    truth, scores = rng.random(80) < 0.5, rng.integers(0, 4, 80) / 4
    groups = ["a"] * 40 + ["b"] * 40
    alone = by_group(truth, scores, groups, [str(i) for i in range(80)], partings=5)
    assert alone.groups[0].figures["auroc"].value == pytest.approx(roc_auc_score(truth[:40], scores[:40]))
    # The same cases ten times over: no new patient, so no narrower interval.
    tiled = by_group(np.tile(truth, 10), np.tile(scores, 10), groups * 10, [str(i) for i in range(80)] * 10, partings=5)
    for row, other in zip(alone.groups, tiled.groups, strict=True):
        assert row.figures["auroc"] == other.figures["auroc"]


def test_an_interval_holds_what_other_patients_would_give():
    gaps = [by_group(*cases(seed=s), draws=1, partings=1).gaps["sensitivity"].value for s in range(60)]
    found = by_group(*cases(seed=99), partings=1).gaps["sensitivity"]
    assert 0.6 < (found.high - found.low) / (4 * np.std(gaps)) < 1.6


def test_without_a_difference_the_gap_is_what_chance_gives():
    over = 0
    for seed in range(30):
        found = by_group(*cases(300, (0.8, 0.8), seed), draws=2, partings=60, seed=seed)
        over += found.gaps["sensitivity"].value > found.chance["sensitivity"]
    assert over <= 5  # 5 % of 30 is 1.5


def test_small_groups_are_left_out_and_named():
    truth, scores, groups, patients = cases(60)
    groups[0] = groups[1] = "other"
    found = by_group(truth, scores, groups, patients, draws=5, partings=2)
    assert found.left_out == ("other (1 patients)",)
    assert [g.group for g in found.groups] == ["female", "male"]
    with pytest.raises(DiffAugError, match="fewer than two groups"):
        by_group(truth, scores, ["female"] * 60, patients)
    with pytest.raises(DiffAugError, match="do not fit"):
        by_group(truth, scores[:5], groups, patients)
    with pytest.raises(DiffAugError, match="finite"):
        by_group(truth, np.full(60, np.nan), groups, patients)


def test_one_truth_in_a_group_has_no_area_instead_of_a_half():
    truth, scores, groups, patients = cases(200)
    truth = truth & (np.array(groups) == "female")
    found = by_group(truth, scores, groups, patients, draws=20, partings=2)
    male = next(g for g in found.groups if g.group == "male")
    assert "auroc" not in male.figures
    assert "sensitivity" not in male.figures
    assert "sensitivity" not in found.gaps
    assert "specificity" in found.gaps


@pytest.mark.parametrize(
    ("before", "after", "flagged"),
    [
        ((0.95, 0.60), (0.70, 0.60), True),  # the best group pays
        ((0.95, 0.60), (0.95, 0.85), False),  # the worst group wins
        ((0.95, 0.60), (0.93, 0.85), False),  # it wins more than the best loses
        ((0.95, 0.60), (0.80, 0.45), False),  # all lose: bad, but no gap is closed
    ],
)
def test_leveling_down_is_flagged(before, after, flagged):
    truth, first, groups, patients = cases(3000, before)
    second = cases(3000, after)[1]
    for figure in ("sensitivity", "auroc"):
        found = changed(truth, first, second, groups, patients, figure=figure, draws=200)
        assert found.leveling_down is flagged, figure
    if flagged:
        assert found.gap.high < 0
        assert found.groups["female"].high < 0
    with pytest.raises(DiffAugError, match="unknown"):
        changed(truth, first, second, groups, patients, figure="kappa")


def test_planted_bias_is_recovered_through_a_poor_classifier():
    """A generator that makes 90 of 100 of one group, counted by a classifier that is wrong in 15 and 25 of 100."""
    mistakes = np.array([[0.85, 0.15], [0.25, 0.75]])
    for seed in range(5):
        rng = np.random.default_rng(seed)

        def call(truth, rng=rng):
            return (rng.random(len(truth)) < mistakes[truth, 1]).astype(int)

        real, made = rng.integers(0, 2, 8000), (rng.random(20000) < 0.1).astype(int)
        seen = confusion(real, call(real), 2)
        counted = np.bincount(call(made), minlength=2) / len(made)
        assert abs(counted[0] - 0.9) > 0.05  # the control: what it counted is off
        assert abs(corrected(counted, seen)[0] - made_share(made)) < 0.02
        assert abs(made_share(made) - 0.9) < 0.01


def made_share(made):
    return float((made == 0).mean())


def test_three_groups_and_a_classifier_that_guesses():
    mistakes = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.05, 0.15, 0.8]])
    p = np.array([0.7, 0.3, 0.0])
    assert corrected(mistakes.T @ p, mistakes) == pytest.approx(p, abs=1e-12)
    with pytest.raises(DiffAugError, match="hardly tells"):
        corrected([0.5, 0.5], [[0.5, 0.5], [0.49, 0.51]])
    with pytest.raises(DiffAugError, match="no real case"):
        confusion([0, 0], [0, 1], 2)
