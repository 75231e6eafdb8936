"""Mechanism: a conditional sampler, its draws' mean and spread, its calls."""

import pytest
import torch

from monai_diffaug.methods.application.medical.low_dose_ct_denoising import low_dose_ct_denoising
from monai_diffaug.primitives import plans
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError, NoiseSource


@pytest.fixture(scope="module")
def backbone():
    return tiny("image")


def image(batch=2, size=16):
    return torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def run(backbone, x, **options):
    return low_dose_ct_denoising(backbone, x, generator=NoiseSource(range(len(x))), **options)


def test_one_draw_is_the_plain_conditional_ode(backbone):
    x = image()
    plan = plans.dpmpp_2m(backbone.schedule, 5)
    z = NoiseSource([0, 1]).spawn(1).normal(x)
    expected = sample(backbone.denoiser(backbone.condition(2, image=x)), plan[0].level.sigma * z, plan)
    got = run(backbone, x, steps=5)
    torch.testing.assert_close(got.image, expected)
    assert not bool(got.map.any())
    assert got.info == {"calls": 5}


def test_the_image_is_told(backbone):
    x = image()
    assert not torch.allclose(run(backbone, x, steps=3).image, run(backbone, x.flip(0), steps=3).image, atol=1e-3)


def test_mean_and_spread_are_those_of_the_draws(backbone):
    x, seeds = image(), NoiseSource([0, 1]).spawn(4).seeds
    got = run(backbone, x, steps=3, draws=4)
    plan = plans.dpmpp_2m(backbone.schedule, 3)
    denoise = backbone.denoiser(backbone.condition(2, image=x))
    each = [
        sample(denoise, plan[0].level.sigma * NoiseSource(seeds[2 * c : 2 * c + 2]).normal(x), plan) for c in range(4)
    ]
    torch.testing.assert_close(got.image, torch.stack(each).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.map, torch.stack(each).std(0), atol=1e-5, rtol=1e-3)
    assert got.info == {"calls": 12}


def test_an_image_does_not_depend_on_its_batch(backbone):
    x = image()
    alone = low_dose_ct_denoising(backbone, x[1:], steps=3, draws=2, generator=NoiseSource([1]))
    torch.testing.assert_close(run(backbone, x, steps=3, draws=2).image[1:], alone.image, atol=1e-5, rtol=1e-4)


def test_calls_of_the_network_are_counted_right(backbone, monkeypatch):
    calls = []
    module = backbone.network.module
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    try:
        told = run(backbone, image(), steps=7, draws=2).info["calls"]
    finally:
        handle.remove()
    assert len(calls) == told == 14


def test_any_size_goes(backbone):
    assert run(backbone, image(size=24), steps=2).image.shape == (2, 1, 24, 24)


def test_nothing_drawn_is_refused(backbone):
    with pytest.raises(DiffAugError, match="give at least 1"):
        run(backbone, image(), draws=0)
