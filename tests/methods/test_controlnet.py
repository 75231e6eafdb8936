"""The branch starts as nothing, learns from hints, and is put on by the concept alone."""

from dataclasses import replace

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.primitives import concepts, control, finetuning, hints
from monai_diffaug.testing import digest_of, tiny
from monai_diffaug.types import DiffAugError, NoiseSource
from tests.networks import diffusers_backbone


def images(backbone, n=3):
    draw = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, *backbone.contract.size, generator=draw) * 2 - 1


def learn(backbone, **given):
    given = {"steps": 5, "generator": NoiseSource([0]), **given}
    return registry.call("controlnet", backbone, images(backbone), **given)


def outputs(backbone, concept, **seen):
    contract = backbone.contract
    x = torch.randn(3, contract.latent_channels, *contract.latent_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), concepts.applied(backbone, concept, **seen) as taught:
        return taught.output(x, 500.0, taught.condition(3)), backbone.output(x, 500.0, backbone.condition(3))


@pytest.mark.parametrize("kind", ["none", "class_mask", "text"])
@pytest.mark.parametrize(("dims", "autoencoder"), [(2, True), (3, False)])
def test_at_step_zero_it_is_the_base_model_exactly(kind, dims, autoencoder):
    backbone = tiny(kind, dims, 8, autoencoder=autoencoder)
    before = digest_of(backbone)
    with_it, without = outputs(backbone, learn(backbone, steps=0), image=images(backbone))
    assert torch.equal(with_it, without)
    trained, without = outputs(backbone, learn(backbone, steps=3, rate=1e-2), image=images(backbone))
    assert not torch.equal(trained, without)
    assert digest_of(backbone) == before


def test_another_hint_gives_another_result_and_scale_zero_none():
    backbone = tiny("text", 2, 16)
    concept = learn(backbone, steps=20, rate=1e-2)
    seen = images(backbone)
    a, base = outputs(backbone, concept, image=seen)
    b, _ = outputs(backbone, concept, image=seen.flip(-1))
    off, _ = outputs(backbone, concept, image=seen, hint_scale=0.0)
    assert (a - b).abs().max() > 1e-4
    assert torch.equal(off, base)


def test_guess_mode_leaves_the_negative_branch_alone():
    from monai_diffaug.types import NoiseLevel, at_level

    backbone = tiny("text", 2, 16)
    concept = learn(backbone, steps=20, rate=1e-2)
    x = torch.randn(2, 1, 16, 16)
    told = backbone.condition(2, prompt=["", "a head ct"])
    level = NoiseLevel(500.0, 0.7, 0.7, branches=("negative", "condition"))
    with torch.no_grad(), concepts.applied(backbone, concept, image=images(backbone)[:1], guess=True) as taught:
        with at_level(level):
            a = taught.output(x, level.t, told)
        b = backbone.output(x, level.t, told)
    assert torch.allclose(a[0], b[0], atol=1e-6)
    assert (a[1] - b[1]).abs().max() > 1e-4


def test_hints_may_be_given_and_have_channels_of_their_own():
    backbone = tiny("class", 2, 16)
    drawn = torch.rand(3, 2, 16, 16)
    concept = learn(backbone, hints=drawn, hint="organs", prompt=["tumor", "healthy", "tumor"])
    assert concept.info["hint_channels"] == 2
    outputs(backbone, concept, hint=drawn)
    with pytest.raises(DiffAugError, match="hint"):
        outputs(backbone, concept, image=images(backbone))
    with pytest.raises(DiffAugError, match=r"give \(batch, 2"):
        outputs(backbone, concept, hint=drawn[:, :1])


def test_a_mask_branch_wants_a_mask():
    backbone = tiny("none", 2, 16)
    concept = learn(backbone, hints=torch.ones(3, 1, 16, 16), hint="mask")
    outputs(backbone, concept, mask=torch.ones(3, 1, 16, 16))
    with pytest.raises(DiffAugError, match="mask"):
        outputs(backbone, concept, image=images(backbone))


def test_one_hint_an_image():
    backbone = tiny("none", 2, 16)
    with pytest.raises(DiffAugError, match="one per image"):
        learn(backbone, hints=torch.ones(2, 1, 16, 16))
    with pytest.raises(DiffAugError, match="did you mean 'edges'"):
        learn(backbone, hint="edgs")


