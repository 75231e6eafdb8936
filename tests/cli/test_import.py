"""`diffaug import` as it is typed: what is printed, what is said, how it ends."""

import json
import re
import warnings

import pytest
from typer.testing import CliRunner

from monai_diffaug.cli import app
from tests.io.hospital import CT, brain, names_left, series


@pytest.fixture
def clinic(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for p in range(3):
        more = {"sop_class": CT, "modality": "CT"} if p == 2 else {}
        series(tmp_path / "in" / f"{p}", brain(4, 32), PatientID=f"PAT{p:04d}", **more)
    return tmp_path


def run(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, ["import", *map(str, args)])


def test_a_table_at_the_end_and_json(clinic):
    done = run(clinic / "in", "--out", clinic / "out", "--split", "0.4,0.3,0.3")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("3 images (2 MR, 1 CT) from 12 files")
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line[:2].strip()}
    assert [rows[k] for k in ("train", "validation", "test")] == [["1", "1"]] * 3
    assert str(clinic / "out" / "import.json") in done.stdout
    assert done.stderr == ""
    again = json.loads(run(clinic / "in", "--out", clinic / "out", "--split", "0.4,0.3,0.3", "--json").stdout)
    assert (again["images"], again["modalities"]) == (3, {"MR": 2, "CT": 1})


def test_the_secret_lies_among_the_users_settings(clinic):
    run(clinic / "in", "--out", clinic / "out")
    key = clinic / "config" / "monai-diffaug" / "import.secret"
    assert key.is_file()
    assert names_left(clinic / "out", {key.read_text().strip(), "PAT0001", "Featherstone"}) == []
    first = (clinic / "out" / "datalist.json").read_bytes()
    assert run(clinic / "in", "--out", clinic / "again").exit_code == 0
    assert (clinic / "again" / "datalist.json").read_bytes() == first
    done = run(clinic / "in", "--out", clinic / "x", "--keep-secret", clinic / "x" / "key")
    assert done.exit_code == 1
    assert "keep it outside of" in done.stderr


def test_problems_are_one_line_each_and_the_job_goes_on(clinic):
    bad = next((clinic / "in" / "0").iterdir())
    bad.write_bytes(bad.read_bytes()[:-9])
    for p in range(5):
        series(clinic / "in" / f"thin{p}", brain(1, 32), PatientID=f"THIN{p}")
    done = run(clinic / "in", "--out", clinic / "out", "--modality", "MR")
    assert done.exit_code == 0
    lines = done.stderr.splitlines()
    assert f"skipped: {bad}: the file ends before its pixels do: copy it again" in lines
    assert any(line.startswith("skipped: ") and "not MR: left out because of --modality" in line for line in lines)
    assert sum("has one slice" in line for line in lines) == 3
    assert "note: one slice: 2 more" in lines
    assert "1 x truncated" in done.stdout
    stopped = run(clinic / "in", "--out", clinic / "out2", "--strict")
    assert (stopped.exit_code, stopped.stdout) == (1, "")
    assert stopped.stderr.splitlines()[-1] == f"error: {bad}: the file ends before its pixels do: copy it again"


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--dates", "keep"], 1, "--dates keep is not known: give drop or shift"),
        (["--dims", "1"], 1, "--dims 1 is not known"),
        (["--dims", "4"], 2, "Invalid value for '--dims'"),
        (["--spacing", "thin"], 1, "--spacing thin is no voxel size"),
        (["--spacing", "1,0,1"], 1, "--spacing 1,0,1 is no voxel size"),
        (["--split", "half"], 1, "--split half is no file that can be read"),
        (["--modality", "US"], 1, "nothing was imported: .*not US"),
    ],
)
def test_options_that_make_no_sense(clinic, options, code, says):
    done = run(clinic / "in", "--out", clinic / "out", *options)
    assert done.exit_code == code
    assert re.search(says, done.stderr)
    assert done.stderr.count("error: ") == 1
    assert not (clinic / "out" / "datalist.json").exists()
