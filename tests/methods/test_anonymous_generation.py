"""Anonymous generation: what is rejected, what is drawn again, and what the log says."""

from dataclasses import replace

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.testing import ideal_backbone
from monai_diffaug.types import DiffAugError, NoiseSource

from ..verifying import by_pixels


@pytest.fixture(scope="module")
def heads():
    """An exact model of twelve pictures whose verifier remembers the first six."""
    backbone = ideal_backbone(2, size=16)
    points = backbone.network.module.points.float()
    return replace(backbone, verifier=by_pixels(points[:6]))


def made(backbone, seeds=range(8), **given):
    return registry.call("anonymous_generation", backbone, steps=10, generator=NoiseSource(seeds), **given)


def test_without_a_line_nothing_is_rejected_and_it_is_plain_sampling(heads):
    free = made(heads, threshold=1.1)
    assert free.info["rejected"] == [0] * 8
    other = made(replace(heads, verifier=by_pixels(-heads.network.module.points.float())))
    assert torch.equal(free.image, other.image)


def test_what_is_rejected_is_drawn_again_and_the_rest_is_left(heads):
    free, kept = made(heads, threshold=1.1), made(heads)
    again = torch.tensor(kept.info["rejected"]) > 0
    assert 0 < int(again.sum()) < 8
    assert torch.equal(again, torch.tensor(free.info["p_same"]) >= 0.5), "exactly those that were recognized"
    assert torch.equal(free.image[~again], kept.image[~again])
    assert max(kept.info["p_same"]) < 0.5


def test_the_log_names_the_nearest_training_image_and_what_was_rejected(heads):
    sample = made(heads)
    points = heads.network.module.points.float()
    for image, entry in zip(sample.image, sample.info["audit"], strict=True):
        assert set(entry) == {"nearest", "distance", "probability", "logit", "threshold", "rejected"}
        distances = [1 - float(a @ b) for a in [_unit(image.clamp(-1, 1))] for b in map(_unit, points[:6])]
        assert entry["nearest"] == f"film {min(range(6), key=distances.__getitem__)}"
        assert entry["distance"] == pytest.approx(min(distances), abs=1e-4)
        assert all(r["probability"] >= 0.5 for r in entry["rejected"])
    assert sample.info["rejected"] == [len(e["rejected"]) for e in sample.info["audit"]]
    assert "never measured" in sample.info["certificate"]


def _unit(x):
    x = x.flatten() - x.mean()
    return x / x.norm()


def test_every_condition_gets_its_images(heads):
    asked = ["tumor", "healthy", "tumor", "tumor"]
    sample = made(heads, range(4), prompt=asked)
    assert sample.label == asked
    spots = sample.image.flatten(1).amax(1) > 0.3
    assert spots.tolist() == [a == "tumor" for a in asked]


def test_an_image_does_not_depend_on_its_batch(heads):
    together = made(heads, [3, 4, 5])
    for i, seed in enumerate([3, 4, 5]):
        assert torch.allclose(made(heads, [seed]).image[0], together.image[i], atol=1e-5)


def test_refusals(heads):
    everything = replace(heads, verifier=by_pixels(heads.network.module.points.float(), line=0.3))
    with pytest.raises(DiffAugError, match="recognized in all 3 draws of 8 of 8 images: give more draws"):
        made(everything, draws=3)
    with pytest.raises(DiffAugError, match="needs verifier"):
        made(replace(heads, verifier=None))
    forgetful = by_pixels(heads.network.module.points.float())
    forgetful.index = None
    with pytest.raises(DiffAugError, match="remembers no training images"):
        made(replace(heads, verifier=forgetful))
    with pytest.raises(DiffAugError, match="8 images were given 2 prompts"):
        made(heads, prompt=["tumor", "healthy"])
