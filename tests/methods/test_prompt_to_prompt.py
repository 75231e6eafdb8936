"""Prompt-to-Prompt's mechanism: which tokens share attention, and that maps are edited as the paper says."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.methods.semantic.text_guided import prompt_to_prompt as file
from monai_diffaug.primitives import guidance, plans, words
from monai_diffaug.primitives.attention import Site, probabilities
from monai_diffaug.primitives.inversion import invert
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError, NoiseLevel

SOURCE, TARGET = "a small head ct", "a large bright chest x-ray"


def backbone_and_image(dims=2, batch=2):
    backbone = tiny("text", dims, 16 if dims == 2 else 8, autoencoder=True)
    return backbone, torch.rand(batch, 1, *backbone.contract.size) * 2 - 1


def plain_decoding(backbone, image, source, target, scale=7.5, steps=6):
    """The inverted image decoded under the target, without any attention rule: what P2P calls plain re-sampling."""
    before = backbone.condition(len(image), prompt=source)
    z = invert(backbone.denoiser(before), backbone.encode(image), plans.ddim(backbone.schedule, steps))
    told = guidance.classifier_free(backbone, backbone.condition(len(image), prompt=target), scale)
    return backbone.decode(sample(told, z.latent, z.plan))


def call(backbone, image, **given):
    return registry.call(
        "prompt_to_prompt", backbone, image, **{"prompt": TARGET, "source_prompt": SOURCE, "steps": 6, **given}
    )


# ------------------------------------------------------------------------------------------------------------ alignment


def columns(matrix):
    """For every target token, the source tokens that it gets attention from."""
    return [matrix[:, j].nonzero().flatten().tolist() for j in range(matrix.shape[1])]


def test_words_in_the_place_of_others_get_their_attention_only_if_wanted():
    backbone, _ = backbone_and_image()
    a, b = "a small head ct", "a large head ct"  # start a small head ct end
    assert columns(words.alignment(backbone, a, b, substitutes=True))[:6] == [[0], [1], [2], [3], [4], [5]]
    assert columns(words.alignment(backbone, a, b, substitutes=False))[:6] == [[0], [1], [], [3], [4], [5]]


def test_added_words_have_no_counterpart_and_nothing_shifts():
    backbone, _ = backbone_and_image()
    found = columns(words.alignment(backbone, "a head ct", "a small dark head ct on the left", substitutes=True))
    assert found[:10] == [[0], [1], [], [], [2], [3], [], [], [], [4]], "small, dark and on the left are new"


def test_attention_is_kept_where_numbers_of_tokens_differ():
    backbone, _ = backbone_and_image()
    matrix = words.alignment(backbone, "a head ct", "a small bright chest x-ray ct", substitutes=True)
    assert matrix[2].sum() == pytest.approx(1.0), "head's attention is spread over the four words in its place"
    assert matrix.sum() == pytest.approx(matrix.shape[0])


def test_a_phrase_is_marked_only_where_it_stands():
    backbone, _ = backbone_and_image()
    marked = words.marked(backbone, ["a head ct", "a ct of a head", "a large Head CT"], ["head ct"])
    assert [row.nonzero().flatten().tolist() for row in marked] == [[2, 3], [], [3, 4]]


# ------------------------------------------------------------------------------------------------------------ the maps


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.7])
def test_edited_maps_are_the_papers(scale, progress):
    """The rule mixes values; the paper mixes maps. Built out in full, the two agree."""
    torch.manual_seed(1)
    B, heads, n, L, d = 2, 3, 16, 9, 4
    branches = ("condition",) if scale == 1.0 else ("negative", "condition")
    R = 2 * B * len(branches)
    q, k, v = torch.randn(R, heads, n, d), torch.randn(R, heads, L, d), torch.randn(R, heads, L, d)
    P = torch.rand(B, L, L) * (torch.rand(B, 1, L) > 0.3)
    fraction, weight = torch.rand(B, L), torch.randn(B, L)
    level = NoiseLevel(500.0, 0.5, 0.8, index=int(progress * 10), total=10, branches=branches)
    rule = file._edit(P, fraction, weight, 0.4, 256, None)
    out = rule(Site("x", "cross", n, 0), q, k, v, level)

    maps = probabilities(q, k)
    first = R - 2 * B
    source, own = maps[first : first + B], maps[first + B :]
    lasts = (level.progress < fraction).float()[:, None, None]
    missing = (P.sum(1) == 0).float()[:, None, None]
    edited = (source @ P[:, None] + missing * own) * weight[:, None, None]
    want = maps @ v
    want[first + B :] = (lasts * edited + (1 - lasts) * own) @ v[first + B :]
    assert torch.allclose(out, want, atol=1e-5)


def test_self_attention_copies_the_sources_maps_on_small_maps_only():
    torch.manual_seed(1)
    q, k, v = (torch.randn(4, 2, 16, 4) for _ in range(3))  # sources and edited ones of the conditional branch alone
    rule = file._edit(torch.eye(5).repeat(2, 1, 1), torch.zeros(2, 5), torch.ones(2, 5), 0.4, 16, None)
    early, late = (NoiseLevel(1.0, 0.5, 0.8, index=i, total=10) for i in (3, 4))
    out = rule(Site("x", "self", 16, 0), q, k, v, early)
    assert torch.allclose(out[2:], probabilities(q[:2], k[:2]) @ v[2:], atol=1e-6)
    assert torch.allclose(out[:2], probabilities(q[:2], k[:2]) @ v[:2], atol=1e-6)
    assert rule(Site("x", "self", 17, 0), q, k, v, early) is None
    assert rule(Site("x", "self", 16, 0), q, k, v, late) is None


# ---------------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("dims", [2, 3])
def test_without_replacement_it_is_plain_resampling(dims):
    backbone, image = backbone_and_image(dims)
    made = call(backbone, image, cross_replace=0.0, self_replace=0.0).image
    assert torch.allclose(made, plain_decoding(backbone, image, SOURCE, TARGET), atol=2e-4)
    assert not torch.allclose(call(backbone, image).image, made, atol=1e-2)


def test_the_same_prompt_unguided_gives_the_image_back():
    backbone, image = backbone_and_image()
    made = call(backbone, image, prompt=SOURCE, scale=1.0).image
    assert torch.allclose(made, backbone.decode(backbone.encode(image)), atol=2e-3)


def test_each_control_acts():
    backbone, image = backbone_and_image()
    base = call(backbone, image).image
    for change in (
        {"mode": "refine"},
        {"weights": {"bright": 3.0}},
        {"cross_replace": {"bright": 0.2, "": 0.8}},
        {"self_replace": 0.0},
    ):
        assert (call(backbone, image, **change).image - base).abs().max() > 1e-4, change


def test_blending_puts_the_source_back_where_the_words_are_not_looked_at_from(monkeypatch):
    backbone = tiny("text")  # on pixels
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    whole = call(backbone, image).image
    assert torch.allclose(call(backbone, image, blend="large", threshold=-1.0).image, whole, atol=1e-5)
    seen = torch.zeros(4, 1, 8, 8)  # sources, then edited
    seen[1, :, :2], seen[2, :, :, 6:] = 1, 1
    monkeypatch.setattr(words.Gaze, "map", lambda self: seen)
    some = call(backbone, image, blend=["large", "small"]).image
    rows, columns = slice(0, 6), slice(10, 16)  # grown by one map voxel, which is two pixels
    assert torch.equal(some[0, :, :, :10], image[0, :, :, :10])
    assert torch.equal(some[1, :, 6:], image[1, :, 6:])
    assert (some[0, :, :, columns] - image[0, :, :, columns]).abs().mean() > 0.1
    assert (some[1, :, rows] - image[1, :, rows]).abs().mean() > 0.1


def test_gaze_is_cross_attention_to_the_words_averaged_over_heads_and_steps():
    torch.manual_seed(0)
    tokens = torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0]])
    gaze, total = words.Gaze(tokens, (8, 8)), 0.0
    assert gaze.map() is None
    for n in (64, 16, 64, 1024):  # only the finest maps of at most 16 a side count
        q, k = torch.randn(2, 3, n, 4), torch.randn(2, 3, 4, 4)
        gaze.see(q, k)
        if n == 64:
            total = total + (probabilities(q, k) * tokens[:, None, None]).sum(-1).mean(1)
    want = (total / total.amax(1, keepdim=True)).reshape(2, 1, 8, 8)
    assert torch.allclose(gaze.map(), want, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "size", "shape"),
    [(64, (8, 8), (8, 8)), (6, (4, 6), (2, 3)), (12, (5, 7), (3, 4)), (8, (4, 4, 4), (2, 2, 2))],
)
def test_grid_of_attention_tokens(tokens, size, shape):
    assert words.grid(tokens, size) == shape


@pytest.mark.parametrize("wrong", [{"mode": "swap"}, {"weights": {"tumor": 2.0}}, {"prompt": "a zebra"}])
def test_refusals(wrong):
    backbone, image = backbone_and_image()
    with pytest.raises(DiffAugError, match=r"use|choose|did you mean"):
        call(backbone, image, **wrong)
