"""What the audit calls a copy of a training image is not written: it is made again, or given up, and logged."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.cli import app
from monai_diffaug.expand import expand
from monai_diffaug.expand.gate import Gate
from monai_diffaug.testing import ideal_backbone
from monai_diffaug.types import DiffAugError

from .conftest import files_of

SIZE = 32


@pytest.fixture(scope="module")
def heads():
    return ideal_backbone(2, size=SIZE)


def smooth(n, seed):
    coarse = torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-1, 1)


def folder(root, images):
    root.mkdir()
    for i, x in enumerate(images):
        Image.fromarray(((x[0] + 1) * 127.5).round().numpy().astype(np.uint8)).save(root / f"{root.name}{i:03d}.png")
    return root


@pytest.fixture
def others(tmp_path):
    return folder(tmp_path / "others", smooth(60, 1))


@pytest.fixture
def scans(tmp_path):
    return folder(tmp_path / "scans", smooth(4, 0))


def made(scans, out, heads, gate, strength=0.0, **more):
    return expand(scans, out, [("sdedit", {"strength": strength, "prompt": "tumor"})], heads, gate=gate, **more)


def test_a_copy_of_its_source_is_refused_and_an_image_that_changed_is_written(scans, others, heads, tmp_path):
    """SDEdit from no noise gives the source back; from much noise it draws what the model knows."""
    gate = Gate(others)
    with pytest.raises(DiffAugError, match="no image passed"):
        made(scans, tmp_path / "copies", heads, gate, 0.0, attempts=2)
    logs = sorted((tmp_path / "copies" / "audit").glob("*.gate.json"))
    assert len(logs) == 4
    first = json.loads(logs[0].read_text())
    assert len(first["refused"]) == 2, "each attempt is logged"
    assert {r["nearest"] for r in first["refused"]} == {"scans000.png"}
    assert not list((tmp_path / "copies").glob("images/*"))

    done = made(scans, tmp_path / "new", heads, gate, 0.95)
    assert done.made == 4
    assert not (tmp_path / "new" / "audit").exists()
    entry = json.loads(done.datalist.read_text())["training"][0]
    assert entry["provenance"]["scores"]["audit"] > 0.02
    without = made(scans, tmp_path / "free", heads, None, 0.0)
    assert without.made == 4, "it is the gate that refuses"


def test_what_the_model_was_trained_on_is_refused_not_only_the_source(scans, others, heads, tmp_path):
    """The exact model draws its own twelve images; with them as training images nothing passes."""
    known = folder(tmp_path / "known", heads.network.module.points.float())
    with pytest.raises(DiffAugError, match="no image passed"):
        made(scans, tmp_path / "out", heads, Gate(others, known), 0.95, attempts=2)
    log = json.loads(next((tmp_path / "out" / "audit").glob("*.gate.json")).read_text())
    assert log["refused"][0]["nearest"].startswith("known")
    assert log["refused"][0]["certain"]


def test_stopped_and_gone_on_it_is_the_same(scans, others, heads, tmp_path):
    gate = Gate(others)
    made(scans, tmp_path / "a", heads, gate, 0.95)
    one = next((tmp_path / "a" / "records").glob("*.json"))
    before = files_of(tmp_path / "a")
    one.unlink()
    made(scans, tmp_path / "a", heads, gate, 0.95)
    assert files_of(tmp_path / "a") == before
    with pytest.raises(DiffAugError, match="other settings"):
        made(scans, tmp_path / "a", heads, Gate(others, rate=0.05), 0.95)


def test_refusals(scans, others, heads, tmp_path, capsys):
    with pytest.raises(DiffAugError, match="on both sides"):
        made(scans, tmp_path / "x", heads, Gate(scans))
    with pytest.raises(DiffAugError, match="there is no gate 'lock': use audit"):
        made(scans, tmp_path / "x", heads, Gate(others, kind="lock"))
    few = folder(tmp_path / "few", smooth(5, 3))
    with pytest.raises(DiffAugError, match="give 50 or more"):
        made(scans, tmp_path / "y", heads, Gate(few))
    command = ["expand", str(scans), "-m", "sdedit", "-b", "brain_mri", "--out", str(tmp_path / "z"), "--gate", "audit"]
    assert app(command, standalone_mode=False) == 1
    assert "give them as --gate-unseen" in capsys.readouterr().err
