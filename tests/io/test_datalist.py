"""Datalists and folders: which images there are, and their masks and classes."""

import json

import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image

from monai_diffaug.io import datalist
from monai_diffaug.types import DiffAugError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name)


def written(folder, data):
    path = folder / "list.json"
    path.write_text(json.dumps(data))
    return path


def test_monais_datalist(tmp_path):
    entry = {"image": "a/x.png", "label": "b/x.png", "class": "tumor", "fold": 2}
    path = written(tmp_path, {"training": [entry, {"image": "a/y.png", "label": 1}], "test": ["z.png"]})
    first, second = datalist.read(path)
    assert (first.id, first.image, first.mask) == ("a/x.png", tmp_path / "a/x.png", tmp_path / "b/x.png")
    assert (first.kind, first.kind_key, dict(first.fields)) == ("tumor", "class", {"fold": 2})
    assert (second.mask, second.kind, second.kind_key) == (None, 1, "label")
    assert datalist.read(path, section="test", base="/data")[0].image.as_posix() == "/data/z.png"


def test_the_samples_are_found_by_name_and_belong_to_test_patients():
    import hashlib

    items = datalist.read("brain_mri")
    assert len(items) == 16
    assert {i.kind for i in items} == {"healthy", "tumor"}
    assert all(i.image.is_file() and i.mask.is_file() for i in items)
    for item in items:
        patient = str(item.fields["patient"])
        assert int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) % 8 == 0
        mask = np.asarray(Image.open(item.mask))
        assert mask.any() == (item.kind == "tumor")
    assert "CC BY-NC-SA 4.0" in datalist.license_of("brain_mri")
    assert len({i.kind for i in datalist.read("mednist")}) == 6
    size = sum(f.stat().st_size for f in datalist.SAMPLES.rglob("*") if f.is_file())
    assert size < 1_000_000


def test_folders(tmp_path):
    touch(tmp_path / "plain", "b.png", "a.png", "sub/c.png", ".hidden/d.png")
    assert [i.id for i in datalist.read(tmp_path / "plain")] == ["a.png", "b.png", "sub/c.png"]
    touch(tmp_path / "classes", "ill/a.png", "well/a.png")
    assert [i.kind for i in datalist.read(tmp_path / "classes")] == ["ill", "well"]
    touch(tmp_path / "pairs", "images/a.png", "images/b.png", "masks/a.png")
    assert [i.mask and i.mask.name for i in datalist.read(tmp_path / "pairs")] == ["a.png", None]
    touch(tmp_path / "nn", "imagesTr/a_0000.png", "labelsTr/a.png")
    assert datalist.read(tmp_path / "nn")[0].mask == tmp_path / "nn" / "labelsTr" / "a.png"
    touch(tmp_path / "with", "x.png", "y.png")
    (tmp_path / "with" / "datalist.json").write_text(json.dumps({"training": [{"image": "y.png"}]}))
    assert [i.id for i in datalist.read(tmp_path / "with")] == ["y.png"]


def test_what_was_made_is_no_source_again(tmp_path):
    """A hidden half-written file is not taken for an image."""
    touch(tmp_path, "a.png")
    (tmp_path / ".b.png.7.part").write_bytes(b"half")
    assert len(datalist.read(tmp_path)) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "is not JSON"),
        ("7", "has no list 'training'"),
        ('{"test": []}', "choose a section it has .test."),
        ('{"training": []}', "lists no image"),
        ('{"training": [{"label": 1}]}', "entry 0 of 'training' has no 'image'"),
        ('{"training": [{"image": ["a.nii", "b.nii"]}]}', "merge them"),
    ],
)
def test_bad_datalists_get_one_line(tmp_path, data, says):
    path = tmp_path / "list.json"
    path.write_text(data)
    with pytest.raises(DiffAugError, match=says) as caught:
        datalist.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(DiffAugError, match="holds no image"):
        datalist.read(tmp_path)
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(DiffAugError, match="NIfTI, PNG, JPEG or DICOM"):
        datalist.read(tmp_path)
    with pytest.raises(DiffAugError, match=r"does not exist: give .* sample set \(brain_mri, mednist\)"):
        datalist.read(tmp_path / "nowhere")
    touch(tmp_path, "x.png")
    with pytest.raises(DiffAugError, match="diffaug edit"):
        datalist.read(tmp_path / "x.png")


def test_names_are_short_and_never_twice():
    def of(*ids):
        return datalist.names([datalist.Item(i, None) for i in ids])

    assert of("a/x.png", "b/y.nii.gz") == ["x", "y"]
    assert of("a/x.png", "b/x.png") == ["a-x", "b-x"]
    made = of("x.png", "x.nii.gz", "x.png#2", "../x.png", "/abs/x.png", "a-x.png", "a/x.png")
    assert len(set(made)) == 7


def test_what_is_written_monai_reads(tmp_path):
    touch(tmp_path, "images/a.png", "masks/a.png")
    entry = {"image": "images/a.png", "label": "masks/a.png", "synthetic": True}
    datalist.write(tmp_path / "datalist.json", [entry], {"licence": "x"})
    (read,) = load_decathlon_datalist(tmp_path / "datalist.json", True, "training")
    assert read["image"] == str(tmp_path / "images/a.png")
    assert read["label"] == str(tmp_path / "masks/a.png")
    assert read["synthetic"] is True
