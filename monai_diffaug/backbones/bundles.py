"""MONAI bundles read without being run: configs, references, components.

A bundle's ``$`` expressions are code. What a network or a scheduler is built of are nearly always numbers, lists and
references to them; those are worked out here, and no other expression is ever evaluated.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from monai_diffaug.types import DiffAugError

__all__ = [
    "bundle_parts",
    "components",
    "config_files",
    "evaluate",
    "first_number",
    "lookup",
    "part_of",
    "read_config",
    "references",
]

_SAFE_CALLS = {f.__name__: f for f in (int, float, bool, str, len, list, tuple, min, max, abs, round)}
_SAFE_NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Dict, ast.Subscript, ast.Slice),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
PARTS = ("network", "autoencoder", "scheduler")


def config_files(folder: Path) -> list[Path]:
    """A bundle's configs, those for inference first; metadata and logging aside."""
    found = [p for p in sorted((folder / "configs").glob("*")) if p.suffix in (".json", ".yaml", ".yml")]
    found = [p for p in found if p.stem not in ("metadata", "logging")]
    return sorted(found, key=lambda p: (not p.stem.startswith("inference"), len(p.stem), p.name))


def read_config(path: Path) -> dict[str, Any]:
    """One config, its relative references made absolute; empty for a list, which is data that lies beside the configs.

    Raises:
        DiffAugError: not JSON or YAML, or a macro that leads nowhere.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data: Any = json.loads(text) if path.suffix == ".json" else ConfigParser.load_config_file(path)
    except Exception as e:
        raise DiffAugError(f"{path} cannot be read ({' '.join(str(e).split())}): repair it") from None
    if not isinstance(data, dict):
        return {}
    parser = ConfigParser(data)
    try:
        parser.resolve_macro_and_relative_ids()
    except Exception as e:
        raise DiffAugError(f"{path}: a macro (%) cannot be followed ({e}); copy its target into the file") from None
    return dict(parser.config)


def components(config: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Id and content of everything that has a ``_target_``, outermost first."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield place, dict(config)
        for key, value in config.items():
            yield from components(value, f"{place}::{key}" if place else str(key))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from components(value, f"{place}::{i}" if place else str(i))


def references(config: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every ``@id`` in a config, as (where, id)."""
    if isinstance(config, str):
        yield from ((place, name) for name in ReferenceResolver.match_refs_pattern(config) if name)
    elif isinstance(config, Mapping | list):
        items = config.items() if isinstance(config, Mapping) else enumerate(config)
        for key, value in items:
            yield from references(value, f"{place}::{key}" if place else str(key))


