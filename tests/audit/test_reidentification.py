"""Re-identification: patients that come again are recognized, and a weak verifier vouches for nobody."""

from monai_diffaug.audit.reidentification import reidentification

from ..verifying import by_pixels
from .sets import bodies, people


def test_patients_that_come_again_are_found_and_a_weak_verifier_vouches_for_nobody():
    train, unseen = bodies(30, 0), bodies(40, 1)
    verifier = by_pixels(train)
    verifier.figures = {"auroc": 0.99, "interval": (0.97, 1.0), "patients": 40, "pairs": 80}
    sets = people(train), people(unseen, "o")
    leaked = reidentification(verifier, *sets, people((0.9 * train[:20]).clamp(-1, 1), "s"))
    assert leaked.verdict == "fail"
    assert leaked.figures["recognized"].value == 1
    assert leaked.more["closest"][0]["nearest"].startswith("p0")

    clean = people(bodies(40, 2), "s")
    assert reidentification(verifier, *sets, clean).verdict == "pass"
    verifier.figures["auroc"] = 0.8
    doubtful = reidentification(verifier, *sets, clean)
    assert doubtful.verdict == "not judged"
    assert "0.95 is wanted" in doubtful.says
    assert reidentification(verifier, *sets, people(train, "s")).verdict == "fail", "what it does find is found"
