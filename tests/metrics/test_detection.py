"""Average precision against pycocotools' own sums, by hand where it can be done, and FROC."""

import contextlib
import io
import time

import numpy as np
import pytest
import torch

from monai_diffaug.metrics.detection import IOUS, Boxes, matched
from monai_diffaug.types import DiffAugError


def boxes(rows, labels=None, scores=None, ignore=None):
    n = len(rows)
    return Boxes(
        torch.tensor(rows, dtype=torch.float64).reshape(n, 4),
        torch.tensor(labels if labels is not None else [1] * n),
        None if scores is None else torch.tensor(scores, dtype=torch.float64).reshape(n),
        None if ignore is None else torch.tensor(ignore),
    )


def scene(images=40, seed=0):
    """Three classes; boxes missed, found twice, made up, to be ignored; images without truth and without boxes."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for i in range(images):
        n = 0 if i % 7 == 3 else int(rng.integers(1, 6))
        corner, size = rng.uniform(0, 80, (n, 2)), rng.uniform(8, 30, (n, 2))
        there, labels = np.concatenate([corner, corner + size], 1), rng.integers(1, 4, n)
        flags = rng.random(n) < 0.2
        truth.append(boxes(there.tolist(), labels.tolist(), ignore=flags.tolist()))
        seen, kinds = [], []
        for box, label in zip(there, labels, strict=True):
            for _ in range(rng.choice([0, 1, 2], p=[0.2, 0.5, 0.3])):
                seen.append(np.sort((box + rng.normal(0, 2.5, 4)).reshape(2, 2), axis=0).ravel().tolist())
                kinds.append(int(label if rng.random() < 0.9 else rng.integers(1, 4)))
        for _ in range(0 if i % 5 == 1 else rng.integers(0, 3)):
            at = rng.uniform(0, 80, 2)
            seen.append([*at, *(at + rng.uniform(5, 30, 2))])
            kinds.append(int(rng.integers(1, 5)))  # class 4 has no truth
        if i % 11 == 5:
            seen, kinds = [], []
        found.append(boxes(seen, kinds, np.round(rng.uniform(0, 1, len(seen)), 1)))  # rounded, so that scores tie
    return found, truth


def theirs(found, truth):
    """pycocotools from end to end: (T, K) average precisions, one column a class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(images):
        out = []
        for i, b in enumerate(images):
            for k in range(len(b.boxes)):
                x, y, right, bottom = b.boxes[k].tolist()
                out.append({
                    "id": len(out) + 1, "image_id": i, "category_id": int(b.labels[k]),
                    "bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y),
                    "iscrowd": 0 if b.ignore is None else int(b.ignore[k]),
                    "score": 1.0 if b.scores is None else float(b.scores[k]),
                })  # fmt: skip
        return out

    with contextlib.redirect_stdout(io.StringIO()):
        both = []
        for images in (truth, found):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": i} for i in range(len(truth))],
                "annotations": rows(images),
                "categories": [{"id": c} for c in (1, 2, 3, 4)],
            }
            coco.createIndex()
            both.append(coco)
        run = COCOeval(*both, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][:, :, :, 0, -1]  # T, R, K
    return np.where(precision > -1, precision, np.nan).mean(1), run.stats


@pytest.mark.parametrize("seed", range(4))
def test_it_is_pycocotools(seed):
    found, truth = scene(seed=seed)
    per, stats = theirs(found, truth)
    ours = matched(found, truth)
    assert ours.map() == pytest.approx(stats[0], abs=1e-9)
    assert ours.map(ious=(0.5,)) == pytest.approx(stats[1], abs=1e-9)
    assert ours.map(ious=(0.75,)) == pytest.approx(stats[2], abs=1e-9)
    assert 0.05 < ours.map() < 0.95
    assert list(ours.precisions().values()) == pytest.approx(per.mean(0), abs=1e-9, nan_ok=True)
    assert np.isnan(ours.precisions()[4]), "a class without truth has no precision"


def test_by_hand():
    """Two boxes there; found: the first, the first again, nothing, the second. Recall 1/2 at precision 1, 1 at 1/2."""
    truth = [boxes([[0, 0, 10, 10], [20, 20, 30, 30]]), boxes([])]
    found = [
        boxes([[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]], scores=[0.9, 0.8, 0.6]),
        boxes([[50, 50, 60, 60]], scores=[0.7]),
    ]
    assert matched(found, truth).map() == pytest.approx((51 * 1.0 + 50 * 0.5) / 101)
    assert matched(truth_as_found(truth), truth).map() == pytest.approx(1.0)


