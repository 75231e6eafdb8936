"""A backbone as a MONAI bundle, on disk whole or not at all: configs, card, pictures, license, weights."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones import hub
from ..io.atomic import refusal
from ..primitives import concepts
from ..types import Backbone, Concept, Contract, DiffAugError
from . import card

__all__ = ["Made", "checked_target", "write_bundle"]

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
MARK = "made_by"


@dataclass(frozen=True)
class Made:
    """What a bundle is written from.

    ``shown`` are images (n, C, *S) for the card by name, ``run`` the folder of the run's logs, ``origin`` the name of
    the backbone that training began with, ``license`` that of the data, ``ask`` the settings.
    """

    backbone: Backbone
    figures: Mapping[str, Any]
    shown: Mapping[str, Tensor]
    run: Path
    origin: str
    license: str
    ask: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    adapter: Concept | None = None


def checked_target(folder: Path) -> None:
    """Refuse, before any work, to write over what is not a bundle of ours.

    Raises:
        DiffAugError: the folder holds something else.
    """
    if folder.is_file():
        raise DiffAugError(f"{folder} is a file: give the bundle's folder, empty or new")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    path = folder / "configs" / "metadata.json"
    try:
        ours = json.loads(path.read_text(encoding="utf-8")).get(MARK) == "diffaug finetune"
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise DiffAugError(f"{folder} holds something that this command has not made: give an empty or a new folder")


def write_bundle(made: Made, folder: Path) -> Path:
    """Write ``configs/``, ``docs/``, ``LICENSE`` and ``models/``; an earlier bundle there is replaced in one step.

    ``hub.load(folder)`` and everything that takes a backbone's name read it, ``python -m monai.bundle run
    --config_file <folder>/configs/inference.json --bundle_root <folder>`` samples it.

    Raises:
        DiffAugError: the folder holds something else, or cannot be written.
    """
    checked_target(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            place = Path(scratch) / folder.name
            (place / "configs").mkdir(parents=True)
            (place / "docs").mkdir()
            for name, config in configs(made).items():
                text = json.dumps(config, indent=4) + "\n"
                (place / "configs" / f"{name}.json").write_text(text, encoding="utf-8")
            # Of half-precision files transformers makes half-precision networks and diffusers does not.
            pipeline = hasattr(made.backbone.network.module, "save_pretrained")
            hub.save(made.backbone, place / "models", torch.float32 if pipeline else torch.float16, ending=".pt")
            if made.adapter is not None:
                concepts.save(made.adapter, place / "adapter.safetensors")
            (place / "LICENSE").write_text(license_text(made), encoding="utf-8")
            (place / "docs" / "figures.json").write_text(json.dumps(made.figures, indent=2) + "\n", encoding="utf-8")
            card.write(made, place / "docs")
            if folder.exists():
                shutil.rmtree(folder)
            place.rename(folder)
    except OSError as error:
        raise refusal(folder, error) from None
    return folder


def license_text(made: Made) -> str:
    """What may be done with the weights: they follow everything that they were trained on."""
    contract = made.backbone.contract
    return (
        f"The weights in models/ follow the licenses of the images that they were trained on, all of them:\n\n"
        f"    {contract.license}\n\nData: {contract.data}.\n\n"
        f"The images of the fine-tuning are under: {made.license}.\n"
        "The configuration files are under the Apache License 2.0.\n"
        "This is a research tool and not to be used clinically.\n"
    )


# ------------------------------------------------------------------------------------------------------------- configs


def configs(made: Made) -> dict[str, dict[str, Any]]:
    """The bundle's configs by name."""
    contract = made.backbone.contract
    head = {"bundle_root": ".", "output_dir": "$@bundle_root + '/output'", "device": "$bundle.device()"}
    imports = ["$import monai_diffaug.bundle as bundle", "$import monai_diffaug.backbones.hub as hub"]
    tuning = [*imports, "$import monai_diffaug.finetune as finetuning"]
    told = f", label=[{contract.labels[0]!r}]" if contract.labels else ""
    again = _finetuning(made)
    return {
        "metadata": metadata(made),
        "inference": {
            "imports": [*imports, "$import monai_diffaug.expand.generate as generating"],
            **head,
            "prompts": list(contract.labels),
            "count": 4,
            "seed": 0,
            "steps": 20,
            "scale": 2.0,
            "backbone": "$hub.load(@bundle_root, device=@device)",
            "network_def": f"$bundle.Sampler(@backbone, steps=8{told})",
            "run": [
                "$generating.generate(@backbone, @output_dir, @prompts, count=@count, seed=@seed, "
                "parameters={'steps': @steps, 'scale': @scale})"
            ],
        },
        "evaluate": {
            "imports": tuning,
            **head,
            "dataset_dir": "data",
            "samples": made.ask.get("samples", 96),
            "backbone": "$hub.load(@bundle_root, device=@device)",
            "run": ["$finetuning.evaluate(@backbone, @dataset_dir, @output_dir, samples=@samples)"],
        },
        "train": {"imports": tuning, **head, "start": _portable(made.origin), **again},
        "finetune": {"imports": tuning, **head, "start": "$@bundle_root", **again},
    }


