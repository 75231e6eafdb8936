"""Finding a checkpoint and loading it, once a process."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import torch

from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.assembly import assemble
from monai_diffaug.backbones.parts import verifier_of
from monai_diffaug.types import Backbone, DiffAugError

__all__ = ["WEIGHTS", "load_backbone", "locate", "shipped"]

WEIGHTS = Path(__file__).parent / "weights"
"""Where the shipped backbones are."""

_LOADED: dict[tuple[str, str, str], Backbone] = {}


def shipped() -> list[str]:
    """Names of the backbones that come with the package."""
    return sorted(p.parent.name for p in WEIGHTS.glob("*/contract.json"))


def locate(name: str | Path) -> Path:
    """The folder of a shipped name, a path or a hub id (``owner/name``, fetched or from the local cache).

    Raises:
        DiffAugError: there is none; the message names the nearest shipped name.
    """
    if str(name) in shipped():
        return WEIGHTS / str(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        inside = folder / "models"  # of a bundle whose checkpoint is one of ours
        ours = any((inside / name).is_file() for name in ("contract.json", "generator.json"))
        return inside if ours else folder
    parts = str(name).split("/")
    if len(parts) == 2 and all(parts) and not str(name).startswith((".", "~")):
        return _fetch(str(name))
    near = difflib.get_close_matches(str(name), shipped(), 1, 0.0)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DiffAugError(
        f"backbone {str(name)!r} is unknown: {hint}give a shipped name ({', '.join(shipped()) or 'none'}), a folder or "
        "a hub id owner/name"
    )


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as online:
        try:
            return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
        except Exception:
            raise DiffAugError(
                f"{hub_id!r} is no folder here and the hub cannot be reached ({type(online).__name__}): copy the "
                "checkpoint to this machine and give its folder"
            ) from None


def load_backbone(
    name: str | Path,
    *,
    precision: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Backbone:
    """Load a backbone, frozen and in evaluation mode; the same call twice gives the same object.

    Args:
        name: a shipped name, a folder or a hub id.
        precision: run in ``float32`` (default), ``bfloat16`` or ``float16``; weights stay float32.
        device: where to put the weights; the CPU unless given.

    Returns:
        the backbone, with ``digest`` over its weight files.

    Raises:
        DiffAugError: unknown name; missing file, contract or latent scale; a hash that differs; weights that do not
            fit.
    """
    folder = locate(name)
    files.verify(folder)
    if (folder / "generator.json").is_file():
        return _guarded(folder, precision, device)
    key = (str(folder.resolve()), files.digest(folder), str(device or "cpu"))
    if key not in _LOADED:
        backbone = replace(assemble(folder), digest=key[1])
        extra = [part.module for part in (backbone.scorer, backbone.judge, backbone.verifier) if part is not None]
        for module in [*backbone.modules().values(), *extra]:
            module.eval().requires_grad_(False).to(device or "cpu")
        _LOADED[key] = backbone
    backbone = _LOADED[key]
    if precision is None or _dtype(precision) == backbone.precision:
        return backbone
    again = (*key[:2], f"{key[2]} {_dtype(precision)}")
    return _LOADED.setdefault(again, backbone.with_precision(_dtype(precision)))


def _guarded(folder: Path, precision: str | torch.dtype | None, device: str | torch.device | None) -> Backbone:
    """Another checkpoint's backbone with the verifier of this one."""
    said = files.read_json(folder / "generator.json")
    named = str(said.get("checkpoint", ""))
    place = WEIGHTS / named if named in shipped() else (folder / named).resolve()
    if not place.is_dir():
        raise DiffAugError(
            f"{folder / 'generator.json'} names {place}, which is not there: copy the bundle of the generator beside "
            "this one"
        )
    verifier = verifier_of(folder / "verifier")
    verifier.module.eval().requires_grad_(False).to(device or "cpu")
    return replace(load_backbone(place, precision=precision, device=device), verifier=verifier)


def _dtype(precision: str | torch.dtype) -> torch.dtype:
    if isinstance(precision, torch.dtype):
        return precision
    known = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
    known |= {"float16": torch.float16, "fp16": torch.float16}
    if precision not in known:
        raise DiffAugError(f"precision {precision!r} is unknown: use float32, bfloat16 or float16")
    return known[precision]
