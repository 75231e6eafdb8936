"""What the classifier counterfactual is made of: inversion, the gradient of a guide that knows noise, clipping."""

import dataclasses

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.backbones import hub
from monai_diffaug.primitives import plans
from monai_diffaug.primitives.inversion import invert
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError, Prediction

from .test_diffedit import spotted


class Exact:
    """The guide that an exact denoiser implies: how much nearer the clean estimate is to the healthy image."""

    labels = ("healthy", "tumor")

    def __init__(self, well, sick):
        self.well, self.sick = well, sick

    def towards(self, labels):
        def log_prob(x, level):
            a, b = ((x - level.alpha * m).square().flatten(1).sum(1) for m in (self.well, self.sick))
            return torch.nn.functional.logsigmoid((b - a) / (2 * level.sigma**2))

        return log_prob


def exact():
    backbone, images, box = spotted()
    n = len(images) // 2
    return dataclasses.replace(backbone, guide=Exact(images[:n], images[n:])), images[:n], images[n:], box


def test_the_lesion_goes_and_the_map_says_where():
    backbone, well, sick, box = exact()
    made = registry.call("classifier_counterfactual", backbone, sick, steps=20, strength=0.75, scale=3.0)
    inside = box.expand_as(made.map) > 0
    assert made.map[inside].mean() > 5 * made.map[~inside].mean()
    assert (made.image - well).abs().mean() < 0.3 * (sick - well).abs().mean()
    assert not made.mask.any()
    assert made.info["score"] == pytest.approx(made.map.flatten(1).mean(1).tolist())


def test_without_scale_it_is_a_round_trip_and_without_the_gradient_the_lesion_stays():
    backbone, _, sick, _ = exact()
    made = registry.call("classifier_counterfactual", backbone, sick, steps=20, scale=0.0, tolerance=1e-5)
    assert made.map.max() < 2e-3


def test_it_is_null_inversion_and_classifier_guidance_with_clipped_estimates():
    backbone = tiny("class", autoencoder=True)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    made = registry.call(
        "classifier_counterfactual", backbone, image, strength=0.5, scale=5.0, steps=6, tolerance=1e-4
    ).image
    z = backbone.encode(image)
    limit = z.abs().amax((2, 3), keepdim=True)
    null, position = backbone.condition(2), backbone.guide.labels.index("healthy")

    def clipped(x, level, eps):
        x0 = ((x - level.sigma * eps) / level.alpha).clamp(-limit, limit)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    def plain(x, level):
        return clipped(x, level, backbone.denoiser(null)(x, level).eps)

    def guided(x, level):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            out = backbone.guide.module(leaf, timesteps=torch.full((2,), level.t)).log_softmax(1)[:, position]
            (gradient,) = torch.autograd.grad(out.sum(), leaf)
        # the gradient moves the clipped estimate, which is clipped again
        return clipped(x, level, plain(x, level).eps - 5.0 * level.sigma * gradient)

    up = invert(plain, z, plans.ddim(backbone.schedule, 6, strength=0.5), tolerance=1e-4)
    with torch.no_grad():
        by_hand = backbone.decode(sample(guided, up.latent, up.plan))
    assert torch.allclose(made, by_hand, atol=1e-3)


def test_a_backbone_without_a_guide_is_refused():
    with pytest.raises(DiffAugError, match="needs guide"):
        registry.call("classifier_counterfactual", tiny("class_mask"), torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_the_guide_lives_in_the_checkpoint(tmp_path, ending):
    backbone = tiny("class", autoencoder=True)
    again = hub.load(hub.save(backbone, tmp_path / "ckpt", torch.float32, ending=ending))
    x, level = torch.randn(2, 4, 8, 8), backbone.schedule.at(300.0)
    assert torch.equal(again.guide.towards(["tumor"])(x, level), backbone.guide.towards(["tumor"])(x, level))
    assert again.guide.labels == ("healthy", "tumor")
