"""Small networks of the other libraries, for tests that hold every adapter to the same."""

import torch
from torch import nn

from monai_diffaug.backbones.diffusers_unet import DiffusersAutoencoder, DiffusersUNet
from monai_diffaug.backbones.schedules import BRAIN_LDM, schedule_from_config
from monai_diffaug.backbones.text import NoConditioner
from monai_diffaug.testing import tiny
from monai_diffaug.types import Backbone, Contract


def stirred(module: nn.Module) -> nn.Module:
    """No parameter at zero, so that every layer shows in the output."""
    with torch.no_grad():
        for p in module.parameters():
            if not bool(p.any()):
                p.normal_(0, 0.1)
    return module.eval().requires_grad_(False)


def diffusers_unet(dims: int = 2, width: int = 16) -> nn.Module:
    """With cross-attention on tokens of ``width``; always the same weights."""
    torch.manual_seed(5)
    from diffusers import UNet2DConditionModel, UNet3DConditionModel

    if dims == 3:
        return stirred(
            UNet3DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
                up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
                block_out_channels=(8, 16),
                layers_per_block=1,
                cross_attention_dim=width,
                attention_head_dim=8,
                norm_num_groups=4,
            )
        )
    return stirred(
        UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=width,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    )


def diffusers_vae() -> nn.Module:
    """Factor 2, four latent channels; always the same weights."""
    torch.manual_seed(5)
    from diffusers import AutoencoderKL

    return stirred(
        AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.7,
        )
    )


def diffusers_backbone(vae: bool = True) -> Backbone:
    """A pipeline's parts, with the tiny backbone's text encoder."""
    words = tiny("text").conditioner
    contract = Contract(
        name="pipeline",
        modality="any",
        spatial_dims=2,
        channels=1 if vae else 4,
        size=(16, 16) if vae else (8, 8),
        latent_channels=4,
        latent_scale=0.7 if vae else 1.0,
        factor=2 if vae else 1,
        vocabulary=words.vocabulary,
    )
    from monai_diffaug.backbones.monai_unet import IdentityAutoencoder

    return Backbone(
        name="pipeline",
        autoencoder=DiffusersAutoencoder(diffusers_vae()) if vae else IdentityAutoencoder(),
        network=DiffusersUNet(diffusers_unet()),
        conditioner=words,
        schedule=schedule_from_config({**BRAIN_LDM, "prediction_type": "epsilon", "_class_name": "DDIMScheduler"}),
        contract=contract,
    )


def bare(network, channels: int = 4, size: tuple[int, ...] = (8, 8)) -> Backbone:
    """A network alone as a pixel backbone; conditions are made by the test."""
    contract = Contract("bare", "any", len(size), channels, size, channels, 1.0, 1)
    from monai_diffaug.backbones.monai_unet import IdentityAutoencoder

    schedule = schedule_from_config(BRAIN_LDM)
    return Backbone("bare", IdentityAutoencoder(), network, NoConditioner(), schedule, contract)
