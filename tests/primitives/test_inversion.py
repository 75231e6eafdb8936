"""From image to noise and back, against closed forms and plain DDIM inversion."""

import pytest
import torch

from monai_diffaug.backbones.ideal import gaussian
from monai_diffaug.primitives import guidance, plans
from monai_diffaug.primitives.inversion import invert
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.testing import ideal_backbone, tiny

MEAN, STD = 0.5, 0.3


def rms(x):
    return float(x.double().pow(2).mean().sqrt())


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_gaussian_noise_is_the_inverse_of_the_walk(steps):
    """Every step on N(m, s^2) is affine in x, so the noise from which the walk gives x is known in closed form."""
    backbone = gaussian(MEAN, STD, (1, 8, 8))
    plan = plans.ddim(backbone.schedule, steps)
    x = MEAN + STD * torch.randn(3, 1, 8, 8, dtype=torch.float64)
    slope, shift = 1.0, 0.0
    for row in plan:
        level = row.level
        gain = STD**2 * level.alpha / (level.alpha**2 * STD**2 + level.sigma**2)
        mean = MEAN * (1 - gain * level.alpha)
        a = row.alpha * gain + row.sigma / level.sigma * (1 - level.alpha * gain)
        b = row.alpha * mean - row.sigma / level.sigma * level.alpha * mean
        slope, shift = a * slope, a * shift + b
    found = invert(backbone.denoiser(backbone.condition(3)), x, plan, tolerance=1e-8, iterations=50)
    assert found.converged
    torch.testing.assert_close(found.latent, (x - shift) / slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("dims", [2, 3])
def test_round_trip_is_a_twentieth_of_plain_inversion(dims, steps):
    """The bar of issue 2, on the exact denoiser of a data set of images."""
    backbone = ideal_backbone(dims, labels=False, size=8)
    generator = torch.Generator().manual_seed(4)
    points = backbone.network.module.points[:4]
    x = points + 0.1 * torch.randn(points.shape, generator=generator)
    plan = plans.ddim(backbone.schedule, steps)
    denoise = backbone.denoiser(backbone.condition(4))
    errors = []
    for iterations in (0, 12):
        found = invert(denoise, x, plan, tolerance=1e-5, iterations=iterations)
        errors.append(rms(sample(denoise, found.latent, found.plan) - x))
    assert errors[1] <= errors[0] / 20, errors


@pytest.mark.parametrize("solver", ["dpmpp_2m", "sde_dpmpp_2m", "heun", "ddpm"])
def test_any_plan_can_be_undone(solver):
    backbone = tiny("class", size=8)
    plan = plans.make(backbone.schedule, 10, solver, strength=0.8)
    x = torch.randn(2, 1, 8, 8)
    denoise = backbone.denoiser(backbone.condition(2, label="tumor"))
    found = invert(denoise, x, plan)
    assert found.converged
    assert all(row.eta == row.kappa == 0 for row in found.plan)
    assert rms(sample(denoise, found.latent, found.plan) - x) < 2e-3


def test_the_residual_is_what_the_sampler_misses_by():
    backbone = tiny("class", size=8)
    plan = plans.ddim(backbone.schedule, 6)
    x = torch.randn(1, 1, 8, 8)
    denoise = backbone.denoiser(backbone.condition(1))
    for iterations in (0, 1, 12):
        found = invert(denoise, x, plan, iterations=iterations, tolerance=1e-6)
        misses = []
        path = [*found.trajectory, x]
        for row, here, there in zip(found.plan, path, path[1:]):
            misses.append(rms(sample(denoise, here, (row,)) - there) / rms(there))
        assert found.residual == pytest.approx(max(misses), rel=0.05, abs=1e-7)


def test_tolerance_is_kept_and_buys_calls():
    backbone = tiny("class", size=8)
    plan = plans.ddim(backbone.schedule, 10)
    x = torch.randn(2, 1, 8, 8)
    denoise = backbone.denoiser(backbone.condition(2))
    calls = []
    for tolerance in (1e-2, 1e-3, 1e-5):
        found = invert(denoise, x, plan, tolerance=tolerance, iterations=30)
        assert found.residual <= tolerance
        assert len(found.residuals) == 2
        calls.append(found.calls)
    assert calls == sorted(calls)
    assert calls[0] < calls[-1]


def test_calls_are_counted():
    backbone, calls = tiny("none", size=8), []
    plain = backbone.denoiser(backbone.condition(1))

    def denoise(x, level):
        calls.append(level)
        return plain(x, level)

    found = invert(denoise, torch.randn(1, 1, 8, 8), plans.ddim(backbone.schedule, 5))
    assert found.calls == len(calls)
    plain_one = invert(denoise, torch.randn(1, 1, 8, 8), plans.ddim(backbone.schedule, 5), iterations=0)
    assert plain_one.calls == 1 + 5  # the first step's noise, and one look at each point


def test_each_image_is_inverted_for_itself():
    backbone = tiny("class", size=8)
    plan = plans.ddim(backbone.schedule, 6)
    x = torch.randn(3, 1, 8, 8)
    together = invert(backbone.denoiser(backbone.condition(3)), x, plan).latent
    alone = invert(backbone.denoiser(backbone.condition(1)), x[2:], plan).latent
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=0)


def test_a_guided_walk_can_be_inverted_too():
    backbone = tiny("class", size=8)
    plan = plans.ddim(backbone.schedule, 10, strength=0.6)
    x = torch.randn(2, 1, 8, 8)
    guided = guidance.classifier_free(backbone, backbone.condition(2, label="tumor"), 3.0)
    found = invert(guided, x, plan, tolerance=1e-5, iterations=30)
    assert found.converged
    assert rms(sample(guided, found.latent, found.plan) - x) < 1e-3
    assert rms(sample(guided, invert(guided, x, plan, iterations=0).latent, found.plan) - x) > 1e-2


def test_empty_plan_and_callback():
    backbone = tiny("none", size=8)
    x = torch.randn(1, 1, 8, 8)
    denoise = backbone.denoiser(backbone.condition(1))
    found = invert(denoise, x, ())
    assert found.latent is x
    assert found.residual == 0.0
    rows = []
    plan = plans.ddim(backbone.schedule, 4)
    found = invert(denoise, x, plan, callback=lambda x, row: rows.append(row.level.index))
    assert rows == [3, 2, 1, 0]
    assert torch.equal(found.trajectory[0], found.latent)
