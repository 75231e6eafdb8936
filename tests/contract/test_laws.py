"""Every method of the registry, held to every law on every backbone that it can run on."""

import pytest

from monai_diffaug import registry
from monai_diffaug.testing import case_for, laws, variants
from monai_diffaug.testing.supply import BACKBONES, runs_on

PAIRS = [(m.name, on) for m in registry.listing() for on in BACKBONES if runs_on(m, on)]
LAWS = {law.name: law for law in laws()}
TWICE = ("finite", "seeded", "neutral")  # also with a mask, where the method takes one


@pytest.mark.parametrize(("method", "on"), PAIRS)
@pytest.mark.parametrize("law", LAWS)
def test_law(law, method, on):
    case = case_for(method, on)
    for variant in variants(case) if law in TWICE else [case]:
        LAWS[law].holds(variant)
