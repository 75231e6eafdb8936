"""Rules see the maps that an explicit computation gives, change what they say, and leave nothing behind."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F

from monai_diffaug.backbones.diffusers_unet import DiffusersUNet
from monai_diffaug.backbones.monai_unet import MonaiUNet
from monai_diffaug.primitives.attention import apply, attention, probabilities
from monai_diffaug.testing import tiny
from monai_diffaug.testing.intact import imprint
from monai_diffaug.types import Condition, DiffAugError, at_level
from tests.networks import bare, diffusers_unet, stirred


def monai_case(dims):
    backbone = tiny("text", dims, 8)
    x = torch.randn(2, 1, *[8] * dims)
    return backbone, x, backbone.condition(2, prompt=["a small head ct", "a chest x-ray"])


def diffusers_case(dims):
    backbone = bare(DiffusersUNet(diffusers_unet(dims)), size=(8,) * dims)
    return backbone, torch.randn(2, 4, *[8] * dims), Condition(tokens=torch.randn(2, 5, 16))


def generative_case(dims, text=True):
    nets = pytest.importorskip("generative.networks.nets")
    torch.manual_seed(5)
    module = nets.DiffusionModelUNet(
        spatial_dims=dims,
        in_channels=1,
        out_channels=1,
        num_channels=(8, 16),
        attention_levels=(False, True),
        num_res_blocks=1,
        num_head_channels=8,
        norm_num_groups=4,
        **({"with_conditioning": True, "cross_attention_dim": 16} if text else {}),
    )
    backbone = bare(MonaiUNet(stirred(module)), 1, (8,) * dims)
    condition = Condition(tokens=torch.randn(2, 5, 16)) if text else Condition()
    return backbone, torch.randn(2, 1, *[8] * dims), condition


CASES = {
    "generative 2D": (generative_case, 2),
    "MONAI 2D": (monai_case, 2),
    "MONAI 3D": (monai_case, 3),
    "diffusers 2D": (diffusers_case, 2),
    "diffusers 3D": (diffusers_case, 3),
}


@pytest.fixture(params=CASES)
def case(request):
    make, dims = CASES[request.param]
    return make(dims)


def explicit_maps(backbone, x, condition):
    """Maps by the textbook, from what goes into each site's projections: softmax(q k^T / sqrt(d)) per head."""
    found, handles = {}, []

    def watch(name, module):
        tapped = {}
        heads = getattr(module, "num_heads", None) or module.heads
        with_qkv = hasattr(module, "to_q") and isinstance(module.to_q, torch.nn.Linear)

        def project(which):
            def hook(_, __, out):
                tapped[which] = out

            return hook

        def finish(_, __, ___):
            q, k = (tapped[w].unflatten(-1, (heads, -1)).transpose(-2, -3) for w in "qk")
            found[name] = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)

        assert with_qkv
        handles.extend(
            [module.to_q.register_forward_hook(project("q")), module.to_k.register_forward_hook(project("k"))]
        )
        handles.append(module.register_forward_hook(finish))

    for name, (module, _) in backbone.network.attention_sites().items():
        watch(name, module)
    try:
        backbone.output(x, 300.0, condition)
    finally:
        for handle in handles:
            handle.remove()
    return found


def test_rules_see_the_maps_of_an_explicit_computation(case):
    backbone, x, condition = case
    expected, seen, order = explicit_maps(backbone, x, condition), {}, []

    def rule(site, q, k, v, level):
        seen[site.name] = probabilities(q, k)
        order.append(site)
        assert site.tokens == q.shape[-2]

    with attention(backbone, rule):
        backbone.output(x, 300.0, condition)
    known = backbone.network.attention_sites()
    assert [s.name for s in order] == list(known)  # once each, in call order
    assert [s.index for s in order] == list(range(len(known)))
    assert [s.kind for s in order] == [kind for _, kind in known.values()]
    assert set(seen) == set(expected)
    for name, maps in expected.items():
        torch.testing.assert_close(seen[name], maps, atol=1e-5, rtol=1e-4)
        if known[name][1] == "cross":
            assert maps.shape[-1] == condition.tokens.shape[1]


def test_plain_self_attention_of_monai_generative_is_seen_too():
    backbone, x, condition = generative_case(2, text=False)
    expected, seen = explicit_maps(backbone, x, condition), {}
    with attention(backbone, lambda site, q, k, v, level: seen.update({site.name: probabilities(q, k)})):
        backbone.output(x, 300.0, condition)
    assert {kind for _, kind in backbone.network.attention_sites().values()} == {"self"}
    assert seen.keys() == expected.keys()
    for name, maps in expected.items():
        torch.testing.assert_close(seen[name], maps, atol=1e-5, rtol=1e-4)


