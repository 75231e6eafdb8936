"""The dual encoder as a scorer, against transformers' own CLIP."""

import pytest
import torch

from monai_diffaug.backbones.scorer import Scorer
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError

PROMPTS = ["a head ct", "a large chest x-ray", "a hand x-ray on the left"]


@pytest.fixture(scope="module")
def scorer():
    return tiny("text").scorer


def test_similarity_is_clips_own(scorer):
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    ids = scorer.tokenizer(PROMPTS, padding="max_length", max_length=24, return_tensors="pt")
    out = scorer.module(
        input_ids=ids.input_ids, attention_mask=ids.attention_mask, pixel_values=((images + 1) / 2 - 0.5) / 0.5
    )
    scale = scorer.module.logit_scale.exp()
    torch.testing.assert_close(scorer(images, PROMPTS), out.logits_per_image.diagonal() / scale, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(scorer.classify(images, PROMPTS), out.logits_per_image.softmax(-1), atol=1e-4, rtol=1e-3)


def test_embeddings_are_unit_vectors_and_sizes_are_fitted(scorer):
    for size in (16, 40):
        found = scorer.embed_images(torch.rand(2, 1, size, size) * 2 - 1)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(scorer.embed_prompts(PROMPTS).norm(dim=1), torch.ones(3))


def test_volumes_are_the_mean_of_their_slices(scorer):
    plane = torch.rand(1, 1, 16, 16) * 2 - 1
    volume = plane[..., None].repeat(1, 1, 1, 1, 12)
    torch.testing.assert_close(scorer.embed_images(volume), scorer.embed_images(plane), atol=1e-5, rtol=1e-4)
    few = plane[..., None].repeat(1, 1, 1, 1, 2)  # fewer slices than are looked at
    torch.testing.assert_close(scorer.embed_images(few), scorer.embed_images(plane), atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_image(scorer):
    images = torch.zeros(1, 1, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(scorer(images, "a head ct").sum(), images)
    assert float(gradient.abs().max()) > 0
    step = 1e-2 * gradient / gradient.norm()
    assert scorer(images + step, "a head ct") > scorer(images, "a head ct")


def test_what_does_not_fit_is_refused(scorer):
    with pytest.raises(DiffAugError, match="2 images were given 3 prompts"):
        scorer(torch.zeros(2, 1, 16, 16), PROMPTS)
    three = Scorer(scorer.module, scorer.tokenizer, mean=(0.5,), std=(0.5,))
    with pytest.raises(DiffAugError, match="takes 1 channels and was given 2"):
        three.embed_images(torch.zeros(1, 2, 16, 16))
