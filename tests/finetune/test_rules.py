"""When a run stops: copies of training images are found out, samples of the kind are not."""

import pytest
import torch

from monai_diffaug.finetune.memorizing import Neighbors
from monai_diffaug.finetune.stopping import Rules, Watch


def faces(patients, each, seed):
    """Images (n, 1, 24, 24) of patients: each has a pattern, each image a little of its own."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.linspace(-1, 1, 24)[None, None, None] * torch.ones(24, 1)
    own = torch.randn(patients, 1, 24, 24, generator=generator).repeat_interleave(each, 0)
    images = kind + 0.5 * own + 0.1 * torch.randn(patients * each, 1, 24, 24, generator=generator)
    return images, [f"{seed}-{i // each}" for i in range(patients * each)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_copies_are_near_and_others_are_not(seed):
    train, unseen = faces(24, 5, 10 + seed), faces(4, 5, 20 + seed)
    watched = Neighbors(*train, *unseen)
    fresh = watched.nearness(faces(24, 1, 30 + seed)[0])
    assert 0.9 < fresh.ratio < 1.1
    assert fresh.low < 1.0
    copies = train[0][::5] + 0.02 * torch.randn(24, 1, 24, 24)
    copied = watched.nearness(copies)
    assert copied.ratio > 1.2
    assert copied.low > 1.0
    assert watched.nearness(unseen[0]).ratio < 0.5  # and the other way around


def test_groups_are_of_one_size():
    watched = Neighbors(*faces(23, 5, 1), *faces(4, 3, 2))
    assert [len(g) for g in watched.groups] == [12] * 5
    assert len(watched.unseen) == 12


def test_too_few_patients_tell_nothing():
    near = Neighbors(*faces(1, 5, 1), *faces(1, 5, 2)).nearness(faces(1, 5, 1)[0])
    assert near.low == 0.0


def seen(losses, ratios=None, lows=None, **rules):
    watch = Watch(Rules(**rules))
    for i, loss in enumerate(losses):
        ratio, low = (ratios or [1.0] * len(losses))[i], (lows or [0.9] * len(losses))[i]
        watch.see((i + 1) * 10, loss, ratio, low, {"w": torch.tensor(float(i))})
    return watch


def test_patience_keeps_the_best():
    watch = seen([1.0, 0.8, 0.81, 0.82, 0.83, 0.84], patience=4)
    assert watch.best_step == 20
    assert watch.best["w"] == 1.0
    assert watch.why.startswith("no better at step 60: the held-out loss was least at step 20 (0.8)")
    assert not seen([1.0, 0.8, 0.81, 0.82, 0.83], patience=4).why
    assert not seen([1.0, 0.8, 0.81, 0.82, 0.83, 0.84], patience=0).why


def test_memorizing_stops_when_it_is_certain_and_new():
    rising = [1.0, 1.05, 1.2, 1.3]
    watch = seen([1.0, 0.9, 0.8, 0.7], rising, [0.9, 0.95, 1.05, 1.1])
    assert "memorizing at step 40: samples lie 1.30 times nearer" in watch.why
    assert "step 40 was kept" in watch.why
    assert not seen([1.0, 0.9, 0.8, 0.7], rising, [0.9] * 4).why  # the interval reaches down to 1
    assert not seen([1.0, 0.9, 0.8, 0.7], [1.3] * 4, [1.1] * 4).why  # unseen patients are unlike from the beginning
    assert not seen([1.0, 0.9, 0.8], rising[:3], [0.9, 0.95, 1.05]).why  # once is chance
    assert not seen([1.0, 0.9, 0.8, 0.7], rising, [0.9, 0.95, 1.05, 1.1], memorized=0.0).why


def test_a_checkpoint_brings_it_back():
    watch, again = seen([1.0, 0.8, 0.9]), Watch(Rules())
    again.load_state_dict(watch.state_dict())
    assert again.state_dict() == watch.state_dict()
