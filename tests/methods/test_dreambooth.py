"""What DreamBooth trains, with and without an adapter, and what its prior is made of."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.primitives import adapters, concepts
from monai_diffaug.testing import digest_of, tiny
from monai_diffaug.types import DiffAugError, NoiseSource

BACKBONE = tiny("text")
IMAGES = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def learn(backbone=BACKBONE, **given):
    given = {"class_prompt": "a head ct", "steps": 5, "prior": 4, "generator": NoiseSource([0]), **given}
    return registry.call("dreambooth", backbone, IMAGES, **given)


def moved(concept, prompt):
    """How far the concept moves the network's output for a prompt that both can read."""
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), concepts.applied(BACKBONE, concept) as taught:
        a, b = (m.output(x, 500.0, m.condition(1, prompt=prompt)) for m in (taught, BACKBONE))
    return float((a - b).norm())


@pytest.mark.parametrize(("rank", "kind"), [(2, "lora"), (None, "weights")])
def test_it_learns_an_adapter_or_the_weights(rank, kind):
    before = digest_of(BACKBONE)
    concept = learn(rank=rank)
    assert concept.kind == kind
    assert concept.info["prompt"] == "a <new> head ct"
    if rank is None:
        named = dict(BACKBONE.network.module.named_parameters())
        assert set(concept.tensors) - {concepts.TOKENS} == set(named)
        assert any(not torch.equal(named[k], v) for k, v in concept.tensors.items() if k in named)
    else:
        assert all(".lora_" in k for k in concept.tensors if k != concepts.TOKENS)
    assert moved(concept, "a head ct") > 0
    assert digest_of(BACKBONE) == before


def test_a_merged_adapter_is_what_was_trained():
    """The adapter beside the weights and the adapter added into them say the same."""
    network = adapters.with_lora(BACKBONE.network, 2)
    with torch.no_grad():
        for name, p in network.module.named_parameters():
            if ".lora_B." in name:
                p.normal_(0, 0.1)
    merged = adapters.merged(BACKBONE.network, adapters.lora_state(network))
    x, t, told = torch.randn(1, 1, 16, 16), torch.tensor([500.0]), BACKBONE.condition(1, prompt="a head ct")
    with torch.no_grad():
        assert torch.allclose(network(x, t, told), merged(x, t, told), atol=1e-5)
        assert not torch.allclose(merged(x, t, told), BACKBONE.network(x, t, told), atol=1e-3)


def test_the_prior_holds_the_class():
    free, held = (moved(learn(steps=30, rate=5e-3, prior=8, prior_weight=w), "a head ct") for w in (0.0, 10.0))
    assert held < free


def test_the_identifier_goes_before_the_class():
    assert learn(class_prompt="head ct", word="v", steps=0).info["prompt"] == "v head ct"
    assert learn(class_prompt="an abdomen ct", word="v", steps=0).info["prompt"] == "an v abdomen ct"


def test_unknown_classes_and_rates_are_refused_before_sampling():
    with pytest.raises(DiffAugError, match="did you mean"):
        learn(class_prompt="a hed ct")
    with pytest.raises(DiffAugError, match="rate"):
        learn(rate=0.0)
