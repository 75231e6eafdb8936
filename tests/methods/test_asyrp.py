"""Asyrp's mechanism: two passes of a step, and why one would not do."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.primitives import bottleneck, concepts, plans
from monai_diffaug.primitives.features import features
from monai_diffaug.primitives.inversion import invert
from monai_diffaug.primitives.sampler import sample, step
from monai_diffaug.testing import tiny
from monai_diffaug.types import Concept, DiffAugError, NoiseSource, Prediction


def constant(backbone, size=0.5, steps=10):
    """A direction that is the same map at every step."""
    torch.manual_seed(4)
    h = bottleneck.read(
        backbone,
        torch.zeros(1, backbone.contract.latent_channels, *backbone.contract.latent_size),
        backbone.schedule.at(500.0),
        backbone.condition(1),
    )
    tensors = {"times": torch.tensor([0.0]), "shift": size * torch.randn(1, *h.shape[1:])}
    return Concept("direction", tensors, backbone.digest, "", {"steps": steps, "prompt": "large"})


@pytest.fixture(params=[2, 3], scope="module")
def backbone(request):
    return tiny("text", request.param, 16 if request.param == 2 else 8, autoencoder=True)


@pytest.fixture
def image(backbone):
    return torch.rand(2, 1, *backbone.contract.size) * 2 - 1


def call(backbone, image, concept, **given):
    return registry.call(
        "asyrp", backbone, image, concept=concept, **{"steps": 10, "generator": NoiseSource([1, 2]), **given}
    ).image


def test_x0_comes_from_the_shifted_pass_and_eps_from_the_plain_one(backbone):
    concept = constant(backbone)
    _, shift = bottleneck.direction(concept, backbone)
    told, level = backbone.condition(2), backbone.schedule.at(700.0)
    x = torch.randn(2, backbone.contract.latent_channels, *backbone.contract.latent_size)
    plain = backbone.denoiser(told)(x, level)
    with features(backbone, lambda site, h, _: h + shift(h, level)):
        shifted = backbone.denoiser(told)(x, level)
    got = bottleneck.asymmetric(backbone, told, shift)(x, level)
    assert torch.allclose(got.x0, shifted.x0, atol=1e-4)
    assert torch.allclose(got.eps, plain.eps, atol=1e-5)
    assert (shifted.x0 - plain.x0).abs().mean() > 1e-3


def test_the_symmetric_use_cancels():
    """Theorem 1: a change d of both predictions moves a step by (sigma' - alpha' sigma / alpha) d, of the x0 alone by
    - alpha' sigma / alpha d; at fine steps the first is a small part of the second.
    """
    schedule = tiny("none").schedule
    rows = [r for r in plans.ddim(schedule, 200, spacing="linspace") if r.level.t > 500]
    for row in rows:
        x, eps, d = torch.randn(3, 1, 1, 8, dtype=torch.float64)

        def predicted(noise, row=row, x=x):
            return (x - row.level.sigma * noise) / row.level.alpha

        before = step(row, Prediction(predicted(eps), eps), None, None)
        both = step(row, Prediction(predicted(eps + d), eps + d), None, None) - before
        alone = step(row, Prediction(predicted(eps + d), eps), None, None) - before
        assert torch.allclose(both, (row.sigma - row.alpha * row.level.sigma / row.level.alpha) * d)
        assert both.abs().mean() < 0.06 * alone.abs().mean()


def test_no_amount_gives_the_image_back_and_more_moves_it_further(backbone, image):
    concept, back = constant(backbone, 0.1), backbone.decode(backbone.encode(image))
    far = [
        float((call(backbone, image, concept, amount=a, boost=0.0) - back).abs().mean()) for a in (0.0, 0.5, 1.0, 2.0)
    ]
    assert far[0] < 2e-3
    assert far == sorted(far)
    still = call(backbone, image, concept, amount=0.0, boost=0.0)
    there, opposite = (call(backbone, image, concept, amount=a, boost=0.0) - still for a in (0.02, -0.02))
    cosine = torch.nn.functional.cosine_similarity(there.flatten(), opposite.flatten(), dim=0)
    assert cosine < -0.9, "small amounts act linearly"


def test_the_shift_is_scaled_to_the_number_of_steps(backbone, image):
    concept = constant(backbone, 0.05, steps=20)
    doubled = Concept("direction", concept.tensors, concept.backbone_digest, "", {"steps": 40})
    a = call(backbone, image, concept, amount=1.0)
    b = call(backbone, image, doubled, amount=0.5)
    assert torch.equal(a, b)


def test_the_edit_acts_on_the_noisy_part_and_noise_is_drawn_on_the_clean_part(backbone, image):
    concept = constant(backbone)
    base = call(backbone, image, concept, boost=0.0)
    assert torch.equal(base, call(backbone, image, concept, boost=0.0, generator=NoiseSource([7, 8]))), "no draw"
    boosted = [call(backbone, image, concept, boost=0.4, generator=NoiseSource(s)) for s in ([1, 2], [7, 8])]
    assert (boosted[0] - boosted[1]).abs().mean() > 1e-2
    back = backbone.decode(backbone.encode(image))
    assert torch.allclose(call(backbone, image, concept, until=1.0, strength=0.9, boost=0.0), back, atol=2e-3)
    asked = []
    plan = plans.ddim(backbone.schedule, 10, spacing="linspace")
    denoise = bottleneck.asymmetric(
        backbone, backbone.condition(2), lambda h, level: asked.append(level.t) or torch.zeros_like(h), until=0.5
    )
    start = invert(backbone.denoiser(backbone.condition(2)), backbone.encode(image), plan, iterations=0)
    sample(denoise, start.latent, start.plan)
    assert asked == [r.level.t for r in plan if r.level.t >= 0.5 * 999]


def test_a_direction_goes_through_its_file(backbone, image, tmp_path):
    concept = constant(backbone)
    path = concepts.save(concept, tmp_path / "large.safetensors")
    assert torch.equal(call(backbone, image, str(path)), call(backbone, image, concept))


def test_what_is_no_direction_is_refused(backbone, image):
    with pytest.raises(DiffAugError, match="h_space"):
        call(backbone, image, Concept("lora", {}, backbone.digest))
    with pytest.raises(DiffAugError, match="digest"):
        call(backbone, image, Concept("direction", {}, "another"))


# ------------------------------------------------------------------------------------------------------------- learning


def learn(backbone, images, **given):
    return registry.call(
        "h_space",
        backbone,
        images,
        **{
            "prompt": "a large head ct",
            "source_prompt": "a small head ct",
            "steps": 6,
            "generator": NoiseSource([3]),
            **given,
        },
    )


def test_two_groups_give_their_mean_difference(backbone):
    images = torch.rand(4, 1, *backbone.contract.size) * 2 - 1
    got = learn(backbone, images, labels=["a", "b", "b", "a"], prompt="b", source_prompt="a", batch=3)
    plan = plans.ddim(backbone.schedule, 6, spacing="linspace")
    path = invert(backbone.denoiser(backbone.condition(4)), backbone.encode(images), plan).trajectory
    for i, t in enumerate(got.tensors["times"]):
        h = bottleneck.read(backbone, path[i], plan[i].level, backbone.condition(4))
        assert float(t) == pytest.approx(plan[i].level.t)
        assert torch.allclose(got.tensors["shift"][i], h[1:3].mean(0) - h[[0, 3]].mean(0), atol=2e-3)
    assert len(got.tensors["times"]) == sum(r.level.t >= 0.5 * 999 for r in plan)


def along(backbone, images, concept):
    """Mean cosine between how the scorer sees the images move and how the texts differ, at the steps of the edit."""
    _, shift = bottleneck.direction(concept, backbone)
    plan = plans.ddim(backbone.schedule, 6, spacing="linspace")
    told = backbone.condition(len(images))
    path = invert(backbone.denoiser(told), backbone.encode(images), plan).trajectory
    texts = backbone.scorer.embed_prompts(["a small head ct", "a large head ct"])
    found = []
    for x, row in list(zip(path, plan))[:3]:
        before, after = (
            backbone.scorer.embed_images(backbone.decode(d(x, row.level).x0))
            for d in (backbone.denoiser(told), bottleneck.asymmetric(backbone, told, shift))
        )
        found.append(torch.nn.functional.cosine_similarity(after - before, (texts[1] - texts[0])[None]))
    return float(torch.stack(found).mean())


def test_training_turns_the_shift_towards_the_text():
    backbone = tiny("text", autoencoder=True)
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    untrained = along(backbone, images, learn(backbone, images, rate=0.0, rounds=1))
    trained = along(backbone, images, learn(backbone, images, rounds=12))
    assert trained > untrained + 0.2


def test_refusals_of_learning(backbone, image):
    from dataclasses import replace

    with pytest.raises(DiffAugError, match="labels"):
        learn(replace(backbone, scorer=None), image)
    with pytest.raises(DiffAugError, match="one per image"):
        learn(backbone, image, labels=["a large head ct", "a large head ct"])
