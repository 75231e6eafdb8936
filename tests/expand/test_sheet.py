"""The contact sheet shows what is in the datalist."""

import json

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.expand import expand, generate
from monai_diffaug.report import sheet
from monai_diffaug.types import DiffAugError


def test_pairs_are_shown(tmp_path, scans, heads):
    outcome = expand(scans, tmp_path / "out", ["sdedit", "healthy_counterfactual"], heads, parameters={"steps": 3})
    path = sheet.draw(outcome.datalist, rows=4)
    assert path == tmp_path / "out" / "overview.png"
    first = path.read_bytes()
    assert sheet.draw(outcome.datalist, rows=4).read_bytes() == first  # nothing of the clock in it
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert picture.shape[1] > 1200
    colored = (picture.max(2) - picture.min(2)) > 60
    assert colored.mean() > 0.005  # the difference maps
    data = json.loads(outcome.datalist.read_text())
    for entry in data["training"]:  # a change in a shown image changes the sheet
        Image.fromarray(255 - np.asarray(Image.open(tmp_path / "out" / entry["image"]))).save(
            tmp_path / "out" / entry["image"]
        )
    assert sheet.draw(outcome.datalist, rows=4).read_bytes() != first


def test_methods_take_turns():
    entries = [{"image": f"{m}{i}", "provenance": {"method": m}} for m, n in (("a", 9), ("b", 2)) for i in range(n)]
    picked = [e["image"] for e in sheet.pick(entries, 6)]
    assert picked == ["a0", "a4", "a8", "b0", "b1"]


def test_volumes_and_generated_images_are_shown(tmp_path, nifti_scans, volumes, heads):
    told = {"steps": 2, "prompt": "tumor", "strength": 0.5}
    outcome = expand(nifti_scans, tmp_path / "a", "sdedit", volumes, parameters=told)
    assert sheet.draw(outcome.datalist).stat().st_size > 20000
    outcome = generate(heads, tmp_path / "b", ["tumor"], count=2, parameters={"steps": 2})
    assert sheet.draw(outcome.datalist, tmp_path / "elsewhere.png") == tmp_path / "elsewhere.png"


def test_what_is_no_datalist(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DiffAugError, match="is no datalist of synthetic images"):
        sheet.draw(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"training": []}')
    with pytest.raises(DiffAugError, match="lists no image"):
        sheet.draw(tmp_path / "x.json")
