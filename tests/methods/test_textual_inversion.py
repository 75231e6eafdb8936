"""What textual inversion trains, and what it leaves alone."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.primitives import concepts, embeddings, finetuning
from monai_diffaug.testing import digest_of, tiny
from monai_diffaug.types import DiffAugError, NoiseSource

BACKBONE = tiny("text")
IMAGES = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def learn(**given):
    given = {"steps": 4, "generator": NoiseSource([0]), **given}
    return registry.call("textual_inversion", BACKBONE, IMAGES, **given)


def test_only_the_rows_of_the_word_are_learned():
    before = digest_of(BACKBONE)
    concept = learn(word="new-scan", initial="head ct", vectors=2)
    assert concept.kind == "tokens"
    assert set(concept.tensors) == {concepts.TOKENS}
    assert concept.tensors[concepts.TOKENS].shape == (2, 16)
    assert digest_of(BACKBONE) == before
    assert not any(p.requires_grad for p in BACKBONE.conditioner.module.parameters())


def test_without_training_it_is_the_initial_word():
    concept = learn(initial="hand", steps=0)
    assert torch.equal(concept.tensors[concepts.TOKENS], embeddings.rows_of(BACKBONE, "hand"))


def test_training_lowers_the_loss_of_its_own_images():
    """The loss over fixed noise, against the same word before training."""

    def loss(concept):
        with torch.no_grad(), concepts.applied(BACKBONE, concept) as taught:
            told = taught.condition(3, prompt=f"a {concept.word}")
            lesson = finetuning.Lesson(IMAGES, lambda x, t, picks: taught.output(x, t, told))
            draw = torch.Generator().manual_seed(5)
            parts = [finetuning._loss(taught.schedule, lesson, torch.arange(3), draw) for _ in range(20)]
        return float(torch.stack(parts).mean())

    start, end = loss(learn(steps=0, initial="hand")), loss(learn(steps=60, initial="hand", rate=2e-2))
    assert end < start - 1e-3, (start, end)


def test_a_strong_pull_holds_the_rows():
    start = embeddings.rows_of(BACKBONE, "hand")
    free = learn(initial="hand", steps=20, rate=1e-2).tensors[concepts.TOKENS]
    held = learn(initial="hand", steps=20, rate=1e-2, pull=100.0).tensors[concepts.TOKENS]
    assert (held - start).norm() < 0.5 * (free - start).norm()


def test_a_backbone_without_words_is_refused():
    with pytest.raises(DiffAugError, match="text_encoder"):
        registry.call("textual_inversion", tiny("class"), IMAGES, generator=NoiseSource([0]))


def test_an_unknown_initial_word_is_refused():
    with pytest.raises(DiffAugError, match="did you mean"):
        learn(initial="hend")


def test_the_concept_survives_its_file(tmp_path):
    concept = learn(word="head scan")
    path = concepts.save(concept, tmp_path / "word.safetensors")
    with concepts.applied(BACKBONE, path) as taught, concepts.applied(BACKBONE, concept) as same:
        assert taught.digest == same.digest != BACKBONE.digest
        tokens = [b.condition(1, prompt="a head scan").tokens for b in (taught, same, BACKBONE)]
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], tokens[2])
