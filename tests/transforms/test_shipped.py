"""The chain that a user writes, on real slices that the shipped backbone never saw."""

import json

import pytest
import torch
from monai.data import DataLoader, Dataset, list_data_collate
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from monai.utils import set_determinism

from monai_diffaug.io import datalist
from monai_diffaug.transforms import META_KEY, BatchDiffusionAugment, RandDiffusionAugmentd

KEYS = ["image", "label"]
ITEMS = [{"image": str(i.image), "label": str(i.mask)} for i in datalist.read("brain_mri")]
LOAD = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS)]


def test_the_chain_in_a_loader_with_workers():
    augment = RandDiffusionAugmentd(KEYS, method="da_fusion", backbone="brain_mri", prob=0.5, steps=10)
    set_determinism(0)
    try:
        batches = list(DataLoader(Dataset(ITEMS[:8], Compose([*LOAD, augment])), batch_size=4, num_workers=2))
    finally:
        set_determinism(None)
    real = [Compose(LOAD)(i) for i in ITEMS[:8]]
    marks = [m for b in batches for m in b["image"].meta[META_KEY]]
    assert 0 < sum(map(bool, marks)) < 8
    for i, (mark, item) in enumerate(zip(marks, real, strict=True)):
        image, label = batches[i // 4]["image"][i % 4], batches[i // 4]["label"][i % 4]
        assert torch.equal(label.as_tensor(), item["label"].as_tensor()), "da_fusion keeps labels"
        change = float((image - item["image"]).abs().mean())
        if mark:
            assert json.loads(mark)["label"] == ("tumor" if bool(label.any()) else "healthy")
            assert 1 < change < 60
            assert float(image.min()) >= 0
            assert float(image.max()) <= 255
        else:
            assert change == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_slices_reach_the_network_upright(seed):
    """MONAI reads pictures with x first. A head on its side is new to the network, which makes another of it."""
    batch = list_data_collate([Compose(LOAD)(i) for i in ITEMS[:10]])
    like = {}
    for axes in ("auto", "yx"):
        augment = BatchDiffusionAugment(
            KEYS, "sdedit", "brain_mri", prob=1.0, axes=axes, strength=0.5, steps=8, detail=False
        )
        out = augment.set_random_state(seed)(batch)["image"]
        pairs = zip(batch["image"].as_tensor(), out.as_tensor(), strict=True)
        found = [torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in pairs]
        like[axes] = float(torch.stack(found).mean())
    assert like["auto"] > 0.75
    assert like["auto"] > like["yx"] + 0.05, like
