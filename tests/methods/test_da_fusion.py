"""Random strengths, classes by their words, and masks that stay true."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.primitives import concepts, embeddings
from monai_diffaug.testing import digest_of, ideal_backbone, tiny
from monai_diffaug.types import Concept, DiffAugError, NoiseSource


def images(backbone, n=4):
    draw = torch.Generator().manual_seed(0)
    contract = backbone.contract
    return torch.rand(n, contract.channels, *contract.size, generator=draw) * 2 - 1


def fuse(backbone, image=None, **given):
    image = images(backbone) if image is None else image
    given = {"steps": 6, "generator": NoiseSource(range(len(image))), **given}
    return registry.call("da_fusion", backbone, image, **given)


def box(backbone, n=4):
    mask = torch.zeros(n, 1, *backbone.contract.size)
    mask[:, :, 4:9, 4:9] = 1.0
    return mask


def test_strengths_are_drawn_evenly_and_each_image_gets_its_own():
    backbone = ideal_backbone(size=8)
    image = images(backbone, 64)
    sample = fuse(backbone, image, label="tumor", steps=2)
    counts = [sample.info["strength"].count(s) for s in (0.25, 0.5, 0.75, 1.0)]
    assert sum(counts) == 64
    assert min(counts) >= 8
    again = fuse(backbone, image, label="tumor", steps=2)
    assert torch.equal(sample.image, again.image)


def test_a_deeper_strength_goes_farther_from_the_image():
    backbone = ideal_backbone()
    source = backbone.network.module.points[:6].float()  # images of the data set itself
    kinds = ["healthy", "tumor"] * 3
    made = [fuse(backbone, source, label=kinds, strength=s, steps=12).image for s in (0.1, 0.6, 1.0)]
    far = [float((m - source).square().mean()) for m in made]
    assert far[0] < 0.8 * far[1]
    assert far[1] < far[2]


def test_the_class_is_what_it_is_told_to_be():
    """On the exact denoiser, images of healthy heads varied as healthy stay so; told nothing, they may turn."""
    backbone = ideal_backbone()
    points, labels = backbone.network.module.points.float(), backbone.network.module.labels

    def kinds(made):
        return labels[torch.cdist(made.flatten(1), points.flatten(1)).argmin(1)]

    healthy = points[labels == 1].repeat(4, 1, 1, 1)
    told = kinds(fuse(backbone, healthy, label="healthy", strength=1.0, steps=12).image)
    untold = kinds(fuse(backbone, healthy, strength=1.0, steps=12).image)
    assert (told == 1).all()
    assert (untold == 2).float().mean() > 0.2


@pytest.mark.parametrize("kind", ["class", "class_mask", "text", "none"])
def test_labels_and_masks_come_back_as_they_went_in(kind):
    backbone = tiny(kind, autoencoder=True)
    before, mask = digest_of(backbone), box(backbone)
    label = None if kind == "none" else [backbone.contract.labels[i % 2] for i in range(4)]
    sample = fuse(backbone, label=label, mask=mask)
    assert sample.label == label
    assert sample.mask is mask
    assert digest_of(backbone) == before


def test_a_mask_is_told_where_it_can_be_and_held_fixed_elsewhere():
    fixed, told = tiny("class"), tiny("class_mask")
    source, mask = images(fixed), box(fixed)
    inside = mask.bool()
    held = fuse(fixed, source, label="tumor", mask=mask, strength=0.8).image
    assert torch.equal(held[inside], source[inside])
    assert not torch.equal(held[~inside], source[~inside])
    a = fuse(told, source, label="tumor", mask=mask, strength=0.8).image
    b = fuse(told, source, label="tumor", mask=mask.flip(-1), strength=0.8).image
    assert not torch.equal(a[inside], source[inside])
    assert (a - b).abs().max() > 1e-3


def test_the_object_alone_may_be_varied():
    backbone = tiny("class_mask")
    source, mask = images(backbone), box(backbone)
    out = fuse(backbone, source, label="tumor", mask=mask, region="object", grow=1, strength=0.8).image
    grown = torch.zeros_like(mask)
    grown[:, :, 3:10, 3:10] = 1.0
    assert torch.equal(out[grown == 0], source[grown == 0])
    assert not torch.equal(out[grown == 1], source[grown == 1])
    with pytest.raises(DiffAugError, match="region"):
        fuse(backbone, source, mask=mask, region="lesion")


def test_learned_words_stand_for_classes_that_the_backbone_lacks(tmp_path):
    backbone = tiny("text")
    words = {"pelvis ct": 0, "knee mri": 1}
    found = [
        Concept("tokens", {concepts.TOKENS: embeddings.random_rows(backbone, 2, seed)}, backbone.digest, word)
        for word, seed in words.items()
    ]
    paths = [concepts.save(c, tmp_path / f"{i}.safetensors") for i, c in enumerate(found)]
    a = fuse(backbone, label=["pelvis ct", "knee mri"] * 2, concept=paths, strength=0.8).image
    b = fuse(backbone, label=["knee mri", "pelvis ct"] * 2, concept=found, strength=0.8).image
    c = fuse(backbone, prompt=["a knee mri", "a pelvis ct"] * 2, concept=found, strength=0.8).image
    assert not torch.allclose(a, b, atol=1e-4)
    assert torch.equal(b, c)
    one = fuse(backbone, concept=found[0], strength=0.8).image
    assert torch.equal(one, fuse(backbone, prompt="a pelvis ct", concept=paths[0], strength=0.8).image)
    with pytest.raises(DiffAugError, match="pelvis"):
        fuse(backbone, label="pelvis ct")
