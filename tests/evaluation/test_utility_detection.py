"""The detector finds bright squares, its boxes come from masks, and its score is COCO's."""

import numpy as np
import pytest
import torch

from monai_diffaug.evaluation.utility import Arm, opened
from monai_diffaug.evaluation.utility.arms import Batches
from monai_diffaug.evaluation.utility.data import Pool
from monai_diffaug.evaluation.utility.detector import boxes_of
from monai_diffaug.evaluation.utility.downstream import task_of, trained
from monai_diffaug.evaluation.utility.figures import Figures
from tests.evaluation.toy_study import study

pytest.importorskip("pycocotools")


def squares(n, seed):
    """One or two bright rectangles in each image of 32 x 32, none in every fourth."""
    rng, images, masks = np.random.default_rng(seed), [], []
    for i in range(n):
        mask = np.zeros((32, 32), np.float32)
        for k in range(0 if i % 4 == 3 else 1 + i % 2):
            x, y = rng.integers(1, 8) + 16 * k, rng.integers(1, 20)
            mask[y : y + rng.integers(5, 11), x : x + rng.integers(5, 8)] = 1
        images.append(-0.6 + mask + 0.1 * rng.normal(size=(32, 32)))
        masks.append(mask)
    m = torch.tensor(np.stack(masks))[:, None]
    x = torch.tensor(np.stack(images), dtype=torch.float32)[:, None].clamp(-1, 1)
    return Pool(x, m.flatten(1).any(1).long(), m, tuple(f"p{i // 4}" for i in range(n)), tuple({} for _ in range(n)))


def asked():
    training = {"steps": 150, "batch": 8, "lr": 0.01, "channels": [8, 16, 16], "precision": "float32"}
    return opened(study("x.json", task="detection", classes=["square"], size=32, training=training))


def test_boxes_of_a_mask():
    mask = torch.zeros(1, 12, 12)
    mask[0, 2:5, 3:8] = 1
    mask[0, 8:11, 1:3] = 1
    mask[0, 6, 10] = 1  # one pixel is noise
    assert boxes_of(mask) == [[3, 2, 5, 3], [1, 8, 2, 3]]
    assert boxes_of(torch.zeros(1, 4, 4)) == []


def test_it_finds_squares_and_a_shuffled_one_does_not():
    s, test = asked(), squares(24, 1)
    figures = Figures(s, test)
    scores = {}
    for name, train in (("real", squares(24, 0)), ("shuffled", squares(24, 0))):
        if name == "shuffled":
            train = train.with_targets_of(torch.randperm(24, generator=torch.Generator().manual_seed(2)).tolist())
        module, _ = trained(task_of(s), s.training, Batches(s, Arm(name, "real"), train, None, 0.0, 0), 0)
        with torch.no_grad():
            outputs = task_of(s).outputs(module, test)
        scores[name] = figures.point(outputs)
    assert scores["real"]["ap50"] > 0.6
    assert scores["real"]["map"] < scores["real"]["ap50"]
    assert scores["shuffled"]["ap50"] < 0.3


def test_perfect_boxes_score_one_and_weights_count_patients():
    s, test = asked(), squares(8, 1)
    figures = Figures(s, test)
    perfect = [[[*b, 0.9] for b in boxes_of(m)] for m in test.masks]
    assert figures.point({"boxes": perfect}) == {"map": pytest.approx(1), "ap50": pytest.approx(1)}
    half = [b if i < 4 else [] for i, b in enumerate(perfect)]
    weights = np.array([[1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4])
    assert figures.values({"boxes": half}, weights)["ap50"].tolist() == pytest.approx([1, 0])
