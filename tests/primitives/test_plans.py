"""Plans against closed forms: moments of an exact Gaussian, diffusers' own schedulers, and measured orders."""

import math

import pytest
import torch

from monai_diffaug.primitives import plans
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.types import DiffAugError, NoiseLevel, Plan, Prediction, Schedule

MEAN, STD = 0.5, 0.3
ALL = sorted(plans.PLANS)


def brain_ldm() -> Schedule:
    """Scaled linear, 0.0015 to 0.0205, 1000: the schedule of the published brain LDM."""
    betas = torch.linspace(0.0015**0.5, 0.0205**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    return Schedule(tuple(kept.sqrt().tolist()), tuple((1 - kept).sqrt().tolist()))


def flow() -> Schedule:
    t = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    return Schedule(tuple((1 - t).tolist()), tuple(t.tolist()), "velocity", tuple((t * 1000).tolist()))


def moments(plan: Plan) -> tuple[float, float]:
    """Mean and spread that the plan makes of x_T ~ N(0, 1), exactly: x0 is linear in x, so the pair stays Gaussian."""
    m, c = torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    for row in plan:
        level = row.level
        gain = STD**2 * level.alpha / (level.alpha**2 * STD**2 + level.sigma**2)
        shift = MEAN * (1 - gain * level.alpha)
        straight = math.sqrt(row.sigma**2 - row.eta**2) / level.sigma
        on_x0 = row.alpha + row.kappa - straight * level.alpha
        a = torch.tensor([[on_x0 * gain + straight, -row.kappa], [gain, 0.0]], dtype=torch.float64)
        m = a @ m + torch.tensor([on_x0 * shift, shift], dtype=torch.float64)
        c = a @ c @ a.T + torch.diag(torch.tensor([row.eta**2, 0.0], dtype=torch.float64))
    return float(m[0]), float(c[0, 0].sqrt())


@pytest.mark.parametrize("steps", [4, 10, 20, 50, 600])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("schedule", [brain_ldm(), flow()], ids=["vp", "flow"])
def test_mean_is_right_at_any_number_of_steps(name, steps, schedule):
    mean, _ = moments(plans.make(schedule, steps, name))
    assert mean == pytest.approx(MEAN, abs=0.01)


@pytest.mark.parametrize(("steps", "within"), [(6, 0.10), (10, 0.02), (20, 0.02), (50, 0.02)])
def test_default_plan_has_the_right_spread(steps, within):
    _, spread = moments(plans.make(brain_ldm(), steps))
    assert spread == pytest.approx(STD, rel=within)


@pytest.mark.parametrize("name", ALL)
def test_spread_converges(name):
    assert moments(plans.make(brain_ldm(), 600, name))[1] == pytest.approx(STD, rel=0.05)


def test_ddpm_over_every_time_is_ancestral_sampling():
    _, spread = moments(plans.ddpm(brain_ldm()))
    assert spread == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun", "euler"])
@pytest.mark.parametrize("schedule", [brain_ldm(), flow()], ids=["vp", "flow"])
def test_measured_order_is_the_declared_order(name, schedule):
    """Two points at 0 and 1, blurred: a nonlinear denoiser; its exact flow is that of Heun's rule at 4,096 steps."""

    def denoise(x, level):
        var = level.alpha**2 * 0.04 + level.sigma**2
        points = torch.tensor([0.0, 1.0], dtype=x.dtype)
        d = x.unsqueeze(-1) - level.alpha * points
        weight = torch.softmax(-(d**2) / (2 * var), -1)
        x0 = (weight * (points + 0.04 * level.alpha / var * d)).sum(-1)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    x = torch.linspace(-2, 2, 41, dtype=torch.float64).reshape(1, 1, 41)
    spacing = "log_snr"
    exact = sample(denoise, x, plans.heun(schedule, 4096, spacing=spacing))
    errors = [
        float((sample(denoise, x, plans.make(schedule, n, name, spacing=spacing)) - exact).pow(2).mean().sqrt())
        for n in (64, 128, 256)
    ]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
    assert slopes[-1] == pytest.approx(plans.ORDER[name], abs=0.35), (errors, slopes)


@pytest.mark.parametrize("name", ["ddpm", "sde_dpmpp_2m"])
def test_stochastic_plans_converge_in_their_moments_at_the_declared_order(name):
    exact = moments(plans.make(brain_ldm(), 40_000, name, spacing="log_snr"))[1]
    errors = [abs(moments(plans.make(brain_ldm(), n, name, spacing="log_snr"))[1] - exact) for n in (128, 256, 512)]
    slope = math.log2(errors[1] / errors[2])
    assert slope == pytest.approx(plans.ORDER[name], abs=0.35), errors


# ---------------------------------------------------------------------------------- against diffusers, double precision


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    return torch.tanh(x * 0.7 + 0.1) * (1 + t / 2000)


class _SameDraws:
    """Draws like a diffusers scheduler that is handed one generator."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=self.dtype).to(like)


def schedule_of(scheduler) -> Schedule:
    kept = scheduler.alphas_cumprod.double()
    return Schedule(tuple(kept.sqrt().tolist()), tuple((1 - kept).sqrt().tolist()))


def run_diffusers(scheduler, steps, x, seed=0):
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, float(t)), t, x, generator=generator).prev_sample
    return x


def ours(schedule, name, times, x, monkeypatch, seed=0, dtype=torch.float64):
    monkeypatch.setattr(plans, "levels", lambda *a, **k: [schedule.at(float(t)) for t in times])
    plan = plans.PLANS[name](schedule, len(times))

    def denoise(x, level):
        return schedule.convert(network(x, level.t), x, level.alpha, level.sigma)

    return sample(denoise, x, plan, noise=_SameDraws(seed, dtype))


COMMON = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0205, "num_train_timesteps": 1000}


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_ddim_is_diffusers_ddim(steps, spacing, monkeypatch):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(**COMMON, clip_sample=False, timestep_spacing=spacing, set_alpha_to_one=True)
    x = torch.linspace(-3, 3, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    expected = run_diffusers(theirs, steps, x)
    got = ours(schedule_of(theirs), "ddim", theirs.timesteps, x, monkeypatch)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_strided_ddpm_is_diffusers_ddpm(steps, monkeypatch):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(**COMMON, clip_sample=False, variance_type="fixed_small")
    x = torch.linspace(-3, 3, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    expected = run_diffusers(theirs, steps, x, seed=3)
    got = ours(schedule_of(theirs), "ddpm", theirs.timesteps, x, monkeypatch, seed=3)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_dpmpp_is_diffusers_dpmpp(algorithm, spacing, monkeypatch):
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        **COMMON, algorithm_type=algorithm, timestep_spacing=spacing, solver_order=2, final_sigmas_type="zero"
    )
    x = torch.linspace(-3, 3, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    expected = run_diffusers(theirs, 20, x, seed=3)
    name = "dpmpp_2m" if algorithm == "dpmsolver++" else "sde_dpmpp_2m"
    got = ours(schedule_of(theirs), name, theirs.timesteps, x, monkeypatch, seed=3, dtype=torch.float32)
    # Their sigmas and draws are float32, hence the tolerance.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_euler_is_diffusers_flow_match_euler(monkeypatch):
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    theirs.set_timesteps(20)
    sigmas = [float(s) for s in theirs.sigmas[:-1]]
    x = torch.linspace(-3, 3, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    expected = x
    for t in theirs.timesteps:
        expected = theirs.step(network(expected, float(t)), t, expected).prev_sample.double()
    t = [float(v) for v in theirs.timesteps]
    grid = [NoiseLevel(a, 1 - s, s) for a, s in zip(t, sigmas, strict=True)]
    schedule = flow()
    monkeypatch.setattr(plans, "levels", lambda *a, **k: grid)
    got = sample(
        lambda x, level: schedule.convert(network(x, level.t), x, level.alpha, level.sigma),
        x,
        plans.euler(schedule, 20),
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_heun_is_diffusers_flow_match_heun(monkeypatch):
    from diffusers import FlowMatchHeunDiscreteScheduler

    theirs = FlowMatchHeunDiscreteScheduler(num_train_timesteps=1000)
    theirs.set_timesteps(12)
    x = expected = torch.linspace(-3, 3, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    for t in theirs.timesteps:
        expected = theirs.step(network(expected, float(t)), t, expected).prev_sample.double()
    sigmas = list(dict.fromkeys(float(s) for s in theirs.sigmas[:-1]))  # both stages of a step name the same ones
    grid = [NoiseLevel(1000 * s, 1 - s, s) for s in sigmas if s > 0]
    schedule = flow()
    monkeypatch.setattr(plans, "levels", lambda *a, **k: grid)
    got = sample(
        lambda x, level: schedule.convert(network(x, level.t), x, level.alpha, level.sigma), x, plans.heun(schedule, 12)
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("make", "steps", "far"), [("ddim", 4, 0.05), ("ddim", 600, 0.05), ("ddpm", 50, 0.05)])
def test_monais_schedulers_miss_the_mean_that_ours_hit(make, steps, far):
    """What the bar of 0.01 is worth: MONAI's own loop on the same Gaussian (0.409, 0.383 and 0.09 in place of 0.5)."""
    from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

    kind = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[make]
    theirs = kind(schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0205, clip_sample=False)
    theirs.set_timesteps(steps)
    schedule = brain_ldm()
    x = torch.randn(1, 1, 128, 128, dtype=torch.float64)
    for t in theirs.timesteps:
        level = schedule.at(float(t))
        gain = STD**2 * level.alpha / (level.alpha**2 * STD**2 + level.sigma**2)
        x0 = MEAN + gain * (x - level.alpha * MEAN)
        x = theirs.step((x - level.alpha * x0) / level.sigma, int(t), x)[0]
    assert abs(float(x.mean()) - MEAN) > far
    assert abs(moments(plans.make(schedule, steps, make))[0] - MEAN) < 0.01


# ------------------------------------------------------------------------------------------------------------ the grid


@pytest.mark.parametrize("spacing", plans.SPACINGS)
@pytest.mark.parametrize("steps", [1, 3, 7, 20, 333, 600, 1000])
def test_grids_fall_and_end_clean(spacing, steps):
    plan = plans.ddim(brain_ldm(), steps, spacing=spacing)
    sigmas = [row.level.sigma for row in plan]
    assert sigmas == sorted(sigmas, reverse=True)
    assert (plan[-1].alpha, plan[-1].sigma) == (1.0, 0.0)
    for row, following in zip(plan, plan[1:]):
        assert row.sigma == following.level.sigma  # each step arrives where the next one calls the network


def test_strength_walks_that_part_of_the_chain():
    plan = plans.make(brain_ldm(), 20, strength=0.4)
    assert len(plan) == 8
    assert plan[0].level.t == pytest.approx(0.4 * 999)
    assert plans.make(brain_ldm(), 20, strength=0.0) == ()


def test_unknown_solver_names_the_nearest():
    with pytest.raises(DiffAugError, match="dpmpp_2m"):
        plans.make(brain_ldm(), 10, "dpmp_2m")
    with pytest.raises(DiffAugError, match="log_snr"):
        plans.make(brain_ldm(), 10, spacing="karras")
