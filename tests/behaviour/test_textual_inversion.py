"""Textual inversion: five images of a modality the backbone never saw become a word, and no weight is touched."""

import pytest

from monai_diffaug import registry
from monai_diffaug.types import NoiseSource
from tests.behaviour import real
from tests.behaviour.learned import KEPT_OUT, samples, share, subject, unchanged


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_samples_of_the_word_show_the_kept_out_modality(seed):
    """The paper's bars: 70 % of the samples show it, at most 30 % of the initial word's. Reached by seed 0: 18 of 24,
    against none."""
    backbone = real.shipped("mednist")
    before = unchanged(backbone)
    given = {"word": "new", "initial": "breast mri", "vectors": 4, "rate": 2e-3, "generator": NoiseSource([seed])}
    word = registry.call("textual_inversion", backbone, subject(), steps=250, **given)
    stub = registry.call("textual_inversion", backbone, subject(), steps=0, **given)
    learned, initial = (share(samples("a new", c, seed=seed, steps=10), KEPT_OUT) for c in (word, stub))
    assert unchanged(backbone) == before
    assert learned >= 0.7
    assert initial <= 0.3
