"""The one loop: rows, draws, callbacks, and what it refuses."""

import math
import time

import pytest
import torch

from monai_diffaug.primitives import plans
from monai_diffaug.primitives.sampler import noised, sample, step
from monai_diffaug.testing import ideal_backbone, tiny
from monai_diffaug.types import DiffAugError, NoiseLevel, NoiseSource, Prediction, Row

LEVEL = NoiseLevel(500.0, 0.6, 0.8)


def constant(x, level):
    return Prediction(torch.full_like(x, 2.0), torch.full_like(x, 3.0))


def test_a_row_is_the_equation():
    x0, eps, before, z = torch.randn(4, 2, 1, 3, 3, dtype=torch.float64)
    row = Row(LEVEL, 0.9, 0.4, eta=0.1, kappa=0.2)
    got = step(row, Prediction(x0, eps), before, z)
    expected = 0.9 * x0 + math.sqrt(0.4**2 - 0.1**2) * eps + 0.1 * z + 0.2 * (x0 - before)
    torch.testing.assert_close(got, expected)
    first = step(row, Prediction(x0, eps), None, z)  # no step before: no second-order term
    torch.testing.assert_close(first, expected - 0.2 * (x0 - before))


def test_each_row_is_one_call_at_its_own_level():
    backbone, seen = ideal_backbone(), []
    plan = plans.dpmpp_2m(backbone.schedule, 7)

    def denoise(x, level):
        seen.append(level)
        return constant(x, level)

    sample(denoise, torch.zeros(1, 1, 16, 16), plan)
    assert seen == [row.level for row in plan]


def test_a_jump_goes_up_in_noise_without_a_call():
    calls = []

    def denoise(x, level):
        calls.append(level)
        return constant(x, level)

    x = torch.full((2, 1, 200, 200), 5.0)
    row = Row(NoiseLevel(100.0, 0.9, math.sqrt(1 - 0.81)), 0.5, math.sqrt(0.75), jump=True)
    out = sample(denoise, x, (row,), noise=NoiseSource([1, 2]))
    assert not calls
    keep = 0.5 / 0.9
    assert float(out.mean()) == pytest.approx(5 * keep, abs=0.02)
    assert float(out.std()) == pytest.approx(math.sqrt(0.75 - keep**2 * (1 - 0.81)), rel=0.02)


def test_jumped_data_has_the_spread_of_the_level():
    """Resampling keeps the marginal: noise to a level, jump higher, and the spread is that level's."""
    backbone = ideal_backbone()
    low, high = backbone.schedule.at(300.0), backbone.schedule.at(600.0)
    x = low.alpha * 0.0 + low.sigma * torch.randn(1, 1, 256, 256)
    out = sample(constant, x, (Row(low, high.alpha, high.sigma, jump=True),), noise=NoiseSource([3]))
    assert float(out.std()) == pytest.approx(high.sigma, rel=0.02)


def test_callback_sees_every_row_and_may_replace_x():
    plan = plans.ddim(ideal_backbone().schedule, 5)
    rows = []

    def callback(x, row, prediction):
        rows.append(row)
        assert torch.equal(prediction.x0, torch.full_like(x, 2.0))
        return torch.full_like(x, 7.0) if len(rows) == 5 else None

    out = sample(constant, torch.zeros(1, 1, 4, 4), plan, callback=callback)
    assert tuple(rows) == plan
    assert torch.equal(out, torch.full_like(out, 7.0))


def test_what_draws_wants_seeds():
    backbone = ideal_backbone()
    with pytest.raises(DiffAugError, match="one seed per image"):
        sample(constant, torch.zeros(1, 1, 4, 4), plans.ddpm(backbone.schedule, 5))
    with pytest.raises(DiffAugError, match="2 images were given 3 seeds"):
        sample(constant, torch.zeros(2, 1, 4, 4), plans.ddpm(backbone.schedule, 5), noise=NoiseSource([1, 2, 3]))


def test_what_is_not_finite_is_refused():
    def bad(x, level):
        return Prediction(x * float("nan"), x)

    with pytest.raises(DiffAugError, match="lower the guidance scale or use more steps"):
        sample(bad, torch.zeros(1, 1, 4, 4), plans.ddim(ideal_backbone().schedule, 3))


def test_an_empty_plan_changes_nothing():
    x = torch.randn(1, 1, 4, 4)
    assert sample(constant, x, ()) is x
    assert noised(x, (), NoiseSource([0])) is x


def test_no_graph_is_kept_unless_asked_for():
    plan = plans.ddim(ideal_backbone().schedule, 3)
    x = torch.randn(1, 1, 4, 4, requires_grad=True)

    def scaled(x, level):
        return Prediction(0.5 * x, x)

    assert not sample(scaled, x, plan).requires_grad
    out = sample(scaled, x, plan, grad=True)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert bool((gradient != 0).all())


@pytest.mark.parametrize("solver", sorted(plans.PLANS))
@pytest.mark.parametrize("dims", [2, 3])
def test_images_of_the_data_come_out(solver, dims):
    """From pure noise, the exact denoiser's samples lie on its data: nearest point within the data's own spread."""
    backbone = ideal_backbone(dims, labels=False, size=8)
    source = NoiseSource(range(6))
    x = source.normal(torch.zeros(6, 1, *[8] * dims))
    out = sample(backbone.denoiser(backbone.condition(6)), x, plans.make(backbone.schedule, 30, solver), noise=source)
    points = backbone.network.module.points
    nearest = torch.cdist(out.flatten(1), points.flatten(1)).min(1).values / out[0].numel() ** 0.5
    assert float(nearest.max()) < 0.15  # the spread around each point is 0.1


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm"])
def test_same_seed_same_image_in_any_batch(solver):
    backbone = tiny("text", autoencoder=True)
    plan = plans.make(backbone.schedule, 4, solver)
    shape = (4, *backbone.contract.latent_size)

    def run(seeds):
        source = NoiseSource(seeds)
        x = source.normal(torch.zeros(len(seeds), *shape))
        return sample(backbone.denoiser(backbone.condition(len(seeds), prompt="a head ct")), x, plan, noise=source)

    whole = run(range(16))
    for n in (1, 4):
        torch.testing.assert_close(run(range(n)), whole[:n], atol=1e-4, rtol=0)
    torch.testing.assert_close(run([15]), whole[15:], atol=1e-4, rtol=0)
    assert float((whole[0] - whole[1]).std()) > 0.1


def test_the_loop_costs_next_to_nothing():
    """Over bare calls of a network of 20 ms, less than 3 % (here the network sleeps, so that load does not count)."""
    plan = plans.dpmpp_2m(ideal_backbone().schedule, 10)

    def slow(x, level):
        time.sleep(0.02)
        return Prediction(x, x)

    x = torch.randn(1, 4, 16, 16)
    ratios = []
    for _ in range(5):
        start = time.thread_time()
        sample(slow, x, plan)
        ratios.append((time.thread_time() - start) / (0.02 * len(plan)))
    assert min(ratios) < 0.03
