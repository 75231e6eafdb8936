"""Figures of lesion maps: they agree with scikit-learn, thresholds come from elsewhere, intervals from patients."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_diffaug.metrics import lesions
from monai_diffaug.types import DiffAugError


def toy(n=12, patients=4, seed=0, signal=1.5):
    g = torch.Generator().manual_seed(seed)
    masks = torch.zeros(n, 1, 16, 16)
    masks[:, :, 4:8, 5:9] = 1
    maps = torch.randn(n, 1, 16, 16, generator=g) + signal * masks
    return maps, masks, [f"p{i % patients}" for i in range(n)]


def test_curves_agree_with_scikit_learn():
    maps, masks, patients = toy()
    counts = lesions.count(maps, masks, patients, bins=100_000)
    y, s = masks.flatten().numpy(), maps.flatten().numpy()
    assert counts.auprc() == pytest.approx(average_precision_score(y, s), abs=1e-4)
    assert counts.auroc() == pytest.approx(roc_auc_score(y, s), abs=1e-4)
    weights = np.array([3.0, 0.0, 1.0, 2.0])
    w = np.repeat([weights[int(p[1])] for p in patients], 256)
    assert counts.auprc(weights) == pytest.approx(average_precision_score(y, s, sample_weight=w), abs=1e-4)


def test_a_few_bins_are_enough():
    maps, masks, patients = toy()
    fine, coarse = (lesions.count(maps, masks, patients, bins=b).auprc() for b in (100_000, 1024))
    assert coarse == pytest.approx(fine, abs=2e-3)


def test_the_threshold_is_the_best_for_the_patients_that_it_is_found_on():
    maps, masks, patients = toy()
    counts = lesions.count(maps, masks, patients)
    best = lesions.best_threshold(counts)
    found = counts.dice(best).mean()
    assert found == pytest.approx(max(counts.dice(t).mean() for t in np.linspace(-3, 5, 200)), abs=0.01)
    by_hand = [
        lesions.dice(
            (torch.cat([maps[i : i + 1] for i in range(12) if patients[i] == p], 2) >= best).float(),
            torch.cat([masks[i : i + 1] for i in range(12) if patients[i] == p], 2),
        ).item()
        for p in counts.patients
    ]
    assert counts.dice(best) == pytest.approx(by_hand, abs=0.01)


def test_intervals_hold_the_truth_and_shrink_with_patients():
    rng = np.random.default_rng(0)
    hits, widths = 0, {}
    for n in (10, 160):
        values = rng.normal(0.5, 0.2, n)
        found = lesions.bootstrap(lambda w, v=values: float(w @ v / w.sum()), n, 400)
        assert found.value == pytest.approx(values.mean())
        hits += found.low < 0.5 < found.high
        widths[n] = found.high - found.low
    assert hits == 2
    assert widths[160] < 0.5 * widths[10]


def test_a_paired_difference_is_sharper_than_two_intervals():
    maps, masks, patients = toy(40, 20)
    better = lesions.count(maps + 0.3 * masks, masks, patients)
    worse = lesions.count(maps, masks, patients)
    gain = lesions.bootstrap(lambda w: better.auprc(w) - worse.auprc(w), 20, 300)
    alone = lesions.bootstrap(better.auprc, 20, 300)
    assert gain.low > 0
    assert gain.high - gain.low < alone.high - alone.low


def test_change_maps():
    before, after = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    before[..., 4, 4], after[..., 0, 0] = 1.0, 1.0
    darker = lesions.change_map(before, after, 1, 1)
    assert darker[..., 4, 4] == 1
    assert darker[..., 0, 0] == 0
    assert lesions.change_map(before, after, -1, 1)[..., 0, 0] == 1
    assert lesions.change_map(before, after, 0, 1).sum() == 2
    assert lesions.change_map(before, after, 1, 3)[..., 3, 3] == pytest.approx(1 / 9)


def test_what_does_not_fit_is_refused():
    maps, masks, patients = toy()
    with pytest.raises(DiffAugError, match="one patient a map"):
        lesions.count(maps, masks, patients[:-1])
    with pytest.raises(DiffAugError, match="some voxel must be lesion"):
        lesions.count(maps, 0 * masks, patients)


def test_small_lesions_count_as_much_as_large_ones():
    masks = torch.zeros(2, 1, 40, 40)
    masks[0, 0, 2:22, 2:22] = 1  # 400 pixels
    masks[0, 0, 30:32, 30:32] = 1  # 4 pixels
    masks[1, 0, 5:9, 5:9] = 1
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(masks.shape, generator=g)
    assert lesions.region_overlap(masks + 0.5 * noise, masks) == pytest.approx(1.0)
    guessed = [lesions.region_overlap(torch.rand(masks.shape, generator=g), masks) for _ in range(60)]
    assert np.mean(guessed) == pytest.approx(0.15, abs=0.04)
    assert lesions.region_overlap(torch.zeros_like(masks), masks) == pytest.approx(0.15, abs=1e-6)
    large = masks.clone()
    large[0, 0, 30:32, 30:32] = 0
    large[1] = 0  # finds 400 of 420 lesion pixels, but one of three lesions
    assert lesions.region_overlap(large + 0.001 * noise, masks) < 0.6
    maps = masks * 0.3 + noise
    by_hand = []
    for line in sorted(set(maps.flatten().tolist()), reverse=True):
        seen = maps >= line
        false = float((seen & (masks == 0)).sum() / (masks == 0).sum())
        parts = [seen[0, 0, 2:22, 2:22], seen[0, 0, 30:32, 30:32], seen[1, 0, 5:9, 5:9]]
        by_hand.append((false, float(np.mean([float(p.float().mean()) for p in parts]))))
    false, share = np.array([(0.0, 0.0), *by_hand]).T
    fine = np.linspace(0, 0.3, 20001)
    highest = np.array([share[np.searchsorted(false, f, "right") - 1] for f in fine])
    assert lesions.region_overlap(maps, masks) == pytest.approx(highest.mean(), abs=2e-3)
    with pytest.raises(DiffAugError, match="nowhere"):
        lesions.region_overlap(noise, torch.zeros_like(masks))
