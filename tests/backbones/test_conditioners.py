"""From words, classes, masks and numbers to conditions."""

import pytest
import torch

from monai_diffaug.backbones.text import ClassConditioner, NoConditioner, VectorConditioner
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError

LABELS = ("healthy", "tumor", "no_tumor_visible")


@pytest.fixture(scope="module")
def words():
    return tiny("text").conditioner


def test_classes_by_name_number_and_prompt():
    of = ClassConditioner(LABELS)
    assert of(3, label=["healthy", 1, None]).labels.tolist() == [1, 2, 0]
    assert of(2, label=torch.tensor([0, 2])).labels.tolist() == [1, 3]
    assert of(2).labels.tolist() == [0, 0]
    assert of(2, prompt="a brain with tumor").labels.tolist() == [2, 2]
    assert of(2, prompt=["No tumor visible here", ""]).labels.tolist() == [3, 0]  # the longest name wins
    assert of(1, prompt="healthy", label="healthy").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"label": "helthy"}, "did you mean 'healthy'"),
        ({"label": 3}, r"give 0 to 2 or a name \(healthy, tumor, no_tumor_visible\)"),
        ({"prompt": "a tumour"}, "for 'tumour', did you mean 'tumor'"),
        ({"prompt": "healthy or tumor"}, "names 2 classes"),
        ({"prompt": "tumor", "label": "healthy"}, "contradicts"),
        ({"label": ["healthy"] * 3}, "2 images were given 3 labels"),
    ],
)
def test_what_is_no_class_is_refused(told, says):
    with pytest.raises(DiffAugError, match=says):
        ClassConditioner(LABELS)(2, **told)


@pytest.mark.parametrize("dims", [2, 3])
def test_masks_become_two_channels(dims):
    of = ClassConditioner(LABELS, mask=True, latent_size=(4,) * dims)
    mask = torch.zeros(2, 1, *[8] * dims)
    mask[0, :, 4:] = 1
    told = of(2, label="tumor", mask=mask).concat
    assert told.shape == (2, 2, *[4] * dims)
    assert bool((told[0, 0, 2:] == 1).all())
    assert bool((told[0, 0, :2] == 0).all())
    assert bool((told[:, 1] == 1).all())  # told, also where it is empty
    assert float(of(2, label="tumor").concat.abs().sum()) == 0.0
    with pytest.raises(DiffAugError, match="the mask has shape"):
        of(2, mask=mask[:, 0])
    with pytest.raises(DiffAugError, match="give latent_size"):
        ClassConditioner(LABELS, mask=True)


def test_numbers():
    of = VectorConditioner(2, ("age", "volume"), [(40, 90), (0, 1)], null=[65, 0.5], concat=True, latent_size=(4, 4))
    told = of(3, vector=torch.tensor([50.0, 0.2]))
    assert told.tokens.shape == (3, 1, 2)
    assert told.concat.shape == (3, 2, 4, 4)
    assert told.concat[0, :, 1, 2].tolist() == pytest.approx([50.0, 0.2])
    assert of(1).tokens.flatten().tolist() == [65.0, 0.5]
    with pytest.raises(DiffAugError, match="age lies outside its trained range: give 40 to 90"):
        of(1, vector=torch.tensor([20.0, 0.2]))
    with pytest.raises(DiffAugError, match=r"give \(2, 2\) of age, volume"):
        of(2, vector=torch.zeros(2, 3))


def test_nothing_to_say():
    assert NoConditioner()(2).batch is None
    with pytest.raises(DiffAugError, match="takes no condition; it cannot be told prompt"):
        tiny("none").condition(1, prompt="tumor")


def test_prompts_are_the_encoders_own_states(words):
    """What transformers' tokenizer and encoder give for the sentence as a whole."""
    prompt = "a small head ct on the left"
    ids = words.tokenizer(prompt, padding="max_length", max_length=words.length, return_tensors="pt").input_ids
    assert torch.equal(words.tokenize([prompt]), ids)
    expected = words.module(ids).last_hidden_state
    torch.testing.assert_close(words(1, prompt=prompt).tokens, expected)


def test_one_prompt_for_all_or_one_an_image(words):
    several = words(3, prompt=["a head ct", "a hand x-ray", "a head ct"]).tokens
    assert torch.equal(several[0], several[2])
    assert not torch.allclose(several[0], several[1])
    torch.testing.assert_close(words(2, prompt="a head ct").tokens[1], several[0])
    torch.testing.assert_close(words(1).tokens, words(1, prompt="").tokens)
    with pytest.raises(DiffAugError, match="3 images were given 2 prompts"):
        words(3, prompt=["a", "an"])


def test_labels_speak_through_the_template(words):
    assert torch.equal(words(1, label="head ct").tokens, words(1, prompt="a head ct").tokens)
    assert torch.equal(words(2, label=[4, None]).tokens[1:], words(1).tokens)


def test_words_know_their_places(words):
    prompt = "a small head ct"
    ids = words.tokenize([prompt])[0]
    for word, places in words.words(prompt):
        assert words.tokenizer.convert_ids_to_tokens(ids[list(places)].tolist()) == [word]


def test_unknown_words_and_long_prompts_are_refused(words):
    with pytest.raises(DiffAugError, match=r"word 'smal' is not in the backbone's vocabulary: did you mean 'small'"):
        words(1, prompt="a smal head ct")
    with pytest.raises(DiffAugError, match="has 52 tokens and the encoder takes 24: shorten it"):
        words(1, prompt="small " * 50)
    words(1, prompt="A Small HEAD ct, on the left.")  # case and punctuation are no words


def test_prompts_carry_gradients(words):
    from dataclasses import replace

    backbone = tiny("text")
    table = backbone.conditioner.token_embedding.weight.requires_grad_()
    replace(backbone).condition(1, prompt="a head ct").tokens.sum().backward()
    ids = backbone.conditioner.tokenize(["a head ct"])[0].unique()
    assert bool((table.grad[ids].abs().sum(1) > 0).all())
