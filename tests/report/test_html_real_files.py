"""The report of what the commands themselves write, so that their forms cannot drift apart."""

import json

import numpy as np
import pytest
import torch

from monai_diffaug.audit.run import Options
from monai_diffaug.audit.run import audit as audited
from monai_diffaug.evaluation import evaluate
from monai_diffaug.evaluation.utility import opened, utility
from monai_diffaug.io.atomic import write_json
from monai_diffaug.report import reading
from monai_diffaug.report.html import report
from tests.evaluation import toy_study

from . import made_up
from .test_html import said
from .test_reading import read_by, stack

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 24 slices beside its sources, and 24 real slices of other patients."""
    folder = tmp_path_factory.mktemp("real_files")
    made_up.slices(folder, n=24, sex="F")
    rng, entries = np.random.default_rng(7), []
    for i in range(24):
        pixels, mask = made_up.head(rng, bool(i % 2))
        image, label = (made_up.save(folder, f"unseen/{k}{i}.png", x) for k, x in (("i", pixels), ("m", mask)))
        kind = ("healthy", "tumor")[i % 2]
        entries.append({"image": image, "label": label, "class": kind, "patient": f"other{i // 2}", "sex": "F"})
    write_json(folder / "unseen.json", {"training": entries})
    train = [
        {"image": e["source"].removeprefix("../"), "class": e["class"], "patient": e["patient"], "sex": "F"}
        for e in json.loads((folder / "run/datalist.json").read_text())["training"]
    ]
    write_json(folder / "train.json", {"training": train})
    return folder


def test_scores_by_group(folder):
    found = evaluate(folder / "unseen.json", folder / "run", size=SIDE, by=("sex",), extractors=("mednist",), draws=3)
    write_json(folder / "run/scores.json", found.to_dict())
    page = report(folder / "run").read_text()
    assert f"of {count_of(found)} scores lie within" in said(page, "real")
    assert "Is it as real for everyone? Sex" in said(page, "fair")
    assert "Coverage" in said(page, "fair")


def count_of(found):
    return sum(s.name != "ssim_to_source" for s in found.scores)


def test_an_audit(folder):
    ask = Options(size=SIDE, rate=0.05, extractor="mednist")
    found, _ = audited(str(folder / "train.json"), str(folder / "run"), str(folder / "unseen.json"), ask)
    write_json(folder / "run/audit.json", found.to_dict())
    page = report(folder / "run").read_text()
    leak = said(page, "leak")
    assert "Copies Failed" in leak
    assert found.sections["copies"].says.replace("'", "&#39;") in page
    assert leak.count("It was made from this image.") == len(found.pairs)
    for section in ("Re-identification", "Membership", "Extraction"):
        assert f"{section} Not judged" in leak


def test_a_study(folder, tmp_path):
    training = {"steps": 4, "batch": 8, "lr": 0.006, "channels": [4] * 4, "precision": "float32"}
    arms = [toy_study.MADE, {"name": "duplicated", "kind": "duplicated"}]
    scans = toy_study.data(tmp_path / "scans", 8, 8)
    asked = opened(toy_study.study(scans, arms, groups=["sex"], patients=[4], training=training, draws=100))
    found = utility(asked, folder / "run/utility", toy_study.produce)
    page = report(folder / "run").read_text()
    assert "2 comparisons" not in said(page, "summary")  # a check is none
    assert "1 comparison with classical augmentation (AUROC)" in said(page, "summary")
    assert "duplicated 4 no difference" in said(page, "help")
    assert "AUROC by Sex" in said(page, "fair")
    for line in found.limitations:
        assert line.split(":")[0] in said(page, "limits")


def test_a_reader_study(folder, tmp_path):
    study = reading.create(tmp_path / "study.sqlite", stack(12, False), stack(12, True, 1), n=12, side=64, repeats=0.5)
    rng = torch.Generator().manual_seed(0)
    for name in ("Dr. Anna Example", "Dr. Bert Example"):
        read_by(study, name, lambda made, _: min(5, 2 + 2 * made + int(torch.randint(2, (), generator=rng))))
    write_json(folder / "run/readers.json", reading.analyze(study))
    page = report(folder / "run").read_text()
    assert "Told apart" in said(page, "readers")
    assert "Reader 2 24" in said(page, "readers")
    assert "Dr. Anna" not in page
