"""The whole audit from files, in the form that the report reads."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.audit.audit import SECTIONS, few_of
from monai_diffaug.audit.run import Options, audit
from monai_diffaug.backbones.ideal import ideal
from monai_diffaug.types import DiffAugError

from ..verifying import by_pixels
from .sets import bodies, people


def listed(root, images, name, seed, each=1):
    """A datalist of PNGs with sex and age by lot."""
    root.mkdir()
    g = np.random.default_rng(seed)
    rows = []
    for i, x in enumerate(images):
        Image.fromarray(((x[0] + 1) * 127.5).round().numpy().astype(np.uint8)).save(root / f"{name}{i:03d}.png")
        row = {"image": f"{name}{i:03d}.png", "patient": f"{name}{i // each}", "class": "head"}
        rows.append(row | {"sex": "FM"[g.integers(2)], "age": int(g.integers(20, 80))})
    (root / "datalist.json").write_text(json.dumps({"training": rows}))
    return root / "datalist.json"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    train, unseen = bodies(20, 0), bodies(24, 1)
    return (
        listed(root / "train", train, "t", 0),
        listed(root / "made", bodies(16, 2), "s", 1),
        listed(root / "unseen", unseen, "u", 2),
        train,
        listed(root / "copied", torch.cat([0.9 * train[:8], bodies(8, 3)]), "c", 3),
    )


def test_every_section_in_the_form_that_the_report_reads(sets):
    train, _, unseen, images, copied = sets
    model = ideal(images)  # knows its training images by heart
    verifier = by_pixels(images)
    verifier.config = {"size": [32, 32], "channels": 1}
    ask = Options(
        model, ideal(bodies(20, 9)), verifier, ("sex",), extract=0.5, samples=8, attacked=16, rate=0.05, size=None
    )
    begun = []

    def progress(what, total):
        begun.append((what, total))
        return lambda n: begun.append(n)

    found, read = audit(train, copied, unseen, ask, progress)
    said = json.loads(json.dumps(found.to_dict()))
    assert said["verdict"] == "fail"
    assert list(said["sections"]) == list(SECTIONS)
    for name, section in said["sections"].items():
        assert section["verdict"] in ("pass", "fail", "not judged"), name
        assert section["says"].endswith("."), name
        for figure in section["figures"].values():
            assert set(figure) == {"value", "interval", "control", "bar"}
    verdicts = {k: s["verdict"] for k, s in said["sections"].items()}
    assert (
        verdicts["copies"] == verdicts["reidentification"] == verdicts["membership"] == verdicts["extraction"] == "fail"
    )
    assert 0 < len(said["pairs"]) <= 12
    assert all({"image", "nearest", "space", "rare"} <= set(p) for p in said["pairs"])
    assert [p["rare"] for p in said["pairs"]] == sorted(p["rare"] for p in said["pairs"])
    first = said["pairs"][0]
    assert first["image"][-7:-4] == first["nearest"][-7:-4], "the copy of an image beside it"
    assert {first["image"], first["nearest"]} <= set(read.images())
    assert said["limitations"]
    whats = dict(b for b in begun if isinstance(b, tuple))
    assert set(whats) == {"looking for copies", "attacking the model", "drawing samples"}
    assert sum(b for b in begun if isinstance(b, int)) == sum(whats.values()), "bars end where they should"


def test_what_was_not_given_is_not_judged_and_clean_images_pass(sets):
    train, made, unseen, *_ = sets
    found, _ = audit(train, made, unseen, Options(rate=0.05, size=32))
    verdicts = {k: s.verdict for k, s in found.sections.items()}
    assert verdicts.pop("copies") == "pass"
    assert set(verdicts.values()) == {"not judged"}
    assert found.verdict == "pass"
    assert "Not judged: reidentification, membership" in found.limitations[-1]


def test_few_images_of_many_patients():
    many = people(bodies(40, 0), each=8)
    few, where = few_of(many, 5)
    assert len(set(few.patients)) == 5
    assert [many.ids[i] for i in where] == list(few.ids)


def test_refusals(sets):
    train, made, unseen, *_ = sets
    with pytest.raises(DiffAugError, match="on both sides"):
        audit(train, made, train)
    with pytest.raises(DiffAugError, match="give that as --model"):
        audit(train, made, unseen, Options(reference="mednist"))
    with pytest.raises(DiffAugError, match="no training image says its 'height'"):
        audit(train, made, unseen, Options(attributes=("height",), rate=0.05, size=32))
    with pytest.raises(DiffAugError, match="24 held-out images cannot tell"):
        audit(train, made, unseen, Options(rate=0.02, size=32))
    with pytest.raises(DiffAugError, match="a number between 0 and 1"):
        audit(train, made, unseen, Options(rate=2.0, size=32))