def test_maps_are_monais_own():
    """MONAI keeps a map itself when it is asked to and fused attention is off: the same numbers."""
    backbone, x, condition = monai_case(2)
    theirs = copy.deepcopy(backbone.network.module)
    for module in theirs.modules():
        if hasattr(module, "att_mat"):
            module.use_flash_attention, module.save_attn = False, True
    theirs(x, timesteps=torch.full((2,), 300.0), context=condition.tokens)
    expected = {n: m.att_mat for n, m in theirs.named_modules() if hasattr(m, "att_mat")}
    seen = {}

    def rule(site, q, k, v, level):
        seen[site.name] = probabilities(q, k)

    with attention(backbone, rule):
        backbone.output(x, 300.0, condition)
    assert set(seen) == set(expected)
    for name, maps in seen.items():
        torch.testing.assert_close(maps, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("answer", ["nothing", "maps"])
def test_a_rule_that_changes_nothing_gives_the_same_output(case, answer):
    backbone, x, condition = case
    plain = backbone.output(x, 300.0, condition)

    def rule(site, q, k, v, level):
        return None if answer == "nothing" else apply(probabilities(q, k), v)

    with attention(backbone, rule):
        ruled = backbone.output(x, 300.0, condition)
    if answer == "nothing":
        assert torch.equal(ruled, plain)
    torch.testing.assert_close(ruled, plain, atol=1e-4, rtol=1e-3)


def test_a_rule_changes_what_it_says(case):
    backbone, x, condition = case
    plain = backbone.output(x, 300.0, condition)
    for kind in ("self", "cross"):
        asked = []

        def rule(site, q, k, v, level, asked=asked):
            asked.append(site.kind)
            return torch.zeros_like(q)

        with attention(backbone, rule, kind=kind):
            changed = backbone.output(x, 300.0, condition)
        assert set(asked) == {kind}
        assert not torch.allclose(changed, plain)
    assert torch.equal(backbone.output(x, 300.0, condition), plain)


def test_silenced_cross_attention_no_longer_hears_the_words():
    backbone, x, condition = monai_case(2)
    other = backbone.condition(2, prompt="a breast mri")
    with attention(backbone, lambda site, q, k, v, level: torch.zeros_like(q), kind="cross"):
        assert torch.equal(backbone.output(x, 300.0, condition), backbone.output(x, 300.0, other))
    assert not torch.allclose(backbone.output(x, 300.0, condition), backbone.output(x, 300.0, other))


def test_nothing_is_left_behind_also_after_an_exception(case):
    backbone, x, condition = case
    plain, before = backbone.output(x, 300.0, condition), imprint(backbone)

    def rule(site, q, k, v, level):
        if site.index == 1:
            raise RuntimeError("half-way")
        return torch.zeros_like(q)

    with pytest.raises(RuntimeError, match="half-way"), attention(backbone, rule):
        backbone.output(x, 300.0, condition)
    assert imprint(backbone) == before
    assert torch.equal(backbone.output(x, 300.0, condition), plain)


def test_rules_nest_and_the_inner_one_is_asked_first():
    backbone, x, condition = monai_case(2)
    asked = []

    def outer(site, q, k, v, level):
        asked.append("outer")

    def inner(site, q, k, v, level):
        asked.append("inner")
        if site.kind == "cross":
            return torch.zeros_like(q)
        return F.scaled_dot_product_attention(q, k, 2 * v)  # passes on, with other values

    with attention(backbone, outer), attention(backbone, inner):
        backbone.output(x, 300.0, condition)
    sites = len(backbone.network.attention_sites())
    cross = sum(kind == "cross" for _, kind in backbone.network.attention_sites().values())
    assert asked.count("inner") == sites
    assert asked.count("outer") == sites - cross


def test_a_rule_knows_the_step():
    backbone, x, condition = monai_case(2)
    levels = []
    level = backbone.schedule.at(300.0)
    with attention(
        backbone,
        lambda site, q, k, v, level: levels.append(level),
        sites=["middle_block.attention.transformer_blocks.0.attn1"],
    ):
        with at_level(level):
            backbone.output(x, 300.0, condition)
    assert levels == [level]


def test_other_threads_are_not_ruled():
    backbone, x, condition = monai_case(2)
    plain = backbone.output(x, 300.0, condition)
    results = []

    def elsewhere():
        results.append(backbone.output(x, 300.0, condition))

    with attention(backbone, lambda site, q, k, v, level: torch.zeros_like(q)):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        backbone.output(x, 300.0, condition)
    assert torch.equal(results[0], plain)


def test_gradients_pass_through_a_rule():
    backbone, x, condition = monai_case(2)
    x.requires_grad_()
    with attention(backbone, lambda site, q, k, v, level: apply(probabilities(q, k), v)):
        (gradient,) = torch.autograd.grad(backbone.output(x, 300.0, condition).sum(), x)
    (plain,) = torch.autograd.grad(backbone.output(x, 300.0, condition).sum(), x)
    torch.testing.assert_close(gradient, plain, atol=1e-4, rtol=1e-3)


def test_what_cannot_be_ruled_is_refused():
    backbone, x, condition = monai_case(2)
    with pytest.raises(DiffAugError, match="use 'middle_block"):
        with attention(backbone, lambda *_: None, sites=["middle_block.attention.transformer_blocks.0.attn3"]):
            pass
    with pytest.raises(DiffAugError, match="no cross attention"):
        with attention(tiny("class"), lambda *_: None, kind="cross"):
            pass
    backbone.network.attention_sites()
    for module in backbone.network.module.modules():
        if hasattr(module, "use_flash_attention"):
            module.use_flash_attention = False  # as a caller might, after it was adapted
    with pytest.raises(DiffAugError, match="attention"), attention(backbone, lambda *_: None):
        backbone.output(x, 300.0, condition)