@pytest.mark.parametrize("dims", [2, 3])
def test_edges_outline_a_ball_and_nothing_of_a_plain_image(dims):
    axis = torch.linspace(-1, 1, 16)
    radius = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij")).square().sum(0).sqrt()
    ball = (radius < 0.6).float()[None, None]
    found = hints.edges(ball, quantile=0.7)[0, 0] > 0
    assert found.any()
    assert ((radius[found] - 0.6).abs() < 0.25).all()
    assert not hints.edges(torch.zeros_like(ball)).any()


def test_a_network_that_cannot_carry_a_branch_is_refused():
    from monai_diffaug.testing import ideal_backbone

    with pytest.raises(DiffAugError, match="control_branch"):
        learn(ideal_backbone())
    with pytest.raises(DiffAugError, match="factor"):
        tiny("none").network.control_branch(1, 3)


def test_several_controls_add_up():
    backbone = tiny("none", 2, 16)
    concept = learn(backbone, steps=10, rate=1e-2)
    branch = control.branch(backbone, 1, dict(concept.tensors))
    x, t = torch.randn(1, 1, 16, 16), torch.tensor([500.0])
    hint = hints.edges(images(backbone)[:1])
    residuals = branch(x, t, backbone.condition(1), hint)
    with torch.no_grad():
        once = control.controlled(backbone, branch, hint)
        twice = control.controlled(once, branch, hint)
        doubled = control.controlled(backbone, branch, hint, scale=2.0)
        told = backbone.condition(1)
        assert torch.allclose(twice.output(x, t, told), doubled.output(x, t, told), atol=1e-5)
    assert len(residuals) == 5


def test_all_methods_that_learn_work_on_a_diffusers_pipeline():
    """The branch is diffusers' own; adapters, words and the closed form go by the same names."""
    backbone = replace(diffusers_backbone(), digest="pipeline")
    source, x = images(backbone), torch.randn(3, 4, 8, 8)
    before = digest_of(backbone)
    with torch.no_grad():
        free = backbone.output(x, 500.0, backbone.condition(3, prompt="a head ct"))
    calls = {
        "controlnet": {"images": source, "rate": 1e-2},
        "textual_inversion": {"images": source, "word": "head", "rate": 1.0},
        "dreambooth": {"images": source, "class_prompt": "a head ct", "prior": 2, "rate": 1e-2},
        "uce": {"concepts": "head ct", "preserve": []},
    }
    for name, given in calls.items():
        steps = {} if name == "uce" else {"steps": 2, "generator": NoiseSource([0])}
        concept = registry.call(name, backbone, **given, **steps)
        with torch.no_grad(), concepts.applied(backbone, concept, image=source) as taught:
            led = taught.output(x, 500.0, taught.condition(3, prompt="a head ct"))
        assert (led - free).abs().max() > 1e-5, name
    nothing = learn(backbone, steps=0)
    with torch.no_grad(), concepts.applied(backbone, nothing, image=source) as taught:
        assert torch.equal(taught.output(x, 500.0, taught.condition(3, prompt="a head ct")), free)
    assert digest_of(backbone) == before


def test_every_image_is_shown_with_its_own_hint(monkeypatch):
    """Latent 2, latent 0 and the mirror image of latent 2 go with hint 2, hint 0 and the mirror image of hint 2."""
    backbone, drawn, seen = tiny("none", 2, 16), torch.rand(3, 1, 16, 16), []
    joined = control.controlled

    def spy(backbone, branch, hint, **given):
        seen.append(hint)
        return joined(backbone, branch, hint, **given)

    def ask(schedule, lessons, parameters, **given):
        assert torch.equal(lessons[0].latents[5], images(backbone)[2].flip(-1))
        lessons[0].output(lessons[0].latents[[2, 0, 5]], torch.full((3,), 500.0), torch.tensor([2, 0, 5]))
        return []

    monkeypatch.setattr(control, "controlled", spy)
    monkeypatch.setattr(finetuning, "finetune", ask)
    learn(backbone, hints=drawn, flip=True)
    assert torch.equal(seen[0], torch.stack([drawn[2], drawn[0], drawn[2].flip(-1)]))
