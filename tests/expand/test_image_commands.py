"""`diffaug edit`, `expand` and `generate` as they are typed."""

import json

import pytest
import typer
from typer.testing import CliRunner

from monai_diffaug.backbones import hub
from monai_diffaug.cli import app, images
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(hub.save(tiny("class_mask", size=16), tmp_path_factory.mktemp("backbone") / "tiny"))


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def test_expand_ends_by_naming_its_files(tmp_path, scans, checkpoint):
    words = ["expand", scans, "-m", "sdedit:strength=0.3", "-b", checkpoint, "--out", tmp_path / "out", "-p", "steps=2"]
    result = run(*words)
    assert result.exit_code == 0, result.output
    for name in ("datalist.json", "overview.png"):
        assert str(tmp_path / "out" / name) in result.output
        assert (tmp_path / "out" / name).is_file()
    assert "6 synthetic images" in result.output
    again = run(*words, "--json", "--no-sheet")
    said = json.loads(again.stdout)
    assert (said["made"], said["before"], said["overview"]) == (6, 6, None)


def test_bad_images_are_said_and_the_exit_code_is_0(tmp_path, scans, checkpoint):
    (scans.parent / "images" / "2.png").write_text("x")
    words = ["expand", scans, "-m", "sdedit", "-b", checkpoint, "-p", "steps=2", "--no-sheet"]
    result = run(*words, "--out", tmp_path / "a")
    assert result.exit_code == 0
    assert "skipped:" in result.stderr
    assert "2.png is corrupt or truncated" in result.stderr
    assert "1 bad input was skipped" in result.stdout
    strict = run(*words, "--out", tmp_path / "b", "--strict")
    assert strict.exit_code == 1
    assert strict.stderr.strip().splitlines()[-1].startswith("error:")
    assert len([line for line in strict.stderr.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-m", "sdedti"], "did you mean 'sdedit'"),
        (["-m", "sdedit", "-p", "strenght=1"], "did you mean 'strength'"),
        (["-m", "sdedit", "-p", "steps"], "write key=value"),
        (["-m", "sdedit", "--keep", "novlty"], "did you mean 'novelty'"),
        (["-m", "sdedit", "--keep", "novelty=much"], "is no number: write novelty="),
        (["-m", "sdedit", "--keep", "quality"], "wants a judge"),
    ],
)
def test_what_is_mistyped_is_one_line_and_exit_code_1(tmp_path, scans, checkpoint, words, says):
    result = run("expand", scans, "-b", checkpoint, "--out", tmp_path / "out", *words)
    assert result.exit_code == 1
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("error:")]
    assert says in line
    assert not (tmp_path / "out" / "images").exists()


def test_edit_and_generate(tmp_path, scans, checkpoint):
    image = scans.parent / "images" / "1.png"
    words = ["edit", image, "-m", "sdedit", "-b", checkpoint, "-p", "steps=2", "--class", "tumor"]
    result = run(*words, "--mask", scans.parent / "masks" / "1.png", "--out", tmp_path / "new.png", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["method"], said["prompt"]) == ("sdedit", "tumor")
    for name in ("new.png", "new_mask.png", "new.json", "new_overview.png"):
        assert (tmp_path / name).is_file(), name
    result = run("generate", checkpoint, "--prompt", "tumor", "-n", "2", "-p", "steps=2", "--out", tmp_path / "g")
    assert result.exit_code == 0, result.output
    assert "2 synthetic images" in result.output


def test_help_has_examples():
    for command in ("edit", "expand", "generate"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"diffaug {command} " in result.output


def test_values_are_read_as_what_they_are():
    read = images.parameters_of(["a=0.5", "b=[1, 2]", "c=true", "d=a tumor", "e=None", 'f={"x": 1}', "g=1=2", "h="])
    assert read == {"a": 0.5, "b": [1, 2], "c": True, "d": "a tumor", "e": None, "f": {"x": 1}, "g": "1=2", "h": ""}
    assert images.methods_of(["a", 'b:x=1,y=[1,2],z="p,q"']) == ["a", ("b", {"x": 1, "y": [1, 2], "z": "p,q"})]
    assert images.limits_of(["label", "novelty=0.3"])["novelty"] == 0.3
    with pytest.raises(DiffAugError):
        images.parameters_of(["=1"])
    assert isinstance(app, typer.Typer)
