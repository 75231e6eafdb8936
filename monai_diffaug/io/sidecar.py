"""What a file says of how it was made: a JSON file beside it, and the same inside it where its kind has room.

What travels with a file names no source: the path of a source may hold a patient's name. Datalists and records, which
stay where they were made, do name it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ..types import DiffAugError
from .atomic import write_json

__all__ = ["about", "inside", "of", "place", "sentence", "write"]

PACKAGES = ("monai-diffaug", "monai", "torch")
_KEPT = ("method", "backbone", "backbone_digest", "parameters", "prompt", "label", "seed", "scores")
_ENDINGS = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".dcm")


@cache
def versions() -> dict[str, str]:
    """Versions of what an image depends on."""
    return {name: metadata.version(name) for name in PACKAGES}


def about(record: Mapping[str, Any]) -> dict[str, Any]:
    """What may travel with a file, of a record (:class:`monai_diffaug.provenance.Record` as a mapping)."""
    kept = {key: record[key] for key in _KEPT if record.get(key) not in (None, {})}
    return {"synthetic": True, "generator": "monai-diffaug", **kept, "versions": record.get("versions") or versions()}


def inside(record: Mapping[str, Any]) -> str:
    """The same as one line of JSON, for the inside of a file."""
    return json.dumps(about(record), sort_keys=True, separators=(",", ":"))


def sentence(record: Mapping[str, Any]) -> str:
    """The same in words, for a field that people read."""
    said = [f"Synthetic image made by monai-diffaug {about(record)['versions'].get('monai-diffaug', '')}".rstrip()]
    words = (("method", "method"), ("backbone", "backbone"), ("backbone_digest", "digest"), ("seed", "seed"))
    said += [f"{word} {record[key]}" for key, word in words if record.get(key) not in (None, "")]
    if record.get("prompt"):
        said.append(f"prompt {json.dumps(record['prompt'], ensure_ascii=False)}")
    return ", ".join(said) + ". Not acquired from any patient; not for diagnosis."


def place(path: str | Path) -> Path:
    """Where the sidecar of a file is: ``scan.nii.gz`` has ``scan.json``, a folder ``series`` has ``series.json``."""
    path = Path(path)
    end = next((e for e in _ENDINGS if path.name.lower().endswith(e)), "")
    return path.with_name(f"{path.name[: len(path.name) - len(end)]}.json")


def write(path: str | Path, record: Mapping[str, Any]) -> Path:
    """Write the sidecar of ``path``.

    Raises:
        DiffAugError: it cannot be written.
    """
    beside = place(path)
    write_json(beside, about(record))
    return beside


def of(path: str | Path) -> dict[str, Any]:
    """How a file was made, as its sidecar or, without one, the file itself says.

    Raises:
        DiffAugError: neither says anything, or the file is not there.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DiffAugError(f"{path} does not exist: correct the path")
    beside = place(path)
    said = _json(beside.read_text(encoding="utf-8"), path.name) if beside.is_file() else None
    said = said or _json(_written_inside(path), path.name)
    if said is None:
        raise DiffAugError(f"{path} does not say how it was made: it is real, or its sidecar {beside.name} was lost")
    return said


def _json(text: str, name: str) -> dict[str, Any] | None:
    """A sidecar, or the entry for a file called ``name`` in what `diffaug edit` writes beside its result."""
    try:
        data = json.loads(text)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    listed = data.get("training")
    if isinstance(listed, list):
        data = next((about(e["provenance"]) for e in listed if "provenance" in e and e.get("image") == name), {})
    return data if data.get("synthetic") is True else None


def _written_inside(path: Path) -> str:
    from . import dicom_out, images

    kind = images.ending(path)
    try:
        if kind in (".png", ".jpg", ".jpeg"):
            return images.remarks_of(path)
        if kind.startswith(".nii"):
            return images.extension_of(path)
        return dicom_out.said_in(path)
    except (OSError, ValueError, SyntaxError):
        return ""
