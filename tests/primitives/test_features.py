"""Feature maps: seen as they are, replaced as told, nothing left behind."""

import pytest
import torch

from monai_diffaug.backbones.diffusers_unet import DiffusersUNet
from monai_diffaug.primitives.features import features
from monai_diffaug.testing import ideal_backbone, tiny
from monai_diffaug.testing.intact import imprint
from monai_diffaug.types import Condition, DiffAugError
from tests.networks import bare, diffusers_unet


def monai_case(dims):
    backbone = tiny("text", dims, 8)
    return backbone, torch.randn(2, 1, *[8] * dims), backbone.condition(2, prompt="a head ct")


def diffusers_case(dims):
    backbone = bare(DiffusersUNet(diffusers_unet(dims)), size=(8,) * dims)
    return backbone, torch.randn(2, 4, *[8] * dims), Condition(tokens=torch.randn(2, 5, 16))


@pytest.fixture(params=["monai 2", "monai 3", "diffusers 2"])
def case(request):
    library, dims = request.param.split()
    return (monai_case if library == "monai" else diffusers_case)(int(dims))


def test_every_site_is_seen_and_bottleneck_is_the_smallest(case):
    backbone, x, condition = case
    sites, seen = backbone.network.feature_sites(), {}
    with features(backbone, lambda site, h, level: seen.update({site: h}), sites):
        backbone.output(x, 300.0, condition)
    assert set(seen) == set(sites)
    assert all(h.shape[0] == 2 for h in seen.values())
    assert seen["bottleneck"].shape[2:].numel() == min(h.shape[2:].numel() for h in seen.values())


def test_what_is_put_in_acts_and_the_same_map_does_not(case):
    backbone, x, condition = case
    plain = backbone.output(x, 300.0, condition)
    for site in backbone.network.feature_sites():
        with features(backbone, lambda _, h, level: h.clone(), [site]):
            assert torch.equal(backbone.output(x, 300.0, condition), plain)
        with features(backbone, lambda _, h, level: h.flip(-1), [site]):
            assert not torch.allclose(backbone.output(x, 300.0, condition), plain), f"{site} does not act"


def test_a_shift_of_the_bottleneck_is_linear_where_it_enters():
    """Two nested rules see each other's work: the outer one gets what the inner one returned."""
    backbone, x, condition = monai_case(2)
    seen = []
    with features(backbone, lambda _, h, level: seen.append(h)), features(backbone, lambda _, h, level: h + 3.0):
        backbone.output(x, 300.0, condition)
    with features(backbone, lambda _, h, level: seen.append(h)):
        backbone.output(x, 300.0, condition)
    torch.testing.assert_close(seen[0], seen[1] + 3.0)


def test_nothing_is_left_behind_also_after_an_exception(case):
    backbone, x, condition = case
    before = imprint(backbone)

    def rule(site, h, level):
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"), features(backbone, rule, backbone.network.feature_sites()):
        backbone.output(x, 300.0, condition)
    assert imprint(backbone) == before


def test_unknown_sites_are_refused():
    with pytest.raises(DiffAugError, match="use 'bottleneck'"), features(tiny("none"), lambda *_: None, ["bottlenek"]):
        pass
    with pytest.raises(DiffAugError, match="no feature site"), features(ideal_backbone(), lambda *_: None):
        pass
