"""Extraction: samples that come again and again and lie on a training image are found; a model of others passes."""

import numpy as np
import pytest
import torch

from monai_diffaug.audit.extraction import Extractable, clusters, extraction, relative_distance
from monai_diffaug.backbones.ideal import ideal

from .sets import bodies, people


def test_the_ratio_is_small_for_copies_only():
    """Half the distance to the usual neighbors: 0 for a copy, 2 for an image as far from all."""
    train = bodies(40, 0)
    copies, _ = relative_distance((train[:10].flip(-1) + 0.02 * torch.randn(10, 1, 32, 32)).clamp(-1, 1), train)
    others, _ = relative_distance(bodies(10, 1), train)
    assert float(copies.max()) < 0.5 < float(others.min())
    assert relative_distance(train[5:6].flip(-1), train)[1].item() == 5


def test_clusters_are_near_duplicates():
    x = bodies(6, 0)
    label = clusters(torch.cat([x, x[:1] + 0.001, x[:2] - 0.001]), 2.0)
    assert label[0] == label[6] == label[7] >= 0
    assert label[1] == label[8] >= 0
    assert (label[2:6] == -1).all()


@pytest.fixture(scope="module")
def unseen():
    return people(bodies(40, 1), "o")


def test_a_model_that_memorized_gives_its_images_away(unseen):
    """The exact denoiser of twelve images against that of twelve others."""
    points = bodies(12, 0)
    model, stranger = (ideal(x) for x in (points, bodies(12, 5)))
    found, made = extraction(model, people(points, "m"), unseen, times=2, rate=0.05, steps=8)
    assert len(made) == 24
    assert found.verdict == "fail"
    assert found.figures["copied_samples"].value > 0.8
    assert found.figures["extracted_images"].value > 0.3
    assert "24 samples were drawn, 2.0 times" in found.says
    other, _ = extraction(stranger, people(points, "m"), unseen, times=2, rate=0.05, steps=8)
    assert other.figures["copied_samples"].value < found.figures["copied_samples"].value / 5


def test_the_budget_is_kept_and_said(unseen):
    points, done = bodies(12, 0), []
    model = ideal(points)
    found, made = extraction(model, people(points), unseen, times=10, most=5, rate=0.05, steps=2, advance=done.append)
    assert len(made) == sum(done) == 5
    assert found.more["samples_asked"] == 120
    assert extraction(model, people(points), unseen, rate=0.02)[0].verdict == "not judged", "40 unseen are too few"


def test_the_line_lets_the_rate_of_unseen_images_pass():
    train, unseen = bodies(40, 0), people(bodies(100, 1), "o")
    judge = Extractable(train, unseen, rate=0.05)
    assert judge(unseen.images)["copied"] == pytest.approx(5, abs=1)
    fresh = np.mean([judge(bodies(50, s))["copied"] / 50 for s in (2, 3, 4)])
    assert fresh < 0.15
