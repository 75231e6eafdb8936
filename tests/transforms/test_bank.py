"""Variants made beforehand take the place of real items, before loading and behind a cache, with any workers."""

import json
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityd
from PIL import Image

from monai_diffaug.transforms import META_KEY, RandBankDrawd
from monai_diffaug.types import DiffAugError

KEYS = ["image", "label"]


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((12, 10), value, np.uint8)
    array[0, 0] = 255
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def pool(tmp_path):
    """Three real images of value 10 i, with two variants each of value 10 i + copy; and a fourth with none."""
    entries = []
    for i in range(3):
        for copy in (1, 2):
            name = f"{i}_sdedit_{copy}.png"
            picture(tmp_path / "out" / "images" / name, 10 * i + copy)
            picture(tmp_path / "out" / "masks" / name, 100 + copy)
            record = {"method": "sdedit", "seed": 7 * i + copy}
            entry = {"image": f"images/{name}", "label": f"masks/{name}", "class": "tumor", "synthetic": True}
            entries.append({**entry, "source": f"../real/{i}.png", "provenance": record})
    entries.append({"image": "../real/3.png", "label": "../real/3.png"})  # a real one in the same list
    (tmp_path / "out" / "datalist.json").write_text(json.dumps({"training": entries}))
    real = [{"image": str(picture(tmp_path / "real" / f"{i}.png", 10 * i)), "class": "healthy"} for i in range(4)]
    for r in real:
        r["label"] = r["image"]
    return tmp_path / "out", real


def loaded():
    return [LoadImaged(KEYS), EnsureChannelFirstd(KEYS)]


def check(out, i):
    """An item is the real one or one variant, image and label together, and says which."""
    value, label, mark = int(out["image"][0, 5, 5]), int(out["label"][0, 5, 5]), out[META_KEY]
    if not mark:
        assert (value, label) == (10 * i, 10 * i)
        return 0
    copy = value - 10 * i
    assert copy in (1, 2)
    assert label == 100 + copy
    assert json.loads(mark) == {"method": "sdedit", "seed": 7 * i + copy}
    return copy


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_items_are_replaced_with_the_asked_probability(pool, before, workers):
    folder, real = pool
    draw = RandBankDrawd(KEYS, folder, prob=0.5)
    if before:
        data = Dataset(real * 20, Compose([draw, *loaded()]))
    else:
        draw.fill()
        data = CacheDataset(real * 20, Compose([*loaded(), draw]), progress=False)
    loader = DataLoader(data, batch_size=4, num_workers=workers)
    draw.set_random_state(0)
    drawn = {0: 0, 1: 0, 2: 0}
    for batch in loader:
        for i in range(4):
            row = {"image": batch["image"][i], "label": batch["label"][i], META_KEY: batch[META_KEY][i]}
            drawn[check(row, i)] += i < 3
            assert i < 3 or not row[META_KEY], "an image without variants stays"
    assert 15 <= drawn[0] <= 45, drawn
    assert drawn[1] >= 5
    assert drawn[2] >= 5


def test_seeded_draws_repeat(pool):
    folder, real = pool
    draw = RandBankDrawd(KEYS, folder, prob=0.5)

    def run(seed):
        draw.set_random_state(seed)
        return [draw(r)["image"] for r in real * 5]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_prepared_variants_equal_those_loaded_in_the_chain(pool):
    folder, real = pool
    chain = [*loaded(), ScaleIntensityd("image")]
    late = Compose([*chain, RandBankDrawd(KEYS, folder, prob=1.0, prepare=chain)]).set_random_state(3)
    early = Compose([RandBankDrawd(KEYS, folder, prob=1.0), *chain]).set_random_state(3)
    for r in real[:3]:
        a, b = late(r), early(r)
        assert torch.equal(a["image"], b["image"])
        assert isinstance(a["image"], MetaTensor)
        assert a["image"].meta["filename_or_obj"] == b["image"].meta["filename_or_obj"]
        assert torch.equal(a["image"].affine, b["image"].affine)
        assert json.loads(a["image"].meta[META_KEY])["method"] == "sdedit"
        a["image"] += 1  # a drawn tensor is the caller's own
        assert not torch.equal(late.transforms[-1].fill()._shelf.take(0)["image"], a["image"])


def test_copies_and_pickles_share_the_file(pool):
    folder, real = pool
    draw = RandBankDrawd(KEYS, folder, prob=1.0).fill().set_random_state(0)
    item = Compose(loaded())(real[1])
    wanted = draw(item)["image"]
    text = pickle.dumps(draw)
    assert torch.equal(pickle.loads(text).set_random_state(0)(item)["image"], wanted)
    copy = deepcopy(draw).set_random_state(0)
    del draw
    assert torch.equal(copy(item)["image"], wanted), "the file outlives the transform that made it"


def test_class_labels_come_along(pool):
    folder, real = pool
    out = RandBankDrawd(["image", "class"], folder, prob=1.0)(real[0])
    assert out["class"] == "tumor"
    assert out["label"] == real[0]["label"]


def test_a_moved_data_set_is_found_by_file_name(pool, tmp_path):
    folder, _ = pool
    moved = picture(tmp_path / "elsewhere" / "1.png", 10)
    out = RandBankDrawd(KEYS, folder, prob=1.0)({"image": str(moved), "label": str(moved)})
    assert json.loads(out[META_KEY])["seed"] in (8, 9)


def test_refusals(pool, tmp_path):
    folder, real = pool
    with pytest.raises(DiffAugError, match="diffaug expand"):
        RandBankDrawd(KEYS, tmp_path / "nowhere")
    with pytest.raises(DiffAugError, match="no datalist"):
        RandBankDrawd(KEYS, real[0]["image"])
    with pytest.raises(DiffAugError, match=r"has no 'seg'.*allow_missing_keys"):
        RandBankDrawd(["image", "seg"], folder)
    with pytest.raises(DiffAugError, match="prob"):
        RandBankDrawd(KEYS, folder, prob=-1)
    with pytest.raises(KeyError, match="label"):
        RandBankDrawd(KEYS, folder)({"image": real[0]["image"]})
    with pytest.raises(DiffAugError, match="what file"):
        RandBankDrawd("image", folder, prob=1.0)({"image": torch.rand(1, 12, 10)})
    (folder / "images" / "0_sdedit_1.png").unlink()
    with pytest.raises(DiffAugError, match=r"0_sdedit_1\.png is missing"):
        RandBankDrawd(KEYS, folder)
    (folder / "datalist.json").write_text('{"training": []}')
    with pytest.raises(DiffAugError, match="nothing synthetic"):
        RandBankDrawd(KEYS, folder)
