"""The array and dictionary forms keep MONAI's conventions, and the label tells the truth about the image."""

import json
import pickle
import threading
import time
from copy import deepcopy

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, ThreadDataLoader, decollate_batch
from monai.transforms import Compose, EnsureTyped, Flipd, RandFlipd

from monai_diffaug.primitives.fitting import fit
from monai_diffaug.primitives.told import with_mask
from monai_diffaug.provenance import Record, replay
from monai_diffaug.testing import ideal_backbone, tiny
from monai_diffaug.transforms import META_KEY, RandDiffusionAugment, RandDiffusionAugmentd
from monai_diffaug.types import DiffAugError

FAST = {"steps": 4, "strength": 0.5}


@pytest.fixture(scope="module")
def backbone():
    return tiny("class_mask", 2, 16)


@pytest.fixture(scope="module")
def texts():
    return tiny("text", 2, 16)


def scan(*shape, seed=0, **meta):
    rng = np.random.default_rng(seed)
    affine = torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    return MetaTensor(torch.tensor(rng.random((1, *shape)) * 900 - 100), affine=affine, meta=meta)


def lesion(*shape, value=1):
    mask = torch.zeros(1, *shape, dtype=torch.uint8)
    mask[(0, *(slice(n // 4, n // 2) for n in shape))] = value
    return mask


def item(seed=0, **more):
    return {"image": scan(20, 24, seed=seed, filename_or_obj="a.nii"), "label": lesion(20, 24), "id": seed, **more}


def test_size_dtype_affine_and_history_survive(backbone):
    image = scan(20, 24, filename_or_obj="a.nii").to(torch.int16)
    image.applied_operations.append({"class": "Before"})
    before = image.clone()
    out = RandDiffusionAugment("sdedit", backbone, prob=1.0, prompt="tumor", **FAST)(image)
    assert isinstance(out, MetaTensor)
    assert (out.shape, out.dtype) == (image.shape, torch.int16)
    assert torch.equal(out.affine, image.affine)
    assert float((out.float() - image.float()).abs().mean()) > 1
    assert [op["class"] for op in out.applied_operations] == ["Before", "RandDiffusionAugment"]
    record = Record.from_json(out.meta[META_KEY])
    assert (record.method, record.backbone_digest, record.source) == ("sdedit", backbone.digest, "a.nii")
    assert record.prompt == "tumor"
    assert record.parameters == {"prompt": "tumor", **FAST}
    assert record.synthetic
    assert out.applied_operations[-1]["extra_info"]["seed"] == record.seed
    assert torch.equal(image, before)
    assert META_KEY not in image.meta, "the caller's image is left alone"


def test_the_record_replays_to_the_same_image(backbone):
    transform = RandDiffusionAugment("sdedit", backbone, prob=1.0, prompt="tumor", **FAST)
    image = scan(16, 16)
    out = transform(image)
    fitted = fit(image, backbone.contract)
    again = replay(Record.from_json(out.meta[META_KEY]), backbone, image=fitted.tensor[None])
    assert torch.allclose(again.image, transform.outcome.sample.image, atol=1e-5)


def test_set_random_state_decides_everything(backbone):
    transform = RandDiffusionAugmentd(["image", "label"], "sdedit", backbone, prob=0.5, **FAST)

    def run(seed):
        transform.set_random_state(seed)
        return [transform(item())["image"] for _ in range(6)]

    first, again, other = run(3), run(3), run(4)
    acted = [bool(x.meta[META_KEY]) for x in first]
    assert any(acted)
    assert not all(acted)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    two = [x for x, a in zip(first, acted, strict=True) if a]
    assert len({json.loads(x.meta[META_KEY])["seed"] for x in two}) == len(two), "each draw has a seed of its own"
    assert not torch.equal(two[0], two[1]), "and an image"


def test_prob_0_and_1(backbone):
    never = RandDiffusionAugmentd(["image", "label"], "sdedit", backbone, prob=0.0, **FAST)
    given = item()
    out = never(given)
    assert META_KEY not in given["image"].meta, "the caller's meta data are left alone"
    assert torch.equal(out["image"], item()["image"])
    assert out["image"].meta[META_KEY] == ""
    assert out["id"] == 0
    with pytest.raises(DiffAugError, match="prob"):
        RandDiffusionAugment("sdedit", backbone, prob=1.5)


def test_missing_keys(backbone):
    strict = RandDiffusionAugmentd(["image", "label"], "sdedit", backbone, prob=1.0, **FAST)
    with pytest.raises(KeyError, match="label"):
        strict({"image": scan(16, 16)})
    lenient = RandDiffusionAugmentd(["image", "label"], "sdedit", backbone, 1.0, True, prompt_key="text", **FAST)
    assert lenient({"label": lesion(16, 16)}).keys() == {"label"}
    assert lenient({"image": scan(16, 16)})["image"].meta[META_KEY]
    needs = RandDiffusionAugmentd("image", "sdedit", backbone, 1.0, prompt_key="text", **FAST)
    with pytest.raises(KeyError, match="text"):
        needs({"image": scan(16, 16)})


def test_parameters_come_from_the_data(backbone):
    transform = RandDiffusionAugmentd("image", "repaint", backbone, 1.0, prompt_key="text", mask_key="where", steps=4)
    region = lesion(20, 24, value=255)
    out = transform({"image": scan(20, 24), "text": "tumor", "where": region})
    record = json.loads(out["image"].meta[META_KEY])
    assert record["prompt"] == "tumor"
    assert "mask" not in record["parameters"]
    changed = (out["image"] - scan(20, 24)).abs() > 1e-3
    assert bool(changed[region > 0].all())
    far = torch.ones_like(region, dtype=torch.bool)
    far[:, 3:12, 4:14] = False
    assert not bool(changed[far].any()), "outside the mask the voxels are the source's own"


def test_a_method_that_keeps_labels_is_told_what_they_say(backbone, texts):
    kept = RandDiffusionAugmentd(["image", "label"], "sdedit", backbone, prob=1.0, **FAST).set_random_state(1)
    sick = kept(item())
    assert json.loads(sick["image"].meta[META_KEY])["prompt"] == "tumor"
    healthy = kept({**item(), "label": torch.zeros(1, 20, 24)})
    assert json.loads(healthy["image"].meta[META_KEY])["prompt"] == "healthy"
    assert torch.equal(sick["label"], item()["label"])
    # the network is told the mask too: with it, the replayed image is the same, without it another
    record = Record.from_json(sick["image"].meta[META_KEY])
    fitted = fit(item()["image"], backbone.contract)
    mask = fit(item()["label"], backbone.contract, mask=True, like=fitted).tensor[None]
    told = fitted.restore(replay(record, with_mask(backbone, mask), image=fitted.tensor[None]).image[0])
    untold = fitted.restore(replay(record, backbone, image=fitted.tensor[None]).image[0])
    plain = RandDiffusionAugmentd(["image", "label"], "sdedit", backbone, prob=1.0, detail=False, **FAST)
    mine = plain.set_random_state(1)(item())["image"]
    assert torch.allclose(mine, told, atol=0.1)
    assert not torch.allclose(mine, untold, atol=0.1)
    by_name = RandDiffusionAugmentd(["image", "label"], "sdedit", texts, prob=1.0, **FAST)
    for label in ("head ct", 4, torch.tensor(4)):
        out = by_name({"image": scan(16, 16), "label": label})
        assert json.loads(out["image"].meta[META_KEY])["prompt"] == "a head ct"
        assert out["label"] is label
    said = RandDiffusionAugmentd(["image", "label"], "sdedit", texts, prob=1.0, prompt="chest x-ray", **FAST)
    out = said({"image": scan(16, 16), "label": "head ct"})
    assert json.loads(out["image"].meta[META_KEY])["prompt"] == "chest x-ray"


def test_a_method_that_replaces_labels_replaces_masks_and_classes(backbone, texts):
    heal = RandDiffusionAugmentd(["image", "label", "class"], "healthy_counterfactual", backbone, prob=1.0, **FAST)
    out = heal({**item(), "class": "tumor"})
    assert out["class"] == "healthy"
    assert out["label"].shape == (1, 20, 24)
    assert out["label"].dtype == torch.uint8
    assert not bool(out["label"].any())
    assert out["label"].meta[META_KEY] == out["image"].meta[META_KEY]
    for old in (1, np.int64(1), torch.tensor(1), torch.tensor([1])):
        new = heal({**item(), "class": old})["class"]
        assert int(new) == 0
        assert type(new) is type(old)
    with pytest.raises(DiffAugError, match="single class"):
        heal({**item(), "class": torch.tensor([0.0, 1.0])})
    edit = RandDiffusionAugmentd(["image", "label"], "edict", texts, prob=1.0, prompt="a large head ct", **FAST)
    assert edit({"image": scan(16, 16), "label": "chest x-ray"})["label"] == "a large head ct"
    with pytest.raises(DiffAugError, match="class numbers"):
        edit({"image": scan(16, 16), "label": 2})
    with pytest.raises(DiffAugError, match=r"makes none: take 'label' out"):
        edit({"image": scan(16, 16), "label": lesion(16, 16)})


def test_generate_methods_make_an_image_of_the_same_kind(texts):
    make = RandDiffusionAugmentd(
        ["image", "label"], "universal_guidance", texts, prob=1.0, target="head ct", steps=2, rounds=1
    )
    out = make({"image": scan(20, 24), "label": "chest x-ray"})
    assert out["label"] == "head ct"
    assert out["image"].shape == (1, 20, 24)
    assert float(out["image"].max()) <= float(scan(20, 24).max()) + 1e-3


@pytest.mark.parametrize("dims", [2, 3])
def test_2d_and_3d_on_the_exact_denoiser(dims):
    exact = ideal_backbone(dims)
    size = exact.contract.size
    transform = RandDiffusionAugmentd(["image", "label"], "sdedit", exact, prob=1.0, **FAST)
    shape = tuple(s + 3 for s in size)
    out = transform({"image": scan(*shape), "label": lesion(*shape)})
    assert out["image"].shape == (1, *shape)
    assert bool(out["image"].isfinite().all())


def test_without_meta_tracking_and_with_numpy(backbone):
    from monai.data import set_track_meta

    transform = RandDiffusionAugment("sdedit", backbone, prob=1.0, **FAST)
    assert isinstance(transform(np.random.default_rng(0).random((1, 16, 16), dtype=np.float32)), MetaTensor)
    assert transform(np.arange(256, dtype=np.uint16).reshape(1, 16, 16)).dtype == torch.int32
    try:
        set_track_meta(False)
        assert not isinstance(transform(torch.rand(1, 16, 16)), MetaTensor)
    finally:
        set_track_meta(True)


def test_in_a_chain_with_a_cache_and_inverses(backbone):
    chain = Compose(
        [
            EnsureTyped(["image", "label"]),
            Flipd(["image", "label"], spatial_axis=0),
            RandDiffusionAugmentd(["image", "label"], "sdedit", backbone, prob=1.0, **FAST),
            RandFlipd(["image", "label"], prob=1.0, spatial_axis=1),
        ]
    )
    chain.set_random_state(0)
    out = CacheDataset([item(i) for i in range(2)], chain, progress=False)[1]
    back = chain.inverse(out)
    assert torch.equal(back["label"], item(1)["label"]), "the transforms around it are still undone"


def test_collate_and_workers(backbone):
    transform = RandDiffusionAugmentd(["image", "label"], "sdedit", backbone, prob=0.5, **FAST)
    data = Dataset([item(i) for i in range(8)], transform)
    for workers in (0, 2):
        transform.set_random_state(0)
        batches = list(DataLoader(data, batch_size=4, num_workers=workers))
        marks = [m for b in batches for m in b["image"].meta[META_KEY]]
        assert len(marks) == 8
        assert 0 < sum(map(bool, marks)) < 8
        singles = decollate_batch(batches[0])
        assert [s["image"].meta[META_KEY] for s in singles] == marks[:4]
    threaded = ThreadDataLoader(data, batch_size=4, num_workers=0)
    assert sum(len(b["image"]) for b in threaded) == 8


def test_threads_share_a_backbone_without_mixing_controls(texts):
    """Attention control patches the network; two threads at once must come out as one after the other."""
    transform = RandDiffusionAugment(
        "prompt_to_prompt", texts, prob=1.0, prompt="a large head ct", source_prompt="a small head ct", steps=2
    )
    wanted = deepcopy(transform).set_random_state(0)(scan(16, 16))
    copies = [deepcopy(transform).set_random_state(0) for _ in range(2)]
    found = [None] * 2

    def work(i):
        found[i] = copies[i](scan(16, 16))

    # every block of the network gives way to the other thread, so that controls meet
    waits = [m.register_forward_hook(lambda *_: time.sleep(0.002)) for m in texts.network.module.modules()]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for wait in waits:
        wait.remove()
    assert all(torch.allclose(f, wanted, atol=1e-4) for f in found)


def test_pickles_without_weights(tmp_path, backbone):
    from monai_diffaug.backbones import hub

    folder = hub.save(backbone, tmp_path / "checkpoint")
    transform = RandDiffusionAugmentd(["image", "label"], "sdedit", folder, prob=1.0, **FAST).set_random_state(0)
    text = pickle.dumps(transform)
    assert len(text) < 20_000
    again = pickle.loads(text)
    assert torch.equal(again.set_random_state(0)(item())["image"], transform.set_random_state(0)(item())["image"])


def test_concepts_are_put_on_first(tmp_path, texts):
    from monai_diffaug.primitives import concepts
    from monai_diffaug.types import Concept

    width = texts.conditioner.token_embedding.weight.shape[1]
    word = Concept("tokens", {concepts.TOKENS: torch.randn(1, width)}, texts.digest, "<nodule>")
    file = concepts.save(word, tmp_path / "nodule.safetensors")
    with pytest.raises(DiffAugError, match="nodule"):
        RandDiffusionAugment("sdedit", texts, prob=1.0, prompt="a <nodule>", **FAST)
    transform = RandDiffusionAugment("sdedit", texts, prob=1.0, prompt="a <nodule>", concepts=[file], **FAST)
    record = Record.from_json(transform(scan(16, 16)).meta[META_KEY])
    assert record.backbone_digest.startswith(texts.digest + "+")
    with pytest.raises(DiffAugError, match="no concept file"):
        RandDiffusionAugment("sdedit", texts, concepts="nowhere.safetensors")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "sdedti"}, "did you mean 'sdedit'"),
        ({"method": "sdedit", "strenght": 0.5}, "did you mean 'strength'"),
        ({"method": "sdedit", "promt_key": "text"}, "no parameter 'promt'"),
        ({"method": "repaint"}, "mask_key="),
        ({"method": "textual_inversion"}, "concepts"),
        ({"method": "edict"}, "prompt_key="),
        ({"method": "prompt_to_prompt", "prompt": "tumor"}, "does not offer"),
        ({"method": "sdedit", "prompt": "tumour"}, "tumor"),
        ({"method": "sdedit", "backbone": "brain_mir"}, "unknown"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(backbone, arguments, words):
    given = {"keys": ["image", "label"], "backbone": backbone, **arguments}
    with pytest.raises(DiffAugError, match=words) as error:
        RandDiffusionAugmentd(**given)
    assert "\n" not in str(error.value)


def test_bad_images_are_named_or_passed_on(backbone):
    bad = scan(16, 16, filename_or_obj="ward/7.nii")
    bad[0, 3, 3] = float("nan")
    with pytest.raises(DiffAugError, match=r"ward/7\.nii: .*NaN"):
        RandDiffusionAugment("sdedit", backbone, prob=1.0, **FAST)(bad)
    lenient = RandDiffusionAugmentd(["image", "label"], "sdedit", backbone, prob=1.0, strict=False, **FAST)
    with pytest.warns(UserWarning, match="passed on"):
        out = lenient({"image": bad, "label": lesion(16, 16)})
    assert out["image"].meta[META_KEY] == ""
    with pytest.raises(DiffAugError, match="LoadImaged"):
        RandDiffusionAugmentd("image", "sdedit", backbone, prob=1.0, **FAST)({"image": "a.png"})
    with pytest.raises(DiffAugError, match="3 channels"):
        RandDiffusionAugment("sdedit", backbone, prob=1.0, **FAST)(torch.rand(3, 16, 16))
