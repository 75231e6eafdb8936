"""The usual limits of the filters, on the shipped backbone and scans of patients that it has not seen."""

import pytest
import torch

from monai_diffaug.backbones import hub
from monai_diffaug.expand.making import open_source
from monai_diffaug.io import datalist
from monai_diffaug.primitives.filters import LIMITS, Sieve


@pytest.fixture(scope="module")
def scene():
    backbone = hub.load("brain_mri")
    items = datalist.read("brain_mri")
    real = torch.stack([open_source(i, backbone.contract).fitted.tensor for i in items])
    return backbone, real, [i.kind for i in items]


def share(verdicts, name):
    return sum(name not in v.failed for v in verdicts) / len(verdicts)


def test_copies_are_known_and_other_patients_are_new(scene):
    """What an autoencoder gives back is a copy; the scan of another patient is none."""
    backbone, real, kinds = scene
    with torch.no_grad():
        copies = backbone.decode(backbone.encode(real))
    sieve = Sieve(backbone, real[:8], {"novelty": LIMITS["novelty"]})
    assert share(sieve(copies[:8], kinds[:8]), "novelty") == 0
    assert share(sieve(real[:8] + 0.02 * torch.randn_like(real[:8]), kinds[:8]), "novelty") == 0
    assert share(sieve(real[8:], kinds[8:]), "novelty") == 1


def test_what_does_not_look_real_is_known(scene):
    backbone, real, kinds = scene
    sieve = Sieve(backbone, real, {"quality": LIMITS["quality"]})
    assert share(sieve(real, kinds), "quality") == 1
    assert share(sieve(real.flip(-1), kinds), "quality") == 1
    noise = torch.rand(real.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert share(sieve(noise, kinds), "quality") == 0


def test_labels_are_agreed_on(scene):
    backbone, real, kinds = scene
    sieve = Sieve(backbone, None, {"label": LIMITS["label"]})
    right = share(sieve(real, kinds), "label")
    wrong = share(sieve(real, [{"healthy": "tumor", "tumor": "healthy"}[k] for k in kinds]), "label")
    assert right >= 0.85
    assert wrong <= 0.15
