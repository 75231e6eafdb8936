"""Every method of the registry, held to every law on every backbone that it can run on."""

import pytest

from monai_diffaug import registry
from monai_diffaug.testing import case_for, laws, variants
from monai_diffaug.testing.supply import BACKBONES

METHODS = [m.name for m in registry.listing()]
LAWS = {law.name: law for law in laws()}
TWICE = ("finite", "seeded", "neutral")  # also with a mask, where the method takes one


@pytest.mark.parametrize("on", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("law", LAWS)
def test_law(law, method, on):
    case = case_for(method, on)
    if case is None:
        pytest.skip(f"{method} does not run on {on}, by its declaration")
    for variant in variants(case) if law in TWICE else [case]:
        LAWS[law].holds(variant)
