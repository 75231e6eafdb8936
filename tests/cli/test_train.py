"""`diffaug train` from one's own folder: a checkpoint that loads, a card, and a run that goes on."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from monai_diffaug.backbones import hub
from monai_diffaug.cli import app


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty soft blobs of two classes, in folders named after them."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    y, x = np.mgrid[:24, :24]
    for i in range(40):
        kind = ("round", "long")[i % 2]
        wide = 40 if kind == "round" else 200
        blob = np.exp(-((x - random.uniform(9, 15)) ** 2) / wide - (y - random.uniform(9, 15)) ** 2 / 40)
        (folder / kind).mkdir(exist_ok=True)
        Image.fromarray((60 + 120 * blob).astype("uint8")).save(folder / kind / f"{i:02}.png")
    return folder


def run(*words):
    return CliRunner().invoke(app, ["train", *map(str, words)], catch_exceptions=False)


SHORT = ("--size", 16, "--steps", 6, "--autoencoder-steps", 80, "--license", "CC0")


def test_a_folder_becomes_a_backbone_with_a_card(pictures, tmp_path):
    out = tmp_path / "mine"
    result = run(pictures, "--out", out, *SHORT, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["n"] > 0
    assert figures["reconstruction"]["psnr"] > 12
    backbone = hub.load(out)
    assert backbone.contract.labels == ("long", "round")
    assert backbone.contract.license == "CC0"
    assert backbone.judge is not None
    card = (out / "README.md").read_text()
    assert "**License: CC0.**" in card
    assert "real against real" in card
    assert (out / "samples.png").stat().st_size > 1000
    assert (out / "losses.png").stat().st_size > 1000
    again = run(pictures, "--out", out, *SHORT, "--json")  # nothing left to do: the same weights
    assert again.exit_code == 0, again.output
    assert hub.load(out).digest == backbone.digest


def test_a_domain_wants_its_data(tmp_path):
    result = run("mednist", "--out", tmp_path / "x")
    assert result.exit_code == 1
    result = run("mednist", "--out", tmp_path / "x", "--data", tmp_path)
    assert result.exit_code == 1
    assert not (tmp_path / "x").exists()


def test_own_data_want_a_license_and_a_size_that_fits(pictures, tmp_path):
    assert run(pictures, "--out", tmp_path / "x", "--size", 16).exit_code == 1
    assert run(pictures, "--out", tmp_path / "x", "--size", 20, "--license", "CC0").exit_code == 1
    assert not (tmp_path / "x").exists()
