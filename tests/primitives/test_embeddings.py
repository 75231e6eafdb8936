"""Words that the text encoder did not know."""

import threading

import pytest
import torch

from monai_diffaug.primitives import embeddings
from monai_diffaug.testing import tiny
from monai_diffaug.testing.intact import imprint
from monai_diffaug.types import DiffAugError


@pytest.fixture(scope="module")
def backbone():
    return tiny("text")


def tokens(backbone, prompt):
    return backbone.condition(1, prompt=prompt).tokens


def test_a_known_words_rows_under_a_new_name_mean_the_same(backbone):
    taught = embeddings.with_words(backbone, {"scan-x": embeddings.rows_of(backbone, "mri")})
    assert torch.equal(tokens(taught, "a breast scan-x"), tokens(backbone, "a breast mri"))
    assert torch.equal(tokens(taught, "a breast mri"), tokens(backbone, "a breast mri"))


def test_new_rows_act_and_the_backbone_stays(backbone):
    before = imprint(backbone)
    taught = embeddings.with_words(backbone, {"scan-x": embeddings.random_rows(backbone, 2)})
    assert not torch.allclose(tokens(taught, "a scan-x"), tokens(backbone, "a mri"))
    assert imprint(backbone) == before
    with pytest.raises(DiffAugError, match="word 'scan-x' is not in the backbone's vocabulary"):
        tokens(backbone, "a scan-x")


def test_only_the_new_rows_get_gradients(backbone):
    rows = embeddings.random_rows(backbone, 2).requires_grad_()
    taught = embeddings.with_words(backbone, {"scan-x": rows})
    tokens(taught, "a small scan-x").pow(2).sum().backward()
    assert bool((rows.grad != 0).any(1).all())
    assert all(p.grad is None for p in backbone.conditioner.module.parameters())


def test_each_row_is_a_token_of_its_own(backbone):
    taught = embeddings.with_words(backbone, {"scan-x": embeddings.random_rows(backbone, 3)})
    places = dict(taught.conditioner.words("a scan-x on the left"))
    assert len(places["scan-x"]) == 3
    ids = taught.conditioner.tokenize(["a scan-x on the left"])[0]
    assert (ids >= taught.conditioner.token_embedding.num_embeddings).sum() == 3
    assert places["on"][0] == places["scan-x"][-1] + 1


def test_rows_of_several_tokens_and_copies(backbone):
    table = backbone.conditioner.token_embedding.weight
    known = backbone.conditioner.tokenizer.convert_tokens_to_ids(["head", "ct"])
    torch.testing.assert_close(embeddings.rows_of(backbone, "head ct", 2), table[known].mean(0).expand(2, -1))
    with pytest.raises(DiffAugError, match="vectors is 0"):
        embeddings.rows_of(backbone, "head", 0)
    with pytest.raises(DiffAugError, match="did you mean 'head'"):
        embeddings.rows_of(backbone, "heads")


def test_random_rows_have_the_tables_spread(backbone):
    table = backbone.conditioner.token_embedding.weight
    rows = embeddings.random_rows(backbone, 4000, seed=2)
    torch.testing.assert_close(rows.std(0), table.std(0), rtol=0.1, atol=0)
    assert torch.equal(rows, embeddings.random_rows(backbone, 4000, seed=2))


def test_the_bank_speaks_only_known_words(backbone):
    bank = embeddings.prompt_bank(backbone, "head ct")
    assert len(bank) == len(set(bank)) > 3
    for prompt in bank:
        assert "head ct" in prompt
        backbone.condition(1, prompt=prompt)
    assert "a close-up photo of a head ct" not in bank


def test_another_thread_does_not_hear_the_new_word(backbone):
    """Two threads, two sets of rows under one name, one encoder: each reads its own."""
    taught = [embeddings.with_words(backbone, {"scan-x": embeddings.random_rows(backbone, seed=s)}) for s in (1, 2)]
    expected = [tokens(t, "a scan-x") for t in taught]
    assert not torch.allclose(*expected)
    wrong = []

    def read(i):
        for _ in range(30):
            if not torch.equal(tokens(taught[i], "a scan-x"), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_cannot_be_taught_is_refused(backbone):
    with pytest.raises(DiffAugError, match="no text encoder"):
        embeddings.with_words(tiny("class"), {"x": torch.zeros(1, 16)})
    with pytest.raises(DiffAugError, match=r"give \(n, 16\)"):
        embeddings.with_words(backbone, {"x": torch.zeros(1, 8)})
