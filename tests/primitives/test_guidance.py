"""Guidance against closed forms, and one network call a step."""

import pytest
import torch

from monai_diffaug.primitives import guidance, plans
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.testing import ideal_backbone, tiny
from monai_diffaug.types import Condition, DiffAugError, Prediction, current_level


class Watched:
    """A network that notes the batch size and the branches of each call."""

    def __init__(self, network):
        self.network, self.calls, self.branches = network, [], []
        self.module = network.module

    def __call__(self, x, t, condition):
        self.calls.append(x.shape[0])
        self.branches.append(current_level().branches)
        return self.network(x, t, condition)

    def __getattr__(self, name):
        return getattr(self.network, name)


def watched(backbone):
    from dataclasses import replace

    return replace(backbone, network=Watched(backbone.network))


def level_of(backbone, t=400.0):
    return backbone.schedule.at(t)


@pytest.fixture(params=[2, 3])
def ideal(request):
    return ideal_backbone(request.param, size=8)


def eps(backbone, x, level, **told):
    return backbone.denoiser(backbone.condition(x.shape[0], **told))(x, level).eps


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 7.5])
def test_classifier_free_is_its_formula(ideal, scale):
    x = torch.randn(3, 1, *ideal.contract.size)
    level = level_of(ideal)
    got = guidance.classifier_free(ideal, ideal.condition(3, label="tumor"), scale)(x, level)
    null, told = eps(ideal, x, level), eps(ideal, x, level, label="tumor")
    torch.testing.assert_close(got.eps, null + scale * (told - null), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(level.alpha * got.x0 + level.sigma * got.eps, x, atol=1e-4, rtol=0)


def test_negative_and_further_conditions_are_their_formula(ideal):
    x = torch.randn(2, 1, *ideal.contract.size)
    level = level_of(ideal)
    healthy, tumor = (ideal.condition(2, label=name) for name in ("healthy", "tumor"))
    e_h, e_t, e_0 = (eps(ideal, x, level, label=name) for name in ("healthy", "tumor", None))
    got = guidance.classifier_free(ideal, tumor, 2.0, negative=healthy)(x, level)
    torch.testing.assert_close(got.eps, e_h + 2.0 * (e_t - e_h), atol=1e-4, rtol=1e-4)
    got = guidance.classifier_free(ideal, tumor, 2.0, also=[(healthy, 0.5)])(x, level)
    torch.testing.assert_close(got.eps, e_0 + 2.0 * (e_t - e_0) + 0.5 * (e_h - e_0), atol=1e-4, rtol=1e-4)


def test_each_image_keeps_its_own_condition(ideal):
    x = torch.randn(1, 1, *ideal.contract.size).repeat(2, 1, *[1] * len(ideal.contract.size))
    level = level_of(ideal)
    both = guidance.classifier_free(ideal, ideal.condition(2, label=["healthy", "tumor"]), 3.0)(x, level).eps
    for i, name in enumerate(("healthy", "tumor")):
        alone = guidance.classifier_free(ideal, ideal.condition(1, label=name), 3.0)(x[:1], level).eps
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "rows", "names"),
    [
        ({"scale": 3.0}, 2, ("negative", "condition")),
        ({"scale": 1.0}, 1, ("condition",)),
        ({"scale": 3.0, "also": 2}, 4, ("negative", "condition", "also_0", "also_1")),
    ],
)
def test_one_network_call_a_step(options, rows, names):
    backbone = watched(tiny("text", autoencoder=True))
    told = backbone.condition(2, prompt="a head ct")
    more = [(backbone.condition(2, prompt=p), 0.5) for p in ("a hand x-ray", "a breast mri")][: options.pop("also", 0)]
    denoise = guidance.classifier_free(backbone, told, options["scale"], also=more)
    sample(denoise, torch.randn(2, 4, 8, 8), plans.dpmpp_2m(backbone.schedule, 5))
    assert backbone.network.calls == [2 * rows] * 5
    assert set(backbone.network.branches) == {names}


def test_outside_the_interval_guidance_rests():
    backbone = watched(tiny("text"))
    told = backbone.condition(1, prompt="a head ct")
    denoise = guidance.classifier_free(backbone, told, 3.0, interval=(0.25, 0.75))
    x = torch.randn(1, 1, 16, 16)
    for t, rows in ((100.0, 1), (300.0, 2), (700.0, 2), (900.0, 1)):
        backbone.network.calls.clear()
        got = denoise(x, level_of(backbone, t))
        assert backbone.network.calls == [rows]
        if rows == 1:
            torch.testing.assert_close(got.eps, backbone.denoiser(told)(x, level_of(backbone, t)).eps)
    with pytest.raises(DiffAugError, match="interval"):
        guidance.classifier_free(backbone, told, 3.0, interval=(0.8, 0.2))


