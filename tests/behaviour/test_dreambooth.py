"""DreamBooth: "a V chest ct" shows the new modality, and "a chest ct" still shows a chest, thanks to the prior."""

import pytest

from monai_diffaug import registry
from monai_diffaug.types import NoiseSource
from tests.behaviour import real
from tests.behaviour.learned import KEPT_OUT, samples, share, subject, unchanged


def learn(seed, **given):
    given = {"steps": 120, "prior": 16, **given}
    generator = NoiseSource([seed])
    return registry.call(
        "dreambooth", real.shipped("mednist"), subject(), class_prompt="a chest ct", generator=generator, **given
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_subject_is_learned_and_its_class_kept(seed):
    """Reached by seed 0 after 150 steps, of 12 samples each: "a V chest ct" 12 head CTs; "a chest ct" none, and 12
    chest CTs, with the prior; 12 head CTs without it. The paper's other sign of drift, a plain class that is less
    diverse without the prior, is not seen: the class does not collapse, it becomes the subject as a whole, whose images
    lie farther apart in the judge's features (3.4) than chest CTs do (1.8)."""
    before = unchanged(real.shipped("mednist"))
    concept, free = learn(seed), learn(seed, prior_weight=0.0)
    assert unchanged(real.shipped("mednist")) == before
    given = {"n": 12, "seed": seed, "steps": 8}
    kept, drifted = (samples("a chest ct", c, **given) for c in (concept, free))
    assert share(samples("a <new> chest ct", concept, **given), KEPT_OUT) >= 0.7
    assert share(kept, KEPT_OUT) <= 0.15
    assert share(kept, "chest ct") >= 0.85
    assert share(drifted, KEPT_OUT) >= 2 * max(share(kept, KEPT_OUT), 0.15)
    untrained = learn(seed, steps=0)
    assert share(samples("a <new> chest ct", untrained, **given), KEPT_OUT) <= 0.3
