"""`diffaug audit` from files: planted copies are named, other patients pass, shared patients are refused."""

import json

import numpy as np
import torch
from PIL import Image

from monai_diffaug.cli import app


def folder(root, n, seed):
    """Smooth pictures, all different, named after their set."""
    root.mkdir()
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 1, 9, 9, generator=g)
    fine = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")
    values = ((fine - fine.amin((2, 3), keepdim=True)) / 6 * 255).clamp(0, 255).numpy().astype(np.uint8)
    for i, x in enumerate(values):
        Image.fromarray(x[0]).save(root / f"{root.name}{i:03d}.png")
    return root


def audit(*args):
    try:
        return app(["audit", *map(str, args)], standalone_mode=False)
    except SystemExit as e:
        return e.code


def test_planted_copies_are_named_and_others_pass(tmp_path, capsys):
    train, unseen = folder(tmp_path / "train", 30, 0), folder(tmp_path / "unseen", 60, 1)
    made = folder(tmp_path / "made", 20, 2)
    out = tmp_path / "audit.json"
    assert audit(train, made, "--unseen", unseen, "--out", out) in (0, None)
    clean = json.loads(out.read_text())
    assert clean["sections"]["copies"]["figures"]["copies"]["value"] <= 0.1

    picture = np.roll(np.asarray(Image.open(train / "train007.png"))[:, ::-1], 4, 1)  # mirrored, shifted, brighter
    Image.fromarray((picture * 0.8 + 30).astype(np.uint8)).save(made / "planted.png")
    Image.open(train / "train011.png").save(made / "exact.png")
    capsys.readouterr()
    assert audit(train, made, "--unseen", unseen, "--out", out) == 1
    text = capsys.readouterr().out
    assert "planted.png" in text
    assert "train007.png" in text
    assert audit(train, made, "--unseen", unseen, "--pairs", tmp_path / "pairs", "--json") == 1
    said = json.loads(capsys.readouterr().out)
    pictures = sorted((tmp_path / "pairs").glob("*.png"))
    assert len(pictures) == len(said["pairs"]) == 12
    assert {p["image"].rsplit("/", 1)[1] for p in said["pairs"][:2]} == {"exact.png", "planted.png"}
    with Image.open(pictures[0]) as drawn:
        assert min(drawn.size) > 300
    found = {r["image"].rsplit("/", 1)[1]: r for r in json.loads(out.read_text())["sections"]["copies"]["found"]}
    assert found["exact.png"]["nearest"].endswith("train011.png")


def test_patients_on_both_sides_are_refused(tmp_path, capsys):
    train, made = folder(tmp_path / "train", 60, 0), folder(tmp_path / "made", 8, 1)
    assert audit(train, made, "--unseen", train) == 1
    assert "--unseen" in capsys.readouterr().err
