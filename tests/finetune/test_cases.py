"""Which images are learned from: parts that share no patient, what is told, and what is refused."""

import pytest
import torch

from monai_diffaug.backbones import tiny
from monai_diffaug.domains import part_of
from monai_diffaug.finetune import cases
from monai_diffaug.types import DiffAugError

from . import blobs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("blobs")
    blobs.images(place)
    return place


def read(folder, backbone=None, **how):
    return cases.read(folder / "datalist.json", backbone or tiny.tiny("class_mask"), **how)


def test_no_patient_is_in_two_parts_and_the_hash_decides(folder):
    found, _ = read(folder)
    parts = {p: set(found.part(p).patients) for p in cases.PARTS}
    assert all(parts.values())
    assert not parts["train"] & (parts["validation"] | parts["test"])
    assert not parts["validation"] & parts["test"]
    assert all(part_of(p) == part for part, names in parts.items() for p in names)


def test_sections_of_the_datalist_are_kept(folder):
    items = blobs.entries(folder / "datalist.json")
    sections = {"training": items[:40], "validation": items[42:51], "test": items[51:]}  # of whole patients but one
    sections["training"] = items[:39]
    path = blobs.listed(folder, sections, "sections.json")
    found, _ = cases.read(path, tiny.tiny("class_mask"))
    assert {k: v["images"] for k, v in found.counts().items()} == {"train": 39, "validation": 9, "test": 9}


def test_a_patient_in_both_parts_is_refused(folder):
    items = blobs.entries(folder / "datalist.json")
    path = blobs.listed(folder, {"training": items[:40], "test": items[40:]}, "leak.json")
    with pytest.raises(DiffAugError, match="patient 'p13' is in test and train: put all of a patient's images"):
        cases.read(path, tiny.tiny("class_mask"))


def test_one_image_under_two_patients_names_is_refused(folder):
    items = blobs.entries(folder / "datalist.json")
    twin = {**items[0], "patient": "another"}
    path = blobs.listed(
        folder, {"training": items[:30], "validation": items[30:45], "test": [*items[45:], twin]}, "t.json"
    )
    with pytest.raises(DiffAugError, match=r"00.png \(train\) and .*00.png \(test\) are the same image"):
        cases.read(path, tiny.tiny("class_mask"))


def test_images_without_a_patient_are_told_about(folder):
    items = [{k: v for k, v in i.items() if k != "patient"} for i in blobs.entries(folder / "datalist.json")]
    found, _ = cases.read(blobs.listed(folder, items, "nobody.json"), tiny.tiny("class_mask"))
    assert "60 of 60 images do not say whose they are" in found.notes[0]


def test_few_patients_fill_every_part(folder):
    items = blobs.entries(folder / "datalist.json")[:9]
    found, _ = cases.read(blobs.listed(folder, items, "few.json"), tiny.tiny("class_mask"))
    assert [v["patients"] for v in found.counts().values()] == [1, 1, 1]
    assert any("are few" in note for note in found.notes)
    with pytest.raises(DiffAugError, match="there are 2 patients: give at least 3"):
        cases.read(blobs.listed(folder, items[:6], "two.json"), tiny.tiny("class_mask"))


def test_new_classes_join_the_old_ones_and_the_old_ones_stay(folder):
    before = tiny.tiny("class_mask")
    found, after = read(folder, before)
    assert after.contract.labels == ("healthy", "tumor", "long", "round")
    assert set(found.told["label"]) == {"long", "round"}
    x = torch.randn(2, 1, 16, 16)
    for told in ({"label": ["tumor", "healthy"]}, {}):
        assert torch.equal(
            before.output(x, 400.0, before.condition(2, **told)), after.output(x, 400.0, after.condition(2, **told))
        )
    unknown = after.output(x, 400.0, after.condition(2, label=["long", "round"]))
    assert torch.equal(unknown, before.output(x, 400.0, before.condition(2)))


def test_a_backbone_without_classes_gets_them(folder):
    before = tiny.tiny("none")
    _, after = read(folder, before)
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(
        after.output(x, 400.0, after.condition(1, label="long")), before.output(x, 400.0, before.condition(1))
    )


def test_a_text_backbone_learns_words(folder):
    items = [i | {"prompt": f"a {i['class']} spheroid"} for i in blobs.entries(folder / "datalist.json")]
    path = blobs.listed(folder, items, "words.json")
    before = tiny.tiny("text")
    found, after = cases.read(path, before)
    assert found.told["prompt"][0] == "a round spheroid"
    assert torch.equal(
        before.condition(1, prompt="a hand x-ray").tokens, after.condition(1, prompt="a hand x-ray").tokens
    )
    after.condition(1, prompt="a long spheroid")
    with pytest.raises(DiffAugError, match="vocabulary"):
        before.condition(1, prompt="a long spheroid")
    with pytest.raises(DiffAugError, match="'long' is not the backbone's"):
        cases.read(path, before, grow=False)


def test_masks_that_are_missing_are_not_told(folder):
    from monai_diffaug.finetune.measuring import batches_of
    from monai_diffaug.finetune.stage import told_of
    from monai_diffaug.primitives.runs import Draws

    items = blobs.entries(folder / "datalist.json")
    del items[0]["mask"]
    found, after = cases.read(blobs.listed(folder, items, "unmasked.json"), tiny.tiny("class_mask"))
    batch = batches_of(found, found.images, 4)[0]
    told = told_of(after, found, drop=False)(batch, Draws.of(0, 0))
    assert not told.concat[0].any()
    assert told.concat[1:].flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"dims": 3}, "is a slice|and the backbone is 3D"),
        ({"channels": 3}, "the image has 1 channels"),
    ],
)
def test_wrong_dimensions_and_channels_name_the_file(folder, how, said):
    with pytest.raises(DiffAugError, match=said) as caught:
        read(folder, tiny.tiny("none", **how))
    assert "00.png" in str(caught.value)


def test_spread_takes_every_patient_first(folder):
    found, _ = read(folder)
    train = found.part("train")
    some = train.spread(len(set(train.patients)))
    assert len(set(some.patients)) == len(some)
