"""A diffusers pipeline's folder as a checkpoint: read with or without a contract beside it, and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.diffusers_unet import DiffusersAutoencoder, DiffusersUNet
from monai_diffaug.backbones.monai_unet import IdentityAutoencoder
from monai_diffaug.backbones.parts import conditioner_from_config, contract_of, pretrained
from monai_diffaug.backbones.schedules import schedule_from_config
from monai_diffaug.backbones.text import ClassConditioner, NoConditioner, TextConditioner
from monai_diffaug.backbones.writing import cast, schedule_config, write_json
from monai_diffaug.types import Backbone, Conditioner, Contract, DiffAugError

__all__ = ["load_pipeline", "save_pipeline"]


def load_pipeline(folder: Path) -> Backbone:
    """The backbone in a pipeline's folder; without ``contract.json`` the contract is read off the configs."""
    index = files.read_json(folder / "model_index.json")
    part = "unet" if "unet" in index else "transformer"
    if part not in index or part == "transformer":
        raise DiffAugError(f"{folder / 'model_index.json'} names no unet: use a pipeline with a U-Net")
    module = pretrained(diffusers, index[part][1], folder / part)
    scheduler = schedule_from_config(
        files.read_json(folder / "scheduler" / "scheduler_config.json", "copy the scheduler's config there")
    )
    vae, scale = None, 1.0
    if index.get("vae", [None, None])[1] is not None:
        vae = pretrained(diffusers, index["vae"][1], folder / "vae")
        scale = _latent_scale(folder)
    given = (folder / "contract.json").is_file()
    contract = contract_of(folder) if given else _derived_contract(folder, module, vae, scale)
    if given and abs(contract.latent_scale - scale) > 1e-4 * abs(scale):
        raise DiffAugError(
            f"{folder / 'contract.json'} says latent_scale {contract.latent_scale:g} and vae/config.json says "
            f"scaling_factor {scale:g}: make them agree"
        )
    return Backbone(
        name=contract.name,
        autoencoder=DiffusersAutoencoder(vae, scale) if vae is not None else IdentityAutoencoder(),
        network=DiffusersUNet(module),
        conditioner=_diffusers_conditioner(folder, index, module, contract),
        schedule=scheduler,
        contract=contract,
    )


def _latent_scale(folder: Path) -> float:
    """From the autoencoder's own config or the contract; diffusers would fall back to 0.18215 in silence."""
    config = files.read_json(folder / "vae" / "config.json")
    if "scaling_factor" in config:
        return float(config["scaling_factor"])
    if (folder / "contract.json").is_file():
        return contract_of(folder).latent_scale
    raise DiffAugError(f"{folder / 'vae' / 'config.json'} lacks scaling_factor: write the latent scale there")


def _derived_contract(folder: Path, unet: Any, vae: Any, scale: float) -> Contract:
    """What a pipeline without a contract tells of itself."""
    side = unet.config.sample_size
    if side is None:
        raise DiffAugError(f"{folder / 'unet' / 'config.json'} lacks sample_size: write it there, or add contract.json")
    factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
    sides = (side, side) if isinstance(side, int) else tuple(side)
    return Contract(
        name=folder.resolve().name,
        modality="unknown",
        spatial_dims=len(sides),
        channels=int(unet.config.out_channels if vae is None else vae.config.in_channels),
        size=tuple(int(s) * factor for s in sides),
        latent_channels=int(unet.config.out_channels if vae is None else vae.config.latent_channels),
        latent_scale=scale,
        factor=factor,
        extra={"derived": "from the pipeline's configs"},
    )


def _diffusers_conditioner(folder: Path, index: Mapping[str, Any], unet: Any, contract: Contract) -> Conditioner:
    if (folder / "conditioner.json").is_file():
        return conditioner_from_config(files.read_json(folder / "conditioner.json"), contract, folder)
    if index.get("text_encoder", [None, None])[1] is not None:
        return conditioner_from_config({"kind": "text"}, contract, folder)
    classes = unet.config.get("num_class_embeds")
    if classes is not None:
        if not contract.labels:
            raise DiffAugError(f"{folder} is conditioned on {classes} classes: name them as labels in contract.json")
        return ClassConditioner(contract.labels)
    return NoConditioner()


def save_pipeline(backbone: Backbone, place: Path, precision: torch.dtype) -> None:
    """Write the U-Net, autoencoder and scheduler, and the index that names them."""
    index: dict[str, Any] = {"_class_name": "DiffusionPipeline", "_diffusers_version": diffusers.__version__}
    cast(backbone.network.module, precision).save_pretrained(place / "unet")
    index["unet"] = ["diffusers", type(backbone.network.module).__name__]
    if isinstance(backbone.autoencoder, DiffusersAutoencoder):
        vae = cast(backbone.autoencoder.module, precision)
        vae.register_to_config(scaling_factor=backbone.autoencoder.scale)
        vae.save_pretrained(place / "vae")
        index["vae"] = ["diffusers", type(backbone.autoencoder.module).__name__]
    if isinstance(backbone.conditioner, TextConditioner):
        index["text_encoder"] = ["transformers", type(backbone.conditioner.module).__name__]
        index["tokenizer"] = ["transformers", type(backbone.conditioner.tokenizer).__name__]
    if {"vae", "text_encoder"} <= set(index) and index["unet"][1] == "UNet2DConditionModel":
        # Stable Diffusion's own parts; diffusers wants its optional ones named, and none of them is there
        index |= {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
    config = schedule_config(backbone.schedule)
    kind = str(config.get("_class_name", "DDIMScheduler"))
    index["scheduler"] = ["diffusers", kind]
    (place / "scheduler").mkdir()
    write_json(place / "scheduler" / "scheduler_config.json", {"_class_name": kind, **config})
    write_json(place / "model_index.json", index)
