"""What the healthy counterfactual is made of, on exact denoisers and tiny networks."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.backbones.ideal import ideal
from monai_diffaug.primitives import guidance, plans
from monai_diffaug.primitives.inversion import invert
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.testing import tiny
from monai_diffaug.types import Prediction

from .test_diffedit import spotted


@pytest.mark.parametrize("dims", [2, 3])
def test_the_map_is_brightest_in_the_lesion(dims):
    backbone, images, box = spotted(dims)
    n = len(images) // 2
    sick, well = images[n:], images[:n]
    made = registry.call("healthy_counterfactual", backbone, sick, steps=20)
    inside = box.expand_as(made.map) > 0
    assert made.map[inside].min() > 5 * made.map[~inside].mean()
    assert (made.image - well).abs().mean() < 0.2 * (sick - well).abs().mean()
    assert made.label == ["healthy"] * n
    assert not made.mask.any()
    assert min(made.info["identity"]) > 0.9


def test_a_healthy_image_stays():
    backbone, images, _ = spotted()
    n = len(images) // 2
    changed = [
        float(registry.call("healthy_counterfactual", backbone, x, steps=20).map.mean())
        for x in (images[:n], images[n:])
    ]
    assert changed[0] < 0.25 * changed[1]


@pytest.mark.parametrize(
    ("kind", "scale", "said"), [("class", 3.0, {"prompt": "healthy"}), ("class_mask", 8.0, {"mask": 0})]
)
def test_it_is_null_inversion_and_guided_decoding_with_dynamic_normalization(kind, scale, said):
    backbone = tiny(kind, autoencoder=True)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    made = registry.call("healthy_counterfactual", backbone, image, steps=6, tolerance=1e-4).image
    z = backbone.encode(image)
    limit = z.abs().amax((2, 3), keepdim=True).clamp(min=1.0)

    def normalized(inner):
        def denoise(x, level):
            x0 = inner(x, level).x0
            bound = torch.maximum(torch.quantile(x0.abs().flatten(2), 0.99, dim=2)[..., None, None], limit)
            x0 = x0.clamp(-bound, bound) / bound * limit
            return Prediction(x0, (x - level.alpha * x0) / level.sigma)

        return denoise

    said = {"mask": torch.zeros(2, 1, 16, 16)} if "mask" in said else said
    null, told = backbone.condition(2), backbone.condition(2, **said)
    up = invert(normalized(backbone.denoiser(null)), z, plans.ddim(backbone.schedule, 6, strength=0.75))
    by_hand = sample(normalized(guidance.classifier_free(backbone, told, scale, negative=null)), up.latent, up.plan)
    assert torch.allclose(made, backbone.decode(by_hand), atol=1e-3)


def test_without_guidance_it_is_a_round_trip():
    backbone = tiny("class", autoencoder=True)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    made = registry.call("healthy_counterfactual", backbone, image, scale=0.0, steps=8, tolerance=1e-5)
    assert made.map.max() < 2e-3


def test_the_map_averages_over_channels():
    images = torch.zeros(4, 3, 8, 8)
    images[2:, 0, 2:5, 2:5] = 0.9
    backbone = ideal(images, [0, 0, 1, 1], ["healthy", "tumor"], spread=0.1)
    made = registry.call("healthy_counterfactual", backbone, images[2:3], steps=20)
    assert torch.allclose(made.map, (made.image - images[2:3]).abs().mean(1, keepdim=True))
