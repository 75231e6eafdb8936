"""`diffaug utility` from files: how much there is to do, what it writes, and one line for what cannot be done."""

import csv
import json

import pytest
from PIL import Image

from monai_diffaug.cli import app
from monai_diffaug.evaluation.utility import opened
from monai_diffaug.evaluation.utility.cells import Done, cells_of
from monai_diffaug.evaluation.utility.shown import Filling
from tests.evaluation.toy_study import data, study

TRAINING = {"steps": 3, "batch": 4, "channels": [4, 4, 4, 4], "precision": "float32"}


def call(*args):
    try:
        return app(["utility", *map(str, args)], standalone_mode=False) or 0
    except SystemExit as e:
        return e.code


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    data(root)
    arms = [{"name": "mixup", "kind": "mixup"}, {"name": "oracle", "kind": "oracle"}]
    more = {"patients": [2, 4], "training": TRAINING, "groups": ["sex"], "draws": 100}
    (root / "study.json").write_text(json.dumps(study("scans.json", arms, **more)))
    return root / "study.json"


def test_dry_run_and_run(asked, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(asked, "--data", asked.parent, "--out", out, "--dry-run") == 0
    assert "16 trainings, 0 of them done" in capsys.readouterr().out
    assert call(asked, "--data", asked.parent, "--out", out) == 0
    text = capsys.readouterr().out
    assert "16 of 16: oracle" in text
    assert "difference to classical" in text
    said = json.loads((out / "utility.json").read_text())
    with (out / "table.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [(r["arm"], r["patients"]) for r in rows][:4] == [(a, "2") for a in ("real", "classical", "mixup", "oracle")]
    row = next(r for r in rows if (r["arm"], r["patients"]) == ("oracle", "4"))
    mean = [r["metrics"]["auroc"] for r in said["results"] if (r["arm"], r["patients"]) == ("oracle", 4)]
    assert float(row["auroc"]) == pytest.approx(sum(mean) / 2, abs=1e-4)
    assert float(row["auroc minus classical low"]) <= float(row["auroc minus classical"])
    assert Image.open(out / "curves.png").size[0] > 800
    assert call(asked, "--data", asked.parent, "--out", out, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["done"] == 16
    assert call(asked, "--data", asked.parent, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["results"] == said["results"]


def test_one_line_for_what_cannot_be_done(asked, tmp_path, capsys):
    raw = json.loads(asked.read_text())
    for change, says in (
        ({"arms": raw["arms"][:1]}, "no arm of kind 'classical'"),
        ({"data": {"reader": "brain_lgg_2d"}}, "--data"),
        ({"data": {"reader": "moon"}}, "readers: brain_lgg_2d"),
        ({"data": {"datalist": "none.json"}}, "does not exist"),
        ({"metrics": ["speed"]}, "has no metric 'speed'"),
    ):
        path = tmp_path / "bad.json"
        path.write_text(json.dumps({**raw, **change}))
        folder = asked.parent if "data" not in change or "datalist" in change["data"] else tmp_path
        assert call(path, "--data", folder, "--out", tmp_path / "o") == 1
        error = capsys.readouterr().err.strip()
        assert says in error
        assert error.count("\n") == 0


def test_the_table_fills_in_and_does_not_show_figures(asked):
    found = opened(asked)
    filling = Filling(found)
    assert filling.rows()[0] == ("real", "0/2", "0/2")
    filling.add(Done(cells_of(found)[0], (4, 0), {}, 2.0))
    assert filling.rows()[0] == ("real", "1/2  2 s", "0/2")
