"""Figures of classes agree with scikit-learn under any weights, and one class has no AUROC."""

import numpy as np
import pytest
from sklearn import metrics as reference

from monai_diffaug.metrics.classification import auroc, class_figures, macro_figures
from monai_diffaug.types import DiffAugError


def drawn(k, n=60, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(k), n)
    return (np.round(p, 1) if ties else p), rng.permutation(np.arange(n) % k), rng.integers(0, 4, (3, n)).astype(float)


@pytest.mark.parametrize(("k", "ties"), [(2, False), (2, True), (4, False), (4, True)])
def test_as_scikit_learn(k, ties):
    p, y, weights = drawn(k, ties=ties)
    told = p.argmax(1)
    for d, w in enumerate(weights):
        how = {"sample_weight": w}
        macro = {**how, "average": "macro", "zero_division": 0}
        expected = {
            "accuracy": reference.accuracy_score(y, told, **how),
            "balanced_accuracy": reference.balanced_accuracy_score(y, told, **how),
            "precision": reference.precision_score(y, told, **macro),
            "recall": reference.recall_score(y, told, **macro),
            "f1": reference.f1_score(y, told, **macro),
            "auroc": np.mean([reference.roc_auc_score(y == i, p[:, i], **how) for i in range(k)]),
        }
        for name, value in expected.items():
            assert macro_figures(p, y, weights, name)[d] == pytest.approx(value, abs=1e-12), name
        each = class_figures(p, y, weights)
        assert each["recall"][d] == pytest.approx(reference.recall_score(y, told, average=None, **how), abs=1e-12)


def test_one_class_is_refused_and_a_draw_of_one_is_no_number():
    scores, positive = np.array([0.1, 0.9, 0.4]), np.array([True, True, True])
    with pytest.raises(DiffAugError, match="one only"):
        auroc(scores, positive, np.ones((1, 3)))
    found = auroc(scores, np.array([False, True, True]), np.array([[1.0, 1, 1], [0, 2, 1]]))
    assert found[0] == 1
    assert np.isnan(found[1])


def test_a_class_never_told_has_precision_zero():
    p = np.array([[0.9, 0.1], [0.8, 0.2]])
    assert class_figures(p, np.array([0, 1]), np.ones((1, 2)))["precision"][0].tolist() == [0.5, 0.0]
