"""One image edited, and images from nothing."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.backbones.text import VectorConditioner
from monai_diffaug.expand import edit, generate
from monai_diffaug.expand.generate import plain
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError, NoiseSource

from .conftest import files_of


def test_an_edit_writes_image_mask_and_record(tmp_path, scans, heads):
    image, mask = scans.parent / "images" / "1.png", scans.parent / "masks" / "1.png"
    made = edit(image, tmp_path / "new.png", "healthy_counterfactual", heads, mask=mask, kind="tumor")
    assert (made.image, made.mask, made.record) == tuple(tmp_path / n for n in ("new.png", "new_mask.png", "new.json"))
    assert not np.asarray(Image.open(made.mask)).any()
    (entry,) = json.loads(made.record.read_text())["training"]
    assert (entry["class"], entry["provenance"]["method"]) == ("healthy", "healthy_counterfactual")
    with pytest.raises(DiffAugError, match="it shows 'healthy' already"):
        edit(image, tmp_path / "x.png", "healthy_counterfactual", heads, kind="healthy")


def test_the_seed_decides(tmp_path, scans, heads):
    image = scans.parent / "images" / "1.png"
    a, b, c = (
        edit(image, tmp_path / f"{n}.png", "sdedit", heads, parameters={"prompt": "tumor"}, seed=s).image.read_bytes()
        for n, s in (("a", 1), ("b", 1), ("c", 2))
    )
    assert a == b != c


def test_generated_classes_are_what_they_say(tmp_path, heads):
    """The exact denoiser gives back its own images, of the class that was asked for."""
    outcome = generate(heads, tmp_path / "out", count=3, parameters={"steps": 30, "scale": 1.0}, batch_size=2)
    entries = json.loads(outcome.datalist.read_text())["training"]
    assert [e["class"] for e in entries] == ["healthy"] * 3 + ["tumor"] * 3
    points = heads.network.module.points[:, 0].numpy()
    for entry in entries:
        new = np.asarray(Image.open(tmp_path / "out" / entry["image"])) / 127.5 - 1
        nearest = int(((points - new) ** 2).mean((1, 2)).argmin())
        assert ("healthy", "tumor")[nearest % 2] == entry["class"]
        assert "source" not in entry
    before = files_of(tmp_path / "out")
    again = generate(heads, tmp_path / "out", count=3, parameters={"steps": 30, "scale": 1.0}, batch_size=2)
    assert (again.before, again.made) == (6, 6)
    assert files_of(tmp_path / "out") == before


def test_volumes_come_as_nifti(tmp_path, volumes):
    outcome = generate(volumes, tmp_path / "out", ["tumor"], count=1, parameters={"steps": 4})
    (entry,) = json.loads(outcome.datalist.read_text())["training"]
    new = nib.load(tmp_path / "out" / entry["image"])
    assert new.shape == (8, 8, 8)
    assert 0 <= new.get_fdata().min() < new.get_fdata().max() <= 1


def test_a_mask_and_a_method_go_in(tmp_path, scans):
    backbone = tiny("class_mask", size=16)
    mask = scans.parent / "masks" / "1.png"
    kwargs = {"count": 1, "parameters": {"steps": 3}, "seed": 5}
    with_mask = generate(backbone, tmp_path / "a", ["tumor"], mask=mask, **kwargs)
    without = generate(backbone, tmp_path / "b", ["tumor"], **kwargs)
    (a,), (b,) = (json.loads(o.datalist.read_text())["training"] for o in (with_mask, without))
    assert np.asarray(Image.open(tmp_path / "a" / a["label"])).any()
    assert "label" not in b
    assert (tmp_path / "a" / a["image"]).read_bytes() != (tmp_path / "b" / b["image"]).read_bytes()
    told = {"steps": 2, "rounds": 1, "target": "a head ct"}
    outcome = generate(
        tiny("text"), tmp_path / "c", ["a head ct"], count=1, method="universal_guidance", parameters=told
    )
    assert outcome.made == 1


def test_guidance_leads_away_from_negative_numbers():
    """On the network's output: told + (w - 1) times what telling apart makes of it, and nothing where both are one."""
    backbone = replace(tiny("text"), conditioner=VectorConditioner(16))
    asked, away = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).tolist()
    made = {
        key: plain(backbone, vector=asked, negative_vector=key and away, scale=w, steps=1, generator=NoiseSource([3]))
        for key, w in ((None, 1.0), (True, 3.0))
    }
    same = plain(backbone, vector=asked, negative_vector=asked, scale=3.0, steps=1, generator=NoiseSource([3]))
    assert torch.allclose(same.image, made[None].image, atol=1e-4)
    assert not torch.allclose(made[True].image, made[None].image, atol=1e-4)
    other = plain(backbone, vector=asked, scale=3.0, steps=1, generator=NoiseSource([3]))
    assert not torch.allclose(made[True].image, other.image, atol=1e-4)


def test_what_cannot_be_generated(tmp_path, heads):
    with pytest.raises(DiffAugError, match="did you mean 'tumor'"):
        generate(heads, tmp_path / "out", ["tumour"])
    with pytest.raises(DiffAugError, match="cannot be used here"):
        generate(heads, tmp_path / "out", method="sdedit")
    with pytest.raises(DiffAugError, match="compare with real images"):
        generate(heads, tmp_path / "out", keep={"novelty": 0.2})
    assert not (tmp_path / "out").exists()
