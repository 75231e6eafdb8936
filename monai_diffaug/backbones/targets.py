"""The components of a MONAI bundle: does each class exist, take its arguments, and each reference lead somewhere."""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import monai
from monai.networks.schedulers.scheduler import NoiseSchedules
from packaging.version import InvalidVersion, Version

from monai_diffaug.backbones import bundles
from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.diagnosis import Diagnosis
from monai_diffaug.types import DiffAugError

__all__ = ["check", "check_config", "check_large_files", "check_metadata", "latent_size", "value_range"]

Configs = Sequence[Mapping[str, Any]]


@cache
def _short_names() -> dict[str, tuple[str, ...]]:
    """Every class and function of MONAI by the short name that a bundle may use, with the modules that define it."""
    table: dict[str, set[str]] = {}
    for module in [m for n, m in sys.modules.items() if n == monai.__name__ or n.startswith("monai.")]:
        for name, thing in list(vars(module).items()):
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ == module.__name__:
                table.setdefault(name, set()).add(module.__name__)
    return {name: tuple(sorted(modules)) for name, modules in table.items()}


def find(target: str, folder: Path) -> Any:
    """The class or function of a ``_target_``, ``None`` if it is code of the bundle itself, which is not imported.

    Raises:
        DiffAugError: there is none; the message ends in the remedy.
    """
    root, _, name = target.rpartition(".")
    if not root:
        modules = _short_names().get(name, ())
        if len(modules) > 1:
            raise DiffAugError(f"{name} is defined in {len(modules)} places of MONAI: write {modules[0]}.{name}")
        if not modules:
            near = difflib.get_close_matches(name, _short_names(), 1, 0.6)
            raise DiffAugError(f"MONAI has no {name!r}: " + (f"write {near[0]!r}" if near else "give its full path"))
        return getattr(sys.modules[modules[0]], name)
    own = folder.joinpath(*root.split("."))
    for source in (own.with_suffix(".py"), own / "__init__.py"):
        if source.is_file():
            return _own(source, name)
    return files.resolve(target)