def truth_as_found(truth):
    return [Boxes(t.boxes, t.labels, torch.ones(len(t.boxes))) for t in truth]


def test_an_ignored_box_is_neither_missed_nor_a_mistake():
    truth = [boxes([[0, 0, 10, 10], [20, 20, 30, 30]], ignore=[False, True])]
    alone = boxes([[0, 0, 10, 10]], scores=[0.5])
    both = boxes([[20, 20, 30, 30], [0, 0, 10, 10]], scores=[0.9, 0.5])
    assert matched([alone], truth).map() == matched([both], truth).map() == pytest.approx(1.0)
    kept = [boxes([[0, 0, 10, 10], [20, 20, 30, 30]])]
    assert matched([alone], kept).map() < 0.6


def test_weights_are_repetitions_of_images():
    found, truth = scene(12)
    times = [3, 0, 1, 2, 1, 0, 1, 1, 2, 1, 1, 1]
    again = [[x for x, t in zip(side, times, strict=True) for _ in range(t)] for side in (found, truth)]
    assert matched(found, truth).map(np.array(times, float)) == pytest.approx(matched(*again).map(), abs=0.01)
    with pytest.raises(DiffAugError, match="one an image"):
        matched(found, truth).map(np.ones(3))


def test_a_thousand_draws_cost_little():
    one = matched(*scene(100))
    rng = np.random.default_rng(0)
    began = time.process_time()
    drawn = [one.map(rng.multinomial(100, np.full(100, 0.01)).astype(float)) for _ in range(100)]
    assert time.process_time() - began < 5
    assert np.std(drawn) > 0


def test_froc_reads_sensitivity_at_false_positives_an_image():
    truth = [boxes([[0, 0, 10, 10], [20, 20, 30, 30]]), boxes([])]
    found = [
        boxes([[0, 0, 10, 10], [20, 20, 30, 30]], scores=[0.9, 0.4]),
        boxes([[50, 50, 60, 60], [70, 70, 80, 80]], scores=[0.7, 0.3]),
    ]
    assert matched(found, truth).froc(rates=(0.25, 0.5, 1.0)) == {0.25: 0.5, 0.5: 1.0, 1.0: 1.0}
    flat = [Boxes(f.boxes, f.labels, torch.full((len(f.boxes),), 0.5)) for f in found]
    assert matched(flat, truth).froc(rates=(0.5, 1.0)) == {0.5: 0.0, 1.0: 1.0}, "one score, one threshold"


def test_froc_is_monai_s_where_that_is_right():
    from monai.metrics import compute_froc_curve_data

    found, truth = scene(30)
    ours = matched(found, truth).froc(rates=(0.5, 1.0, 2.0))
    one = matched(found, truth)
    hits, misses = [], []
    for c, s in zip(one._classes, one._scores, strict=True):
        keep = ~c.ignored[0]
        hits += s[keep & c.hit[0]].tolist()
        misses += s[keep & ~c.hit[0]].tolist()
    total = int(sum(c.truth.sum() for c in one._classes))
    right = np.array(hits + [0.0] * (total - len(hits)))  # a box not found has probability 0 there
    false, sensitivity = compute_froc_curve_data(np.array(misses), right, total, 30)
    for rate, value in ours.items():
        assert value == pytest.approx(max(sensitivity[false <= rate]), abs=1e-9)


def test_bad_boxes_get_a_line():
    good = boxes([[0, 0, 1, 1]], scores=[0.5])
    for found, truth, said in (
        ([good], [], "give one of each"),
        ([boxes([[0, 0, 1, 1]])], [good], "need finite scores"),
        ([boxes([[5, 0, 1, 1]], scores=[0.5])], [good], "ends before it begins"),
        ([boxes([[0, 0, 1, 1]], labels=[1, 2], scores=[0.5])], [good], "one label"),
        ([good], [boxes([])], "no image has a truth box"),
    ):
        with pytest.raises(DiffAugError, match=said):
            matched(found, truth)
    with pytest.raises(DiffAugError, match="not matched"):
        matched([good], [good]).map(ious=(0.3,))


def test_it_says_nothing_while_it_works(capsys):
    matched(*scene(3))
    assert capsys.readouterr().out == ""
    assert len(IOUS) == 10