def lookup(configs: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The content at an id, in the first config that has it.

    Raises:
        KeyError: none has it.
    """
    for config in configs:
        try:
            return _inside(config, ReferenceResolver.split_id(name))
        except (KeyError, IndexError, TypeError, ValueError):
            continue
    raise KeyError(name)


def _inside(here: Any, keys: list[str]) -> Any:
    """Go down ``keys``. A config that is laid over others has whole ids (``train#sampler``) as its keys."""
    if not keys:
        return here
    if isinstance(here, list):
        return _inside(here[int(keys[0])], keys[1:])
    plain = {ReferenceResolver.normalize_id(k): v for k, v in here.items()}
    for n in range(len(keys), 0, -1):
        joined = ReferenceResolver.sep.join(keys[:n])
        if joined in plain:
            return _inside(plain[joined], keys[n:])
    raise KeyError(keys[0])


def evaluate(value: Any, configs: Sequence[Mapping[str, Any]], trail: tuple[str, ...] = ()) -> Any:
    """References followed and arithmetic done.

    Args:
        value: content of a config.
        configs: where references lead: the file itself first.
        trail: the ids on the way here.

    Raises:
        DiffAugError: a reference that leads nowhere or back, or an expression that is more than arithmetic.
    """
    if isinstance(value, Mapping):
        return {k: evaluate(v, configs, trail) for k, v in value.items() if k not in ("_requires_", "_desc_")}
    if isinstance(value, list):
        return [evaluate(v, configs, trail) for v in value]
    if not isinstance(value, str) or not value.startswith(("@", "$")):
        return value
    names = list(ReferenceResolver.match_refs_pattern(value))
    found = {name: _follow(name, configs, trail) for name in names}
    if value.startswith("@"):
        return found[names[0]] if names else value
    return _arithmetic(value, found)


def _follow(name: str, configs: Sequence[Mapping[str, Any]], trail: tuple[str, ...]) -> Any:
    if name in trail:
        raise DiffAugError(f"the reference @{name} leads back to itself ({' -> '.join((*trail, name))}): give a value")
    try:
        target = lookup(configs, name)
    except KeyError:
        known = {key for config in configs for key in config}
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean @{near[0]}?" if near else "define it in the same file"
        raise DiffAugError(f"the reference @{name} leads nowhere: {hint}") from None
    return evaluate(target, configs, (*trail, name))


def _arithmetic(text: str, found: Mapping[str, Any]) -> Any:
    """The value of an expression over numbers and lists."""
    code = text[1:].strip()
    for i, name in enumerate(sorted(found, key=len, reverse=True)):  # the longer first: one may begin with another
        code = code.replace("@" + name, f"_{i}_").replace("@" + name.replace("::", "#"), f"_{i}_")
    names = {f"_{i}_": found[name] for i, name in enumerate(sorted(found, key=len, reverse=True))}
    try:
        tree = ast.parse(code, mode="eval")
        allowed = {*names, *_SAFE_CALLS}
        for node in ast.walk(tree):
            plain = isinstance(node, _SAFE_NODES) and (not isinstance(node, ast.Name) or node.id in allowed)
            if not plain or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift)):
                raise ValueError("more than arithmetic")
        return eval(compile(tree, "config", "eval"), {"__builtins__": {}, **_SAFE_CALLS}, names)
    except Exception as e:
        raise DiffAugError(f"the expression {text!r} is not worked out here ({e}): write its value instead") from None


def part_of(target: str) -> str | None:
    """Which part of a backbone a ``_target_`` is: ``network``, ``autoencoder``, ``scheduler`` or none, by its name."""
    module, _, name = target.rpartition(".")
    if "UNet" in name and "Diffusion" in name:
        return "network"
    if name.startswith(("AutoencoderKL", "AutoencoderKl", "VQVAE", "SPADEAutoencoderKL")):
        return "autoencoder"
    if name.endswith("Scheduler") and (not module or "networks.schedulers" in module or module.startswith("diffusers")):
        return "scheduler"
    return None


def bundle_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """The configs, references followed, of a bundle's diffusion network, autoencoder and noise scheduler.

    The first of each is taken, in the order of :func:`config_files`.

    Raises:
        DiffAugError: a config that cannot be read, or a value in a part that cannot be worked out.
    """
    contents = {path: read_config(path) for path in config_files(folder)}
    found: dict[str, dict[str, Any]] = {}
    for path, config in contents.items():
        for place, content in components(config):
            part = part_of(str(content["_target_"]))
            if part is None or part in found:
                continue
            configs = [config, *(c for c in contents.values() if c is not config)]
            try:
                found[part] = evaluate(content, configs, (place,))
            except DiffAugError as e:
                raise DiffAugError(f"{path}, {place}: {e}") from None
    return found


def first_number(configs: Sequence[Mapping[str, Any]], *keys: str) -> tuple[float | None, str]:
    """The first number under one of ``keys`` in some configs, and its id; expressions are worked out if possible."""
    for config in configs:
        for place, value in _leaves(config):
            if place.rsplit("::", 1)[-1] in keys:
                try:
                    number = evaluate(value, configs)
                except DiffAugError:
                    continue
                if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
                    return float(number), place
    return None, ""


def _leaves(config: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping | list):
        for key, value in config.items() if isinstance(config, Mapping) else enumerate(config):
            yield from _leaves(value, f"{place}::{key}" if place else str(key))
    else:
        yield place, config
