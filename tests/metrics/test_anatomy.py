"""Regions against phantoms whose areas are known, and on the real images that ship."""

import numpy as np
import pytest
import torch

from monai_diffaug.evaluation import pictures
from monai_diffaug.evaluation.realism import region_of
from monai_diffaug.metrics import anatomy
from monai_diffaug.types import DiffAugError


def grid(size=96):
    return torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")


def ellipse(y, x, cy, cx, ry, rx):
    return (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1).float()


def film(left=0.22, right=0.22, outside=0.0):
    """A chest of 0.7, two lungs of 0.3 of the given widths, air outside."""
    y, x = grid()
    body = ellipse(y, x, 0.1, 0, 1.2, 0.9)
    lungs = [ellipse(y, x, -0.05, s * 0.42, 0.45, w) for s, w in ((-1, left), (1, right))]
    shown = body * 0.7 + (1 - body) * outside
    for lung in lungs:
        shown = shown * (1 - lung) + 0.3 * lung
    noise = 0.02 * torch.randn(shown.shape, generator=torch.Generator().manual_seed(0))
    return (shown + noise).clamp(0, 1)[None, None] * 2 - 1, [float(lung.mean()) for lung in lungs]


@pytest.mark.parametrize("outside", [0.0, 0.7])
def test_lung_fields_have_the_area_that_was_drawn(outside):
    image, areas = film(0.22, 0.15, outside)
    found = anatomy.measures(image, region="chest")
    assert float(found["lung_fields"]) == pytest.approx(sum(areas), rel=0.2)
    assert float(found["lung_balance"]) == pytest.approx(areas[1] / areas[0], abs=0.12)
    white = anatomy.measures(film(0.22, 0.001, outside)[0], region="chest")  # one lung is white
    assert float(white["lung_balance"]) < 0.3
    empty = anatomy.lung_fields(np.zeros((64, 64), np.float32))
    assert not empty.any()


def test_the_inside_of_a_head_is_what_lies_within_its_rim():
    y, x = grid(100)
    skull, inside = ellipse(y, x, 0, 0, 0.8, 0.65), ellipse(y, x, 0, 0, 0.68, 0.53)
    head = skull * 0.8 - inside * 0.4
    for gain in (1.0, 0.15):  # however bright the scan is
        found = anatomy.measures((head * gain)[None, None] * 2 - 1, region="brain")
        assert float(found["brain"]) == pytest.approx(float(inside.mean()), rel=0.05)
    ball = torch.linspace(-1, 1, 32)
    radius = (ball[:, None, None] ** 2 + ball[None, :, None] ** 2 + ball**2).sqrt()
    volume = anatomy.brain((radius < 0.8).float().numpy())
    assert volume.mean() == pytest.approx(4 / 3 * np.pi * 0.68**3 / 8, rel=0.1)
    assert not anatomy.brain(np.zeros((16, 16), np.float32)).any()


def test_real_images_are_of_the_region_that_they_show():
    brains, films = pictures("brain_mri", 64), pictures("mednist", 64)
    assert region_of(brains.images) == "brain"
    chests = [i for i, k in enumerate(films.kinds) if k == "chest x-ray"]
    hands = [i for i, k in enumerate(films.kinds) if k == "hand x-ray"]
    assert region_of(films.images[chests]) == "chest"
    assert region_of(films.images[hands]) is None
    lungs = anatomy.measures(films.images[chests], region="chest")["lung_fields"]
    assert 0.08 < float(lungs.median()) < 0.5
    assert 0.1 < float(anatomy.measures(brains.images, region="brain")["brain"].median()) < 0.6


def test_an_unknown_region_is_refused_and_volumes_have_no_lung_fields():
    with pytest.raises(DiffAugError, match="chest, brain"):
        anatomy.measures(torch.zeros(1, 1, 8, 8), region="knee")
    assert "lung_fields" not in anatomy.measures(torch.zeros(1, 1, 8, 8, 8), region="chest")
    assert "brain" in anatomy.measures(torch.zeros(1, 1, 8, 8, 8), region="brain")
