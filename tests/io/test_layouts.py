"""BIDS, nnU-Net raw data and plain folders, in and out; what nnU-Net checks is checked here."""

import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffaug.domains import part_of
from monai_diffaug.io import datalist, layouts
from monai_diffaug.io.datalist import Item
from monai_diffaug.io.intake import intake
from monai_diffaug.types import DiffAugError

from .hospital import brain, names_left

AFFINE = np.array([[-1.0, 0, 0, 30], [0, -1.5, 0, 40], [0, 0, 3, 10], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def nifti(path, array, affine=AFFINE, note="Featherstone^Wilhelmina"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = note.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", note.encode()))
    nib.save(image, path)
    return path


def head(i=0):
    """A real volume (32, 32, 6) and a mask of its bright voxels."""
    volume = brain(6 + i, 32).T[..., i:]
    return volume, (volume > np.percentile(volume, 90)).astype(np.uint8)


def imported(source, where, **options):
    options = {"usual": part_of, "secret": where / "key", "workers": 1, **options}
    return intake(source, where / "out", **options)


def entries_of(done):
    data = json.loads(done.datalist.read_text())
    return sorted((e for s in ("training", "validation", "test") for e in data[s]), key=lambda e: e["image"])


def voxels_of(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


# ----------------------------------------------------------------------------------------------------------------- in


def nnunet_raw(folder, cases=4, channels=2):
    for i in range(cases):
        volume, mask = head(i)
        part = "Ts" if i == cases - 1 else "Tr"
        for c in range(channels):
            nifti(folder / f"images{part}" / f"featherstone_{i:03d}_{c:04d}.nii.gz", volume + 100 * c)
        nifti(folder / f"labels{part}" / f"featherstone_{i:03d}.nii.gz", mask)
    about = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumor": 1}, "numTraining": cases - 1}
    (folder / "dataset.json").write_text(json.dumps({**about, "file_ending": ".nii.gz"}))
    return folder


def test_nnunet_in(tmp_path):
    done = imported(nnunet_raw(tmp_path / "in"), tmp_path)
    entries = entries_of(done)
    assert len(entries) == 4
    assert sum(e["split"] == "test" for e in entries) >= 1
    data = json.loads(done.datalist.read_text())
    assert data["labels"] == {"background": 0, "tumor": 1}
    sums = set()
    for entry in entries:
        voxels, affine = voxels_of(tmp_path / "out" / entry["image"])
        mask, where = voxels_of(tmp_path / "out" / entry["label"])
        assert voxels.shape == (32, 32, 6, 2)
        assert np.array_equal(voxels[..., 1], voxels[..., 0] + 100)
        assert np.array_equal(affine, AFFINE)
        assert np.array_equal(where, AFFINE)
        assert entry["modality"] == "MR"
        sums.add(int(voxels[..., 0].sum()))
        assert np.array_equal(mask, voxels[..., 0] > np.percentile(voxels[..., 0], 90))
    assert sums == {int(head(i)[0].sum()) for i in range(4)}
    assert names_left(tmp_path / "out", {"featherstone", "Wilhelmina"}) == []


def test_the_sources_own_test_part_is_kept_and_a_torn_patient_refused(tmp_path):
    source = nnunet_raw(tmp_path / "in", 6)
    done = imported(source, tmp_path, patient_pattern=r"featherstone_(\d+)")
    assert sum(e["split"] == "test" for e in entries_of(done)) >= 1
    two = imported(source, tmp_path, patient_pattern=r"featherstone_(\d+)", split="1,0,0")
    assert two.report["images_by_split"] == {"train": 6, "validation": 0, "test": 0}  # what is asked for comes first
    # cases 0 to 3 in one, 4 and 5 in another patient, of whom one is a test case and one is not
    for path in [*source.glob("*/*004*"), *source.glob("*/*005*")]:
        path.rename(path.with_name(path.name.replace("featherstone_00", "z00")))
    options = {"usual": part_of, "secret": tmp_path / "key", "patient_pattern": r"/(z|feather)", "workers": 1}
    with pytest.raises(DiffAugError, match="the source has 1 of its patients in two parts"):
        intake(source, tmp_path / "c", **options)
    assert not (tmp_path / "c" / "datalist.json").exists()
    assert intake(source, tmp_path / "c", split="hash", **options).report["patients"] == 2


def test_bids_in(tmp_path):
    source = tmp_path / "in"
    volume, mask = head()
    nifti(source / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz", volume)
    nifti(source / "sub-01" / "ses-b" / "anat" / "sub-01_ses-b_FLAIR.nii.gz", volume + 5)
    nifti(source / "sub-02" / "anat" / "sub-02_T1w.nii.gz", volume + 9)
    nifti(source / "sub-02" / "func" / "sub-02_task-rest_bold.nii.gz", volume)
    nifti(source / "derivatives" / "seg" / "sub-01" / "ses-b" / "anat" / "sub-01_ses-b_desc-lesion_dseg.nii.gz", mask)
    people = "participant_id\tage\tsex\tname\nsub-01\t95\tF\tWilhelmina\nsub-02\t31\tM\tTheo\n"
    (source / "participants.tsv").write_text(people)
    (source / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    entries = entries_of(imported(source, tmp_path, characteristics=True))
    assert sorted((e["sequence"], e["age"], e["sex"], "label" in e) for e in entries) == [
        ("FLAIR", 90, "F", True),
        ("T1w", 31, "M", False),
        ("T1w", 90, "F", False),
    ]
    assert len({e["patient"] for e in entries}) == 2
    assert names_left(tmp_path / "out", {"Wilhelmina", "sub-01", "Theo"}) == []
    plain = intake(source, tmp_path / "plain", usual=part_of, secret=tmp_path / "key", workers=1)
    assert not any("age" in e or "sex" in e for e in entries_of(plain))


def test_a_plain_folder_with_masks_by_name(tmp_path):
    for i in range(3):
        volume, mask = head(i)
        nifti(tmp_path / "in" / "images" / f"wilhelmina{i}.nii.gz", volume)
        nifti(tmp_path / "in" / "labels" / f"wilhelmina{i}.nii.gz", mask)
    entries = entries_of(imported(tmp_path / "in", tmp_path, modality=("MR",), spacing="1.5"))
    assert all(e["modality"] == "MR" for e in entries)
    for entry in entries:
        voxels, affine = voxels_of(tmp_path / "out" / entry["image"])
        mask, _ = voxels_of(tmp_path / "out" / entry["label"])
        assert voxels.shape == mask.shape == (21, 32, 11)
        assert set(np.unique(mask)) == {0, 1}
        assert np.allclose(np.sqrt((affine[:3, :3] ** 2).sum(0)), 1.5)
    assert names_left(tmp_path / "out", {"wilhelmina"}) == []


def test_folders_of_patients_are_patients_and_not_classes(tmp_path):
    for who in ("anna", "bert"):
        for i in range(2):
            nifti(tmp_path / "in" / who / f"scan{i}.nii.gz", head(i)[0])
    entries = entries_of(imported(tmp_path / "in", tmp_path))
    assert len({e["patient"] for e in entries}) == 2
    assert names_left(tmp_path / "out", {"anna", "bert"}) == []
    with pytest.raises(DiffAugError, match="no regular expression"):
        intake(tmp_path / "in", tmp_path / "x", usual=part_of, secret=tmp_path / "key", patient_pattern="(")
    with pytest.raises(DiffAugError, match="has no group"):
        intake(tmp_path / "in", tmp_path / "x", usual=part_of, secret=tmp_path / "key", patient_pattern="scan")
    with pytest.raises(DiffAugError, match="finds no patient in"):
        intake(tmp_path / "in", tmp_path / "x", usual=part_of, secret=tmp_path / "key", patient_pattern="(zzz)")


def test_bad_files_cost_no_more_than_themselves(tmp_path):
    source = tmp_path / "in" / "images"
    good, mask = head()
    nifti(source / "good.nii.gz", good)
    nifti(source / "cut.nii.gz", good)
    (source / "cut.nii.gz").write_bytes((source / "cut.nii.gz").read_bytes()[:-200])
    nifti(source / "nan.nii.gz", np.where(good > 100, np.nan, good).astype(np.float32))
    nifti(source / "flat.nii.gz", np.zeros((8, 8, 8), np.int16))
    nifti(source / "small_mask.nii.gz", good)
    nifti(tmp_path / "in" / "labels" / "small_mask.nii.gz", mask[:-1])
    said = []
    done = imported(tmp_path / "in", tmp_path, say=said.append)
    assert done.report["images"] == 1
    told = {p.file.name: p for p in said if p.file.is_file()}
    assert {n: p.kind for n, p in told.items()} == {
        "cut.nii.gz": "unreadable",
        "nan.nii.gz": "not finite",
        "flat.nii.gz": "constant",
        "small_mask.nii.gz": "mask differs",
    }
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1


def test_a_datalist_in_with_a_patient_in_two_parts(tmp_path):
    for i in range(3):
        nifti(tmp_path / "in" / f"{i}.nii.gz", head(i)[0])
    data = {
        "licence": "CC0",
        "training": [{"image": "0.nii.gz", "patient": "p", "class": "ill"}, {"image": "1.nii.gz", "patient": "q"}],
        "validation": [{"image": "2.nii.gz", "patient": "r", "class": "well"}],
    }
    (tmp_path / "in" / "datalist.json").write_text(json.dumps(data))
    done = imported(tmp_path / "in", tmp_path)
    assert done.report["images_by_split"] == {"train": 2, "validation": 1, "test": 0}
    assert json.loads(done.datalist.read_text())["licence"] == "CC0"
    assert {e.get("class") for e in entries_of(done)} == {"ill", None, "well"}
    data["validation"][0]["patient"] = "p"
    (tmp_path / "in" / "datalist.json").write_text(json.dumps(data))
    with pytest.raises(DiffAugError, match="the source has 1 of its patients in two parts"):
        intake(tmp_path / "in" / "datalist.json", tmp_path / "o", usual=part_of, secret=tmp_path / "key", workers=1)


def test_pictures_lose_what_is_written_in_their_files(tmp_path):
    from PIL import PngImagePlugin

    about = PngImagePlugin.PngInfo()
    about.add_text("Author", "Wilhelmina")
    (tmp_path / "in").mkdir()
    pixels = (brain(1, 96)[0] // 10).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in" / "wilhelmina.png", pnginfo=about)
    (entry,) = entries_of(imported(tmp_path / "in", tmp_path, modality=("DX",)))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / entry["image"])), pixels)
    assert names_left(tmp_path / "out", {"wilhelmina"}) == []


# ---------------------------------------------------------------------------------------------------------------- out


def mixed(folder, volumes=True):
    """Six real items of three patients with masks, and a synthetic one of each."""
    items = []
    for i in range(6):
        for synthetic in (False, True):
            name = f"{'made' if synthetic else 'scan'}{i}"
            if volumes:
                volume, mask = head(i % 3)
                image = nifti(folder / "i" / f"{name}.nii.gz", volume + synthetic)
                label = nifti(folder / "m" / f"{name}.nii.gz", mask * 4)
            else:
                pixels = (brain(6, 32)[i] // 10).astype(np.uint8)
                image, label = folder / f"{name}.png", folder / f"{name}_m.png"
                folder.mkdir(exist_ok=True)
                Image.fromarray(pixels).save(image)
                Image.fromarray(((pixels > 100) * 255).astype(np.uint8)).save(label)
            fields = {"patient": f"P{i % 3}", "modality": "MR", "sequence": "FLAIR"}
            fields |= {"synthetic": True, "provenance": {"method": "sdedit", "seed": i}} if synthetic else {}
            items.append(Item(image.name, image, label, fields=fields))
    return items


def verified(folder):
    """The rules of nnU-Net's `verify_dataset_integrity`, from reading it; and itself, where it is installed."""
    about = json.loads((folder / "dataset.json").read_text())
    assert {"labels", "channel_names", "numTraining", "file_ending"} <= set(about)
    end, channels = about["file_ending"], len(about["channel_names"])
    cases = sorted({p.name[: -len(end) - 5] for p in (folder / "imagesTr").iterdir()})
    assert len(cases) == about["numTraining"]
    numbers = sorted(about["labels"].values())
    assert numbers == list(range(len(numbers)))
    assert about["labels"]["background"] == 0
    for case in cases:
        files = sorted((folder / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9]{end}"))
        label = folder / "labelsTr" / f"{case}{end}"
        assert label.is_file()
        if end == ".png":
            pixels, mask = np.asarray(Image.open(files[0])), np.asarray(Image.open(label))
            assert (3 if pixels.ndim == 3 else len(files)) == channels
            assert pixels.shape[:2] == mask.shape
        else:
            assert len(files) == channels
            mask, where = voxels_of(label)
            for file in files:
                voxels, affine = voxels_of(file)
                assert voxels.shape == mask.shape
                assert np.isfinite(voxels).all()
                assert np.allclose(affine, where)
        assert set(np.unique(mask)) <= set(numbers)
    return about, cases


def test_nnunet_out_is_a_complete_data_set(tmp_path):
    folder = layouts.write(mixed(tmp_path / "in"), "nnunet:12", tmp_path, name="my brains", head={"licence": "CC0"})
    assert folder == tmp_path / "nnUNet_raw" / "Dataset012_MyBrains"
    about, cases = verified(folder)
    assert about["channel_names"] == {"0": "MR"}
    assert about["labels"] == {"background": 0, "lesion": 1}
    assert len(cases) == 12
    made = json.loads((folder / "synthetic.json").read_text())
    assert len(made) == 6
    assert made["synthetic-made3"] == {"method": "sdedit", "seed": 3}
    folds = json.loads((folder / "splits_final.json").read_text())
    assert len(folds) == 3
    patient = {f"{k}{i}": i % 3 for k in ("real-scan", "synthetic-made") for i in range(6)}
    for fold in folds:
        assert not any(c.startswith("synthetic") for c in fold["val"])
        assert not {patient[c] for c in fold["val"]} & {patient[c] for c in fold["train"]}
    assert sorted(c for f in folds for c in f["val"]) == sorted(c for c in cases if c.startswith("real"))


def test_nnunet_out_again_reads_what_was_written(tmp_path):
    folder = layouts.write(mixed(tmp_path / "in"), "nnunet", tmp_path, name="x")
    done = imported(folder, tmp_path)
    assert done.report["images"] == 12
    assert json.loads(done.datalist.read_text())["labels"] == {"background": 0, "lesion": 1}


def test_nnunet_out_of_pictures_and_of_channels(tmp_path):
    about, _ = verified(layouts.write(mixed(tmp_path / "in", volumes=False), "nnunet", tmp_path / "a"))
    assert (about["file_ending"], about["channel_names"]) == (".png", {"0": "MR"})
    items = [
        Item(
            "a",
            nifti(tmp_path / f"{i}.nii.gz", np.stack([head()[0]] * 2, -1)),
            nifti(tmp_path / f"m{i}.nii", head()[1]),
        )
        for i in range(2)
    ]
    known = {"labels": {"0": "background", "1": "edema", "2": "core"}, "channel_names": {"0": "T1", "1": "CT"}}
    about, _ = verified(layouts.write(items, "nnunet", tmp_path / "b", head=known))
    assert about["channel_names"] == {"0": "T1", "1": "CT"}
    assert about["labels"] == {"background": 0, "edema": 1, "core": 2}


def test_what_does_not_fit_nnunet_is_said_and_nothing_is_written(tmp_path):
    items = mixed(tmp_path / "in")
    bare = [Item(i.id, i.image, None, fields=i.fields) for i in items]
    with pytest.raises(DiffAugError, match="no image has a mask"):
        layouts.write(bare, "nnunet", tmp_path / "out")
    with pytest.raises(DiffAugError, match="in one format"):
        layouts.write([*items, *mixed(tmp_path / "png", volumes=False)], "nnunet", tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() or p.name.startswith("Dataset")]
    said = []
    items[0].image.write_bytes(b"broken")
    folder = layouts.write([*items, bare[2]], "nnunet", tmp_path / "out", say=said.append)
    assert verified(folder)[0]["numTraining"] == 11
    assert len(said) == 2
    with pytest.raises(DiffAugError, match="--format nnunets is not known"):
        layouts.write(items, "nnunets", tmp_path / "out")


def test_an_earlier_result_is_replaced_in_one_step(tmp_path, monkeypatch):
    items = mixed(tmp_path / "in")
    folder = layouts.write(items, "nnunet", tmp_path)
    before = {p.name for p in (folder / "imagesTr").iterdir()}
    monkeypatch.setattr("monai_diffaug.io.layouts.nnunet._folds", lambda cases: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layouts.write(items[:4], "nnunet", tmp_path)
    assert {p.name for p in (folder / "imagesTr").iterdir()} == before
    assert [p.name for p in (tmp_path / "nnUNet_raw").iterdir()] == [folder.name]
    monkeypatch.undo()
    layouts.write(items[:4], "nnunet", tmp_path)
    assert len(list((folder / "imagesTr").iterdir())) == 4


def test_bids_out(tmp_path):
    folder = layouts.write(mixed(tmp_path / "in"), "bids", tmp_path, head={"licence": "CC0"})
    about = json.loads((folder / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion"} <= set(about)
    people = (folder / "participants.tsv").read_text().splitlines()
    assert people[0] == "participant_id"
    assert people[1:] == ["sub-P0", "sub-P1", "sub-P2"]
    real = sorted(folder.glob("sub-*/anat/*.nii.gz"))
    made = sorted(folder.glob("derivatives/monai-diffaug/sub-*/anat/*FLAIR.nii.gz"))
    assert (len(real), len(made)) == (6, 6)
    assert real[0].name == "sub-P0_run-1_FLAIR.nii.gz"
    assert made[0].name == "sub-P0_rec-synthetic_run-1_FLAIR.nii.gz"
    told = json.loads(made[0].with_name(made[0].name.replace(".nii.gz", ".json")).read_text())
    assert told["Synthetic"] is True
    assert told["Provenance"]["method"] == "sdedit"
    assert json.loads((folder / "derivatives/monai-diffaug/dataset_description.json").read_text())["GeneratedBy"]
    assert len(list(folder.glob("derivatives/labels/**/*_dseg.nii.gz"))) == 6
    assert not (folder / ".bidsignore").exists()
    done = imported(folder, tmp_path)  # real ones only: derivatives are no raw data
    assert done.report["images"] == 6
    assert all("label" in e for e in entries_of(done))


def test_bids_out_of_what_bids_does_not_know(tmp_path):
    (item,) = mixed(tmp_path / "in")[:1]
    unknown = Item("a", item.image, fields={"modality": "CT"})
    folder = layouts.write([unknown], "bids", tmp_path / "a")
    assert (folder / ".bidsignore").read_text() == "ct\n"
    with pytest.raises(DiffAugError, match="no NIfTI volume, which BIDS needs"):
        layouts.write(mixed(tmp_path / "png", volumes=False), "bids", tmp_path / "b")


def test_expand_writes_what_nnunet_needs(tmp_path):
    from monai_diffaug.expand import expand
    from monai_diffaug.testing import ideal_backbone

    backbone = ideal_backbone(3, size=8)
    entries = []
    for i in range(3):
        volume, mask = head(i)
        nifti(tmp_path / "in" / f"{i}.nii.gz", volume[:12, :12])
        nifti(tmp_path / "in" / f"m{i}.nii.gz", mask[:12, :12])
        entries.append({"image": f"{i}.nii.gz", "label": f"m{i}.nii.gz", "class": "tumor", "patient": f"p{i}"})
    data = {"labels": {"background": 0, "tumor": 1}, "training": entries}
    (tmp_path / "in" / "datalist.json").write_text(json.dumps(data))
    options = {"parameters": {"steps": 3, "strength": 0.5}, "layout": "nnunet:7", "copies": 2}
    outcome = expand(tmp_path / "in", tmp_path / "out", "sdedit", backbone, **options)
    assert outcome.laid_out == tmp_path / "out" / "nnUNet_raw" / "Dataset007_Out"
    about, cases = verified(outcome.laid_out)
    assert (about["numTraining"], about["labels"]) == (9, {"background": 0, "tumor": 1})
    (outcome.laid_out / "dataset.json").unlink()
    again = expand(tmp_path / "in", tmp_path / "out", "sdedit", backbone, **options)
    assert again.before == 6
    assert verified(again.laid_out)[1] == cases
    folds = json.loads((again.laid_out / "splits_final.json").read_text())
    assert len(folds) == 3
    for fold in folds:
        (held,) = fold["val"]
        number = held.split("-")[-1]
        assert not [c for c in fold["train"] if c.startswith((f"synthetic-{number}-", held))]
    with pytest.raises(DiffAugError, match="is not known"):
        expand(tmp_path / "in", tmp_path / "no", "sdedit", backbone, layout="dicom")
    assert not Path(tmp_path / "no").exists()


def test_reading_is_shared_with_datalists(tmp_path):
    nifti(tmp_path / "a.nii.gz", head()[0])
    path = layouts.write([Item("a", tmp_path / "a.nii.gz", fields={"patient": "x"})], "datalist", tmp_path / "o")
    assert datalist.read(path)[0].image == tmp_path / "a.nii.gz"