def _own(source: Path, name: str) -> None:
    """Whether a bundle's own module defines (or imports) a name, told without running it."""
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except SyntaxError as e:
        raise DiffAugError(f"{source} is no valid Python (line {e.lineno}): repair it") from None
    known = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    known |= {a.asname or a.name for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise DiffAugError(
            f"{source} does not define {name!r}: " + (f"write {near[0]!r}" if near else "define it there")
        )


def check(diagnosis: Diagnosis, where: str, content: Mapping[str, Any], folder: Path, configs: Configs = ()) -> None:
    """One component: its class, and its arguments against the class's signature.

    Args:
        diagnosis: takes the findings.
        where: named in them.
        content: ``_target_`` and arguments, references not yet followed.
        folder: the bundle, whose own modules may be named.
        configs: where references lead.
    """
    target = str(content["_target_"])
    if target.startswith(("$", "@")) or content.get("_disabled_") is True:
        return
    found = None
    with diagnosis.noting(where):
        found = find(target, folder)
    if found is None:
        return
    name = target.rpartition(".")[2]
    if target.startswith("generative.") and name in _short_names():
        module = "monai.networks.schedulers" if name.endswith("Scheduler") else "monai.networks.nets"
        diagnosis.remark(where, "monai-generative has gone into MONAI", f'"_target_": "{module}.{name}"')
    arguments = {k: v for k, v in content.items() if not (k.startswith("_") and k.endswith("_"))}
    try:
        parameters = inspect.signature(found).parameters
        fitted, remedies = files.renamed_arguments(found, arguments)
    except (ValueError, TypeError):  # built in C: it has no signature
        return
    for key, remedy in remedies.items():
        new = next((k for k in fitted if k not in arguments and fitted[k] is arguments[key]), "")
        line = f'"{new}": {json.dumps(arguments[key])}  (in place of "{key}")' if new else remedy
        diagnosis.fault(where, f"{name} takes no argument {key!r}", line)
    required = [n for n, p in parameters.items() if p.default is p.empty and p.kind in (0, 1, 3) and n != "self"]
    for key in required if content.get("_mode_", "default") == "default" else []:
        if key not in fitted:
            diagnosis.fault(where, f"{name} needs the argument {key!r}", f'"{key}": ...')
    if bundles.part_of(target) == "scheduler" and not remedies:
        _check_scheduler(diagnosis, where, found, fitted, configs)


def _check_scheduler(
    diagnosis: Diagnosis, where: str, found: Any, arguments: Mapping[str, Any], configs: Configs
) -> None:
    """Build it: schedulers pass what they do not know on to the beta schedule, so that a signature tells little."""
    if "beta_schedule" in arguments and str(found.__module__).startswith(("monai.", "generative.")):
        name = str(arguments["beta_schedule"]).removesuffix("_beta") + "_beta"
        diagnosis.fault(where, f"{found.__name__} takes no argument 'beta_schedule'", f'"schedule": "{name}"')
        return
    try:
        found(**bundles.evaluate(dict(arguments), configs))
    except DiffAugError as e:
        diagnosis.remark(where, str(e))
    except Exception as e:
        known = list(NoiseSchedules.names)
        near = difflib.get_close_matches(str(arguments.get("schedule", "")), known, 1)
        wrong_name = near and str(arguments["schedule"]) not in known
        mend = f'"schedule": "{near[0]}"' if wrong_name else "correct its arguments"
        diagnosis.fault(where, f"{found.__name__} refuses its arguments ({' '.join(str(e).split())[:200]})", mend)


def check_config(
    diagnosis: Diagnosis, folder: Path, path: Path, config: Mapping[str, Any], others: Sequence[Mapping[str, Any]]
) -> None:
    """Every component and every reference of one config; ``others`` are the bundle's other configs."""
    name, configs = f"configs/{path.name}", [config, *others]
    diagnosis.facts.setdefault("configs", {})[name] = sum(1 for _ in bundles.components(config))
    for place, content in bundles.components(config):
        check(diagnosis, f"{name}, {place}", content, folder, configs)
    known = {key for c in configs for key in c}
    for place, reference in bundles.references(config):
        try:
            bundles.lookup(configs, reference)
        except KeyError:
            near = difflib.get_close_matches(reference, known, 1)
            mend = f"write @{near[0]}" if near else f'"{reference}": ...'
            diagnosis.fault(f"{name}, {place}", f"the reference @{reference} leads nowhere", mend)


def check_metadata(diagnosis: Diagnosis, folder: Path) -> None:
    """The bundle's version, and the packages that it wants against those installed."""
    path = folder / "configs" / "metadata.json"
    if not path.is_file():
        diagnosis.remark("configs/metadata.json", "it is missing", '"version": "0.1.0", "monai_version": "..."')
        return
    data: dict[str, Any] = {}
    with diagnosis.noting(path):
        data = files.read_json(path)
    diagnosis.facts["version"] = data.get("version")
    wanted = dict(data.get("required_packages_version") or data.get("optional_packages_version") or {})
    wanted |= {"monai": data["monai_version"]} if data.get("monai_version") else {}
    for package, version in wanted.items():
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            diagnosis.remark(
                "configs/metadata.json", f"{package} is not installed", f"pip install '{package}>={version}'"
            )
            continue
        try:
            older = Version(installed) < Version(str(version))
        except InvalidVersion:
            continue
        if older:
            what = f"{package} {installed} is installed, {version} is wanted"
            diagnosis.remark("configs/metadata.json", what, f"pip install '{package}>={version}'")


def check_large_files(diagnosis: Diagnosis, folder: Path) -> bool:
    """Files that a bundle fetches on its own, and their hashes; returns whether there is such a list."""
    path = folder / "large_files.yml"
    if not path.is_file():
        return False
    entries: list[Mapping[str, Any]] = []
    with diagnosis.noting(path):
        entries = list(bundles.read_config(path).get("large_files", []))
    gone = [str(e["path"]) for e in entries if "path" in e and not (folder / str(e["path"])).is_file()]
    if gone:
        what = f"{len(gone)} of {len(entries)} files are not here ({', '.join(gone)})"
        diagnosis.fault(path, what, f"python -m monai.bundle download_large_files --bundle_path {folder}")
    for entry in entries:
        kind, expected = str(entry.get("hash_type", "md5")), entry.get("hash_val")
        if expected and entry.get("path") not in gone and kind in hashlib.algorithms_available:
            found = hashlib.new(kind, (folder / str(entry["path"])).read_bytes()).hexdigest()
            if found != expected:
                diagnosis.fault(
                    entry["path"], f"its {kind} is not that of large_files.yml", f"download {entry.get('url')}"
                )
    return True


def value_range(configs: Configs) -> tuple[float, float, str]:
    """The intensities that a bundle trains on, told by its first scaling transform, and its name or ``""``."""
    for config in configs:
        for _, content in bundles.components(config):
            name = str(content["_target_"]).rpartition(".")[2]
            if not name.startswith("ScaleIntensity"):
                continue
            keys = ("b_min", "b_max") if "Range" in name else ("minv", "maxv")
            try:
                low, high = (float(bundles.evaluate(content.get(k, d), configs)) for k, d in zip(keys, (0.0, 1.0)))
            except (DiffAugError, TypeError, ValueError):
                continue
            return low, high, name
    return -1.0, 1.0, ""


def latent_size(configs: Configs, dims: int) -> list[int] | None:
    """Spatial size of the latent, where a config says ``latent_shape``."""
    try:
        shape = bundles.evaluate(bundles.lookup(configs, "latent_shape"), configs)
        return [int(s) for s in shape][-dims:]
    except (KeyError, DiffAugError, TypeError, ValueError):
        return None
