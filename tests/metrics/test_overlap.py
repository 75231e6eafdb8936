"""Dice and IoU agree with MONAI where there is a lesion; where there is none, false positives are counted apart."""

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, MeanIoU

from monai_diffaug.metrics.overlap import false_positive_area, overlap


def counts(drawn, true):
    return [np.array(x.flatten(1).sum(1).tolist()) for x in (drawn * true, drawn, true)]


def test_as_monai_on_images_with_a_lesion():
    g = torch.Generator().manual_seed(0)
    true = (torch.rand(9, 1, 8, 8, generator=g) > 0.7).float()
    drawn = (torch.rand(9, 1, 8, 8, generator=g) > 0.6).float()
    true[2], true[5], drawn[5] = 0, 0, 0  # nothing there: drawn, and not drawn
    drawn[7] = 0
    weights = np.random.default_rng(0).integers(0, 3, (4, 9)).astype(float)
    weights[0] = 1
    for metric, name in ((DiceMetric(reduction="none"), "dice"), (MeanIoU(reduction="none"), "iou")):
        each = metric(drawn, true)[:, 0].numpy()
        there = ~np.isnan(each)
        assert there.sum() == 7  # MONAI drops the two
        mine = overlap(*counts(drawn, true), weights, name)
        for d, w in enumerate(weights):
            assert mine[d] == pytest.approx(np.average(each[there], weights=w[there]), abs=1e-6)


def test_empty_masks_count_as_false_positives_only():
    both, drawn, true = np.array([0.0, 0, 4]), np.array([8.0, 0, 4]), np.array([0.0, 0, 4])
    ones = np.ones((1, 3))
    assert overlap(both, drawn, true, ones)[0] == 1
    assert false_positive_area(drawn, true, 64, ones)[0] == pytest.approx((8 / 64 + 0) / 2)
    assert np.isnan(overlap(both, drawn, true, np.array([[1.0, 1, 0]]))[0])
