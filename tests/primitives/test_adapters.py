"""Low-rank adapters: nothing at the start, the same merged as injected, and the network itself never touched."""

import pytest
import torch

from monai_diffaug.backbones.diffusers_unet import DiffusersUNet
from monai_diffaug.primitives import adapters
from monai_diffaug.testing import tiny
from monai_diffaug.testing.intact import imprint
from monai_diffaug.types import Condition, DiffAugError
from tests.networks import bare, diffusers_unet


def monai_case(dims):
    backbone = tiny("text", dims, 8)
    return backbone, torch.randn(1, 1, *[8] * dims), backbone.condition(1, prompt="a head ct")


def diffusers_case(dims):
    backbone = bare(DiffusersUNet(diffusers_unet(dims)), size=(8,) * dims)
    return backbone, torch.randn(1, 4, *[8] * dims), Condition(tokens=torch.randn(1, 5, 16))


@pytest.fixture(params=["monai 2", "monai 3", "diffusers 2"])
def case(request):
    library, dims = request.param.split()
    return (monai_case if library == "monai" else diffusers_case)(int(dims))


def out(network, x, condition):
    return network(x, torch.full((x.shape[0],), 300.0), condition)


def trained(network, x, condition):
    """A few steps, so that B is no longer zero."""
    parameters = [p for p in network.module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        out(network, x, condition).pow(2).mean().backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("pattern", [None, ".*"])
def test_an_adapter_starts_as_nothing_and_merges_as_it_acts(case, pattern):
    backbone, x, condition = case
    before, plain = imprint(backbone), out(backbone.network, x, condition)
    taught = adapters.with_lora(backbone.network, 2, alpha=3.0, pattern=pattern)
    torch.testing.assert_close(out(taught, x, condition), plain, atol=1e-6, rtol=0)
    trained(taught, x, condition)
    injected = out(taught, x, condition).detach()
    assert float((injected - plain).abs().max()) > 1e-3
    state = adapters.lora_state(taught)
    assert all(".lora_A." in k or ".lora_B." in k for k in state)
    merged = adapters.merged(backbone.network, state, alpha=3.0)
    torch.testing.assert_close(out(merged, x, condition), injected, atol=1e-4, rtol=1e-3)
    assert not any("lora" in n for n, _ in merged.module.named_modules())
    assert imprint(backbone) == before
    assert torch.equal(out(backbone.network, x, condition), plain)


def test_only_the_adapter_is_trained():
    backbone, *_ = monai_case(2)
    taught = adapters.with_lora(backbone.network, 2)
    names = [n for n, p in taught.module.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in n for n in names)
    assert not any(p.requires_grad for p in backbone.network.module.parameters())


def test_default_targets_are_attention_and_patterns_choose():
    backbone, *_ = monai_case(2)
    names = adapters.targets(backbone.network)
    assert names
    assert all(".attn" in n for n in names)
    assert all("conv" in n for n in adapters.targets(backbone.network, r".*conv.*"))
    assert len(adapters.targets(backbone.network, ".*")) > len(names)
    with pytest.raises(DiffAugError, match=r"try '\.\*' for all"):
        adapters.targets(backbone.network, "nowhere")


def test_seeds_and_scale():
    backbone, x, condition = monai_case(2)
    states = [adapters.lora_state(adapters.with_lora(backbone.network, 2, seed=s)) for s in (0, 0, 1)]
    name = next(k for k in states[0] if ".lora_A." in k)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])
    state = {k: torch.randn_like(v) * 0.1 for k, v in states[0].items()}
    plain = out(backbone.network, x, condition)
    small, large = (out(adapters.merged(backbone.network, state, a), x, condition) - plain for a in (0.01, 0.02))
    torch.testing.assert_close(large, 2 * small, atol=2e-4, rtol=0.1)  # to first order


def test_copies_share_tensors_and_own_what_they_must():
    backbone, *_ = monai_case(2)
    name = next(n for n, _ in backbone.network.module.named_parameters())
    theirs = dict(backbone.network.module.named_parameters())
    copy = dict(adapters.copied(backbone.network, [name]).module.named_parameters())
    assert copy[name].requires_grad
    assert copy[name].data_ptr() != theirs[name].data_ptr()
    others = [n for n in theirs if n != name]
    assert all(copy[n].data_ptr() == theirs[n].data_ptr() and not copy[n].requires_grad for n in others)
    whole = dict(adapters.copied(backbone.network, None).module.named_parameters())
    assert all(p.requires_grad and p.data_ptr() != theirs[n].data_ptr() for n, p in whole.items())


def test_replaced_tensors_act_in_the_copy_only():
    backbone, x, condition = monai_case(2)
    plain, before = out(backbone.network, x, condition), imprint(backbone)
    name = "out.2.conv.weight"
    zero = torch.zeros_like(backbone.network.module.state_dict()[name])
    assert not torch.allclose(out(adapters.replaced(backbone.network, {name: zero}), x, condition), plain)
    assert imprint(backbone) == before


def test_what_is_no_adapter_is_refused():
    backbone, *_ = monai_case(2)
    with pytest.raises(DiffAugError, match="rank is 0"):
        adapters.with_lora(backbone.network, 0)
    with pytest.raises(DiffAugError, match="no adapter for this network"):
        adapters.merged(backbone.network, {"conv_out.lora_A.weight": torch.zeros(1, 1)})
    with pytest.raises(DiffAugError, match="no parameter 'weight'"):
        adapters.copied(backbone.network, ["weight"])
    with pytest.raises(DiffAugError, match="no tensor 'x' of shape"):
        adapters.replaced(backbone.network, {"x": torch.zeros(1)})
