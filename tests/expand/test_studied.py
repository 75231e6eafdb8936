"""Orders of a study are filled by the commands' code: edits, samples, words learned of the labeled images alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.backbones import hub
from monai_diffaug.backbones.tiny import tiny
from monai_diffaug.evaluation.utility import Arm, Order
from monai_diffaug.expand.studied import produce
from monai_diffaug.types import DiffAugError


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    root = tmp_path_factory.mktemp("backbones")
    return {k: str(hub.save(tiny(k, size=16), root / k, precision=torch.float32)) for k in ("class", "text")}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    root, rng, rows = tmp_path_factory.mktemp("real"), np.random.default_rng(0), []
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (16, 16)).astype(np.uint8)).save(root / f"{i}.png")
        rows.append({"image": f"{i}.png", "class": ("healthy", "tumor")[i % 2], "patient": f"p{i // 2}"})
    (root / "train.json").write_text(json.dumps({"training": rows}))
    return root / "train.json"


def entries(path):
    return json.loads(Path(path).read_text())["training"]


def test_edits_keep_class_and_patient_and_are_not_made_twice(backbones, real, tmp_path):
    arm = Arm("s", "diffusion", method="sdedit", parameters={"strength": 0.5, "steps": 2})
    order = Order(arm, backbones["class"], real, tmp_path / "s", 2, {}, ("healthy", "tumor"))
    rows = entries(produce(order))
    assert len(rows) == 8
    assert sorted({(r["class"], r["patient"]) for r in rows}) == [
        (c, p) for c in ("healthy", "tumor") for p in ("p0", "p1")
    ]
    assert all(r["synthetic"] and r["provenance"]["backbone_digest"] for r in rows)
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "s" / "images").iterdir() if f.suffix == ".png"}
    assert entries(produce(order)) == rows
    assert files == {f: f.stat().st_mtime_ns for f in files}


def test_plain_sampling_by_class(backbones, real, tmp_path):
    arm = Arm("g", "diffusion", method="generate", parameters={"steps": 2})
    rows = entries(produce(Order(arm, backbones["class"], real, tmp_path / "g", 1, {"healthy": 2, "tumor": 3})))
    assert [r["class"] for r in rows] == ["healthy"] * 2 + ["tumor"] * 3
    with pytest.raises(DiffAugError, match="came to 2 images"):
        produce(Order(arm, backbones["class"], real, tmp_path / "few", 1, {"healthy": 1, "tumor": 1}))


def test_words_are_learned_from_the_given_images_once(backbones, real, tmp_path):
    small = real.with_name("few.json")
    rows = [{**r, "class": f"{r['class']}_here"} for r in entries(real)]
    small.write_text(json.dumps({"training": rows}))
    learn = {"method": "textual_inversion", "parameters": {"steps": 2, "batch_size": 2}}
    arm = Arm("w", "diffusion", method="da_fusion", parameters={"steps": 2, "strength": 0.5}, learn=learn)
    order = Order(arm, backbones["text"], small, tmp_path / "w", 1, {}, ("healthy_here", "tumor_here"))
    assert len(entries(produce(order))) == 4
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [f.name for f in files] == ["w-healthy_here.safetensors", "w-tumor_here.safetensors"]
    when = [f.stat().st_mtime_ns for f in files]
    produce(order)
    assert [f.stat().st_mtime_ns for f in files] == when
