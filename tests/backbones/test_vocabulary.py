"""A text encoder that learns more words and takes longer prompts."""

import pytest
import torch

from monai_diffaug.backbones import hub
from monai_diffaug.backbones.vocabulary import enlarged
from monai_diffaug.types import DiffAugError


def test_old_prompts_mean_what_they_did_and_new_words_are_known():
    before = hub.load("mednist").conditioner
    after = enlarged(before, ["pneumonia", "covid-19", "chest"], 32)
    old, new = before.tokenize(["a chest x-ray"]), after.tokenize(["a chest x-ray"])
    assert new.shape == (1, 32)
    assert torch.equal(new[:, :20], old)
    with torch.no_grad():
        a, b = before.encode_ids(old), after.encode_ids(new)
    torch.testing.assert_close(b[:, :20], a, atol=1e-5, rtol=1e-4)  # attention is causal: padding adds nothing
    ids = after.tokenize(["a chest x-ray with covid-19 pneumonia"])
    assert len(set(ids[0, 1:8].tolist())) == 7
    with pytest.raises(DiffAugError, match="not in the backbone's vocabulary"):
        before.tokenize(["pneumonia"])


def test_the_rows_are_drawn_once_and_the_old_encoder_is_not_touched():
    before = hub.load("mednist").conditioner
    weights = {k: v.clone() for k, v in before.module.state_dict().items()}
    first, second = (enlarged(before, ["pneumonia"], 24) for _ in range(2))
    row = first.token_embedding.weight[-1]
    assert torch.equal(row, second.token_embedding.weight[-1])
    assert float(row.detach().std()) > 0
    assert all(torch.equal(v, before.module.state_dict()[k]) for k, v in weights.items())


def test_what_cannot_be_enlarged_is_refused():
    with pytest.raises(DiffAugError, match="give at least 20"):
        enlarged(hub.load("mednist").conditioner, ["pneumonia"], 10)
