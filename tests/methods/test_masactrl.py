"""MasaCtrl's mechanism: whom the edited image asks, from which step and layer on."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.methods.semantic.image_to_image import masactrl as file
from monai_diffaug.primitives import guidance, plans, words
from monai_diffaug.primitives.attention import Site, probabilities
from monai_diffaug.primitives.inversion import invert
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError, NoiseLevel

BRANCHES = ("negative", "condition")
LEVEL = NoiseLevel(500.0, 0.5, 0.8, index=5, total=10, branches=BRANCHES)


def rows(B=2, n=16):
    torch.manual_seed(2)
    return [torch.randn(2 * 2 * B, 3, n, 4) for _ in range(3)]  # branches x (sources, edited) x B


def split(x, B=2):
    return x.unflatten(0, (2, 2, B))


def test_edited_rows_ask_the_source_in_both_halves_of_the_guidance():
    q, k, v = rows()
    out = split(file._mutual({"late"}, 0.2, None, 0.1)(Site("late", "self", 16, 9), q, k, v, LEVEL))
    q, k, v = split(q), split(k), split(v)
    assert torch.allclose(out[:, 0], probabilities(q[:, 0], k[:, 0]) @ v[:, 0], atol=1e-5)
    assert torch.allclose(out[:, 1], probabilities(q[:, 1], k[:, 0]) @ v[:, 0], atol=1e-5)


def test_it_begins_at_its_step_and_layer():
    q, k, v = rows()
    rule = file._mutual({"late"}, 0.51, None, 0.1)
    assert rule(Site("late", "self", 16, 9), q, k, v, LEVEL) is None
    rule = file._mutual({"late"}, 0.5, None, 0.1)
    assert rule(Site("early", "self", 16, 1), q, k, v, LEVEL) is None
    assert rule(Site("late", "self", 16, 9), q, k, v, LEVEL) is not None


def test_with_a_word_objects_ask_objects_and_backgrounds_backgrounds():
    q, k, v = rows()
    gaze = words.Gaze(torch.zeros(4, 3), (4, 4))
    seen = torch.rand(4, 1, 4, 4)
    seen = seen / seen.amax((2, 3), keepdim=True)
    gaze.map = lambda: seen
    out = split(file._mutual({"late"}, 0.2, gaze, 0.4)(Site("late", "self", 16, 9), q, k, v, LEVEL))
    q, k, v = split(q), split(k), split(v)
    least = seen.amin((2, 3), keepdim=True)
    inside = ((seen - least) / (1 - least) > 0.4).flatten(1).unflatten(0, (2, 2))
    for b in range(2):
        for i in range(16):
            same = inside[0, b] == inside[1, b, i]  # the source's tokens on the asking token's side
            maps = probabilities(q[:, 1, b, :, i : i + 1], k[:, 0, b][:, :, same])
            assert torch.allclose(out[:, 1, b, :, i : i + 1], maps @ v[:, 0, b][:, :, same], atol=1e-5)
    assert torch.allclose(out[:, 0], probabilities(q[:, 0], k[:, 0]) @ v[:, 0], atol=1e-5)


@pytest.mark.parametrize(("dims", "kind"), [(2, "text"), (3, "text"), (2, "class_mask")])
def test_never_asking_is_plain_resampling(dims, kind):
    backbone = tiny(kind, dims, 16 if dims == 2 else 8, autoencoder=True)
    prompt = "a large head ct" if kind == "text" else "tumor"
    image = torch.rand(2, 1, *backbone.contract.size) * 2 - 1
    z = invert(backbone.denoiser(backbone.condition(2)), backbone.encode(image), plans.ddim(backbone.schedule, 6))
    told = guidance.classifier_free(backbone, backbone.condition(2, prompt=prompt), 7.5)
    plain = backbone.decode(sample(told, z.latent, z.plan))
    for never in ({"begin": 1.0}, {"layer": 1.0}):
        made = registry.call("masactrl", backbone, image, prompt=prompt, steps=6, **never).image
        assert torch.allclose(made, plain, atol=2e-4), never
    asked = registry.call("masactrl", backbone, image, prompt=prompt, steps=6, begin=0.0, layer=0.0).image
    assert (asked - plain).abs().max() > 1e-2


def test_the_null_prompt_gives_the_image_back():
    backbone = tiny("text", autoencoder=True)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    made = registry.call("masactrl", backbone, image, prompt="", begin=0.0, layer=0.0, steps=6).image
    assert torch.allclose(made, backbone.decode(backbone.encode(image)), atol=2e-3)


def test_a_word_that_a_prompt_lacks_is_refused():
    backbone = tiny("text", autoencoder=True)
    with pytest.raises(DiffAugError, match="both prompts"):
        registry.call("masactrl", backbone, torch.zeros(1, 1, 16, 16), prompt="a large head ct", word="head", steps=4)
