"""Weight files and configs on disk: read, instantiate, fingerprint, verify. What the hub and the doctor share."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from monai_diffaug.types import DiffAugError

__all__ = [
    "WEIGHT_ENDINGS",
    "digest",
    "instantiate",
    "read_json",
    "read_weights",
    "renamed_arguments",
    "resolve",
    "sha256",
    "verify",
    "weight_files",
]

WEIGHT_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".ts")

_RENAMED = {"num_channels": "channels"}  # monai-generative's arguments -> MONAI's
_SHA: dict[tuple[str, int, int], str] = {}


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """A JSON object; a missing or broken file is an error that names it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DiffAugError(f"{path} is missing: {remedy or 'add it to the checkpoint'}") from None
    except json.JSONDecodeError as e:
        raise DiffAugError(f"{path} is not JSON ({e}): repair it") from None
    if not isinstance(data, dict):
        raise DiffAugError(f"{path} holds no JSON object: repair it")
    return data


def resolve(target: str) -> Any:
    """The class or function that a ``_target_`` names; short names are MONAI's.

    Raises:
        DiffAugError: there is none; the message names the nearest.
    """
    module, _, name = target.rpartition(".")
    for place in [module] if module else ["monai.networks.nets", "monai.networks.schedulers", "monai.transforms"]:
        try:
            found: Any = importlib.import_module(place)
        except ImportError:
            try:  # a class in a module: pkg.module.Class.method
                found = resolve(place)
            except DiffAugError:
                raise DiffAugError(f"_target_ {target!r}: module {place!r} cannot be imported; install it") from None
        if hasattr(found, name):
            return getattr(found, name)
        near = difflib.get_close_matches(name, dir(found), 1, 0.6)
        if module:
            hint = f"did you mean {module}.{near[0]}?" if near else "correct the name or the library's version"
            raise DiffAugError(f"_target_ {target!r} does not exist: {hint}")
    raise DiffAugError(
        f"_target_ {target!r} is not among MONAI's networks, schedulers or transforms: give its full path"
    )


def renamed_arguments(target: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments under the names that ``target`` takes, and what had to be done to each that did not fit.

    Returns:
        arguments with monai-generative's names put right, and key -> remedy for each key that was wrong; a remedy that
        starts with ``rename`` has been carried out.
    """
    parameters = inspect.signature(target).parameters
    names = [n for n in parameters if n != "self"]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    fitted, remedies = {}, {}
    for key, value in arguments.items():
        if key in names or open_ended:
            fitted[key] = value
        elif _RENAMED.get(key) in names:
            fitted[_RENAMED[key]] = value
            remedies[key] = f"rename it to {_RENAMED[key]!r}"
        else:
            near = difflib.get_close_matches(key, names, 1, 0.5)
            remedies[key] = f"did you mean {near[0]!r}?" if near else "remove it"
    return fitted, remedies


def instantiate(config: Mapping[str, Any], source: str = "config") -> nn.Module:
    """Build a network from ``_target_`` and its arguments.

    Args:
        config: resolved config (no ``@`` references).
        source: named in errors.

    Raises:
        DiffAugError: no such class, not a network, or an argument that it does not take.
    """
    if "_target_" not in config:
        raise DiffAugError(f"{source} lacks _target_: name the network class there")
    target = resolve(str(config["_target_"]))
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise DiffAugError(f"{source}: {config['_target_']} is not a network class; name one there")
    arguments = {k: v for k, v in config.items() if not (k.startswith("_") and k.endswith("_"))}
    fitted, remedies = renamed_arguments(target, arguments)
    wrong = {k: r for k, r in remedies.items() if not r.startswith("rename")}
    if wrong:
        key, remedy = next(iter(wrong.items()))
        raise DiffAugError(f"{source}: {config['_target_']} takes no argument {key!r}; {remedy}")
    old = target.__module__.startswith("generative.")
    if fitted.get("use_flash_attention") and (old or not torch.cuda.is_available()):
        # MONAI refuses it without a GPU, monai-generative without xformers; the adapters fuse attention anyway.
        fitted["use_flash_attention"] = False
    try:
        return target(**fitted)
    except (TypeError, ValueError) as e:
        raise DiffAugError(f"{source}: {config['_target_']} refuses its arguments ({e}); correct them") from e


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict, floating tensors as float32, of safetensors, a PyTorch checkpoint or a TorchScript archive."""
    if not path.is_file():
        raise DiffAugError(f"weight file {path} is missing: copy it there or download the checkpoint again")
    try:
        state: Any = _read(path)
    except DiffAugError:
        raise
    except Exception as e:
        raise DiffAugError(f"weight file {path} cannot be read ({type(e).__name__}): download it again") from e
    return _floats(state)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.jit.load(str(path), map_location="cpu").state_dict()
    except RuntimeError:  # not TorchScript
        return torch.load(path, map_location="cpu", weights_only=True)


def _floats(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.float() if state.is_floating_point() else state
    if isinstance(state, Mapping):
        return {k: _floats(v) for k, v in state.items()}
    return state


def sha256(path: Path) -> str:
    """SHA-256 of a file, remembered while its size and time stay."""
    path = path.resolve()
    stat = path.stat()
    key = (str(path), stat.st_mtime_ns, stat.st_size)
    if key not in _SHA:
        with path.open("rb") as f:
            _SHA[key] = hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(f)
    return _SHA[key]


def _slow(f: Any) -> str:
    h = hashlib.sha256()
    while chunk := f.read(1 << 20):
        h.update(chunk)
    return h.hexdigest()


def weights_of(folder: Path, part: str) -> Path:
    """The weight file of a part, whatever its ending; the first that it might have where there is none."""
    found = [folder / f"{part}{ending}" for ending in WEIGHT_ENDINGS]
    return next((p for p in found if p.is_file()), found[0])


def weight_files(folder: Path) -> dict[str, Path]:
    """Every weight file below a folder by its relative path."""
    found = (p for p in sorted(folder.rglob("*")) if p.suffix in WEIGHT_ENDINGS and p.is_file())
    return {p.relative_to(folder).as_posix(): p for p in found}


def digest(folder: Path) -> str:
    """SHA-256 over names and hashes of the weight files without those that only judge: the identity of what is made."""
    files = {n: p for n, p in weight_files(folder).items() if not n.startswith(("scorer/", "judge/", "verifier/"))}
    lines = "".join(f"{name}:{sha256(path)}\n" for name, path in files.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def verify(folder: Path) -> None:
    """Compare the weight files with ``digests.json``, if there is one.

    Raises:
        DiffAugError: a file is missing or has changed.
    """
    listed = folder / "digests.json"
    if not listed.is_file():
        return
    files = weight_files(folder)
    for name, expected in read_json(listed).items():
        if name not in files:
            raise DiffAugError(
                f"weight file {folder / name} is missing: copy it there or download the checkpoint again"
            )
        if sha256(files[name]) != expected:
            raise DiffAugError(
                f"weight file {files[name]} differs from its SHA-256 in digests.json: download it again, or call "
                "hub.seal(folder) if the change was meant"
            )
