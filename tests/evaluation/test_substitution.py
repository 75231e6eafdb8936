"""Synthetic in place of real: good ones train as good a classifier, mislabeled ones do not."""

import pytest
import torch
from torch import nn

from monai_diffaug.evaluation.substitution import balanced, substituted
from monai_diffaug.primitives.runs import Settings
from monai_diffaug.types import DiffAugError

SETTINGS = Settings(60, 16, lr=1e-2, warmup=5, ema=0.9, precision=torch.float32)


def films(n, seed):
    """Class 1 has a brighter left half."""
    g = torch.Generator().manual_seed(seed)
    classes = torch.arange(n) % 2
    images = 0.5 * torch.randn(n, 1, 8, 8, generator=g)
    images[..., :4] += 0.15 * classes.reshape(-1, 1, 1, 1)
    return images, classes


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def test_as_good_as_real_or_not(tmp_path):
    real, test = films(200, 0), films(200, 1)
    good = substituted(network, real, films(200, 2), test, SETTINGS, tmp_path / "good")
    images, classes = films(200, 2)
    shuffled = classes[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    bad = substituted(network, real, (images, shuffled), test, SETTINGS, tmp_path / "bad")
    assert good.real == bad.real > 0.7
    assert good.real_interval[0] < good.real < good.real_interval[1]
    assert good.share > 0.9 > bad.share
    assert good.images == (200, 200)


def test_a_rare_class_is_repeated():
    images, classes = torch.arange(6.0).reshape(6, 1, 1), torch.tensor([0, 0, 0, 0, 1, 1])
    x, y = balanced(images, classes)
    assert y.bincount().tolist() == [4, 4]
    assert sorted(x.flatten().tolist()) == [0, 1, 2, 3, 4, 4, 5, 5]


def test_one_class_is_refused(tmp_path):
    images, classes = films(20, 0)
    with pytest.raises(DiffAugError, match="the synthetic images are of one class only"):
        substituted(network, (images, classes), (images, classes * 0), (images, classes), SETTINGS, tmp_path)
