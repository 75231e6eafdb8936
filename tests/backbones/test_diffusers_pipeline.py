"""Pipelines of diffusers in their on-disk format: ours read by diffusers, theirs read by us."""

import json
from pathlib import Path

import pytest
import torch

from monai_diffaug.backbones import hub
from monai_diffaug.backbones.diffusers_unet import DiffusersUNet
from monai_diffaug.types import Condition, DiffAugError
from tests.networks import diffusers_backbone, diffusers_unet, diffusers_vae


def rewrite(path, **changes):
    data = json.loads(Path(path).read_text())
    data.update(changes)
    Path(path).write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


@pytest.fixture
def saved(tmp_path):
    return hub.save(diffusers_backbone(), tmp_path / "pipeline", torch.float32)


def output(backbone):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return backbone.output(x, 400.0, backbone.condition(2, prompt="a head ct"))


def test_round_trip(saved):
    before, after = diffusers_backbone(), hub.load(saved)
    torch.testing.assert_close(output(after), output(before), atol=1e-6, rtol=0)
    image = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(after.encode(image), before.encode(image), atol=1e-6, rtol=0)
    assert after.contract == before.contract
    assert after.schedule.alphas == before.schedule.alphas
    assert after.offers() == before.offers()


def test_diffusers_reads_what_was_written(saved):
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(saved / "unet").eval()
    x, tokens = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    t = torch.tensor([5.0, 900.0])
    expected = unet(x, t, encoder_hidden_states=tokens).sample
    torch.testing.assert_close(hub.load(saved).network(x, t, Condition(tokens=tokens)), expected, atol=1e-5, rtol=1e-4)
    assert AutoencoderKL.from_pretrained(saved / "vae").config.scaling_factor == 0.7
    assert DDIMScheduler.from_pretrained(saved / "scheduler").config.prediction_type == "epsilon"


def test_a_pipeline_without_contract_tells_of_itself(tmp_path):
    """What diffusers itself writes: unconditional pixel model and latent model without text."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    )
    DDIMPipeline(unet, DDIMScheduler(beta_schedule="linear", num_train_timesteps=500)).save_pretrained(tmp_path)
    backbone = hub.load(tmp_path)
    contract = backbone.contract
    assert (contract.size, contract.channels, contract.factor) == ((8, 8), 1, 1)
    assert len(backbone.schedule.times) == 500
    x = torch.randn(1, 1, 8, 8)
    expected = unet.eval()(x, torch.tensor([300.0])).sample
    torch.testing.assert_close(backbone.output(x, 300.0, backbone.condition(1)), expected, atol=1e-5, rtol=1e-4)


def test_a_missing_scale_is_refused_and_never_guessed(saved):
    (saved / "contract.json").unlink()
    rewrite(saved / "vae" / "config.json", scaling_factor=None)
    with pytest.raises(DiffAugError, match="lacks scaling_factor: write the latent scale there"):
        hub.load(saved)


def test_scales_that_disagree_are_refused(saved):
    rewrite(saved / "vae" / "config.json", scaling_factor=0.18215)
    with pytest.raises(DiffAugError, match=r"latent_scale 0.7 and vae/config.json says scaling_factor 0.18215"):
        hub.load(saved)


@pytest.mark.parametrize(
    ("folder", "says"),
    [("unet", "unet is missing"), ("scheduler", "copy the scheduler's config"), ("vae", "vae is missing")],
)
def test_a_missing_component_is_refused(saved, folder, says):
    import shutil

    shutil.rmtree(saved / folder)
    (saved / "digests.json").unlink()
    with pytest.raises(DiffAugError, match=says):
        hub.load(saved)


def test_what_is_no_unet_pipeline_is_refused(saved):
    rewrite(saved / "model_index.json", unet=None, transformer=["diffusers", "DiTTransformer2DModel"])
    with pytest.raises(DiffAugError, match="names no unet"):
        hub.load(saved)


def test_an_unknown_class_is_refused(saved):
    rewrite(saved / "model_index.json", unet=["diffusers", "UNet9DModel"])
    with pytest.raises(DiffAugError, match=r"has no UNet9DModel; install a later version"):
        hub.load(saved)


def test_the_vaes_own_factor_is_the_contracts():
    assert diffusers_vae().encode(torch.zeros(1, 1, 16, 16)).latent_dist.mean.shape == (1, 4, 8, 8)
    assert set(DiffusersUNet(diffusers_unet()).feature_sites()) == {"down.0", "down.1", "bottleneck", "up.0", "up.1"}
