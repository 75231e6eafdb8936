"""Attributes: what synthetic images teach about everyone is no leak; what they betray of training patients is."""

import numpy as np
import torch

from monai_diffaug.audit.attributes import attributes, groups_of

from .sets import bodies, people


def sexes(n, seed):
    return ["FM"[b] for b in np.random.default_rng(seed).integers(0, 2, n)]


def test_copies_of_patients_betray_an_attribute_that_their_images_do_not_show():
    """Sex by lot: nobody can guess it of a stranger; of a patient whose copy is labeled, everybody can."""
    train, unseen = bodies(40, 0), bodies(40, 1)
    sex = sexes(40, 2), sexes(40, 3)
    copies = (train + 0.02 * torch.randn(train.shape)).clamp(-1, 1)
    found = attributes(people(train), people(unseen, "o"), people(copies, "s"), {"sex": (*sex, sex[0])})
    assert found.verdict == "fail"
    assert found.figures["sex_nearest_leak"].value > 0.2
    assert found.figures["sex_nearest_leak"].interval[0] > 0
    assert found.figures["sex_nearest_training"].control == 0.5

    fresh = attributes(people(train), people(unseen, "o"), people(bodies(40, 9), "s"), {"sex": (*sex, sexes(40, 4))})
    assert fresh.verdict == "pass"
    assert abs(fresh.figures["sex_nearest_leak"].value) < 0.3


def test_what_images_show_of_everyone_is_no_leak():
    """A bright half tells the group of anyone: guessed of all, and no better of training patients."""

    def shown(seed, groups):
        x = bodies(40, seed)
        for i, g in enumerate(groups):
            x[i, :, :16] += 0.8 * (g == "F")
        return x

    sex = [sexes(40, s) for s in (2, 3, 4)]
    sets = [people(shown(i, g), "abc"[i]) for i, g in enumerate(sex)]
    found = attributes(*sets, {"sex": tuple(sex)})
    assert found.figures["sex_classifier_unseen"].value > 0.85
    assert found.verdict == "pass"


def test_ages_are_cut_in_groups_and_what_is_not_known_is_left_out():
    a, b = groups_of([20, 30, 40, 50, 60, 70, None], [25, "", 80])
    assert a[-1] == b[1] == ""
    assert len(set(a) - {""}) == 3
    assert a[0] == b[0]
    assert a[5] == b[2]
    assert groups_of(["F", "M"], ["F"]) == (["F", "M"], ["F"])


def test_what_cannot_be_judged_is_said():
    x = people(bodies(10, 0)), people(bodies(10, 1), "o"), people(bodies(10, 2), "s")
    assert attributes(*x, {}).verdict == "not judged"
    silent = attributes(*x, {"sex": (sexes(10, 0), sexes(10, 1), [""] * 10)})
    assert silent.verdict == "not judged"
    assert "synthetic images do not say 'sex'" in silent.says
