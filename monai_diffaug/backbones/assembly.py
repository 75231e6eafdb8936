"""From a folder to a backbone: which layout it has, and the layouts of MONAI's networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.fingerprint import check_fingerprint
from monai_diffaug.backbones.monai_unet import IdentityAutoencoder, MonaiAutoencoder, MonaiUNet, load_weights
from monai_diffaug.backbones.parts import (
    conditioner_from_config,
    contract_of,
    fill,
    guide_of,
    judge_of,
    scorer_of,
    verifier_of,
)
from monai_diffaug.backbones.schedules import schedule_from_config
from monai_diffaug.types import Backbone, DiffAugError

__all__ = ["assemble"]


def assemble(folder: Path) -> Backbone:
    """The backbone in a folder of any of the layouts; its digest is not filled in yet."""
    if (folder / "model_index.json").is_file():
        from monai_diffaug.backbones.diffusers_pipeline import load_pipeline  # diffusers takes seconds to import

        backbone = load_pipeline(folder)
    elif (folder / "network.json").is_file():
        backbone = _load_monai(folder)
    elif (folder / "configs").is_dir():
        backbone = _load_bundle(folder)
    else:
        raise DiffAugError(
            f"{folder} is no checkpoint: it needs model_index.json (diffusers), network.json (MONAI) or configs/ "
            "(bundle)"
        )
    if (folder / "scorer").is_dir():
        backbone = replace(backbone, scorer=scorer_of(folder, backbone.contract))
    if (folder / "judge").is_dir():
        backbone = replace(backbone, judge=judge_of(folder / "judge"))
    if (folder / "guide").is_dir():
        backbone = replace(backbone, guide=guide_of(folder / "guide"))
    if (folder / "verifier").is_dir():
        backbone = replace(backbone, verifier=verifier_of(folder / "verifier"))
    return backbone


def _load_monai(folder: Path) -> Backbone:
    contract = contract_of(folder)
    config = files.read_json(folder / "network.json")
    module = files.instantiate(config, str(folder / "network.json"))
    old = fill(module, files.weights_of(folder, "network"))
    autoencoder: IdentityAutoencoder | MonaiAutoencoder = IdentityAutoencoder()
    if (folder / "autoencoder.json").is_file():
        recipe = files.read_json(folder / "autoencoder.json")
        inner = files.instantiate(recipe, str(folder / "autoencoder.json"))
        old = fill(inner, files.weights_of(folder, "autoencoder")) or old
        autoencoder = MonaiAutoencoder(inner, contract.latent_scale, recipe)
    elif contract.factor != 1:
        raise DiffAugError(f"{folder / 'autoencoder.json'} is missing: add it, or set factor to 1 for a pixel model")
    conditioner = conditioner_from_config(files.read_json(folder / "conditioner.json"), contract, folder)
    backbone = Backbone(
        name=contract.name,
        autoencoder=autoencoder,
        network=MonaiUNet(module.eval(), config),
        conditioner=conditioner,
        schedule=schedule_from_config(files.read_json(folder / "scheduler.json")),
        contract=contract,
    )
    if old:
        check_fingerprint(folder, backbone)
    return backbone


def _load_bundle(folder: Path) -> Backbone:
    """A MONAI bundle with a ``contract.json``: networks and scheduler from its configs, weights from ``models/``."""
    from monai_diffaug.backbones.bundles import bundle_parts

    contract = contract_of(folder)
    parts = bundle_parts(folder)
    if "network" not in parts or "scheduler" not in parts:
        raise DiffAugError(
            f"{folder / 'configs'} defines no diffusion network with a scheduler: add them to inference.json"
        )
    conditioner_config = dict(contract.extra.get("conditioner", {"kind": "none"}))
    network = files.instantiate(parts["network"], str(folder / "configs"))
    old = _fill_from_any(network, folder)
    autoencoder: IdentityAutoencoder | MonaiAutoencoder = IdentityAutoencoder()
    if "autoencoder" in parts:
        inner = files.instantiate(parts["autoencoder"], str(folder / "configs"))
        old = _fill_from_any(inner, folder) or old
        autoencoder = MonaiAutoencoder(inner, contract.latent_scale, parts["autoencoder"])
    backbone = Backbone(
        name=contract.name,
        autoencoder=autoencoder,
        network=MonaiUNet(network.eval(), parts["network"]),
        conditioner=conditioner_from_config(conditioner_config, contract, folder),
        schedule=schedule_from_config(parts["scheduler"]),
        contract=contract,
    )
    if old:
        check_fingerprint(folder, backbone)
    return backbone


def _fill_from_any(module: nn.Module, folder: Path) -> bool:
    """Fill a bundle's network from the weight file that fits it."""
    reasons = []
    for path in files.weight_files(folder).values():
        try:
            return load_weights(module, files.read_weights(path))
        except DiffAugError as e:
            reasons.append(f"{path.name}: {e}")
    if not reasons:
        raise DiffAugError(f"{folder / 'models'} holds no weights: download the bundle again")
    raise DiffAugError(f"no weight file in {folder} fits {type(module).__name__}: {min(reasons, key=len)}")
