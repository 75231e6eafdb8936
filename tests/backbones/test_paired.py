"""Networks told an image."""

import pytest
import torch

from monai_diffaug.backbones import hub
from monai_diffaug.backbones.paired import ImageConditioner
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError


def test_the_image_goes_in_at_latent_size_and_zeros_when_not_told():
    conditioner = ImageConditioner((4, 4), channels=2, factor=2)
    image = torch.randn(3, 2, 8, 12)
    told = conditioner(3, image=image).concat
    assert told.shape == (3, 2, 4, 6)
    torch.testing.assert_close(told[0, 0, 0, 0], image[0, 0, :2, :2].mean())
    assert torch.equal(conditioner(2).concat, torch.zeros(2, 2, 4, 4))
    assert conditioner(3, image=image[:1]).concat.shape[0] == 3
    for wrong in (image[:2], image[:, :1], image[0]):
        with pytest.raises(DiffAugError, match="image to start from"):
            conditioner(3, image=wrong)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_is_saved_and_loaded(dims, tmp_path):
    before = tiny("image", dims, 8 if dims == 3 else 16, autoencoder=True)
    after = hub.load(hub.save(before, tmp_path / "it", torch.float32))
    image = torch.randn(1, 1, *before.contract.size)
    x = torch.randn(1, 4, *before.contract.latent_size)
    assert "image_condition" in after.offers()
    outs = [b.output(x, 300.0, b.condition(1, image=image)) for b in (before, after)]
    assert torch.equal(outs[0], outs[1])
    assert not torch.allclose(outs[0], before.output(x, 300.0, before.condition(1)))