def _finetuning(made: Made) -> dict[str, Any]:
    """Settings of the run, and the line that runs it again."""
    ask = {k: v for k, v in made.ask.items() if v is not None}
    named = ", ".join(f"{k}=@{k}" for k in ask)
    run = f"$finetuning.finetune(@start, @dataset_dir, @output_dir, finetuning.Ask({named}), license=@license)"
    return {"dataset_dir": "data", "license": made.license, **ask, "run": [run]}


def _portable(origin: str) -> str:
    """The name of the backbone to begin with: a folder's path is worth nothing elsewhere."""
    return origin if origin in hub.shipped() or not Path(origin).is_dir() else Path(origin).resolve().name


def metadata(made: Made) -> dict[str, Any]:
    """What MONAI's model zoo asks for, and where the bundle comes from."""
    contract = made.backbone.contract
    what = f"{contract.modality}, {contract.spatial_dims}D"
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"fine-tuned from {_portable(made.origin)}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"monai-diffaug": _own_version(), "pytorch-ignite": _version("pytorch-ignite")},
        "supported_apps": {},
        "name": contract.name,
        "task": "Making synthetic images",
        "description": f"Latent diffusion model ({what}), fine-tuned ({made.figures.get('mode', 'full')}).",
        "authors": "",
        "copyright": contract.license,
        "data_source": contract.data,
        "data_type": "image",
        "intended_use": "This is a research tool and not to be used clinically",
        "label_classes": ", ".join(contract.labels),
        "eval_metrics": _metrics(made.figures),
        "references": [],
        MARK: "diffaug finetune",
        "network_data_format": _network_format(contract),
    }


def _metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    after = figures.get("new", {}).get("after")
    return {} if not after else {"KID on test patients": after["kid"]["score"], "held-out loss": after["held_out"]}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _own_version() -> str:
    return _version("monai-diffaug") or "0.1.0"


def _network_format(contract: Contract) -> dict[str, Any]:
    low, high = contract.value_range
    return {
        "inputs": {
            "image": {
                "type": "noise",
                "format": "latent",
                "num_channels": contract.latent_channels,
                "spatial_shape": list(contract.latent_size),
                "dtype": "float32",
                "value_range": [-5, 5],
                "is_patch_data": False,
                "channel_def": {str(i): "latent" for i in range(contract.latent_channels)},
            }
        },
        "outputs": {
            "pred": {
                "type": "image",
                "format": "magnitude",
                "modality": contract.modality,
                "num_channels": contract.channels,
                "spatial_shape": list(contract.size),
                "dtype": "float32",
                "value_range": [low, high],
                "is_patch_data": False,
                "channel_def": {str(i): "image" for i in range(contract.channels)},
            }
        },
    }
