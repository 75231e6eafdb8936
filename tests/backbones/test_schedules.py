"""The noise that every scheduler config says, against the schedulers themselves."""

import pytest
import torch

from monai_diffaug.backbones.schedules import BRAIN_LDM, schedule_from_config
from monai_diffaug.types import DiffAugError, Schedule


@pytest.mark.parametrize(
    "config",
    [
        {"schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 2e-2},
        {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0205},
        {"schedule": "sigmoid_beta", "beta_start": 1e-4, "beta_end": 2e-2},
        {"schedule": "cosine"},
    ],
    ids=lambda c: c["schedule"],
)
def test_monais_schedulers(config):
    from monai.networks.schedulers import DDIMScheduler

    theirs = DDIMScheduler(num_train_timesteps=1000, **config)
    ours = schedule_from_config({"_target_": "monai.networks.schedulers.DDIMScheduler", **config})
    kept = torch.tensor(ours.alphas) ** 2
    torch.testing.assert_close(kept, theirs.alphas_cumprod.float(), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_diffusers_schedulers(name):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule=name, beta_start=1e-4, beta_end=2e-2, num_train_timesteps=600)
    ours = schedule_from_config(dict(theirs.config))
    torch.testing.assert_close(torch.tensor(ours.alphas) ** 2, theirs.alphas_cumprod.float(), atol=2e-5, rtol=1e-3)


def test_zero_terminal_snr_and_given_betas():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    ours = schedule_from_config(dict(theirs.config))
    assert ours.prediction == "v_prediction"
    torch.testing.assert_close(torch.tensor(ours.alphas) ** 2, theirs.alphas_cumprod.float(), atol=2e-5, rtol=1e-3)
    assert ours.alphas[-1] < 1e-3
    betas = [0.1, 0.2, 0.3]
    given = schedule_from_config({"num_train_timesteps": 3, "trained_betas": betas})
    assert given.alphas == pytest.approx([0.9**0.5, 0.72**0.5, 0.504**0.5])


def test_rectified_flow():
    ours = schedule_from_config({"_target_": "monai.networks.schedulers.RFlowScheduler", "num_train_timesteps": 100})
    assert ours.is_flow
    assert ours.prediction == "data_velocity"
    level = ours.at(25.0)
    assert (level.alpha, level.sigma) == pytest.approx((0.75, 0.25))
    assert schedule_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"}).prediction == "velocity"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "velocity", "data_velocity"])
def test_what_the_network_returns_becomes_x0_and_eps(prediction):
    flow = "velocity" in prediction
    alpha, sigma = (0.7, 0.3) if flow else (0.6, 0.8)
    schedule = Schedule((alpha,), (sigma,), prediction)
    x0, eps = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    x = alpha * x0 + sigma * eps
    got = schedule.convert(schedule.target(x0, eps, alpha, sigma), x, alpha, sigma)
    torch.testing.assert_close(got.x0, x0)
    torch.testing.assert_close(got.eps, eps)


def test_between_entries_and_at_the_ends():
    ours = schedule_from_config(BRAIN_LDM)
    assert ours.at(-5).alpha == ours.alphas[0]
    assert ours.at(5000).sigma == ours.sigmas[-1]
    assert (ours.at(300).alpha, ours.at(300).sigma) == (ours.alphas[300], ours.sigmas[300])
    middle = ours.at(300.5)
    assert ours.alphas[301] < middle.alpha < ours.alphas[300]
    assert middle.alpha**2 + middle.sigma**2 == pytest.approx(1.0)
    back = ours.at_log_snr(middle.log_snr)
    assert back.t == pytest.approx(300.5, abs=1e-6)
    assert ours.at_log_snr(100.0).t == 0.0
    assert ours.at_log_snr(-100.0).t == 999.0


def test_unknown_names_are_refused():
    with pytest.raises(DiffAugError, match=r"use 'scaled_linear' or give the betas"):
        schedule_from_config({"beta_schedule": "scaled_linea"})
    with pytest.raises(DiffAugError, match="prediction type 'noise' is unknown"):
        schedule_from_config({"prediction_type": "noise"})
