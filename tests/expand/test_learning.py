"""`diffaug learn`: from real images to a concept's file, and from there into an edit."""

import json

import pytest
import torch
from typer.testing import CliRunner

from monai_diffaug.backbones import hub
from monai_diffaug.cli import app
from monai_diffaug.expand import learn
from monai_diffaug.primitives import concepts, finetuning
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError, NoiseSource

TEXT = tiny("text", autoencoder=True)


def test_a_word_is_learned_from_the_first_five_of_a_class(tmp_path):
    seen = []
    path = learn(
        "mednist",
        tmp_path / "w.safetensors",
        "textual_inversion",
        TEXT,
        parameters={"word": "new scan", "steps": 3},
        only="head ct",
        progress=lambda *state: seen.append(state),
    )
    concept = concepts.load_concept(path, TEXT)
    assert (concept.kind, concept.word, concept.info["images"]) == ("tokens", "new scan", 5)
    assert [s[:2] for s in seen] == [(1, 3), (2, 3), (3, 3)]


def test_the_same_seed_learns_the_same(tmp_path):
    given = {"parameters": {"steps": 2}, "count": 2}
    a, b, c = (
        concepts.load_concept(
            learn("mednist", tmp_path / f"{i}.safetensors", "textual_inversion", TEXT, seed=s, **given)
        )
        for i, s in enumerate((0, 0, 1))
    )
    assert torch.equal(a.tensors["tokens"], b.tensors["tokens"])
    assert not torch.equal(a.tensors["tokens"], c.tensors["tokens"])


def test_a_branch_for_masks_learns_from_the_masks(tmp_path):
    backbone = tiny("class", autoencoder=True)
    path = learn(
        "brain_mri", tmp_path / "m.safetensors", "controlnet", backbone, parameters={"hint": "mask", "steps": 2}
    )
    concept = concepts.load_concept(path)
    assert concept.info["hint"] == "mask"
    assert concept.info["images"] == 16
    image, mask = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    with concepts.applied(backbone, path, image=image, mask=mask) as taught:
        assert taught.digest != backbone.digest
    with pytest.raises(DiffAugError, match="mask"):
        learn("mednist", tmp_path / "n.safetensors", "controlnet", backbone, parameters={"hint": "mask", "steps": 1})


def test_what_cannot_be_learned_is_refused(tmp_path):
    out = tmp_path / "c.safetensors"
    with pytest.raises(DiffAugError, match="learns nothing"):
        learn("mednist", out, "sdedit", TEXT)
    with pytest.raises(DiffAugError, match="did you mean 'head ct'"):
        learn("mednist", out, "textual_inversion", TEXT, only="hed ct")
    with pytest.raises(DiffAugError, match="learns from images"):
        learn(None, out, "textual_inversion", TEXT)
    with pytest.raises(DiffAugError, match="safetensors"):
        learn("mednist", tmp_path / "c.pt", "textual_inversion", TEXT)
    assert not list(tmp_path.iterdir())


def test_a_bad_image_is_passed_over_and_said(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    from PIL import Image

    Image.new("L", (20, 20), 7).save(folder / "a.png")
    Image.effect_noise((20, 20), 50).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"no picture")
    said = []
    learn(folder, tmp_path / "c.safetensors", "textual_inversion", TEXT, parameters={"steps": 1}, say=said.append)
    assert any("c.png" in line for line in said)


def test_the_commands_learn_and_use_it(tmp_path):
    from monai_diffaug.io.datalist import read

    folder = hub.save(TEXT, tmp_path / "tiny", precision=torch.float32)
    out = tmp_path / "word.safetensors"
    line = ["learn", "textual_inversion", "mednist", "--class", "head ct", "-p", "word=pelvis ct", "-p", "steps=2"]
    done = CliRunner().invoke(app, [*line, "-b", str(folder), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["concept"] == str(out)
    image = read("mednist")[0].image
    edited = tmp_path / "edited.png"
    line = ["edit", str(image), "-m", "da_fusion", "-b", str(folder), "--concept", str(out), "--out", str(edited)]
    done = CliRunner().invoke(app, [*line, "-p", "steps=2", "-p", "prompt=a pelvis ct", "--no-sheet"])
    assert done.exit_code == 0, done.output
    assert edited.is_file()
    taught = json.loads((tmp_path / "edited.json").read_text())
    assert "+" in taught["backbone_digest"]


def test_watchers_see_only_their_own_block():
    seen = []
    lesson = finetuning.Lesson(torch.zeros(2, 1, 4, 4), lambda x, t, picks: x * weight)
    weight = torch.ones(1, requires_grad=True)
    with finetuning.watched(lambda *state: seen.append(state)):
        finetuning.finetune(TEXT.schedule, [lesson], [weight], steps=2, rate=0.1, seed=NoiseSource([3]).seeds[0])
    finetuning.finetune(TEXT.schedule, [lesson], [weight], steps=2, rate=0.1)
    assert len(seen) == 2
