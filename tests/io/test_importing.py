"""The import job: resumed after a kill, strict, divided by patient, with a report."""

import json
import os
import warnings

import pydicom
import pytest
from monai.data import load_decathlon_datalist

from monai_diffaug.domains import part_of
from monai_diffaug.io import datalist
from monai_diffaug.io.intake import intake
from monai_diffaug.io.problems import BadInput
from monai_diffaug.io.splits import parse
from monai_diffaug.types import DiffAugError

from .hospital import CT, brain, series


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def clinic(tmp_path):
    """Six patients with two series each, and a file that is no DICOM."""
    for p in range(6):
        for s in range(2):
            kind = {"sop_class": CT, "modality": "CT"} if p % 2 else {}
            series(tmp_path / "in" / f"{p}" / f"{s}", brain(4, 32), PatientID=f"PAT{p:04d}", **kind)
    (tmp_path / "in" / "README.txt").write_text("exported on Tuesday")
    return tmp_path


def imported(where, source="in", **options):
    options = {"workers": 1, "secret": where / "key", "usual": part_of, **options}
    return intake(where / source, where / "out", **options)


def files_of(folder):
    skipped = ("import.json",)  # says how long it took
    return {
        p.relative_to(folder): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in skipped
    }


def test_what_comes_out(clinic):
    done = imported(clinic)
    data = json.loads(done.datalist.read_text())
    entries = [e for s in ("training", "validation", "test") for e in data[s]]
    assert len(entries) == 12
    assert len({e["patient"] for e in entries}) == 6
    for entry in entries:
        assert (clinic / "out" / entry["image"]).is_file()
        assert entry["split"] == part_of(entry["patient"])
        assert entry["modality"] in ("CT", "MR")
        assert entry["spacing"] == [1.0, 1.5, 3.0]
    assert done.report["passed_over"] == {"not DICOM": 1}
    assert done.report["modalities"] == {"CT": 6, "MR": 6}
    assert sum(done.report["patients_by_split"].values()) == 6
    assert json.loads((clinic / "out" / "import.json").read_text())["images"] == 12
    read = load_decathlon_datalist(done.datalist, True, "training")
    assert len(read) == len(data["training"])
    items = datalist.read(clinic / "out")
    assert [i.fields["patient"] for i in items] == [e["patient"] for e in data["training"]]


def test_goes_on_and_does_nothing_twice(clinic, monkeypatch):
    imported(clinic)
    before = files_of(clinic / "out")
    record = sorted((clinic / "out" / "records").iterdir())[3]
    record.unlink()
    from monai_diffaug.io.dicom_in.convert import Series

    ran, run = [], Series.run
    monkeypatch.setattr(Series, "run", lambda self, rules: ran.append(self.name(rules.names)) or run(self, rules))
    imported(clinic)
    assert ran == [record.stem]
    assert files_of(clinic / "out") == before


def test_killed_in_the_middle(clinic, monkeypatch):
    """A process is killed over and over, between any two files; the end is as if it never was."""
    intake(clinic / "in", clinic / "reference", usual=part_of, secret=clinic / "key", workers=1)
    codes = []
    for step in (6, 11, 1000):
        pid = os.fork()
        if pid == 0:
            written, replace = [0], os.replace

            def dying(a, b, limit=step, written=written, replace=replace):
                written[0] += 1
                if written[0] > limit:
                    os._exit(9)
                replace(a, b)

            os.replace = dying
            imported(clinic)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert codes == [9, 9, 0]
    assert files_of(clinic / "out") == files_of(clinic / "reference")
    assert not list((clinic / "out").rglob(".*.part"))


def test_new_slices_and_new_series_are_taken_up(clinic):
    imported(clinic)
    series(clinic / "in" / "9", brain(3, 32), PatientID="PAT0009")
    grown = sorted((clinic / "in" / "0" / "0").iterdir())
    extra = pydicom.dcmread(grown[-1])
    extra.SOPInstanceUID = extra.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    extra.ImagePositionPatient = [-30, -40, 10 + 4 * 3.0]
    extra.save_as(clinic / "in" / "0" / "0" / "new")
    done = imported(clinic)
    assert done.report["images"] == 13
    import nibabel as nib

    depths = sorted(nib.load(p).shape[2] for p in (clinic / "out" / "images").iterdir())
    assert depths == [3, *[4] * 11, 5]
    (clinic / "in" / "9" / "IM0000_0").unlink()
    for path in (clinic / "in" / "9").iterdir():
        path.unlink()
    assert imported(clinic).report["images"] == 12  # what is gone from the source goes from the output
    assert len(list((clinic / "out" / "images").iterdir())) == 12


def test_other_settings_source_or_secret_are_refused(clinic):
    imported(clinic)
    for change in (
        {"dims": 2},
        {"keep_dicom": True},
        {"modality": ("CT",)},
        {"secret": clinic / "other"},
        {"source": "in/0"},
    ):
        with pytest.raises(DiffAugError, match="with other settings"):
            imported(clinic, **change)
    imported(clinic, split="0.5,0.25,0.25")  # only where patients go: nothing is converted again
    (clinic / "full").mkdir()
    (clinic / "full" / "thesis.tex").write_text("x")
    with pytest.raises(DiffAugError, match="holds other files"):
        intake(clinic / "in", clinic / "full", usual=part_of, secret=clinic / "key")


