"""SSIM and MS-SSIM against MONAI, torchmetrics and scikit-image, and only where there is something to see."""

import pytest
import torch

from monai_diffaug.metrics.similarity import foreground, scales_of, ssim_of
from monai_diffaug.metrics.variety import between_pairs
from monai_diffaug.types import DiffAugError


def images(n=3, size=64, seed=0, dims=2):
    x = torch.rand(n, 1, *[size] * dims, generator=torch.Generator().manual_seed(seed))
    blur = torch.nn.functional.avg_pool2d if dims == 2 else torch.nn.functional.avg_pool3d
    return blur(x, 5, 1, 2) * 2 - 1


@pytest.mark.parametrize(("size", "dims"), [(64, 2), (100, 2), (176, 2), (32, 3)])
def test_it_is_monai_s(size, dims):
    from monai.metrics import MultiScaleSSIMMetric, SSIMMetric

    a = images(2, size, dims=dims)
    b = 0.8 * a + 0.2 * images(2, size, 1, dims)
    x, y = (a + 1) / 2, (b + 1) / 2
    assert ssim_of(a, b) == pytest.approx(SSIMMetric(dims, data_range=1.0)(x, y).flatten(), abs=1e-5)
    window, scales = scales_of(size)
    weights = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    theirs = MultiScaleSSIMMetric(
        dims, data_range=1.0, kernel_size=window, weights=tuple((weights / weights.sum()).tolist())
    )
    assert ssim_of(a, b, multiscale=True) == pytest.approx(theirs(x, y).flatten(), abs=1e-5)
    assert ssim_of(a, b, inside=torch.ones_like(a)) == pytest.approx(ssim_of(a, b), abs=1e-5)


def test_it_is_torchmetrics_without_its_border():
    from torchmetrics.functional.image import structural_similarity_index_measure

    a = images(2, 96)
    b = 0.8 * a + 0.2 * images(2, 96, 1)
    _, theirs = structural_similarity_index_measure(
        (a + 1) / 2, (b + 1) / 2, data_range=1.0, return_full_image=True, reduction="none"
    )
    assert ssim_of(a, b) == pytest.approx(theirs[..., 5:-5, 5:-5].flatten(1).mean(1), abs=1e-4)


def test_unlike_things_on_one_background_are_unlike():
    """Two discs of unrelated texture on 86 % of nothing."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    disc = (x**2 + y**2 < 0.18).float()
    noise = torch.rand(8, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    pictures = disc * (0.3 + 0.7 * noise) * 2 - 1
    a, b = pictures[:4], pictures[4:]
    assert float(ssim_of(a, b).mean()) > 0.7
    assert float(ssim_of(a, b, inside=foreground(a, b)).mean()) < 0.25
    assert between_pairs(pictures, "ssim", 16) < 0.25 < 0.7 < between_pairs(pictures, "ssim", 16, everywhere=True)
    # At its lowest scale the mask has spread to where only one of two pixels was inside: still far below the whole.
    assert between_pairs(pictures, pairs=16) < between_pairs(pictures, pairs=16, everywhere=True) - 0.1
    nothing = torch.full((2, 1, 32, 32), -1.0)
    assert ssim_of(nothing, nothing, inside=foreground(nothing, nothing)) == pytest.approx(torch.ones(2))


def test_the_span_counts_and_small_or_unlike_images_are_refused():
    a = images(2) * 0.5
    b = (a + 0.1).clamp(-1, 1)
    assert not torch.allclose(ssim_of(a, b), ssim_of(a, b, (-4.0, 4.0)), atol=1e-3)
    assert ssim_of(a, b) == pytest.approx(ssim_of((a + 1) / 2, (b + 1) / 2, (0.0, 1.0)), abs=1e-5)
    with pytest.raises(DiffAugError, match="too small"):
        ssim_of(images(2, 8), images(2, 8))
    with pytest.raises(DiffAugError, match="fit them"):
        ssim_of(images(2, 32), images(2, 64))


def test_scales_follow_the_side():
    assert [scales_of(s) for s in (20, 64, 96, 160, 161)] == [(7, 2), (7, 4), (7, 4), (7, 5), (11, 5)]
