"""One patient's influence is bounded by the clipping length, whatever their images are and however many they have."""

import math

import pytest
import torch

from monai_diffaug.backbones import tiny
from monai_diffaug.finetune import privacy
from monai_diffaug.finetune.measuring import batches_of
from monai_diffaug.finetune.stage import told_of
from monai_diffaug.finetune.stopping import Rules, Watch
from monai_diffaug.finetune.trainee import trainee
from monai_diffaug.primitives.runs import Draws, Settings
from monai_diffaug.types import DiffAugError

NAMES = ("ann", "ben", "cem", "dee")


def stage(rank, clip=0.05, gain=1.0, each=3, kind="class", dims=2, seed=5):
    """Four patients with ``each`` images; the last one's are ``gain`` times as large."""
    from monai_diffaug.finetune.cases import Cases

    backbone = tiny.tiny(kind, dims=dims, size=8 if dims == 3 else 16)
    n, size = len(NAMES) * each, backbone.contract.size
    images = torch.randn(n, 1, *size, generator=torch.Generator().manual_seed(1))
    images[-each:] *= gain
    patients = tuple(p for p in NAMES for _ in range(each))
    told = {"label": ["tumor"] * n} if kind == "class" else {}
    cases = Cases(images, told, patients, ("train",) * n, torch.zeros(n, dtype=torch.bool))
    taught = trainee(backbone, "private", rank=rank)
    return privacy.PrivateStage(
        taught,
        Settings(steps=4, batch=1, precision=torch.float32, warmup=0),
        told=told_of(taught.backbone, cases, drop=True),
        held_out=batches_of(cases, images, 4),
        watch=Watch(Rules()),
        cases=batches_of(cases, images, 1),
        patients=patients,
        terms=privacy.Budget(1.0, clip, 0.5, 4, 1e-2, 1.0),
        secret=seed,
        views=2,
    )


def summed(one, names):
    """The clipped sum over the patients named, before noise."""
    one.parts.train()
    one.private.zero_grad(set_to_none=True)
    one.gradients({n: Draws(torch.Generator().manual_seed(7 + NAMES.index(n))) for n in names})
    raw = torch.cat([p.grad_sample.flatten(1) for p in one.parameters], 1)
    one.private.clip_and_accumulate()
    return torch.cat([p.summed_grad.flatten() for p in one.parameters]), raw


@pytest.mark.parametrize(("rank", "dims"), [(0, 2), (2, 2), (2, 3)])
def test_one_patient_changes_the_sum_by_no_more_than_the_clipping_length(rank, dims):
    one = stage(rank, gain=50.0, dims=dims)
    everyone, raw = summed(one, NAMES)
    without, _ = summed(one, NAMES[:3])
    assert float(raw[3].norm()) > 20 * 0.05  # not clipped, this patient would swamp the others
    assert float((everyone - without).norm()) <= 0.05 * 1.0001
    assert float((everyone - without).norm()) > 0.049


def test_many_images_of_a_patient_count_as_one():
    for each in (1, 12):
        one = stage(2, gain=50.0, each=each)
        assert float((summed(one, NAMES)[0] - summed(one, NAMES[:3])[0]).norm()) <= 0.05 * 1.0001


def test_a_patients_gradient_is_that_of_their_images_alone():
    one = stage(2)
    _, together = summed(one, NAMES)
    _, alone = summed(one, ("cem",))
    assert torch.allclose(together[2], alone[0], atol=1e-6)  # and the noise drawn for them does not hang on the others
    plain = stage(2)
    plain.hooked.remove_hooks()
    draws = Draws(torch.Generator().manual_seed(9))
    rows = [plain.of["cem"][i] for i in (draws.uniform(2) * 3).long().tolist()]
    loss = plain.loss(privacy._stacked([plain.cases[i] for i in rows]), privacy.PatientDraws([draws], 2)).mean()
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(loss, plain.parameters)])
    assert torch.allclose(alone[0], by_hand, atol=1e-5)


def test_classes_that_were_known_stay_as_they_are():
    from monai_diffaug.backbones import growing

    grown = growing.with_classes(tiny.tiny("class"), ["infarct"])
    taught = trainee(grown, "private", rank=2, fresh=1)
    assert taught.kept == 3
    table = taught.backbone.network.module.class_embedding.weight
    table.grad_sample = torch.ones(5, *table.shape)
    taught.hold()
    assert not table.grad_sample[:, :3].any()
    assert table.grad_sample[:, 3:].all()


def test_a_step_adds_noise_and_an_empty_one_does_too():
    one, other = stage(2, seed=1), stage(2, seed=2)
    before = [p.detach().clone() for p in one.parameters]
    one.step({}, 0, Draws.of(0, 0))
    other.step({}, 0, Draws.of(0, 0))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters, before, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))
    nobody = stage(2)
    nobody.terms = privacy.Budget(1.0, 0.5, 0.0, 4, 1e-2, 1.0)
    found = nobody.step({}, 0, Draws.of(0, 0))
    assert found["patients"] == 0
    assert any(not torch.equal(a, b) for a, b in zip(nobody.parameters, before, strict=True))


def test_the_accountant_agrees_with_the_gaussian_mechanism():
    """With every patient in every step, Renyi accounting has a closed form (Mironov 2017, corollary 3)."""
    for noise, steps, delta in ((4.0, 10, 1e-3), (20.0, 300, 1e-5)):
        orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
        exact = min(
            steps * a / (2 * noise**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)
            for a in orders
        )
        assert privacy.spent(noise, 1.0, steps, delta) == pytest.approx(exact, abs=1e-3)


def test_a_target_is_met_and_noise_buys_privacy():
    terms = privacy.budget(200, 100, 16, epsilon=3.0)
    assert 2.9 < terms.epsilon <= 3.0
    assert terms.delta == pytest.approx(0.1 / 200)
    quiet, loud = (privacy.budget(200, 100, 16, noise=n).epsilon for n in (0.8, 2.0))
    assert loud < quiet
    assert privacy.budget(200, 400, 16, noise=1.0).epsilon > privacy.budget(200, 100, 16, noise=1.0).epsilon
    with pytest.raises(DiffAugError, match="give one of"):
        privacy.budget(200, 100, 16, noise=1.0, epsilon=1.0)
    with pytest.raises(DiffAugError, match="no noise gives epsilon 0.05"):
        privacy.budget(200, 100, 16, epsilon=0.05, delta=1e-5)


def test_the_last_weights_are_kept_whatever_the_checks_found():
    one = stage(2)
    one.watch.best = {n: torch.zeros_like(p) for n, p in one._trained().items()}
    one.watch.why = "memorizing"
    assert one.stop(1, {}) is None
    one.finish()
    assert any(p.any() for p in one.parameters)