def test_strict_stops_at_bad_input_and_not_at_remarks(clinic):
    path = next((clinic / "in" / "3" / "1").iterdir())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadInput, match=str(path)):
        imported(clinic, strict=True)
    assert not (clinic / "out" / "datalist.json").exists()
    assert imported(clinic).report["problem_counts"]["truncated"] == 1  # the same folder goes on, if told to
    (clinic / "one").mkdir()
    series(clinic / "one" / "a", brain(1, 32))
    assert intake(clinic / "one", clinic / "o", usual=part_of, secret=clinic / "key", strict=True).report["images"] == 1


def test_the_job_goes_on_past_bad_series_and_says_each(clinic):
    for name, more in (("a", {"ImagePositionPatient": None}), ("b", {"BurnedInAnnotation": "YES"})):
        series(clinic / "in" / name, brain(3, 32), PatientID=f"BAD{name}", **more)
    said = []
    done = imported(clinic, say=said.append)
    assert done.report["images"] == 12
    assert done.report["problem_counts"] == {"missing geometry": 1, "burned-in text": 1}
    assert done.report["left_out"] == 2
    for problem in said:
        assert "\n" not in problem.line
        assert ": " in problem.line.removeprefix(str(problem.file))
    told = json.loads((clinic / "out" / "import.json").read_text())["problems"]
    assert {p["kind"] for p in told} == {p.kind for p in said}
    assert all(p["file"].startswith("file-") for p in told)


def test_nothing_to_import(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DiffAugError, match="holds neither DICOM nor"):
        imported(tmp_path)
    series(tmp_path / "in", brain(2, 32), ImagePositionPatient=None)
    with pytest.raises(DiffAugError, match="nothing was imported: .*ImagePositionPatient missing"):
        imported(tmp_path)
    with pytest.raises(DiffAugError, match="does not exist"):
        imported(tmp_path, source="nowhere")


def test_several_processes_make_the_same(clinic):
    one = imported(clinic)
    before = files_of(clinic / "out")
    two = intake(clinic / "in", clinic / "two", usual=part_of, secret=clinic / "key", workers=2)
    assert files_of(clinic / "two") == before
    assert two.report["images"] == one.report["images"]


# ------------------------------------------------------------------------------------------------------------- splits


def test_fractions_are_of_patients_and_whole(clinic):
    done = imported(clinic, split="0.5,0.17,0.33")
    assert done.report["patients_by_split"] == {"train": 3, "validation": 1, "test": 2}
    assert done.report["images_by_split"] == {"train": 6, "validation": 2, "test": 4}
    first = [e["patient"] for e in json.loads(done.datalist.read_text())["test"]]
    again = [e["patient"] for e in json.loads(imported(clinic, split="0.5,0.17,0.33").datalist.read_text())["test"]]
    assert again == first
    others = {
        tuple(
            e["patient"]
            for e in json.loads(imported(clinic, split="0.5,0.17,0.33", seed=s).datalist.read_text())["test"]
        )
        for s in range(1, 5)
    }
    assert len(others | {tuple(first)}) > 1


def test_a_split_by_file(clinic):
    rows = [(f"PAT{p:04d}", ["train", "test", "val"][p % 3]) for p in range(6)]
    table = clinic / "split.csv"
    table.write_text("patient,split\n" + "".join(f"{p},{s}\n" for p, s in rows))
    assert imported(clinic, split=str(table)).report["patients_by_split"] == {"train": 2, "validation": 2, "test": 2}
    table.write_text(table.read_text() + "PAT0000,test\n")
    with pytest.raises(DiffAugError, match="has patient PAT0000 in two parts"):
        imported(clinic, split=str(table))
    table.write_text("patient,split\nPAT0000,train\n")
    with pytest.raises(DiffAugError, match="5 of the patients found are not in"):
        imported(clinic, split=str(table))
    lists = clinic / "split.json"
    lists.write_text(json.dumps({"train": [r[0] for r in rows[:4]], "test": [r[0] for r in rows[4:]]}))
    assert imported(clinic, split=str(lists)).report["patients_by_split"] == {"train": 4, "validation": 0, "test": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.5,0.5", "three fractions"),
        ("0.5,0.6,0.2", "add up to 1"),
        ("nowhere.csv", "no file that can be read"),
        ("{tmp}/a.csv", "no columns 'patient' and 'split'"),
        ("{tmp}/b.csv", "a part 'teaching'"),
        ("{tmp}/c.json", "is not JSON"),
        ("{tmp}/d.json", "no lists of patients"),
    ],
)
def test_splits_that_make_no_sense(tmp_path, text, says):
    (tmp_path / "a.csv").write_text("id,part\n1,train\n")
    (tmp_path / "b.csv").write_text("patient,split\n1,teaching\n")
    (tmp_path / "c.json").write_text("{")
    (tmp_path / "d.json").write_text('{"train": 3}')
    with pytest.raises(DiffAugError, match=says) as caught:
        parse(text.format(tmp=tmp_path), 0, part_of, str)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_one_line(clinic):
    path = next((clinic / "in" / "3" / "1").iterdir())
    path.chmod(0)
    said = []
    imported(clinic, say=said.append)
    assert any("change its permissions" in p.text for p in said)
