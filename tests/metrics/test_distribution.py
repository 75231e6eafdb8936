"""Distances of feature sets against closed forms, and their floors."""

import pytest
import torch

from monai_diffaug.metrics.distribution import copies, fid, floored, kid
from monai_diffaug.types import DiffAugError


def normal(n, d, mean=0.0, std=1.0, seed=0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_fid_of_two_gaussians():
    a, b = normal(20000, 3), normal(20000, 3, 1.0, 2.0, seed=1)
    assert fid(a, b) == pytest.approx(3 * 1.0 + 3 * (1 - 2) ** 2, rel=0.03)


def test_kid_is_the_plain_double_sum():
    a, b = normal(7, 4), normal(5, 4, 0.5, seed=1)

    def kernel(x, y):
        return (float(x @ y) / 4 + 1) ** 3

    def within(s):
        pairs = [kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]
        return sum(pairs) / len(pairs)

    across = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    assert kid(a, b) == pytest.approx(within(a) + within(b) - 2 * across, rel=1e-9)


def test_kid_is_unbiased_and_sees_a_loss_of_variety():
    same = torch.tensor([kid(normal(200, 8, seed=2 * i), normal(200, 8, seed=2 * i + 1)) for i in range(60)])
    assert abs(float(same.mean())) < 3 * float(same.std()) / 60**0.5
    assert kid(normal(200, 8), normal(200, 8, std=0.5, seed=1)) > 2 * float(same.abs().max())


def test_the_floor_is_that_of_real_against_real():
    real = normal(200, 8)
    bad = floored(fid, normal(200, 8, 1.0, seed=1), real)
    good = floored(fid, normal(200, 8, seed=2), real)
    assert bad.n == 100
    assert bad.score > bad.floor + 5 * bad.floor_spread
    assert abs(good.score - good.floor) < 3 * (good.floor_spread + good.spread)


def test_copies_are_found():
    train, unseen = normal(100, 16), normal(100, 16, seed=1)
    planted = torch.cat([train[:20] + 0.01 * normal(20, 16, seed=3), normal(80, 16, seed=2)])
    share, distance, which = copies(planted, train, unseen)
    assert 0.2 <= share <= 0.25
    assert which[:20].tolist() == list(range(20))
    assert float(distance[:20].max()) < float(distance[20:].min())


def test_unlike_features_are_refused():
    with pytest.raises(DiffAugError, match="one extractor"):
        kid(normal(5, 3), normal(5, 4))
