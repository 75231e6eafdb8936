"""The backbones that come with the package: whole, small, told of, and exact on real images that they never saw."""

import json

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.backbones import hub, weights
from monai_diffaug.io import datalist, images
from monai_diffaug.primitives import plans
from monai_diffaug.primitives.fitting import fit
from monai_diffaug.primitives.inversion import invert
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.testing import digest_of
from monai_diffaug.types import NoiseSource

SHIPPED = hub.shipped()


def real(name, most=2):
    contract = hub.load(name).contract
    items = [i for i in datalist.read(name) if str(i.kind) in contract.labels][:most]
    found = torch.stack([fit(images.read(i.image, dims=2).image, contract).tensor for i in items])
    return found, [str(i.kind) for i in items]


def test_something_is_shipped():
    assert "brain_mri" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_whole_and_small(name):
    folder = hub.WEIGHTS / name
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 15e6
    listed = json.loads((folder / "digests.json").read_text())
    assert set(listed) == set(weights.weight_files(folder))
    contract = hub.load(name).contract
    assert contract.name == name
    assert contract.license
    assert contract.data
    assert contract.labels
    assert (folder / "README.md").is_file()


@pytest.mark.parametrize("name", SHIPPED)
def test_it_gives_the_output_that_it_was_sealed_with(name):
    said = json.loads((hub.WEIGHTS / name / "fingerprint.json").read_text())["output"]
    assert hub.fingerprint(hub.load(name)) == pytest.approx(said, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", SHIPPED)
def test_latents_have_unit_spread_and_images_come_back(name):
    backbone, (image, _) = hub.load(name), real(name, 8)
    latent = backbone.encode(image)
    assert 0.5 < float(latent.std()) < 2.0
    miss = (backbone.decode(latent) - image).pow(2).flatten(1).mean(1)
    assert float((10 * torch.log10(4.0 / miss)).mean()) > 25.0  # dB, for intensities from -1 to 1


@pytest.mark.parametrize("name", SHIPPED)
def test_inversion_is_a_twentieth_of_plain_inversion(name):
    """The bar of the issue at 20 steps, on two real images of test patients."""
    backbone, (image, kind) = hub.load(name), real(name)
    z = backbone.encode(image)
    denoise = backbone.denoiser(backbone.condition(2, label=kind))
    plan = plans.ddim(backbone.schedule, 20)
    errors = []
    for iterations in (0, 12):
        found = invert(denoise, z, plan, iterations=iterations)
        errors.append(float((sample(denoise, found.latent, found.plan) - z).double().pow(2).mean().sqrt()))
    assert errors[1] <= errors[0] / 20, errors


@pytest.mark.parametrize("name", SHIPPED)
def test_an_edit_repeats_and_leaves_the_backbone_as_it_was(name):
    backbone, (image, kind) = hub.load(name), real(name)
    before = digest_of(backbone)
    both = [
        registry.call("sdedit", backbone, image, prompt=kind, steps=4, generator=NoiseSource([1, 2])).image
        for _ in range(2)
    ]
    assert torch.equal(*both)
    assert digest_of(backbone) == before
    alone = registry.call("sdedit", backbone, image[1:], prompt=kind[1], steps=4, generator=NoiseSource([2])).image
    torch.testing.assert_close(alone, both[0][1:], atol=1e-3, rtol=0)
