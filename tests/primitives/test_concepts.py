"""Concepts: put on, kept in a file, refused on the wrong backbone."""

import os

import pytest
import torch

from monai_diffaug.primitives import adapters, control, embeddings
from monai_diffaug.primitives.concepts import applied, check, digest, load_concept, save
from monai_diffaug.testing import tiny
from monai_diffaug.testing.intact import imprint
from monai_diffaug.types import Concept, DiffAugError


@pytest.fixture(scope="module")
def backbone():
    return tiny("text")


def lora(backbone, size=0.3):
    state = adapters.lora_state(adapters.with_lora(backbone.network, 2))
    generator = torch.Generator().manual_seed(3)
    tensors = {k: size * torch.randn(v.shape, generator=generator) for k, v in state.items()}
    return Concept("lora", tensors, backbone.digest, info={"alpha": 2})


def word(backbone, name="scan-x"):
    return Concept("tokens", {"tokens": embeddings.random_rows(backbone, 2, seed=1)}, backbone.digest, name)


def weights(backbone):
    name = "out.2.conv.weight"
    value = backbone.network.module.state_dict()[name]
    return Concept("weights", {name: 2 * value}, backbone.digest)


def branch(backbone):
    made = control.branch(backbone, 1)
    tensors = {k: v.detach() + 0.05 for k, v in made.module.state_dict().items()}
    return Concept("controlnet", tensors, backbone.digest, info={"hint_channels": 1, "hint": "edges"})


MAKE = {"lora": lora, "tokens": word, "weights": weights, "controlnet": branch}


def out(backbone, prompt="a head ct"):
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return backbone.output(x, 400.0, backbone.condition(1, prompt=prompt))


HINT = torch.ones(1, 1, 16, 16)


@pytest.mark.parametrize("kind", MAKE)
def test_put_on_it_acts_and_the_backbone_stays(kind, backbone):
    concept, before, plain = MAKE[kind](backbone), imprint(backbone), out(backbone)
    with applied(backbone, concept, hint=HINT) as taught:
        prompt = "a scan-x" if kind == "tokens" else "a head ct"
        assert not torch.allclose(out(taught, prompt), plain)
        assert taught.digest.startswith(backbone.digest + "+")
    assert imprint(backbone) == before
    assert torch.equal(out(backbone), plain)
    with pytest.raises(RuntimeError, match="half-way"), applied(backbone, concept, hint=HINT):
        raise RuntimeError("half-way")
    assert imprint(backbone) == before


@pytest.mark.parametrize("kind", MAKE)
def test_a_file_holds_all_of_it(kind, backbone, tmp_path):
    concept = MAKE[kind](backbone)
    found = load_concept(save(concept, tmp_path / "new" / "it.safetensors"), backbone)
    assert digest(found) == digest(concept)
    assert (found.kind, found.word, dict(found.info)) == (concept.kind, concept.word, dict(concept.info))
    assert all(torch.equal(found.tensors[k], v) for k, v in concept.tensors.items())
    prompt = "a scan-x" if kind == "tokens" else "a head ct"
    with (
        applied(backbone, concept, hint=HINT) as a,
        applied(backbone, tmp_path / "new" / "it.safetensors", hint=HINT) as b,
    ):
        assert torch.equal(out(a, prompt), out(b, prompt))
        assert a.digest == b.digest


def test_several_stand_on_one_another(backbone):
    with applied(backbone, word(backbone)) as first:
        second = Concept("weights", weights(backbone).tensors, first.digest)
    with applied(backbone, word(backbone), second) as both:
        out(both, "a scan-x")
    with pytest.raises(DiffAugError, match="made for a backbone with digest"):
        check(second, backbone)  # learned on top of the word: wants the word
    with applied(backbone, word(backbone), lora(backbone)) as both:
        out(both, "a scan-x")  # made for the plain backbone: fits what was made of it too


def test_digests_tell_concepts_apart(backbone):
    a, b = lora(backbone), lora(backbone, 0.30001)
    assert digest(a) == digest(lora(backbone))
    assert digest(a) != digest(b)
    assert digest(word(backbone)) != digest(word(backbone, "scan-y"))


def test_the_wrong_backbone_is_refused(backbone, tmp_path):
    concept = lora(backbone)
    path = save(concept, tmp_path / "it.safetensors")
    with pytest.raises(DiffAugError, match=r"load the backbone that it was learned on"):
        load_concept(path, tiny("text", seed=1))
    with pytest.raises(DiffAugError, match=r"learn it again on this one"), applied(tiny("text", seed=1), concept):
        pass


def test_broken_and_foreign_files_are_refused(backbone, tmp_path):
    with pytest.raises(DiffAugError, match="there is no concept file"):
        load_concept(tmp_path / "nothing.safetensors")
    path = save(lora(backbone), tmp_path / "it.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DiffAugError, match="is broken or no safetensors file"):
        load_concept(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DiffAugError, match="holds tensors but no concept"):
        load_concept(tmp_path / "other.safetensors")


def test_a_failed_write_leaves_the_old_file(backbone, tmp_path, monkeypatch):
    path = save(lora(backbone), tmp_path / "it.safetensors")
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiffAugError, match="choose a folder with room"):
        save(word(backbone), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["it.safetensors"]
    with pytest.raises(DiffAugError, match="give numbers, text and lists"):
        save(Concept("lora", {}, "", info={"x": torch.zeros(1)}), path)


def test_what_cannot_be_put_on_is_refused(backbone):
    with pytest.raises(DiffAugError, match="kind 'spell' is unknown"), applied(backbone, Concept("spell", {}, "")):
        pass
    with pytest.raises(DiffAugError, match="wants something to look at"), applied(backbone, branch(backbone)):
        pass
    direction = Concept("direction", {"shift": torch.zeros(1)}, backbone.digest)
    with pytest.raises(DiffAugError, match="give it to the method that learned it"), applied(backbone, direction):
        pass
    with pytest.raises(DiffAugError, match="hint is"), applied(backbone, branch(backbone), hint=torch.ones(1, 1, 8, 8)):
        pass
