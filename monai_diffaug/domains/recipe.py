"""How a backbone is trained from images and what is known of them: autoencoder, latents, network, one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.judge import Judge
from ..backbones.monai_unet import MonaiAutoencoder, MonaiUNet
from ..backbones.schedules import BRAIN_LDM, schedule_from_config
from ..backbones.weights import instantiate
from ..primitives import training
from ..primitives.training import Settings
from ..types import Backbone, Condition, Conditioner, Contract

__all__ = ["Bench", "Examples", "Recipe", "train_autoencoder", "train_backbone", "train_judge", "train_network"]

Conditions = Callable[[Tensor, torch.Generator], Condition]


@dataclass(frozen=True)
class Examples:
    """Training images (N, C, *S) in the value range, and others (M, C, *S) of patients that training never sees."""

    images: Tensor
    held_out: Tensor
    conditions: Conditions
    held_out_conditions: Conditions
    with_modules: Mapping[str, nn.Module]


@dataclass(frozen=True)
class Bench:
    """Real images to measure against, and what to tell the backbone so that it makes the like.

    ``told`` holds, for each thing that the conditioner takes, one entry an image; ``expected`` is what the judge should
    then say, and ``test_expected`` what it should say of the real images.
    """

    train: Tensor
    test: Tensor
    told: Mapping[str, Sequence[Any] | Tensor]
    expected: Sequence[str]
    test_expected: Sequence[str]
    notes: Mapping[str, str] = field(default_factory=dict)
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class Recipe:
    """Networks and settings of one backbone. ``crop`` is the window that the autoencoder is trained on."""

    contract: Contract
    network: Mapping[str, Any]
    network_settings: Settings
    autoencoder_settings: Settings
    autoencoder: Mapping[str, Any]
    crop: int | None = None
    prediction: str = "v_prediction"

    @property
    def scheduler(self) -> dict[str, Any]:
        """The noise schedule's config."""
        return {**BRAIN_LDM, "prediction_type": self.prediction}


def autoencoder_config(contract: Contract, channels: tuple[int, ...]) -> dict[str, Any]:
    """A convolutional ``AutoencoderKL`` without attention, so that it decodes in tiles and trains on windows."""
    return {
        "_target_": "monai.networks.nets.AutoencoderKL",
        "spatial_dims": contract.spatial_dims,
        "in_channels": contract.channels,
        "out_channels": contract.channels,
        "channels": list(channels),
        "num_res_blocks": [1] * len(channels),
        "attention_levels": [False] * len(channels),
        "latent_channels": contract.latent_channels,
        "norm_num_groups": 8,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    }


def _discriminator(contract: Contract) -> nn.Module:
    return instantiate(
        {
            "_target_": "monai.networks.nets.PatchDiscriminator",
            "spatial_dims": contract.spatial_dims,
            "in_channels": contract.channels,
            "channels": 32,
            "num_layers_d": 2,
            "norm": ("GROUP", {"num_groups": 8}),
        }
    )


def train_autoencoder(recipe: Recipe, examples: Examples, folder: Path) -> MonaiAutoencoder:
    """The first stage; its latents have mean 0 and spread 1 in every channel."""
    torch.manual_seed(recipe.autoencoder_settings.seed)
    module = instantiate(recipe.autoencoder)
    training.train_autoencoder(
        module.to(memory_format=torch.channels_last) if recipe.contract.spatial_dims == 2 else module,
        _discriminator(recipe.contract),
        examples.images,
        examples.held_out,
        recipe.autoencoder_settings,
        folder,
        crop=recipe.crop,
        span=recipe.contract.value_range[1] - recipe.contract.value_range[0],
    )
    autoencoder = MonaiAutoencoder(module, recipe.contract.latent_scale, dict(recipe.autoencoder))
    autoencoder.standardize(examples.images[:: max(1, len(examples.images) // 512)])
    return autoencoder


def latents_of(autoencoder: MonaiAutoencoder, images: Tensor, batch: int = 32) -> Tensor:
    """Posterior means (N, c, *S) of all images."""
    with torch.no_grad():
        return torch.cat([autoencoder.encode(x) for x in images.split(batch)])


def train_backbone(
    recipe: Recipe,
    conditioner: Conditioner,
    examples: Examples,
    folder: Path,
    judge: Judge | None = None,
    scorer: Any = None,
) -> Backbone:
    """Train both stages, or go on with them, and return the backbone. ``hub.save`` writes it."""
    autoencoder = train_autoencoder(recipe, examples, folder)
    return train_network(recipe, autoencoder, conditioner, examples, folder, judge, scorer)


def train_network(
    recipe: Recipe,
    autoencoder: MonaiAutoencoder,
    conditioner: Conditioner,
    examples: Examples,
    folder: Path,
    judge: Judge | None = None,
    scorer: Any = None,
) -> Backbone:
    """The second stage, on the latents of ``examples``; returns the backbone."""
    schedule = schedule_from_config(recipe.scheduler)
    torch.manual_seed(recipe.network_settings.seed)
    network = MonaiUNet(instantiate(recipe.network), dict(recipe.network))
    if recipe.contract.spatial_dims == 2:
        network.module.to(memory_format=torch.channels_last)
    training.train_network(
        network,
        schedule,
        latents_of(autoencoder, examples.images),
        examples.conditions,
        recipe.network_settings,
        folder,
        with_modules=examples.with_modules,
        held_out=latents_of(autoencoder, examples.held_out),
        held_out_conditions=examples.held_out_conditions,
    )
    for module in (network.module, *examples.with_modules.values()):
        module.eval()
    return Backbone(
        recipe.contract.name,
        autoencoder,
        network,
        conditioner,
        schedule,
        recipe.contract,
        scorer=scorer,
        judge=judge,
    )


def judge_config(contract: Contract, classes: int) -> dict[str, Any]:
    """A small residual classifier."""
    return {
        "_target_": "monai.networks.nets.ResNet",
        "block": "basic",
        "layers": [1, 1, 1, 1],
        "block_inplanes": [16, 32, 64, 96],
        "spatial_dims": contract.spatial_dims,
        "n_input_channels": contract.channels,
        "conv1_t_size": 5,
        "conv1_t_stride": 2,
        "no_max_pool": True,
        "num_classes": classes,
    }


def train_judge(
    contract: Contract,
    images: Tensor,
    labels: Tensor,
    names: tuple[str, ...],
    settings: Settings,
    folder: Path,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Judge:
    """A classifier of real images."""
    config = judge_config(contract, len(names))
    torch.manual_seed(settings.seed)
    module = instantiate(config)
    training.train_classifier(module, images, labels, settings, folder, augment=augment)
    return Judge(module, names, "fc", config)
