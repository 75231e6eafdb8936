"""The backbones that tests run on are themselves what they say."""

import time

import pytest
import torch

from monai_diffaug.backbones.tiny import KINDS, digest_of
from monai_diffaug.testing import ideal_backbone, tiny
from monai_diffaug.types import DiffAugError


def test_tiny_builds_at_once():
    tiny("text", 3, autoencoder=True)  # imports
    start = time.perf_counter()
    tiny("text", 3, autoencoder=True)
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("autoencoder", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_backbone(kind, autoencoder):
    first, again, other = (tiny(kind, autoencoder=autoencoder, seed=s) for s in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.digest == digest_of(first)
    with torch.no_grad():
        next(first.network.module.parameters())[0] += 1e-7
    assert digest_of(first) != first.digest


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["class", "class_mask", "text"])
def test_conditions_act(kind, dims):
    backbone = tiny(kind, dims)
    x = torch.randn(1, 1, *backbone.contract.latent_size)
    null, told, other = (backbone.output(x, 500.0, backbone.condition(1, prompt=p)) for p in (None, "healthy", "tumor"))
    assert (told - null).std() > 0.03 * null.std()
    assert (told - other).std() > 0.03 * null.std()
    if kind == "class_mask":
        mask = torch.zeros(1, 1, *backbone.contract.size)
        mask[..., :8] = 1
        assert (backbone.output(x, 500.0, backbone.condition(1, mask=mask)) - null).std() > 0.03 * null.std()


@pytest.mark.parametrize("dims", [2, 3])
def test_sizes_are_the_contracts(dims):
    backbone = tiny("text", dims, autoencoder=True, factor=4)
    image = torch.randn(2, 1, *backbone.contract.size)
    latent = backbone.encode(image)
    assert latent.shape == (2, 4, *backbone.contract.latent_size)
    assert backbone.decode(latent).shape == image.shape
    assert backbone.scorer(image, "a head ct").shape == (2,)


def test_text_offers_everything_that_a_method_may_need():
    assert tiny("text").offers() >= {
        *("prompt_condition", "label_condition", "self_attention", "cross_attention"),
        *("features", "weights", "scorer", "text_encoder"),
    }


def test_what_cannot_be_built_is_refused():
    with pytest.raises(DiffAugError, match="class_mask"):
        tiny("classes")
    with pytest.raises(DiffAugError, match="multiple of 8"):
        tiny("text", size=12, autoencoder=True, factor=4)


@pytest.mark.parametrize("dims", [2, 3])
def test_ideal_backbone_knows_its_classes(dims):
    backbone = ideal_backbone(dims)
    x = torch.randn(1, 1, *backbone.contract.size)
    healthy, tumor = (backbone.output(x, 700.0, backbone.condition(1, prompt=p)) for p in ("healthy", "tumor"))
    assert not torch.allclose(healthy, tumor)
    assert ideal_backbone(dims, labels=False).offers() == frozenset()
