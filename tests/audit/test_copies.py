"""Copies of training images: planted ones are found, other patients' images are not."""

import pytest
import torch
import torch.nn.functional as F

from monai_diffaug.audit.copies import CopyFinder
from monai_diffaug.types import DiffAugError


def bodies(n, seed, dims=2, size=32):
    """Images that share an outline, as scans of one kind do, and differ in what is inside it."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, size)] * dims, indexing="ij"))
    outline = torch.sigmoid(20 * (0.8 - grid.square().sum(0).sqrt()))
    mode = "bilinear" if dims == 2 else "trilinear"
    inside = F.interpolate(torch.randn(n, 1, *[7] * dims, generator=g), (size,) * dims, mode=mode)
    return (outline * (1 + 0.4 * inside) - 1).clamp(-1, 1)


@pytest.fixture(scope="module")
def finder():
    return CopyFinder(bodies(60, 0), bodies(150, 1), ids=[f"film {i}" for i in range(60)])


CHANGES = {
    "exact": lambda x: x,
    "shifted": lambda x: torch.roll(x, (3, -2), (2, 3)),
    "flipped": lambda x: x.flip(-1),
    "brighter": lambda x: (0.8 * x + 0.15).clamp(-1, 1),
    "all three": lambda x: (0.8 * torch.roll(x.flip(-1), (2, 2), (2, 3)) + 0.1).clamp(-1, 1),
    "noisy": lambda x: x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_planted_copies_are_found_and_named(finder, change):
    found = finder(CHANGES[change](bodies(60, 0)[:20]))
    assert sum(f.copy for f in found) >= 0.95 * 20
    assert sum(f.nearest == f"film {i}" for i, f in enumerate(found)) >= 0.95 * 20


def test_other_patients_are_no_copies(finder):
    found = finder(bodies(80, 2))
    assert sum(f.copy for f in found) < 0.05 * 80
    assert sum(f.rare for f in found) / 80 > 0.2


def test_copies_that_only_a_network_recognizes():
    def top(x):  # sees nothing but the upper half
        return x[..., :16, :].flatten(1) - x[..., :16, :].flatten(1).mean(1, keepdim=True)

    train, other = bodies(60, 0), bodies(60, 5)
    half = torch.cat([train[..., :16, :], other[..., 16:, :]], -2)
    with_it, without = (CopyFinder(train, bodies(80, 1), e)(half) for e in (top, None))
    assert sum(f.copy for f in with_it) > 0.9 * 60 > sum(f.copy for f in without)
    assert sum(f.space == "embedding" for f in with_it if f.copy) > 0.8 * 60


def test_volumes(finder):
    train = bodies(6, 0, dims=3, size=16)
    found = CopyFinder(train, bodies(60, 1, dims=3, size=16))(torch.cat([train.flip(-1), bodies(20, 2, 3, 16)]))
    assert all(f.copy for f in found[:6])
    assert sum(f.copy for f in found[6:]) <= 2


def test_refusals(finder):
    with pytest.raises(DiffAugError, match="10 held-out images cannot tell what 2% of them is: give 50 or more"):
        CopyFinder(bodies(5, 0), bodies(10, 1))
    with pytest.raises(DiffAugError, match="resample one of them"):
        finder(bodies(2, 0, size=16))
