"""Low dose as MONAI transforms."""

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CopyItemsd

from monai_diffaug.primitives.tomography import Scanner
from monai_diffaug.transforms.dose import LowDose, LowDosed, RandLowDose, RandLowDosed
from monai_diffaug.types import DiffAugError

SCANNER = Scanner(views=30)


def slice_of(depth=None):
    x = torch.full((1, 32, 32), -1000.0)
    x[:, 6:26, 6:26] = 40.0
    if depth:
        x = x[..., None].repeat(1, 1, 1, depth)
    return MetaTensor(x, affine=torch.diag(torch.tensor([3.0, 3.0, 5.0, 1.0])))


def test_a_slice_and_a_volume_keep_shape_and_meta_data():
    for x in (slice_of(), slice_of(2)):
        y = LowDose(0.05, scanner=SCANNER)(x)
        assert y.shape == x.shape
        assert torch.equal(y.affine, x.affine)
        assert float((y - x).std()) > 1.0
    assert not torch.equal(y[..., 0], y[..., 1])


def test_the_pixel_width_comes_from_the_affine():
    x = slice_of()
    assert torch.equal(LowDose(0.05, scanner=SCANNER)(x), LowDose(0.05, pixel=3.0, scanner=SCANNER)(x))
    with pytest.raises(DiffAugError, match="give pixel in mm"):
        LowDose(0.05)(x.as_tensor())


def test_pairs_by_each_items_own_dose():
    chain = Compose(
        [
            CopyItemsd("image", names="source"),
            LowDosed("source", dose="dose", pixel="pixel", seed="seed", scanner=SCANNER),
        ]
    )
    items = [{"image": slice_of(), "dose": d, "pixel": 3.0, "seed": 1} for d in (0.02, 0.5)]
    low, high = (chain(i) for i in items)
    assert torch.equal(low["image"], slice_of())
    assert float((low["source"] - low["image"]).std()) > 2 * float((high["source"] - high["image"]).std())
    assert torch.equal(chain(items[0])["source"], low["source"])


def test_at_random():
    x = slice_of()
    never, always = RandLowDose(prob=0.0, scanner=SCANNER), RandLowDose(prob=1.0, scanner=SCANNER)
    assert never(x) is x
    a = always.set_random_state(0)(x)
    assert torch.equal(a, always.set_random_state(0)(x))
    assert not torch.equal(a, always(x))
    both = RandLowDosed(["a", "b"], prob=1.0, scanner=SCANNER).set_random_state(0)({"a": x, "b": x})
    assert torch.equal(both["a"], both["b"])
    assert not torch.equal(both["a"], x)
    with pytest.raises(DiffAugError, match="in order"):
        RandLowDose(dose=(0.5, 0.1))
