"""EDICT's mechanism: every step is undone exactly, on the paper's equations."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.methods.personalization.inversion import edict as file
from monai_diffaug.primitives import guidance, plans
from monai_diffaug.testing import tiny

HERE, THERE = "a small head ct", "a large head ct"


def noise_of(backbone, prompt, batch, scale=3.0):
    denoise = guidance.classifier_free(backbone, backbone.condition(batch, prompt=prompt), scale)
    return lambda x, level: denoise(x, level).eps


def doubled(dims=2):
    """A backbone whose network runs in float64, as in the paper."""
    backbone = tiny("text", dims, 16 if dims == 2 else 8)
    backbone.network.module.double()
    backbone.conditioner.module.double()
    return backbone


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mixing", [0.93, 1.0])
def test_down_undoes_up_exactly_where_plain_inversion_does_not(mixing, dims):
    backbone = doubled(dims)
    x = torch.rand(2, 1, *backbone.contract.size, dtype=torch.float64) * 2 - 1
    plan = plans.ddim(backbone.schedule, 12, spacing="linspace", strength=0.8)
    noise = noise_of(backbone, HERE, 2)
    up = file._up(noise, x, x, plan, mixing)
    down = file._down(noise, *up, plan, mixing)
    assert max(float((d - x).abs().max()) for d in down) < 1e-6

    z = x  # plain DDIM inversion, the noise taken at the known end
    for row in reversed(plan):
        a, b = file._coefficients(row)
        z = (z - b * noise(z, row.level)) / a
    for row in plan:
        a, b = file._coefficients(row)
        z = a * z + b * noise(z, row.level)
    assert (z - x).abs().max() > 1e-2


def test_a_step_is_the_papers():
    """Equations 14 and 15, written out for two steps; the second step's leader is the other latent."""
    backbone = doubled()
    x, y = torch.randn(2, 1, 1, 16, 16, dtype=torch.float64)
    noise, p = noise_of(backbone, HERE, 1), 0.93
    plan = plans.ddim(backbone.schedule, 10, spacing="linspace")[:2]
    got = file._down(noise, x, y, plan, p)
    for i, row in enumerate(plan):
        lead, follow = (x, y) if i == 0 else (y, x)
        a, b = row.alpha / row.level.alpha, row.sigma - row.alpha / row.level.alpha * row.level.sigma
        lead_ = a * lead + b * noise(follow, row.level)
        follow_ = a * follow + b * noise(lead_, row.level)
        lead = p * lead_ + (1 - p) * follow_
        follow = p * follow_ + (1 - p) * lead
        x, y = (lead, follow) if i == 0 else (follow, lead)
    assert torch.allclose(got[0], x, atol=1e-12)
    assert torch.allclose(got[1], y, atol=1e-12)


def test_the_same_prompt_gives_the_image_back_through_a_float32_network():
    backbone = tiny("text", autoencoder=True)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    made = registry.call("edict", backbone, image, prompt=HERE, source_prompt=HERE, steps=25)
    assert torch.allclose(made.image, backbone.decode(backbone.encode(image)), atol=1e-5)
    assert max(made.info["gap"]) < 1e-6
    other = registry.call("edict", backbone, image, prompt=THERE, source_prompt=HERE, steps=25)
    assert (other.image - made.image).abs().max() > 1e-2


def test_without_mixing_the_latents_drift_apart_in_an_edit():
    backbone = tiny("text", autoencoder=True)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    gaps = [
        max(registry.call("edict", backbone, image, prompt=THERE, source_prompt=HERE, mixing=p, steps=20).info["gap"])
        for p in (0.8, 0.93, 1.0)
    ]
    assert gaps == sorted(gaps)
