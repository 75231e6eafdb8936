"""What is wrong with a checkpoint, a MONAI bundle or a weight file, and the line that mends it.

A folder is taken apart as far as it can be, so that every fault is told and not only the first; one that shows none is
loaded and run once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffaug.backbones import agreement, bundles, hub, layouts, targets
from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.diagnosis import Diagnosis, Finding
from monai_diffaug.backbones.fingerprint import check_fingerprint
from monai_diffaug.backbones.monai_unet import modern_keys
from monai_diffaug.types import DiffAugError

__all__ = ["Diagnosis", "Finding", "examine"]


def examine(path: str | Path) -> Diagnosis:
    """Take a bundle, a checkpoint folder or a weight file apart.

    Args:
        path: a shipped name, a folder, or a file.

    Raises:
        DiffAugError: there is nothing there.
    """
    place = Path(path).expanduser()
    if place.is_file():
        diagnosis = Diagnosis(str(place), "weights")
        _weight_file(diagnosis, place, place.name)
        return diagnosis
    folder = hub.locate(path)
    for kind, mark in (("diffusers", "model_index.json"), ("MONAI", "network.json"), ("bundle", "configs")):
        if (folder / mark).exists():
            diagnosis = Diagnosis(str(folder), kind)
            break
    else:
        raise DiffAugError(
            f"{folder} is neither checkpoint nor bundle (no model_index.json, network.json or configs/ in it): give "
            "the folder that holds one, or a weight file"
        )
    states = _weights(diagnosis, folder)
    {"diffusers": _diffusers, "MONAI": _monai, "bundle": _bundle}[diagnosis.kind](diagnosis, folder, states)
    if not diagnosis.faults:
        _trial(diagnosis, folder)
    return diagnosis


# ---------------------------------------------------------------------------------------------------------- weights


def _weights(diagnosis: Diagnosis, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read every weight file; returns the bare tensors of those that can be read."""
    found = files.weight_files(folder)
    states = {}
    for name, path in found.items():
        tensors = _weight_file(diagnosis, path, name)
        if tensors:
            states[name] = tensors
    if not found and not (folder / "large_files.yml").is_file():
        diagnosis.fault(folder, "there is no weight file", "download the checkpoint again, or train it")
    with diagnosis.noting(folder / "digests.json"):
        files.verify(folder)
    diagnosis.facts["digest"] = files.digest(folder) if found else None
    if found and not (folder / "digests.json").is_file():
        diagnosis.remark(folder, "digests.json is missing, so that damage would not show", "call hub.seal(folder)")
    return states


def _weight_file(diagnosis: Diagnosis, path: Path, name: str) -> dict[str, Tensor]:
    fact: dict[str, Any] = {"file": name, "bytes": path.stat().st_size}
    diagnosis.facts.setdefault("weights", []).append(fact)
    if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
        diagnosis.fault(name, "this is a pointer of git-lfs, not the weights", "run: git lfs pull")
        return {}
    try:
        state = files.read_weights(path)
    except DiffAugError as e:
        diagnosis.fault(name, str(e).partition(": ")[0], "download it again")
        return {}
    tensors, around = layouts.unwrapped(state)
    counted = layouts.numbers(tensors)
    fact |= {"layout": layouts.key_layout(tensors), "wrapped_in": around, "sha256": files.sha256(path), **counted}
    if built := layouts.architecture(tensors):
        fact["architecture"] = built
    if counted["not_finite"]:
        first = counted["not_finite"][0]
        diagnosis.fault(
            name,
            f"{len(counted['not_finite'])} tensors hold NaN or infinity (first: {first})",
            "take an earlier checkpoint",
        )
    if not tensors or counted["all_zero"]:
        diagnosis.fault(name, "it holds no weights" if not tensors else "all weights are zero", "download it again")
    scale: Any = state.get("scale_factor")
    if isinstance(scale, Tensor | float | int):
        fact["scale_factor"] = float(scale)
    return tensors


def _fits(diagnosis: Diagnosis, part: str, module: nn.Module | None, states: Mapping[str, dict[str, Tensor]]) -> None:
    """Whether one of the weight files fills a network; says which, and whether its key names are old."""
    if module is None or not states:
        return
    reasons = {}
    for name, tensors in states.items():
        try:
            _, old = modern_keys(tensors, module)
        except DiffAugError as e:
            reasons[name] = str(e)
            continue
        diagnosis.facts.setdefault(part, {})["weights"] = name
        if old:
            diagnosis.remark(
                name, "its key names are those of monai-generative; they are translated on loading", "none needed"
            )
        return
    name = min(reasons, key=lambda n: len(reasons[n]))
    tells = layouts.architecture(states[name])
    said = f"its shapes say {json.dumps(tells)}" if tells else "correct the arguments in its config"
    diagnosis.fault(name, reasons[name].partition(";")[0], said)


def _built(diagnosis: Diagnosis, where: str, config: Mapping[str, Any]) -> nn.Module | None:
    """The network without memory for its weights, or ``None`` and a fault."""
    try:
        with torch.device("meta"):
            return files.instantiate(config, where)
    except DiffAugError as e:
        diagnosis.fault(where, str(e).removeprefix(f"{where}: "))
    except Exception as e:  # a library's own complaint
        diagnosis.fault(
            where, f"{config['_target_']} cannot be built ({' '.join(str(e).split())})", "correct its arguments"
        )
    return None


# ------------------------------------------------------------------------------------------------------------- kinds


