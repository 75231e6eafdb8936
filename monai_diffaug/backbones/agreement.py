"""Whether a checkpoint's contract, schedule and networks say the same, and a draft of a contract that is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_diffaug.backbones import bundles, targets
from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.diagnosis import Diagnosis
from monai_diffaug.backbones.schedules import schedule_from_config
from monai_diffaug.types import Contract

__all__ = ["LATENT_SCALE", "agree", "contract", "draft", "schedule"]

LATENT_SCALE = "1 / the standard deviation of the encoded training images; 1.0 if it was trained without"


def schedule(diagnosis: Diagnosis, where: Path, config: Mapping[str, Any] | None) -> None:
    """Read the noise table of a scheduler config; what it says goes into the facts."""
    if not config:
        return
    with diagnosis.noting(where):
        schedule = schedule_from_config(config)
        diagnosis.facts["schedule"] = {
            "steps": len(schedule.times),
            "flow": schedule.is_flow,
            "prediction": schedule.prediction,
            "log_snr": [round(schedule.at(t).log_snr, 3) for t in (schedule.times[0], schedule.times[-1])],
        }
        if "prediction_type" not in config and not schedule.is_flow:
            diagnosis.remark(where, "prediction_type is not written; epsilon is taken", '"prediction_type": "epsilon"')
        if schedule.alphas[-1] > 0.3:
            left = schedule.alphas[-1]
            diagnosis.remark(
                where, f"the last step still holds {left:.2f} of the image, so that samples keep its mean", ""
            )


def contract(diagnosis: Diagnosis, folder: Path, draft: Mapping[str, Any]) -> Contract | None:
    """The folder's contract, or ``None`` and a fault that offers ``draft``."""
    path = folder / "contract.json"
    if not path.is_file():
        diagnosis.fault(
            path, "it is missing", f"write there {json.dumps(draft)}" if draft else "copy it from the checkpoint"
        )
        return None
    found = None
    with diagnosis.noting(path):
        found = Contract.from_dict(files.read_json(path))
        diagnosis.facts["contract"] = json.loads(found.to_json())
        for key, why in (("license", "may others use it?"), ("data", "what was it trained on?")):
            if not getattr(found, key):
                diagnosis.remark(path, f"{key} is empty: {why}", f'"{key}": "..."')
    return found


def draft(folder: Path, configs: list[Any], parts: Mapping[str, Any], diagnosis: Diagnosis) -> dict[str, Any]:
    """A contract as far as a bundle tells one; what it does not tell is ``null`` for the reader to fill in."""
    net, auto = parts.get("network", {}), parts.get("autoencoder", {})
    scale, place = bundles.first_number(configs, "scale_factor", "scaling_factor", "latent_scale")
    stored = [w["scale_factor"] for w in diagnosis.facts.get("weights", []) if "scale_factor" in w]
    scale = stored[0] if scale is None and stored else scale
    if not auto:
        scale = 1.0
    diagnosis.facts["latent_scale"] = scale
    if scale is None and not (folder / "contract.json").is_file():
        diagnosis.fault(
            folder / "configs",
            "the latent scale stands nowhere",
            f'"latent_scale": N  ({LATENT_SCALE}), in contract.json',
        )
    elif place:
        diagnosis.facts["latent_scale_from"] = place
    factor = 2 ** (len(auto.get("channels", auto.get("num_channels", [0]))) - 1) if auto else 1
    low, high, source = targets.value_range(configs)
    if source:
        diagnosis.facts["value_range"], diagnosis.facts["value_range_from"] = [low, high], source
    sides = targets.latent_size(configs, int(net.get("spatial_dims", 2) or 2))
    return {
        "name": folder.resolve().name,
        "modality": None,
        "spatial_dims": net.get("spatial_dims"),
        "channels": auto.get("in_channels", net.get("out_channels")),
        "size": [s * factor for s in sides] if sides else None,
        "latent_channels": auto.get("latent_channels", net.get("out_channels")),
        "latent_scale": scale,
        "factor": factor,
        "value_range": [low, high],
    }


def agree(diagnosis: Diagnosis, folder: Path, contract: Contract | None) -> None:
    """Whether the contract says what the networks are."""
    if contract is None:
        return
    net, auto = diagnosis.facts.get("network", {}), diagnosis.facts.get("autoencoder", {})
    widths = auto.get("channels", auto.get("num_channels"))
    expected = {
        "spatial_dims": net.get("spatial_dims"),
        "latent_channels": auto.get("latent_channels", net.get("out_channels")),
        "channels": auto.get("in_channels", net.get("out_channels")),
        "factor": 2 ** (len(widths) - 1) if widths and "AutoencoderKL" in str(auto.get("_target_")) else None,
    }
    for key, value in expected.items():
        if value is not None and getattr(contract, key) != value:
            diagnosis.fault(
                folder / "contract.json",
                f"{key} is {getattr(contract, key)}, the networks say {value}",
                f'"{key}": {value}',
            )
    if len(contract.size) != contract.spatial_dims:
        diagnosis.fault(
            folder / "contract.json", f"size has {len(contract.size)} axes in {contract.spatial_dims}D", '"size": [...]'
        )
    if any(s % contract.factor for s in contract.size):
        diagnosis.fault(
            folder / "contract.json",
            f"size {list(contract.size)} is no multiple of factor",
            f"multiples of {contract.factor}",
        )
    classes = net.get("num_class_embeds")
    if classes and contract.labels and classes != len(contract.labels) + 1:
        diagnosis.fault(
            folder / "contract.json",
            f"{len(contract.labels)} labels, but the network has {classes} classes (one of them for 'not told')",
            f'"labels": [{classes - 1} names]',
        )
    if not math.isfinite(contract.latent_scale) or contract.latent_scale <= 0:
        diagnosis.fault(
            folder / "contract.json", f"latent_scale is {contract.latent_scale}", f'"latent_scale": N  ({LATENT_SCALE})'
        )
