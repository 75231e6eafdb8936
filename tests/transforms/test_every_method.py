"""Every method that makes images is reached from the transform by its name, with labels by its card."""

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug import registry
from monai_diffaug.registry import method
from monai_diffaug.testing import case_for, tiny
from monai_diffaug.transforms import META_KEY, RandDiffusionAugmentd
from monai_diffaug.types import DiffAugError, Sample

METHODS = registry.listing()
MAKERS = [m for m in METHODS if m.shape != "learn"]
CLASSES = tiny("class_mask", 2, 16)


def scan(size, channels=1):
    rng = np.random.default_rng(0)
    return MetaTensor(torch.tensor(rng.random((channels, *size)), dtype=torch.float32))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("entry", MAKERS, ids=lambda m: m.name)
def test_by_name(entry, dims):
    case = case_for(entry, f"tiny {dims}D")
    if case is None:
        pytest.skip(f"{entry.name} does not work in {dims}D")
    own = registry.parameters(entry)
    arguments = {k: v for k, v in case.but(batch=1).arguments().items() if k in own}
    keys = {f"{k}_key": k for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    constants = {k: v for k, v in arguments.items() if not isinstance(v, torch.Tensor)}
    data = {k: arguments[k][0] for k in keys.values()}
    transform = RandDiffusionAugmentd(["image"], entry.name, case.backbone, prob=1.0, **constants, **keys)
    image = scan(case.backbone.contract.size, case.backbone.contract.channels)
    out = transform({"image": image, **data})["image"]
    assert out.shape == image.shape
    assert bool(out.isfinite().all())
    assert json.loads(out.meta[META_KEY])["method"] == entry.name


@pytest.mark.parametrize("entry", [m for m in METHODS if m.shape == "learn"], ids=lambda m: m.name)
def test_learn_methods_are_refused_with_the_way_to_go(entry):
    with pytest.raises(DiffAugError, match=f"{entry.name} learns.*concepts"):
        RandDiffusionAugmentd("image", entry.name, CLASSES)


@pytest.fixture
def others():
    """A method that moves the layout, and two of shape ``expand``."""

    def mirrored(backbone, image, *, mask=None, generator=None):
        return Sample(image.flip(-1), mask=None if mask is None else mask.flip(-1))

    def doubled(backbone, dataset, *, factor=0.5, generator=None):
        for item in dataset:
            for _ in range(2):
                picture = item["image"] * factor
                yield Sample(picture, label=item["label"], mask=item["mask"])

    def choosy(backbone, dataset, *, generator=None):
        yield from ()

    for function, labels in ((mirrored, "moved"), (doubled, "generated"), (choosy, "kept")):
        method(labels=labels)(function)
    yield
    for name in ("mirrored", "doubled", "choosy"):
        registry._METHODS.pop(name)


def left():
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:9, 1:5] = 1
    return mask


def test_moved_labels_move(others):
    move = RandDiffusionAugmentd(["image", "label", "class"], "mirrored", CLASSES, prob=1.0, mask_key="label")
    image = torch.rand(1, 16, 16)
    out = move({"image": image, "label": left(), "class": "tumor"})
    assert torch.equal(out["label"].as_tensor(), left().flip(-1))
    assert torch.allclose(out["image"].as_tensor(), image.flip(-1), atol=1e-5)
    assert out["class"] == "tumor", "a class has no place to move to"
    lost = RandDiffusionAugmentd(["image", "label"], "mirrored", CLASSES, prob=1.0)
    with pytest.raises(DiffAugError, match="leaves label masks moved"):
        lost({"image": image, "label": left()})


def test_expand_methods_give_their_first_sample(others):
    make = RandDiffusionAugmentd(["image", "label"], "doubled", CLASSES, prob=1.0, factor=0.25)
    image = torch.rand(1, 16, 16)
    out = make({"image": image, "label": left()})
    wanted = ((image * 2 - 1) * 0.25 + 1) / 2
    assert torch.allclose(out["image"].as_tensor(), wanted, atol=1e-5)
    assert torch.equal(out["label"].as_tensor(), left())
    with pytest.raises(DiffAugError, match="made nothing"):
        RandDiffusionAugmentd("image", "choosy", CLASSES, prob=1.0)({"image": image})
