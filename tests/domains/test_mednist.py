"""What a caption says can be measured in the pixels."""

import dataclasses

import pytest
import torch

from monai_diffaug.domains import mednist, part_of
from monai_diffaug.domains.mednist import Attributes, changed, drawn
from monai_diffaug.io import datalist, images
from monai_diffaug.primitives.fitting import fit


@pytest.fixture(scope="module")
def hands():
    """Films with nothing at their edges (some have a white frame, which moves with the hand)."""
    items = [i for i in datalist.read("mednist") if i.kind in ("hand x-ray", "breast mri")]
    films = [fit(images.read(i.image, dims=2).image, mednist.CONTRACT).tensor for i in items]
    return [f for f in films if float(torch.cat([f[0, 0], f[0, :, 0], f[0, :, -1]]).max()) < -0.5]


def measures(image):
    light = (image[0] + 1) / 2
    inside = (light > 0.25).float()
    columns = torch.arange(64.0) - 31.5
    weight = inside.sum().clamp(min=1)
    x, y = (inside.sum(0) * columns).sum() / weight, (inside.sum(1) * columns).sum() / weight
    return {
        "area": float(inside.mean()),
        "light": float(light.mean()),
        "x": float(x),
        "y": float(y),
        "border": float(light[:8].mean() + light[-8:].mean() + light[:, :8].mean() + light[:, -8:].mean()),
    }


def compare(hands, a, b, key):
    found = []
    for i, image in enumerate(hands):
        x = measures(changed(image, a, torch.Generator().manual_seed(i)))[key]
        y = measures(changed(image, b, torch.Generator().manual_seed(i)))[key]
        found.append(x - y)
    return sum(d > 0 for d in found) / len(found)


@pytest.mark.parametrize(
    ("more", "less", "key"),
    [
        (Attributes(size="large"), Attributes(size="small"), "area"),
        (Attributes(brightness="bright"), Attributes(brightness="dark"), "light"),
        (Attributes(side="right"), Attributes(side="left"), "x"),
        (Attributes(), Attributes(cropped="cropped"), "border"),
    ],
    ids=["size", "brightness", "side", "cropped"],
)
def test_attributes_show_in_the_pixels(hands, more, less, key):
    assert len(hands) >= 3
    assert compare(hands, more, less, key) == 1.0


def test_rotation_turns_the_way_it_says(hands):
    stroke = torch.full((1, 64, 64), -1.0)
    stroke[:, 6:32, 30:34] = 1.0  # a hand of a clock at twelve
    for word, sign in (("rotated left", -1), ("rotated right", 1)):
        turned = changed(stroke, Attributes(rotation=word), torch.Generator().manual_seed(0))
        assert sign * measures(turned)["x"] > 3


def test_captions_say_all_and_only_what_was_done():
    words = Attributes("small", "dark", "left", "rotated right", "cropped")
    assert words.caption("hand x-ray") == "a small dark hand x-ray on the left rotated right cropped"
    assert Attributes().caption("abdomen ct", "a scan of") == "a scan of an abdomen ct"
    known = set(mednist.WORDS)
    for seed in range(50):
        drawn_words = drawn(torch.Generator().manual_seed(seed))
        assert set(drawn_words.caption("chest x-ray").split()) <= known
    assert len({dataclasses.astuple(drawn(torch.Generator().manual_seed(s))) for s in range(50)}) > 20


def test_the_kept_out_modality_cannot_be_said():
    assert not set(mednist.KEPT_OUT.split()) <= set(mednist.WORDS)
    assert mednist.KEPT_OUT not in mednist.LABELS


def test_parts_do_not_depend_on_what_else_there_is():
    names = [f"patient_{i}" for i in range(4000)]
    parts = [part_of(n) for n in names]
    assert parts == [part_of(n) for n in names]
    assert parts.count("test") / 4000 == pytest.approx(1 / 8, abs=0.02)
    assert parts.count("validation") / 4000 == pytest.approx(1 / 8, abs=0.02)


def test_shipped_samples_are_test_patients():
    for item in datalist.read("brain_mri"):
        assert part_of(str(item.fields["patient"])) == "test", item.id
