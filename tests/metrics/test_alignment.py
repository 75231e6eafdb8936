"""Alignment: only a scorer that knows real pairs may rank, and what it says has a control."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from monai_diffaug.backbones import hub
from monai_diffaug.evaluation import pictures
from monai_diffaug.metrics.alignment import aligned, consistency, covariate, trust
from monai_diffaug.types import DiffAugError


def pairs(n=60, strength=3.0, seed=0, kinds=4):
    g = torch.Generator().manual_seed(seed)
    centers = F.normalize(torch.randn(kinds, 8, generator=torch.Generator().manual_seed(9)), dim=1)
    which = torch.arange(n) % kinds
    images = F.normalize(strength * centers[which] + torch.randn(n, 8, generator=g), dim=1)
    return images, centers[which], [f"kind {k}" for k in which.tolist()]


def test_trust_is_the_area_under_the_curve_of_real_against_exchanged_pairs():
    images, texts, said = pairs(strength=1.0)
    own = (images * texts).sum(1).tolist()
    other = [float(images[i] @ texts[j]) for i in range(60) for j in range(60) if said[i] != said[j]]
    truth = roc_auc_score([1] * len(own) + [0] * len(other), own + other)
    assert trust(images, texts, said) == pytest.approx(truth, abs=1e-9)
    with pytest.raises(DiffAugError, match="say the same"):
        trust(images, texts, ["one"] * 60)


def test_a_scorer_that_does_not_know_the_images_is_refused():
    known, guessed = pairs(), pairs(strength=0.2)
    found = aligned(known, pairs(seed=1))
    assert found.trust > 0.9
    assert found.synthetic.low > found.exchanged.high
    assert aligned(known, (*guessed[:2], guessed[2])).synthetic.high < found.synthetic.low
    with pytest.raises(DiffAugError, match="exchanged ones with an AUROC of 0"):
        aligned(guessed, known)


def test_the_shipped_scorer_may_rank_what_it_was_trained_on_and_not_brains():
    scorer = hub.load("mednist").scorer
    films = pictures("mednist", 64)
    texts = [f"a {k}" for k in films.kinds]
    keep = [i for i, k in enumerate(films.kinds) if k != "head ct"]  # it was not shown that
    images, said = films.images[keep], [texts[i] for i in keep]
    with torch.no_grad():
        assert trust(scorer.embed_images(images), scorer.embed_prompts(said), said) > 0.9
        brains = pictures("brain_mri", 64)
        words = [f"a {k}" for k in brains.kinds]
        real = scorer.embed_images(brains.images), scorer.embed_prompts(words), words
    with pytest.raises(DiffAugError, match="knows this kind"):
        aligned(real, real)


def test_classes_asked_for_are_found_and_exchanged_ones_by_chance():
    rng = np.random.default_rng(0)
    asked = rng.integers(0, 3, 300)
    shown = np.where(rng.random(300) < 0.8, asked, rng.integers(0, 3, 300))
    p = torch.eye(3)[torch.from_numpy(shown)]
    share, chance = consistency(asked.tolist(), p)
    assert share.value == pytest.approx(np.mean(shown == asked))
    assert share.low < 0.8 + 0.2 / 3 < share.high
    exchanged = np.mean([np.mean(rng.permutation(asked) == shown) for _ in range(200)])
    assert chance == pytest.approx(exchanged, abs=0.01)
    with pytest.raises(DiffAugError, match="one an image"):
        consistency([0], p)


def test_a_number_asked_for_is_measured():
    rng = np.random.default_rng(0)
    asked = rng.uniform(0, 100, 80)
    rho, miss = covariate(asked.tolist(), (asked + rng.normal(0, 10, 80)).tolist())
    assert rho.low > 0.8
    assert 5 < miss < 12
    lost, _ = covariate(asked.tolist(), rng.uniform(0, 100, 80).tolist())
    assert lost.low < 0 < lost.high
    with pytest.raises(DiffAugError, match="three or more"):
        covariate([1, 1, 1], [1, 2, 3])
