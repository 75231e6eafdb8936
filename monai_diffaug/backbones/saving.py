"""Writing a checkpoint, whole or not at all, and sealing it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.assembly import assemble
from monai_diffaug.backbones.fingerprint import fingerprint
from monai_diffaug.backbones.guide import Guide
from monai_diffaug.backbones.judge import Judge
from monai_diffaug.backbones.monai_unet import IdentityAutoencoder, MonaiUNet
from monai_diffaug.backbones.parts import quiet
from monai_diffaug.backbones.scorer import Scorer
from monai_diffaug.backbones.text import TextConditioner
from monai_diffaug.backbones.verifier import Verifier
from monai_diffaug.backbones.writing import cast, schedule_config, write_json
from monai_diffaug.types import Backbone, DiffAugError, Network

__all__ = ["save", "save_guard", "save_judge", "save_verifier", "seal"]


def seal(folder: str | Path) -> str:
    """Write ``digests.json`` and ``fingerprint.json`` of a checkpoint as it is now; returns its digest."""
    place = Path(folder)
    (place / "digests.json").unlink(missing_ok=True)
    (place / "fingerprint.json").unlink(missing_ok=True)
    numbers = fingerprint(assemble(place))
    sums = {name: files.sha256(path) for name, path in files.weight_files(place).items()}
    (place / "digests.json").write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    (place / "fingerprint.json").write_text(json.dumps({"output": numbers}) + "\n", encoding="utf-8")
    return files.digest(place)


def save(
    backbone: Backbone, folder: str | Path, precision: torch.dtype = torch.float16, ending: str = ".safetensors"
) -> Path:
    """Write a checkpoint that :func:`load` reads.

    A MONAI network becomes ``contract.json``, ``network.json`` with ``network.safetensors``, ``autoencoder.json`` with
    ``autoencoder.safetensors`` (not for pixel models), ``conditioner.json`` and ``scheduler.json``; a diffusers network
    becomes a pipeline folder with ``contract.json`` and ``conditioner.json``. Both are sealed. The folder appears whole
    or not at all.

    Args:
        backbone: what to write.
        folder: where; an earlier checkpoint there is replaced.
        precision: of the stored weights.
        ending: of the weight files of MONAI networks; ``.pt`` for bundles, whose ``ckpt_export`` reads nothing else.

    Raises:
        DiffAugError: the folder holds something else, the network's config is unknown, or weights overflow.
    """
    target = Path(folder)
    if target.exists() and any(target.iterdir()) and not (target / "contract.json").is_file():
        raise DiffAugError(f"{target} holds something that is no checkpoint: give an empty or a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with quiet(), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        place = Path(scratch) / target.name
        place.mkdir()
        write_json(place / "contract.json", json.loads(backbone.contract.to_json()))
        conditioner: Any = backbone.conditioner
        write_json(place / "conditioner.json", conditioner.config)
        if hasattr(backbone.network.module, "save_pretrained"):  # a network of diffusers
            from monai_diffaug.backbones.diffusers_pipeline import save_pipeline

            save_pipeline(backbone, place, precision)
        else:
            _save_monai(backbone, place, precision, ending)
        if isinstance(conditioner, TextConditioner):
            cast(conditioner.module, precision).save_pretrained(place / "text_encoder")
            conditioner.tokenizer.save_pretrained(place / "tokenizer")
        if isinstance(backbone.scorer, Scorer):
            cast(backbone.scorer.module, precision).save_pretrained(place / "scorer")
            backbone.scorer.tokenizer.save_pretrained(place / "scorer")
            means = {"image_mean": list(backbone.scorer.mean), "image_std": list(backbone.scorer.std)}
            write_json(place / "scorer" / "preprocessor_config.json", means)
        if isinstance(backbone.judge, Judge):
            save_judge(backbone.judge, place / "judge", precision, ending)
        if isinstance(backbone.guide, Guide):
            _save_guide(backbone.guide, place / "guide", precision, ending)
        if isinstance(backbone.verifier, Verifier):
            save_verifier(backbone.verifier, place / "verifier", precision, ending)
        seal(place)
        if target.exists():
            shutil.rmtree(target)
        place.rename(target)
    return target


def save_judge(judge: Judge, place: Path, precision: torch.dtype = torch.float16, ending: str = ".safetensors") -> None:
    """Write a classifier that ``judge_of`` reads: a checkpoint's ``judge/``, or one that lies elsewhere."""
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "network.json", judge.config)
    write_json(place / "judge.json", {"labels": list(judge.labels), "head": judge.head})
    _write(judge.module, precision, place / f"network{ending}")


def _save_guide(guide: Guide, place: Path, precision: torch.dtype, ending: str) -> None:
    if guide.config is None:
        raise DiffAugError("the guide does not say how it was built: give it config={'_target_': ..., ...}")
    place.mkdir()
    write_json(place / "network.json", guide.config)
    write_json(place / "guide.json", {"labels": list(guide.labels)})
    _write(guide.module, precision, place / f"network{ending}")


def save_verifier(
    verifier: Verifier, place: Path, precision: torch.dtype = torch.float16, ending: str = ".safetensors"
) -> None:
    """Write a checkpoint's ``verifier/``: the network, what it reached, and what it remembers."""
    if verifier.config is None:
        raise DiffAugError("the verifier does not say how it was built: give it config={'_target_': ..., ...}")
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "network.json", verifier.config)
    write_json(place / "verifier.json", {"threshold": verifier.threshold, "figures": verifier.figures})
    _write(verifier.module, precision, place / f"network{ending}")
    if verifier.index is not None:
        write_json(place / "index.json", {"ids": list(verifier.index.ids)})
        tensors = {"signatures": verifier.index.signatures.to(precision).contiguous()}
        _write_tensors(tensors, place / f"index{ending}")


def save_guard(verifier: Verifier, folder: str | Path, generator: str, ending: str = ".pt") -> Path:
    """Write a checkpoint that is another one guarded by a verifier: its weights are not stored a second time.

    Args:
        verifier: what guards.
        folder: where ``verifier/`` and ``generator.json`` go.
        generator: the checkpoint that makes the images, as a path from ``folder``, or a shipped one.
        ending: of the weight files.
    """
    place = Path(folder)
    save_verifier(verifier, place / "verifier", ending=ending)
    write_json(place / "generator.json", {"checkpoint": generator})
    sums = {name: files.sha256(path) for name, path in files.weight_files(place).items()}
    write_json(place / "digests.json", sums)
    return place


def _save_monai(backbone: Backbone, place: Path, precision: torch.dtype, ending: str) -> None:
    network: Network | MonaiUNet = backbone.network
    parts: list[tuple[str, Any]] = [("network", network)]
    if not isinstance(backbone.autoencoder, IdentityAutoencoder):
        parts.append(("autoencoder", backbone.autoencoder))
    for name, part in parts:
        if getattr(part, "config", None) is None:
            raise DiffAugError(
                f"the {name} does not say how it was built: give its adapter config={{'_target_': ..., ...}}"
            )
        write_json(place / f"{name}.json", part.config)
        _write(part.module, precision, place / f"{name}{ending}")
    write_json(place / "scheduler.json", schedule_config(backbone.schedule))


def _write(module: nn.Module, precision: torch.dtype, path: Path) -> None:
    tensors: dict[str, Tensor] = {k: v.contiguous() for k, v in cast(module, precision).state_dict().items()}
    _write_tensors(tensors, path)


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
