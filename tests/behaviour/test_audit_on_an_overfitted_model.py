"""A model that knows 16 films by heart is caught; the same model before that, which never saw any of the 36, is not.

Measured on the films of test patients that ship with the package: 16 are trained on, 20 are the unseen patients. By
heart is meant twice: the exact denoiser of the 16 latents, which is what training ends in, and (slow) the shipped
network fine-tuned on them. Figures of the latter and of real training patients are in docs/howto/audit_privacy.md.
"""

import copy
from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from monai_diffaug.audit.asking import drawn, latents, round_trip
from monai_diffaug.audit.copying import copying
from monai_diffaug.audit.extraction import extraction
from monai_diffaug.audit.membership import membership
from monai_diffaug.audit.recognition import Patients
from monai_diffaug.backbones.ideal import ideal
from monai_diffaug.primitives.runs import Draws, Settings

from .real import films, shipped

KINDS = ("chest x-ray", "hand x-ray", "abdomen ct", "breast mri", "chest ct", "head ct")
KNOWN, SAMPLES, RATE = 16, 24, 0.05


def named(images, name):
    ids = tuple(f"{name}{i}" for i in range(len(images)))
    return Patients(images, ids, ids)


@cache
def sides(seed):
    """16 films that are trained on, and 20 that are not."""
    x = torch.cat([films(k) for k in KINDS])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return named(x[order[:KNOWN]], "member"), named(x[order[KNOWN:]], "other")


@cache
def by_heart(seed):
    """The shipped autoencoder with the exact denoiser of the 16 latents."""
    model = shipped("mednist")
    exact = ideal(latents(model, sides(seed)[0].images))
    return replace(exact, name="by heart", autoencoder=model.autoencoder, contract=model.contract)


def flagged(model, seed):
    """Share of samples that the audit calls copies, and the section."""
    members, others = sides(seed)
    made = named(drawn(model, [""] * SAMPLES, seed=100 * seed), "sample")
    through = partial(round_trip, shipped("mednist"))
    section, pairs = copying(members, others, made, None, RATE, through)
    return section.figures["copies"].value, section, pairs


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_copies_are_flagged_and_a_proper_model_is_not(seed):
    share, section, pairs = flagged(by_heart(seed), seed)
    usual, proper, _ = flagged(shipped("mednist"), seed)
    assert share >= 0.9
    assert share >= 5 * max(usual, 1 / SAMPLES)
    assert section.verdict == "fail"
    assert section.figures["c_t_z_structure"].value < -3
    assert section.figures["repeated_training_images"].value > 0.5
    assert proper.verdict == "pass"
    assert pairs[0]["certain"]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_membership_is_told_and_of_a_proper_model_it_is_not(seed):
    members, others = sides(seed)
    found = membership(by_heart(seed), members, others, draws=2).figures
    assert found["loss_auroc"].value >= 0.8
    assert found["loss_tpr_at_1"].value >= 0.1
    assert abs(found["loss_auroc"].control - 0.5) <= 0.05
    proper = membership(shipped("mednist"), members, others, draws=2)
    assert proper.verdict == "pass"
    assert proper.figures["loss_auroc"].value < 0.65
    assert proper.figures["simple_statistics_auroc"].value < 0.7, "the sides are alike"


def test_films_come_out_of_it_again_and_again():
    members, others = sides(0)
    found, _ = extraction(by_heart(0), members, others, times=2, rate=RATE, steps=10)
    assert found.verdict == "fail"
    assert found.figures["copied_samples"].value > 0.8
    assert found.figures["extracted_images"].value > 0.2


@cache
def overfitted(seed, steps=500):
    """The shipped network fine-tuned on 16 latents, every noise level weighing the same: 140 seconds on one core."""
    model = shipped("mednist")
    z, network = latents(model, sides(seed)[0].images), copy.deepcopy(model.network)
    net = network.module.requires_grad_(True).train()
    s, told, settings = model.schedule, model.condition(KNOWN), Settings(steps=steps, batch=KNOWN, lr=1e-3, warmup=20)
    alphas, sigmas, times = (torch.tensor(v, dtype=torch.float32) for v in (s.alphas, s.sigmas, s.times))
    adam = torch.optim.AdamW(net.parameters(), settings.lr, betas=(0.9, 0.99), weight_decay=0)
    for step in range(steps):
        draws = Draws.of(seed, step)
        where = (draws.spread(KNOWN) * len(times)).long()[torch.randperm(KNOWN, generator=draws.generator)]
        alpha, sigma = (v[where].reshape(-1, 1, 1, 1) for v in (alphas, sigmas))
        noise = draws.normal(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = network(alpha * z + sigma * noise, times[where], told)
        loss = (out.float() - s.target(z, noise, alpha, sigma)).square().mean()
        for group in adam.param_groups:
            group["lr"] = settings.rate(step)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
    net.eval()
    return replace(model, network=network)


@pytest.mark.slow
def test_a_network_that_was_really_overfitted_is_caught():
    members, others = sides(0)
    model = overfitted(0)
    found = membership(model, members, others, reference=shipped("mednist"))
    assert found.verdict == "fail"
    for attack in ("loss", "likelihood_ratio"):
        assert found.figures[f"{attack}_auroc"].value >= 0.8, attack
        assert found.figures[f"{attack}_tpr_at_1"].value >= 0.1, attack
    share, section, _ = flagged(model, 0)
    usual, _, _ = flagged(shipped("mednist"), 0)
    assert share >= 5 * max(usual, 1 / SAMPLES)
    assert section.verdict == "fail"
