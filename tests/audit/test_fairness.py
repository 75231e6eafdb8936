"""Fairness: a group whose synthetic images are worse is seen, and whose training images are repeated is counted."""

from pathlib import Path

import torch

from monai_diffaug.audit.fairness import fairness
from monai_diffaug.backbones.extractors import extractor
from monai_diffaug.evaluation.images import Pictures

from .sets import bodies


class Coarse(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 8).flatten(1)


def pictures(images, name):
    n = len(images)
    fields = tuple({"sex": "FM"[i % 2], "patient": f"{name}{i}"} for i in range(n))
    paths = tuple(Path(f"{name}{i}.png") for i in range(n))
    return Pictures(images, None, ("",) * n, tuple(f["patient"] for f in fields), paths, (None,) * n, (), fields)


def test_a_group_that_is_made_worse_is_seen():
    network = extractor(Coarse(), size=32)
    unseen, made = bodies(80, 1), bodies(80, 2)
    even = fairness(pictures(unseen, "u"), pictures(made, "s"), ("sex",), network, draws=8)
    assert even.verdict == "pass"
    assert even.figures["sex_gap_kid"].bar is not None
    worse = made.clone()
    worse[1::2] = worse[1::2, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3) * 0.3
    found = fairness(pictures(unseen, "u"), pictures(worse, "s"), ("sex",), network, draws=8)
    assert found.verdict == "fail"
    assert "by sex" in found.says
    assert found.more["groups"][0]["attribute"] == "sex"


def test_repeated_training_images_are_counted_by_group():
    groups = {"sex": {f"t{i}.png": "FM"[i % 2] for i in range(20)}}
    network = extractor(Coarse(), size=32)
    few = pictures(bodies(8, 0), "s")
    found = fairness(few, few, ("sex",), network, ["t0.png", "t2.png", "t0.png"], groups)
    assert found.figures["sex_repeated_F"].value == 0.2
    assert found.figures["sex_repeated_M"].value == 0
    assert found.verdict == "not judged", "eight images are too few"
    assert fairness(few, few, (), network).verdict == "not judged"
