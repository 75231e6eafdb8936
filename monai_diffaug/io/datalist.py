"""Which images there are: MONAI's datalist JSON, or a folder; and datalists of what was made."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..types import DiffAugError
from .atomic import write_json
from .images import ENDINGS, ending

__all__ = ["SAMPLES", "Item", "digest", "license_of", "names", "read", "sections", "write"]

SAMPLES = Path(__file__).parents[1] / "data"
"""The real images that come with the package; their folders' names may be given in place of a path."""

LISTS = ("datalist.json", "dataset.json")
_PAIRS = {"images": ("masks", "labels"), "imagesTr": ("labelsTr",)}
_MASKS = ("label", "mask", "seg", "segmentation")


@dataclass(frozen=True)
class Item:
    """One image of a datalist.

    ``id`` is its path as the list has it, made unique; ``mask`` and ``kind`` are mask and class, ``mask_key``
    and ``kind_key`` the keys under which the list has them; ``fields`` is whatever else it says.
    """

    id: str
    image: Path
    mask: Path | None = None
    mask_key: str = "label"
    kind: Any = None
    kind_key: str = "class"
    fields: Mapping[str, Any] = field(default_factory=dict)


def read(
    source: str | Path, *, section: str = "training", base: str | Path | None = None, dims: int | None = None
) -> list[Item]:
    """The images of a datalist or a folder, in a fixed order.

    Args:
        source: a datalist JSON; a folder with one in it; a folder of images, whose masks lie in a folder of their own
            (``images/`` and ``masks/`` or ``labels/``, ``imagesTr/`` and ``labelsTr/``) under the same names, or whose
            subfolders are classes; or the name of a sample set of the package.
        section: of the JSON.
        base: what relative paths in the JSON start from; its folder unless given.
        dims: 2 takes each file of a DICOM series in a folder as an image, else the series is one.

    Raises:
        DiffAugError: there is no such thing, or no image in it.
    """
    path = _located(source)
    if path.is_dir():
        return _folder(path, slices=dims == 2)
    if not path.is_file():
        sets = ", ".join(sorted(p.parent.name for p in SAMPLES.glob("*/datalist.json")))
        raise DiffAugError(f"{source} does not exist: give a datalist JSON, a folder, or a sample set ({sets})")
    if path.suffix.lower() != ".json":
        raise DiffAugError(
            f"{path} is neither a datalist JSON nor a folder: give its folder, or `diffaug edit` for one image"
        )
    return _json(path, section, base)


def license_of(source: str | Path) -> str:
    """What the datalist says of its license (MONAI spells the key ``licence``); nothing if it does not say."""
    path = _located(source)
    if not path.is_file():
        return ""
    data = json.loads(path.read_text(encoding="utf-8"))
    return str(data.get("licence") or data.get("license") or "") if isinstance(data, dict) else ""


def sections(source: str | Path) -> list[str]:
    """The lists in a datalist JSON that hold something (``training``, ``validation``, ...); none for a folder."""
    path = _located(source)
    try:
        data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError):
        return []  # :func:`read` says what is wrong with it
    return [k for k, v in data.items() if isinstance(v, list) and v] if isinstance(data, dict) else []


def _located(source: str | Path) -> Path:
    """The path, or a sample set's; of a folder with a datalist in it, the datalist."""
    path = Path(source).expanduser()
    if not path.exists() and (SAMPLES / str(source)).is_dir():
        path = SAMPLES / str(source)
    return next((path / name for name in LISTS if (path / name).is_file()), path)


# -------------------------------------------------------------------------------------------------------------- JSON


def _json(path: Path, section: str, base: str | Path | None) -> list[Item]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DiffAugError(f"{path} is not JSON ({error}): repair it") from None
    except OSError as error:
        raise DiffAugError(f"{path} cannot be read ({error.strerror}): change its permissions") from None
    entries = data if isinstance(data, list) else data.get(section) if isinstance(data, dict) else None
    if not isinstance(entries, list):
        lists = [k for k, v in data.items() if isinstance(v, list)] if isinstance(data, dict) else []
        raise DiffAugError(f"{path} has no list {section!r}: choose a section it has ({', '.join(lists) or 'none'})")
    if not entries:
        raise DiffAugError(f"{path} lists no image under {section!r}: add some, or choose another section")
    root = Path(base).expanduser() if base is not None else path.parent
    items = [_item(entry, root, f"{path}, entry {i} of {section!r}") for i, entry in enumerate(entries)]
    return _unique(items)


