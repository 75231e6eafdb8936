"""The short training loop, hints and objectives."""

import pytest
import torch

from monai_diffaug.primitives import finetuning, hints, objectives
from monai_diffaug.primitives.finetuning import Lesson, batches, curve, finetune
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError, Schedule

FLAT = Schedule((0.9, 0.7, 0.1), (0.1, 0.3, 0.9), "sample")
"""A flow whose network should return the clean latent, whatever the time."""


def constant(weight):
    return lambda x, t, picks: weight.expand_as(x)


def test_it_finds_what_the_loss_asks_for():
    """A network that returns one number learns the mean of the images."""
    weight = torch.zeros(1, requires_grad=True)
    losses = finetune(FLAT, [Lesson(torch.full((3, 1, 4, 4), 0.5), constant(weight))], [weight], steps=200, rate=0.05)
    assert float(weight.detach()) == pytest.approx(0.5, abs=0.03)
    assert len(losses) == 200
    assert losses[-1] < 0.01 < losses[0]


def test_lessons_are_weighed():
    """Pulled to 0 by one lesson and to 1 by another of three times the weight, it settles at 0.75."""
    weight = torch.zeros(1, requires_grad=True)
    lessons = [Lesson(torch.zeros(2, 1, 4, 4), constant(weight)), Lesson(torch.ones(2, 1, 4, 4), constant(weight), 3.0)]
    finetune(FLAT, lessons, [weight], steps=400, rate=0.02, decay=0.0)
    assert float(weight.detach()) == pytest.approx(0.75, abs=0.03)


def test_the_seed_says_everything():
    def run(seed):
        weight = torch.zeros(1, requires_grad=True)
        images = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 1, 2, 2)
        torch.manual_seed(seed + 99)
        return finetune(FLAT, [Lesson(images, constant(weight))], [weight], steps=5, rate=0.1, seed=seed % 2)

    assert run(0) == run(2)
    assert run(0) != run(1)


def test_targets_follow_the_schedule():
    """With the noise as target, a network that knows the clean image can reach a loss of nothing."""
    schedule = Schedule((0.9, 0.7, 0.1), (0.435, 0.714, 0.995), "epsilon")
    clean = torch.randn(2, 1, 4, 4)
    weight = torch.zeros(1, requires_grad=True)

    def output(x, t, picks):
        alpha, sigma = (torch.tensor(v)[t.long()].reshape(-1, 1, 1, 1) for v in (schedule.alphas, schedule.sigmas))
        return (x - alpha * clean[picks]) / sigma + weight

    losses = finetune(schedule, [Lesson(clean, output)], [weight], steps=3, rate=1e-6)
    assert max(losses) < 1e-6


def test_every_image_comes_before_any_comes_again():
    draw = batches(5, 2, torch.Generator().manual_seed(0))
    seen = torch.cat([next(draw) for _ in range(5)]).tolist()
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]


def test_a_runaway_is_stopped_and_named():
    weight = torch.zeros(1, requires_grad=True)
    with pytest.raises(DiffAugError, match="lower `rate`"):
        finetune(FLAT, [Lesson(torch.full((1, 1, 2, 2), float("inf")), constant(weight))], [weight], steps=1, rate=0.1)
    with pytest.raises(DiffAugError, match="steps"):
        finetune(FLAT, [], [], steps=-1, rate=0.1)
    with pytest.raises(DiffAugError, match="nothing to learn"):
        finetune(FLAT, [Lesson(torch.zeros(0, 1, 2, 2), constant(weight))], [weight], steps=1, rate=0.1)


def test_the_record_holds_a_few_means():
    assert curve([]) == []
    assert curve([1.0, 3.0, 5.0, 7.0], points=2) == [2.0, 6.0]


def test_latents_and_samples_of_a_backbone():
    backbone = tiny("text", autoencoder=True)
    images = torch.rand(3, 1, 16, 16)
    both = finetuning.latents_of(backbone, images, flip=True)
    assert both.shape == (6, 4, 8, 8)
    assert torch.allclose(both[3:], backbone.encode(images.flip(-1)), atol=1e-5)
    many = finetuning.drawn(backbone, 18, 7, steps=2, prompt="a head ct")
    assert many.shape == (18, 4, 8, 8)
    assert torch.allclose(many[16:17], finetuning.drawn(backbone, 1, 23, steps=2, prompt="a head ct"), atol=1e-4)


def test_hints_by_name():
    image, mask = torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    assert hints.hint_of("image", image).shape == (2, 1, 8, 8)
    assert hints.hint_of("mask", image, mask).equal(mask)
    with pytest.raises(DiffAugError, match="give `mask`"):
        hints.hint_of("mask", image)
    with pytest.raises(DiffAugError, match="did you mean 'edges'"):
        hints.hint_of("edge", image)


class _Judge:
    labels = ("dark", "bright")

    def logits(self, images):
        m = images.flatten(1).mean(1)
        return torch.stack([-m, m], 1)


def test_objectives_by_name():
    from dataclasses import replace

    backbone = replace(tiny("text"), judge=_Judge())
    image = torch.full((2, 1, 16, 16), 0.5, requires_grad=True)
    bright = objectives.named("judge", backbone, "bright")(image)
    dark = objectives.named("judge", backbone, ["dark", "dark"])(image)
    assert (bright < dark).all()
    assert bright.shape == (2,)
    seen = objectives.named("scorer", backbone, "a head ct")(image)
    assert torch.allclose(seen, 1 - backbone.scorer(image, ["a head ct"] * 2))
    (gradient,) = torch.autograd.grad(seen.sum(), image)
    assert gradient.abs().sum() > 0
    with pytest.raises(DiffAugError, match="knows no class 'gray'"):
        objectives.named("judge", backbone, "gray")
