"""A whole batch in the training loop: same images as one by one, labels with them, caller's tensors untouched."""

import json

import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug.testing import tiny
from monai_diffaug.transforms import META_KEY, BatchDiffusionAugment, RandDiffusionAugment
from monai_diffaug.types import DiffAugError

FAST = {"steps": 4, "strength": 0.5}


@pytest.fixture(scope="module")
def backbone():
    return tiny("class_mask", 2, 16)


def batch(n=6):
    g = torch.Generator().manual_seed(0)
    mask = torch.zeros(n, 1, 20, 20)
    mask[::2, :, 5:10, 5:10] = 1
    return {"image": torch.rand(n, 1, 20, 20, generator=g) * 500, "label": mask, "class": [f"p{i}" for i in range(n)]}


def test_some_rows_change_and_the_rest_do_not(backbone):
    given = batch()
    before = {k: v.clone() for k, v in given.items() if k != "class"}
    augment = BatchDiffusionAugment(["image", "label"], "sdedit", backbone, prob=0.5, largest=2, **FAST)
    out = augment.set_random_state(0)(given)
    marks = out[META_KEY]
    assert len(marks) == 6
    assert 0 < sum(map(bool, marks)) < 6
    for i, mark in enumerate(marks):
        same = torch.equal(out["image"][i], given["image"][i])
        assert same == (not mark)
        if mark:
            assert json.loads(mark)["prompt"] == ("tumor" if i % 2 == 0 else "healthy")
    assert torch.equal(out["label"], given["label"])
    assert all(torch.equal(given[k], before[k]) for k in before), "the caller's batch is left alone"
    assert out["class"] is given["class"]
    again = augment.set_random_state(0)(given)
    assert torch.equal(out["image"], again["image"])


def test_an_image_does_not_depend_on_its_batch(backbone):
    given = batch()
    augment = BatchDiffusionAugment("image", "sdedit", backbone, prob=1.0, prompt="tumor", **FAST)
    out = augment.set_random_state(0)(given)
    alone = RandDiffusionAugment("sdedit", backbone, prob=1.0, prompt="tumor", **FAST)
    for i in (0, 5):
        alone.seed = json.loads(out[META_KEY][i])["seed"]
        assert torch.allclose(alone(given["image"][i], randomize=False), out["image"][i], atol=0.05)


def test_replaced_labels_are_written_to_their_rows(backbone):
    given = {**batch(), "class": torch.ones(6, dtype=torch.long)}
    augment = BatchDiffusionAugment(["image", "label", "class"], "healthy_counterfactual", backbone, prob=0.5, **FAST)
    out = augment.set_random_state(1)(given)
    for i, mark in enumerate(out[META_KEY]):
        assert int(out["class"][i]) == (0 if mark else 1)
        assert bool(out["label"][i].any()) == (not mark and i % 2 == 0)
    assert given["class"].sum() == 6


def test_collated_metatensors(backbone):
    from monai.data import list_data_collate

    rows = [{"image": MetaTensor(torch.rand(1, 16, 16), meta={"filename_or_obj": f"{i}.nii"})} for i in range(3)]
    collated = list_data_collate(rows)
    out = BatchDiffusionAugment("image", "sdedit", backbone, prob=1.0, prompt="tumor", **FAST)(collated)
    assert isinstance(out["image"], MetaTensor)
    assert [json.loads(m)["source"] for m in out[META_KEY]] == ["0.nii", "1.nii", "2.nii"]


def test_refusals(backbone):
    with pytest.raises(DiffAugError, match="probability"):
        BatchDiffusionAugment("image", "sdedit", backbone, prob=2)
    with pytest.raises(DiffAugError, match="mask_key"):
        BatchDiffusionAugment("image", "repaint", backbone)
    augment = BatchDiffusionAugment(["image", "seg"], "sdedit", backbone, **FAST)
    with pytest.raises(KeyError, match="seg"):
        augment(batch())
    with pytest.raises(KeyError, match="image"):
        augment({"img": torch.rand(2, 1, 16, 16)})