def _item(entry: Any, root: Path, where: str) -> Item:
    values = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(values, Mapping) or "image" not in values:
        raise DiffAugError(f"{where} has no 'image': give a path, or an object with 'image' and perhaps 'label'")
    name = values["image"]
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    if not isinstance(name, str):
        raise DiffAugError(f"{where} makes one image of several files: merge them to one file with channels")
    mask_key = next((k for k in _MASKS if isinstance(values.get(k), str) and ending(values[k])), None)
    kind_key = "label" if "class" not in values and mask_key != "label" and "label" in values else "class"
    rest = {k: v for k, v in values.items() if k not in ("image", mask_key, kind_key)}
    mask = None if mask_key is None else root / values[mask_key]
    return Item(name, root / name, mask, mask_key or "label", values.get(kind_key), kind_key, rest)


# ------------------------------------------------------------------------------------------------------------ folder


def _files(folder: Path, slices: bool) -> list[Path]:
    visible = [p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    found = [p for p in visible if ending(p) not in ("", ".dcm") and p.is_file()]
    if any(ending(p) == ".dcm" or not p.suffix for p in visible if p.is_file()):
        from .dicom_scan import found_in  # pydicom is slow to load

        found += found_in(folder, slices=slices)
    return sorted(found)


def _folder(folder: Path, slices: bool = False) -> list[Item]:
    for images, masks in _PAIRS.items():
        if (folder / images).is_dir() and (files := _files(folder / images, slices)):
            beside = next((folder / m for m in masks if (folder / m).is_dir()), None)
            return _unique([_paired(p, folder, images, beside) for p in files])
    files = _files(folder, slices)
    if not files:
        raise DiffAugError(f"{folder} holds no image: give a folder with NIfTI, PNG, JPEG or DICOM files")
    inside = {p.relative_to(folder).parts[0] for p in files if len(p.relative_to(folder).parts) > 1}
    classes = len(inside) > 1 and all(len(p.relative_to(folder).parts) > 1 for p in files)
    items = []
    for p in files:
        relative = p.relative_to(folder)
        items.append(Item(relative.as_posix(), p, kind=relative.parts[0] if classes else None))
    return _unique(items)


def _paired(image: Path, folder: Path, images: str, masks: Path | None) -> Item:
    """The mask of the same name; also without nnU-Net's channel number, ``case_0000.nii.gz`` and ``case.nii.gz``."""
    relative = image.relative_to(folder / images)
    stem = stem_of(relative)
    candidates = (
        [] if masks is None else [masks / f"{s}{e}" for s in (stem, stem.removesuffix("_0000")) for e in ENDINGS]
    )
    mask = next((c for c in candidates if c.is_file()), None)
    parts = relative.parts
    return Item(image.relative_to(folder).as_posix(), image, mask, kind=parts[0] if len(parts) > 1 else None)


def stem_of(path: str | Path) -> str:
    """A path without the ending that says its kind."""
    text = Path(path).as_posix()
    return text[: len(text) - len(ending(text))] if ending(text) else str(Path(text).with_suffix("").as_posix())


def _unique(items: Sequence[Item]) -> list[Item]:
    """Number repeated ids: ``a.png``, ``a.png#2``."""
    seen: Counter[str] = Counter()
    out = []
    for item in items:
        seen[item.id] += 1
        n = seen[item.id]
        name = item.id if n == 1 else f"{item.id}#{n}"
        out.append(replace(item, id=name))
    return out


# ------------------------------------------------------------------------------------------------------------ writing


def names(items: Iterable[Item]) -> list[str]:
    """A file name for each item, without ending: its own where that is unique, else with its folders in front.

    DICOM images are numbered, since hospitals name files and folders after patients.
    """
    items = list(items)
    ids = [stem_of(item.id.split("#")[0]) + ("-" + item.id.split("#")[1] if "#" in item.id else "") for item in items]
    short = Counter(Path(i).name for i in ids)
    out: dict[str, None] = {}
    for n, (item, i) in enumerate(zip(items, ids, strict=True), 1):
        parts = [p for p in Path(i).parts if p not in ("/", "..", ".")]
        if ending(item.id.split("#")[0]) in ("", ".dcm"):
            name = f"image{n:04d}"
        else:
            name = parts[-1] if short[Path(i).name] == 1 else "-".join(parts)
        while name in out:
            name += "-"
        out[name] = None
    return list(out)


def digest(items: Iterable[Item]) -> str:
    """SHA-256 over what the list says (not over the files)."""
    rows = [[i.id, i.mask.name if i.mask else None, i.kind, dict(i.fields)] for i in items]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()


def write(path: str | Path, entries: Sequence[Mapping[str, Any]], head: Mapping[str, Any] | None = None) -> None:
    """Write a datalist that MONAI reads (``load_decathlon_datalist``), whole or not at all.

    Args:
        path: where; paths in the entries are relative to its folder.
        entries: go under ``training``.
        head: other keys.
    """
    write_json(path, {**(head or {}), "numTraining": len(entries), "training": [dict(e) for e in entries]})
