"""The main job: what comes out, for which settings, and that it depends on nothing else."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import load_decathlon_datalist
from PIL import Image

from monai_diffaug import provenance
from monai_diffaug.expand import expand
from monai_diffaug.expand.making import open_source
from monai_diffaug.io import datalist
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError

from .conftest import files_of

FAST = {"steps": 4, "strength": 0.5}


def entries_of(outcome):
    return json.loads(outcome.datalist.read_text())["training"]


def pixels(folder, entry):
    return np.asarray(Image.open(folder / entry["image"])).astype(int)


def test_pngs_come_out_with_masks_classes_and_provenance(tmp_path, scans, heads):
    outcome = expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST, copies=2, seed=3)
    assert outcome.made == 12
    entries = entries_of(outcome)
    for entry in entries:
        source = tmp_path / "out" / entry["source"]
        assert pixels(tmp_path / "out", entry).shape == (24, 24)
        assert not np.array_equal(pixels(tmp_path / "out", entry), np.asarray(Image.open(source)))
        same = (scans.parent / "masks" / source.name).read_bytes()
        assert (tmp_path / "out" / entry["label"]).read_bytes() == same  # labels kept
        made = entry["provenance"]
        assert (entry["synthetic"], made["synthetic"], made["method"]) == (True, True, "sdedit")
        assert made["backbone_digest"] == heads.digest
        assert made["prompt"] == entry["class"] == made["label"]
        assert made["parameters"] == {**FAST, "prompt": entry["class"]}
        assert entry["patient"] == f"p{source.stem}"
    assert len({e["provenance"]["seed"] for e in entries}) == 12
    assert len({(tmp_path / "out" / e["image"]).read_bytes() for e in entries}) == 12
    (head,) = [json.loads(outcome.datalist.read_text())]
    assert "CC0" in head["licence"]
    assert len(load_decathlon_datalist(outcome.datalist, True, "training")) == 12


def test_the_result_depends_on_the_settings_alone(tmp_path, scans, heads):
    """Two runs are equal to the byte, whatever the global random state."""
    torch.manual_seed(1)
    a = expand(scans, tmp_path / "a", "sdedit", heads, parameters=FAST, seed=3)
    torch.manual_seed(2)
    b = expand(scans, tmp_path / "b", "sdedit", heads, parameters=FAST, seed=3)
    assert files_of(a.folder) == files_of(b.folder)
    c = expand(scans, tmp_path / "c", "sdedit", heads, parameters=FAST, seed=4)
    assert all(
        (tmp_path / "c" / e["image"]).read_bytes() != (tmp_path / "a" / e["image"]).read_bytes() for e in entries_of(c)
    )


@pytest.mark.parametrize("size", [1, 4])
def test_an_image_does_not_depend_on_its_batch_or_place(tmp_path, scans, size):
    """On a network whose sums may round differently: to one gray level of 255."""
    backbone = tiny("class_mask", size=16, autoencoder=True)
    data = json.loads(scans.read_text())
    data["training"].reverse()
    turned = scans.with_name("turned.json")
    turned.write_text(json.dumps(data))
    a = expand(scans, tmp_path / "a", "sdedit", backbone, parameters=FAST, batch_size=6)
    b = expand(turned, tmp_path / "b", "sdedit", backbone, parameters=FAST, batch_size=size)
    theirs = {e["image"]: e for e in entries_of(b)}
    for entry in entries_of(a):
        other = theirs[entry["image"]]
        assert other["provenance"]["seed"] == entry["provenance"]["seed"]
        assert np.abs(pixels(tmp_path / "a", entry) - pixels(tmp_path / "b", other)).max() <= 1


def test_nifti_comes_out_with_its_geometry(tmp_path, nifti_scans, volumes):
    outcome = expand(nifti_scans, tmp_path / "out", "sdedit", volumes, parameters={**FAST, "prompt": "tumor"})
    assert outcome.made == 3
    for entry in entries_of(outcome):
        new, old = nib.load(tmp_path / "out" / entry["image"]), nib.load(tmp_path / "out" / entry["source"])
        assert np.array_equal(new.affine, old.affine)
        assert new.shape == old.shape
        assert new.get_data_dtype() == np.int16
        assert not np.array_equal(np.asarray(new.dataobj), np.asarray(old.dataobj))


def test_several_methods_and_their_parameters(tmp_path, scans, heads):
    methods = ["healthy_counterfactual", ("sdedit", {"strength": 0.2}), ("sdedit", {"strength": 0.8})]
    outcome = expand(
        scans, tmp_path / "out", methods, heads, parameters={"steps": 4, "healthy_counterfactual.steps": 3}
    )
    by_name = {e["image"]: e["provenance"]["parameters"] for e in entries_of(outcome)}
    assert len(by_name) == 3 + 6 + 6  # what is healthy already has no healthy counterfactual
    assert len(outcome.unchanged) == 3
    assert by_name["images/1_healthy_counterfactual_1.png"] == {"steps": 3}
    assert by_name["images/1_sdedit_1.png"]["strength"] == 0.2
    assert by_name["images/1_sdedit2_1.png"]["strength"] == 0.8

    a, b = (tmp_path / "out" / "images" / f"1_{name}_1.png" for name in ("sdedit", "sdedit2"))
    assert not np.array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b)))


def test_a_counterfactual_takes_class_and_mask_away(tmp_path, scans, heads):
    outcome = expand(scans, tmp_path / "out", "healthy_counterfactual", heads, parameters={"steps": 8}, copies=3)
    entries = entries_of(outcome)
    assert len(entries) == 3  # the method draws nothing: one copy of each is all there is
    assert any("draws nothing" in line for line in outcome.unchanged)
    for entry in entries:
        assert entry["class"] == "healthy"
        mask = np.asarray(Image.open(tmp_path / "out" / entry["label"]))
        assert mask.shape == (24, 24)
        assert not mask.any()
        assert set(entry["provenance"]["scores"]) == {"residual", "identity"}


def test_class_numbers_stay_numbers(tmp_path, scans, heads):
    data = json.loads(scans.read_text())
    data["training"] = [{"image": e["image"], "label": int(e["class"] == "tumor")} for e in data["training"]]
    numbers = scans.with_name("numbers.json")
    numbers.write_text(json.dumps(data))
    methods = [("sdedit", {"strength": 0.5}), "healthy_counterfactual"]
    outcome = expand(numbers, tmp_path / "out", methods, heads, parameters={"steps": 4})
    for entry in entries_of(outcome):
        tumor = int(entry["source"].split("/")[-1].split(".")[0]) % 2
        kept = entry["provenance"]["method"] == "sdedit"
        assert entry["label"] == (tumor if kept else 0)


def test_prompts_are_filled_in(tmp_path, scans, heads):
    outcome = expand(scans, tmp_path / "out", "sdedit", heads, parameters={**FAST, "prompt": "a {class} head"})
    assert {e["provenance"]["prompt"] for e in entries_of(outcome)} == {"a healthy head", "a tumor head"}
    with pytest.raises(DiffAugError, match=r"cannot be filled in: the datalist has patient, class"):
        expand(scans, tmp_path / "no", "sdedit", heads, parameters={"prompt": "{klass}"})


def test_a_change_between_two_classes_needs_no_prompt(tmp_path, scans, heads):
    outcome = expand(scans, tmp_path / "out", "edict", heads, parameters={"steps": 4})
    for entry in entries_of(outcome):
        told = entry["provenance"]["parameters"]
        assert {told["prompt"], told["source_prompt"]} == {"healthy", "tumor"}
        assert entry["class"] == told["prompt"]
        assert "label" not in entry  # the mask of what was there is not that of what is there now


def test_a_region_to_fill_is_the_mask(tmp_path, scans, heads):
    parameters = {"steps": 6, "rounds": 1, "jump_length": 2}
    outcome = expand(scans, tmp_path / "out", "repaint", heads, parameters=parameters)
    assert outcome.made == 3
    assert sum("its mask is empty" in line for line in outcome.unchanged) == 3
    for entry in entries_of(outcome):
        new = pixels(tmp_path / "out", entry)
        old = np.asarray(Image.open(tmp_path / "out" / entry["source"])).astype(int)
        mask = np.asarray(Image.open(tmp_path / "out" / entry["source_mask"])) > 0
        assert np.abs(new - old)[mask].max() > 5
        far = torch.nn.functional.max_pool2d(torch.tensor(mask[None, None].astype("float32")), 9, 1, 4)[0, 0] == 0
        assert np.abs(new - old)[far.numpy()].max() <= 1


def test_records_replay(tmp_path, scans, heads):
    outcome = expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST)
    sources = {i.id: i for i in datalist.read(scans)}
    for entry in entries_of(outcome)[:2]:
        record = provenance.Record.from_json(entry["provenance"])
        source = open_source(sources[record.source], heads.contract)
        image = source.fitted.tensor[None]
        again = provenance.replay(record, heads, image=image).image
        restored = source.fitted.restore(again[0], heads.decode(heads.encode(image))[0])
        assert np.abs(restored[0].numpy().astype(int) - pixels(tmp_path / "out", entry)).max() <= 1


def test_goes_on_and_makes_nothing_twice(tmp_path, scans, heads, monkeypatch):
    from monai_diffaug.expand import loop

    made = []
    real = loop.make
    monkeypatch.setattr(loop, "make", lambda *a: made.append(len(a[2])) or real(*a))
    first = expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST, batch_size=2)
    before = files_of(first.folder)
    assert (first.before, made) == (0, [2, 2, 2])
    (tmp_path / "out" / "records" / "3_sdedit_1.json").unlink()
    made.clear()
    second = expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST, batch_size=2)
    assert (second.before, second.made, made) == (5, 6, [2])
    assert files_of(second.folder) == before


def test_other_settings_are_refused_in_the_same_folder(tmp_path, scans, heads):
    expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST)
    before = files_of(tmp_path / "out")
    for change in ({"seed": 1}, {"copies": 2}, {"keep": {"novelty": 0.1}}, {"batch_size": 3}):
        with pytest.raises(DiffAugError, match=f"other settings .{next(iter(change))}.*repeat those, or give a new"):
            expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST, **change)
    with pytest.raises(DiffAugError, match=r"methods\.0\.parameters\.strength: 0\.5 there, 0\.7 here"):
        expand(scans, tmp_path / "out", "sdedit", heads, parameters={**FAST, "strength": 0.7})
    with pytest.raises(DiffAugError, match="holds other files"):
        expand(scans, scans.parent, "sdedit", heads, parameters=FAST)
    assert files_of(tmp_path / "out") == before


def test_expand_shaped_methods_see_the_whole_data_set(tmp_path, scans, heads, monkeypatch):
    from monai_diffaug import registry
    from monai_diffaug.types import Sample

    seen = []

    def mix(backbone, dataset, *, weight: float = 0.5, generator):
        """A mixture of each image with the next."""
        seen.append([row["label"] for row in dataset])
        for i, row in enumerate(dataset):
            other = dataset[(i + 1) % len(dataset)]["image"]
            yield Sample((weight * row["image"] + (1 - weight) * other)[None], info={"source": i})

    for table in ("_METHODS", "_ALIASES"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    registry.method(labels="kept")(mix)
    outcome = expand(scans, tmp_path / "out", "mix", heads, parameters={"weight": 0.25}, copies=2)
    assert outcome.made == 12
    assert seen == [["healthy", "tumor"] * 3] * 2
    assert expand(scans, tmp_path / "out", "mix", heads, parameters={"weight": 0.25}, copies=2).before == 12
    assert len(seen) == 2
