"""The bootstrap draws patients, the same for both arms; Holm's correction is Holm's."""

import numpy as np
import pytest

from monai_diffaug.evaluation.utility.statistics import corrected, difference, patient_weights


def test_images_of_a_patient_are_drawn_together():
    patient = np.array([0, 0, 0, 1, 2, 2])
    weights = patient_weights(patient, 500)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 4] == weights[:, 5]).all()
    counts = weights[:, [0, 3, 4]]
    assert (counts.sum(1) == 3).all()
    assert counts[1:].std(0).min() > 0.5


def world(shift, people=12, each=6, seeds=2, noise=0.02):
    """Two arms on images whose difficulty belongs to the patient: means of each seed under the weights."""
    rng = np.random.default_rng(1)
    patient = np.repeat(np.arange(people), each)
    hard = rng.normal(0, 0.3, people)[patient]
    weights = patient_weights(patient, 1000)

    def seen(gain):
        score = hard + gain + rng.normal(0, noise, len(patient))
        return weights @ score / weights.sum(1)

    return [seen(shift) for _ in range(seeds)], [seen(0.0) for _ in range(seeds)]


def test_a_paired_difference_is_seen_where_an_unpaired_one_drowns():
    arm, control = world(0.05)
    found = difference(arm, control)
    assert found.difference == pytest.approx(0.05, abs=0.01)
    assert 0.03 < found.interval[0] < found.interval[1] < 0.07
    assert found.p < 0.01
    alone = np.quantile(np.mean(arm, axis=0)[1:], [0.025, 0.975])
    assert alone[1] - alone[0] > 5 * (found.interval[1] - found.interval[0])  # what not pairing would cost


def test_no_difference_is_not_found():
    found = difference(*world(0.0))
    assert found.interval[0] < 0 < found.interval[1]
    assert found.p > 0.05
    same = world(0.0)[0]
    assert difference(same, same).p == 1


def test_intervals_hold_what_they_promise():
    """In a world without a difference, 95 % intervals over patients leave zero out about one time in twenty."""
    rng, out = np.random.default_rng(0), 0
    patient = np.repeat(np.arange(30), 4)
    for i in range(200):
        weights = patient_weights(patient, 200, seed=i)
        own = rng.normal(0, 1, 30)[patient] + rng.normal(0, 0.1, 120)  # the difference clusters in patients
        d = difference([weights @ own / weights.sum(1)], [np.zeros(201)])
        out += not d.interval[0] <= 0 <= d.interval[1]
    assert out <= 22  # of 200; drawing images instead of patients gives about 60


def test_draws_that_leave_one_class_are_left_out():
    arm, control = np.array([0.5, np.nan, 0.7, 0.6]), np.array([0.4, np.nan, 0.5, 0.5])
    assert difference([arm], [control]).interval == pytest.approx((0.1025, 0.1975))


def test_holm():
    assert corrected({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert corrected({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