def _monai(diagnosis: Diagnosis, folder: Path, states: Mapping[str, dict[str, Tensor]]) -> None:
    contract = agreement.contract(diagnosis, folder, {})
    for part in ("network", "autoencoder"):
        path = folder / f"{part}.json"
        if not path.is_file():
            continue
        config: dict[str, Any] = {}
        with diagnosis.noting(path):
            config = files.read_json(path)
        if not config:
            continue
        where = str(path)
        before = len(diagnosis.faults)
        targets.check(diagnosis, where, config, folder)
        if len(diagnosis.faults) == before:
            module = _built(diagnosis, where, config)
            _fits(diagnosis, part, module, {n: t for n, t in states.items() if n.startswith(part)})
        diagnosis.facts.setdefault(part, {}).update(config)
    if contract and contract.factor != 1 and not (folder / "autoencoder.json").is_file():
        diagnosis.fault(
            folder / "autoencoder.json", "it is missing, though factor is not 1", 'add it, or write "factor": 1'
        )
    for name in ("conditioner.json", "scheduler.json"):
        with diagnosis.noting(folder / name):
            diagnosis.facts[name.removesuffix(".json")] = files.read_json(folder / name)
    agreement.schedule(diagnosis, folder / "scheduler.json", diagnosis.facts.get("scheduler"))
    agreement.agree(diagnosis, folder, contract)


def _diffusers(diagnosis: Diagnosis, folder: Path, states: Mapping[str, dict[str, Tensor]]) -> None:
    index: dict[str, Any] = {}
    with diagnosis.noting(folder / "model_index.json"):
        index = files.read_json(folder / "model_index.json")
    parts = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2 and v[1] is not None}
    for part, (library, name) in parts.items():
        if not (folder / part).is_dir():
            diagnosis.fault(folder / part, "the folder is missing", "copy it there or download the checkpoint again")
        elif library in ("diffusers", "transformers"):
            with diagnosis.noting(folder / "model_index.json"):
                files.resolve(f"{library}.{name}")
    if "unet" not in parts:
        diagnosis.fault(folder / "model_index.json", "it names no unet", "use a pipeline with a U-Net")
    if "vae" in parts:
        vae: dict[str, Any] = {}
        with diagnosis.noting(folder / "vae" / "config.json"):
            vae = files.read_json(folder / "vae" / "config.json")
        if vae and "scaling_factor" not in vae:
            diagnosis.fault(
                folder / "vae" / "config.json",
                "the latent scale is missing",
                f'"scaling_factor": N  ({agreement.LATENT_SCALE})',
            )
        diagnosis.facts["latent_scale"] = vae.get("scaling_factor")
    config = folder / "scheduler" / "scheduler_config.json"
    with diagnosis.noting(config):
        agreement.schedule(diagnosis, config, files.read_json(config, "copy the scheduler's config there"))
    if (folder / "contract.json").is_file():
        agreement.contract(diagnosis, folder, {})
    else:
        diagnosis.remark(
            folder,
            "contract.json is missing: value range -1..1 is assumed, labels and license are unknown",
            "hub.save writes one",
        )


def _bundle(diagnosis: Diagnosis, folder: Path, states: Mapping[str, dict[str, Tensor]]) -> None:
    contents: dict[Path, dict[str, Any]] = {}
    for path in bundles.config_files(folder):
        with diagnosis.noting(path):
            contents[path] = bundles.read_config(path)
    targets.check_metadata(diagnosis, folder)
    targets.check_large_files(diagnosis, folder)
    for path, config in contents.items():
        targets.check_config(diagnosis, folder, path, config, [c for c in contents.values() if c is not config])
    parts: dict[str, dict[str, Any]] = {}
    with diagnosis.noting(folder / "configs"):
        parts = bundles.bundle_parts(folder)
    for part in ("network", "scheduler"):
        if contents and part not in parts:
            diagnosis.fault(
                folder / "configs", f"no config defines a diffusion {part}", f"add {part}_def to inference.json"
            )
    known = {f.where for f in diagnosis.faults}
    for part in ("network", "autoencoder"):
        if part in parts:
            diagnosis.facts[part] = parts[part]
            sound = not any(part_place in w for w in known for part_place in (f"{part}_def", "diffusion_def", part))
            if sound:
                _fits(diagnosis, part, _built(diagnosis, f"{folder / 'configs'}, {part}", parts[part]), states)
    if "scheduler" in parts:
        agreement.schedule(diagnosis, folder / "configs", parts["scheduler"])
    draft = agreement.draft(folder, list(contents.values()), parts, diagnosis)
    agreement.agree(diagnosis, folder, agreement.contract(diagnosis, folder, draft))


def _trial(diagnosis: Diagnosis, folder: Path) -> None:
    """Load it, make one network call, and compare that with the fingerprint."""
    with diagnosis.noting(folder):
        backbone = hub.load(folder)
        try:
            numbers = hub.fingerprint(backbone)
        except DiffAugError:
            raise
        except Exception as e:
            what = f"one network call fails ({' '.join(str(e).split())[:200]})"
            raise DiffAugError(f"{what}: correct the conditioner or the network's config") from None
        if not all(math.isfinite(n) for n in numbers):
            raise DiffAugError("one network call gives NaN or infinity: take an earlier checkpoint")
        c = backbone.contract
        diagnosis.facts |= {"offers": sorted(backbone.offers()), "loads": True, "size": list(c.size)}
        diagnosis.facts |= {"value_range": list(c.value_range), "latent_scale": c.latent_scale}
        check_fingerprint(folder, backbone)
