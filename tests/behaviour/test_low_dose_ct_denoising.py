"""Low-dose CT denoising on windows of ten test patients' real slices, at a tenth of the dose.

The bundle's README has the same figures on whole slices, and DDPM with all of its 1000 steps.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_diffaug.backbones import hub
from monai_diffaug.evaluation.restoration import by_method
from monai_diffaug.primitives.reconstruction import psnr

BUNDLE = Path(__file__).parents[2] / "bundles" / "low_dose_ct_denoising"


@cache
def windows():
    """Normal dose, low dose (10, 1, 64, 64) in [-1, 1], and where it is flat."""
    found = np.load(BUNDLE / "examples" / "windows.npz")
    return (
        torch.from_numpy(found["image"]).float() / 1000,
        torch.from_numpy(found["source"]).float() / 1000,
        torch.from_numpy(found["flat"]),
    )


@cache
def restored(steps=20, draws=1, seed=0, solver="dpmpp_2m", shuffled=False):
    backbone = hub.load(BUNDLE, precision="bfloat16")
    source = windows()[1]
    return by_method(backbone, seed=seed, steps=steps, draws=draws, solver=solver)(
        source.roll(1, 0) if shuffled else source
    )


def gain(x, over=None):
    image, source, _ = windows()
    return float((psnr(x, image, 2.0) - psnr(source if over is None else over, image, 2.0)).mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_it_denoises_and_the_draws_mean_more_so(seed):
    """The paper's bar of 3 dB for one draw is not reached at this dose (0.3 to 1.3 dB by the ODE); the mean's is."""
    one, mean = restored(seed=seed), restored(seed=seed, draws=4)
    assert gain(one) > 0.3
    assert gain(mean) > 2.0
    assert gain(mean, over=one) > 0.3
    image, _, flat = windows()
    bias = [float((mean - image)[i][flat[i]].mean()) * 1000 for i in range(len(flat)) if bool(flat[i].any())]
    assert abs(np.mean(bias)) < 8.0


def test_told_another_patient_it_shows_that_patient():
    """The control: the condition does the work."""
    wrong = restored(shuffled=True)
    assert gain(wrong) < -5.0
    assert float(psnr(wrong, windows()[0].roll(1, 0), 2.0).mean()) > float(psnr(wrong, windows()[0], 2.0).mean()) + 5.0


@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_calls_of_the_sde_solver_are_worth_fifty(seed):
    """And a thousand of DDPM: 31.06 dB against 31.07 of 50 calls, see the bundle's README."""
    few, many = restored(seed=seed, solver="sde_dpmpp_2m"), restored(seed=seed, solver="sde_dpmpp_2m", steps=50)
    assert gain(few, over=many) > -0.3
    assert gain(few) > 1.5
