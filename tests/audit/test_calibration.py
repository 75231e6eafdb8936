"""Would copies have been found: planted ones; false alarms without a patient's own images; nearness by chance."""

import numpy as np
import pytest
import torch

from monai_diffaug.audit.alignment import Candidates, fitted
from monai_diffaug.audit.calibration import CHANGES, c_t, changed, false_alarms, recall
from monai_diffaug.audit.copies import CopyFinder
from monai_diffaug.audit.copying import section_of

from .sets import bodies, people


@pytest.fixture(scope="module")
def finder():
    return CopyFinder(bodies(30, 0), bodies(60, 1))


def test_planted_copies_are_found_under_every_change(finder):
    found = recall(finder, most=10)
    assert set(found) == set(CHANGES)
    assert min(found.values()) >= 0.9, found


def test_changes_change(finder):
    x = bodies(4, 0)
    for name in set(CHANGES) - {"exact"}:
        y = changed(x, name)
        assert y.shape == x.shape
        assert float((y - x).abs().mean()) > 0.01, name
    assert torch.equal(changed(x, "turned", 3), changed(x, "turned", 3))


def test_a_line_drawn_on_the_training_images_themselves_would_find_nothing():
    """The mistake that the held-out patients are there against: what lies in the set is as near as can be."""
    train = bodies(60, 0)
    blind = recall(CopyFinder(train, train), most=8)
    assert blind["shifted"] < 0.5


def test_false_alarms_are_counted_without_the_patients_own_images(finder):
    """Where each unseen patient has four images alike, calling one in fifty a copy calls his other three so, too."""
    alike = bodies(60, 1)[:15].repeat_interleave(4, 0) + 0.01 * torch.randn(60, 1, 32, 32)
    strict = CopyFinder(bodies(30, 0), alike)
    before = strict.line
    alarms, n = false_alarms(strict, people(alike, each=4).patients)
    assert n == 60
    assert alarms >= 3
    assert strict.line == before, "the finder is as it was"


def test_nearness_is_uniform_for_real_against_real_and_small_for_copies():
    """Patients of four images alike: without their variance, one p in four would lie below 0.05."""
    g, low = np.random.default_rng(0), []
    whose = [str(i // 4) for i in range(80)]
    for _ in range(200):
        made = torch.from_numpy(g.normal(size=60))
        usual = torch.from_numpy(g.normal(size=20).repeat(4) + 0.1 * g.normal(size=80))
        low.append(c_t(made, usual, whose)["p"])
    assert 0.01 <= np.mean(np.array(low) < 0.05) <= 0.12
    assert 0.3 < np.median(low) < 0.7
    copied = c_t(torch.from_numpy(g.normal(size=60) + 1.5), torch.from_numpy(g.normal(size=80)), whose)
    assert copied["z"] < -4
    assert copied["p"] < 1e-4
    assert copied["nearer"] > 0.8


def test_turned_and_scaled_images_are_laid_over_their_own(finder):
    x = bodies(6, 3)
    for change in ("turned", "cropped", "shifted"):
        y = changed(x, change, 1)
        candidates = Candidates(x)
        for i in range(6):
            _, where, start = candidates(y[i], 6)
            own = (where == i).nonzero().flatten()
            _, found = fitted(y[i][None, None], x[i][None, None], start[own][None], 1)
            apart = float(torch.corrcoef(torch.stack([y[i].flatten(), x[i].flatten()]))[0, 1])
            assert found["pixels"] > max(0.97, apart - 1e-3), change


def test_verdicts():
    from monai_diffaug.audit.copies import Found

    def of(copies, certain=0, planted=1.0, n=100):
        found = [Found(str(i), "pixels", {"pixels": 0.9}, 0.01, i < copies, i < certain) for i in range(n)]
        return section_of(found, 50, 0.02, (2, 100), dict.fromkeys(CHANGES, planted), {})

    assert of(2).verdict == "pass"
    assert of(20).verdict == "fail"
    assert of(1, certain=1).verdict == "fail", "one that cannot be mistaken is enough"
    assert of(2, planted=0.5).verdict == "not judged", "a search that is blind vouches for nothing"
    assert of(20).figures["repeated_training_images"].value == 0.4