def test_without_conditions_there_is_nothing_to_guide():
    backbone = watched(tiny("none"))
    x = torch.randn(1, 1, 16, 16)
    guidance.classifier_free(backbone, backbone.condition(1), 5.0)(x, level_of(backbone))
    assert backbone.network.calls == [1]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_outputs_may_be_combined_whatever_they_are(prediction):
    backbone = tiny("class", prediction=prediction)
    x, level = torch.randn(1, 1, 16, 16), level_of(backbone, 600.0)
    got = guidance.classifier_free(backbone, backbone.condition(1, label="tumor"), 4.0)(x, level)
    null, told = eps(backbone, x, level), eps(backbone, x, level, label="tumor")
    torch.testing.assert_close(got.eps, null + 4.0 * (told - null), atol=2e-4, rtol=1e-3)


def test_classifier_guidance_is_its_formula():
    level = level_of(ideal_backbone())
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)

    def plain(x, level):
        return Prediction((x - level.sigma * 0.3 * x) / level.alpha, 0.3 * x)

    got = guidance.classifier(plain, lambda x, _: -(x**2).flatten(1).sum(1), 2.0)(x, level)
    torch.testing.assert_close(got.eps, 0.3 * x + 2.0 * level.sigma * 2 * x)
    torch.testing.assert_close(level.alpha * got.x0 + level.sigma * got.eps, x)
    assert not got.eps.requires_grad


def test_loss_guidance_is_its_formula_through_the_denoiser():
    level = level_of(ideal_backbone())
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    gain = (1 - level.sigma * 0.3) / level.alpha  # x0 = gain x

    def plain(x, level):
        return Prediction(gain * x, 0.3 * x)

    got = guidance.loss(plain, lambda x0: ((x0 - 1) ** 2).flatten(1).sum(1), lambda level: 0.5)(x, level)
    gradient = 2 * (gain * x - 1) * gain
    torch.testing.assert_close(got.eps, 0.3 * x + 0.5 * level.sigma * gradient)
    torch.testing.assert_close(level.alpha * got.x0 + level.sigma * got.eps, x)


def test_loss_guidance_brings_samples_nearer_to_what_it_asks(ideal):
    target = torch.zeros(4, 1, *ideal.contract.size) + 0.2
    x = torch.randn(4, 1, *ideal.contract.size)
    plan = plans.ddim(ideal.schedule, 20)
    plain = ideal.denoiser(ideal.condition(4))
    steered = guidance.loss(plain, lambda x0: ((x0 - target) ** 2).flatten(1).sum(1), 2.0)
    miss = [float(((sample(d, x, plan) - target) ** 2).mean()) for d in (plain, steered)]
    assert miss[1] < 0.9 * miss[0]


def test_classifier_guidance_agrees_with_the_exact_conditional(ideal):
    """eps_0 - sigma grad log p(tumor | x_t) is the exact conditional noise, when the classifier is exact."""
    x = torch.randn(2, 1, *ideal.contract.size)
    level = level_of(ideal, 600.0)
    points, labels = ideal.network.module.points, ideal.network.module.labels

    def log_prob(x, level):
        variance = level.alpha**2 * 0.1**2 + level.sigma**2
        d = (x.double().flatten(1)[:, None] - level.alpha * points.double().flatten(1)[None]).square().sum(-1)
        logits = -d / (2 * variance)
        return logits[:, labels == 2].logsumexp(1) - logits.logsumexp(1)

    got = guidance.classifier(ideal.denoiser(ideal.condition(2)), log_prob, 1.0)(x, level)
    torch.testing.assert_close(got.eps, eps(ideal, x, level, label="tumor"), atol=1e-3, rtol=1e-3)


def test_thresholding_clips_and_keeps_the_equation():
    level = level_of(ideal_backbone())
    x = 5 * torch.randn(2, 1, 16, 16)

    def plain(x, level):
        return Prediction(3 * x, (x - level.alpha * 3 * x) / level.sigma)

    got = guidance.thresholded(plain, 0.9)(x, level)
    assert float(got.x0.abs().max()) == pytest.approx(1.0)
    torch.testing.assert_close(level.alpha * got.x0 + level.sigma * got.eps, x, atol=1e-4, rtol=0)
    small = guidance.thresholded(lambda x, level: Prediction(x, x), 0.9)(0.01 * x, level)
    torch.testing.assert_close(small.x0, 0.01 * x)  # what lies within the bound stays


def test_different_parts_are_refused():
    with pytest.raises(DiffAugError, match="'tokens'"):
        Condition.cat([Condition(tokens=torch.zeros(1, 2, 3)), Condition(labels=torch.zeros(1).long())])
