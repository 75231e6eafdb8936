"""Sheets of pictures: real beside synthetic of each class, sources beside what was made of them, volumes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...io import datalist, images
from ...types import DiffAugError
from ..sheet import pick
from .pictures import Picture, Plane, deepest, difference, drawn, perhaps, window
from .run import Run
from .volumes import Volume, packed
from .words import brief, plain

__all__ = ["EDITS", "PER_CLASS", "VOLUMES", "Sheets", "kind_of", "may_show", "sheets", "source_of"]

PER_CLASS = 10  # pictures of each class, real and synthetic each
CLASSES = 6
EDITS = 12  # pairs of source and result
VOLUMES = 3  # pairs of volumes


@dataclass(frozen=True)
class ClassSheet:
    """Pictures of one class."""

    name: str
    real: list[Picture]
    made: list[Picture]
    n_real: int
    n_made: int


@dataclass(frozen=True)
class Edit:
    """A source, what was made of it, the difference, and how."""

    number: int
    method: str
    lines: list[str]
    source: Picture | None
    made: Picture
    change: Picture | None


@dataclass(frozen=True)
class VolumePair:
    """A volume, and its source if that may be seen."""

    number: int
    lines: list[str]
    source: Volume | None
    made: Volume


@dataclass
class Sheets:
    """All sheets of a report; ``remarks`` say what is not shown and why."""

    classes: list[ClassSheet] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    volumes: list[VolumePair] = field(default_factory=list)
    real_are: str = ""
    remarks: list[str] = field(default_factory=list)


def kind_of(entry: Mapping[str, Any]) -> str:
    """The image's class in words; nothing where the datalist does not say."""
    for key in ("class", "label"):
        value = entry.get(key)
        if value is not None and not (isinstance(value, str) and images.ending(value)) and not isinstance(value, dict):
            return str(value)
    return str(entry.get("provenance", {}).get("prompt") or "")


def mask_of(entry: Mapping[str, Any]) -> str | None:
    """File of the label mask."""
    names = (entry.get(k) for k in ("label", "mask"))
    return next((n for n in names if isinstance(n, str) and images.ending(n)), None)


def source_of(run: Run, entry: Mapping[str, Any]) -> Path | None:
    """The real image that one was made of."""
    return run.file(str(entry["source"])) if entry.get("source") else None


def source_name(run: Run, path: Path | None) -> str:
    """What the report calls a source: the first digits of its content's SHA-256, by which who has the file finds it."""
    if path is None:
        return ""
    if run.with_paths:
        return str(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else "no longer there"


def may_show(run: Run, entry: Mapping[str, Any]) -> bool:
    """Whether a synthetic picture may be seen by others: the audit cleared the run, and this is none of the closest."""
    if not run.share:
        return True
    sections = run.parts.get("audit", {}).get("sections", {})
    judged = [sections.get(k, {}).get("verdict") for k in ("copies", "reidentification")]
    cleared = judged[0] == "pass" and "fail" not in judged
    near = {run.number(str(p.get("image"))) for p in run.parts.get("audit", {}).get("pairs", [])}
    mine = run.positions[str(run.file(str(entry["image"])).resolve())]
    return cleared and mine not in near


def sheets(run: Run) -> Sheets:
    """Choose and draw the pictures of a run."""
    found = Sheets()
    shown = [e for e in run.entries if may_show(run, e)]
    if run.share:
        found.remarks.append(
            "For sharing: pictures of real patients are left out, and with them what gives them away: differences, "
            "the closest pairs, and all synthetic pictures unless the audit has cleared the run of copies."
        )
    if not shown:
        return found
    first = next((p for p in (perhaps(run.file(str(e["image"]))) for e in shown) if p is not None), None)
    if first is not None and first.volume:
        found.volumes = _volumes(run, shown)
    elif first is not None:
        found.classes, found.real_are = _classes(run, shown)
        found.edits = _edits(run, shown)
    if run.missing:
        found.remarks.append(f"{len(run.missing)} pictures that the datalist names could not be read.")
    return found


def _volumes(run: Run, shown: Sequence[Mapping[str, Any]]) -> list[VolumePair]:
    pairs = []
    for entry in pick(shown, VOLUMES):
        made = _seen(run, entry)
        if made is None:
            continue
        at, source = _number(run, entry), None if run.share else perhaps(source_of(run, entry))
        like = source if source is not None and source.volume else made
        mask = perhaps(run.file(name), True) if (name := mask_of(entry)) else None
        deep = deepest(mask, made)
        cross = (0.5, 0.5, ((deep or 0) + 0.5) / made.values.shape[2])
        packs = [
            packed(v, window(like), alt, cross) if v is not None and v.volume else None
            for v, alt in ((source, f"real volume that number {at} was made of"), (made, f"synthetic volume {at}"))
        ]
        assert packs[1] is not None
        pairs.append(VolumePair(at, _lines(run, entry), packs[0], packs[1]))
    return pairs


def _classes(run: Run, shown: Sequence[Mapping[str, Any]]) -> tuple[list[ClassSheet], str]:
    """Of each class real and synthetic pictures; real ones are those that scores were taken against, else sources."""
    real, who = _real(run)
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for entry in shown:
        by_kind.setdefault(kind_of(entry), []).append(entry)
    found = []
    for kind in sorted(by_kind, key=lambda k: -len(by_kind[k]))[:CLASSES]:
        theirs = [r for r in real if r[0] == kind]
        mine = by_kind[kind]
        made = [p for p in (_made(run, e) for e in pick(mine, PER_CLASS)) if p is not None]
        shown_real = [p for p in (_drawn(*r) for r in _spread(theirs, PER_CLASS)) if p is not None]
        found.append(ClassSheet(run.scrubbed(kind) or "all", shown_real, made, len(theirs), len(mine)))
    return found, who


Real = tuple[str, Path, Path | None]


def _real(run: Run) -> tuple[list[Real], str]:
    """Class, file and mask of real images, and who they are."""
    if run.share:
        return [], ""
    against = run.parts.get("scores", {}).get("real")
    bases = (Path(), run.folder, run.folder.parent)  # paths are from where the scores were taken
    place = next((b / against for b in bases if (b / against).exists()), None) if isinstance(against, str) else None
    if place is not None:
        try:
            items = datalist.read(place)
            known = [("" if i.kind is None else str(i.kind), i.image, i.mask) for i in items]
            return known, "the images that the scores were taken against"
        except DiffAugError:
            pass
    found: dict[Path, Real] = {}
    for entry in run.entries:
        source = source_of(run, entry)
        if source is not None and entry.get("provenance", {}).get("label", kind_of(entry)) == kind_of(entry):
            mask = entry.get("source_mask")
            found.setdefault(source, (kind_of(entry), source, run.file(str(mask)) if mask else None))
    return list(found.values()), "images that synthetic ones were made of" if found else ""


def _spread(items: Sequence[Any], n: int) -> list[Any]:
    return [items[round(i * (len(items) - 1) / max(n - 1, 1))] for i in range(n)] if len(items) > n else list(items)


def _drawn(kind: str, path: Path, mask: Path | None) -> Picture | None:
    plane = perhaps(path)
    if plane is None:
        return None
    return drawn(plane, window(plane), f"real image, {kind}" if kind else "real image", perhaps(mask, True))


def _seen(run: Run, entry: Mapping[str, Any]) -> Plane | None:
    """A synthetic image; one that cannot be read is noted."""
    plane = perhaps(run.file(str(entry["image"])))
    if plane is None and str(entry["image"]) not in run.missing:
        run.missing.append(str(entry["image"]))
    return plane


def _number(run: Run, entry: Mapping[str, Any]) -> int:
    return run.positions[str(run.file(str(entry["image"])).resolve())]


def _made(run: Run, entry: Mapping[str, Any], like: Plane | None = None) -> Picture | None:
    plane = _seen(run, entry)
    if plane is None:
        return None
    name, at = mask_of(entry), _number(run, entry)
    mask = perhaps(run.file(name), True) if name else None
    ends = window(like if like is not None and like.color == plane.color else plane)
    picture = drawn(plane, ends, f"synthetic image {at}", mask, deepest(mask, plane))
    return replace(picture, caption=f"#{at}")


def _edits(run: Run, shown: Sequence[Mapping[str, Any]]) -> list[Edit]:
    """Sources beside results, methods by turns."""
    found = []
    for entry in pick([e for e in shown if "source" in e], EDITS):
        source = None if run.share else perhaps(source_of(run, entry))
        made, plane = _made(run, entry, source), _seen(run, entry)
        if made is None or plane is None:
            continue
        before = change = None
        if source is not None:
            mask = run.file(str(entry["source_mask"])) if entry.get("source_mask") else None
            at, edge = _number(run, entry), perhaps(mask, True)
            before = drawn(source, window(source), f"real image that number {at} was made of", edge)
            change = difference(source, plane, window(source), f"what changed in number {at}")
        method = str(_said(run, entry).get("method", "")).replace("_", " ")
        found.append(Edit(_number(run, entry), method, _lines(run, entry), before, made, change))
    return found


def _said(run: Run, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return run.provenances[_number(run, entry) - 1]


def _lines(run: Run, entry: Mapping[str, Any]) -> list[str]:
    """How an image was made, in a few short lines."""
    said = _said(run, entry)
    lines = [f"class {run.scrubbed(kind)}"] if (kind := kind_of(entry)) else []
    scores = said.get("scores") or {}
    lines += [f"{plain(k).lower()} {brief(v)}" for k, v in list(scores.items())[:3]]
    lines.append(f"seed {said.get('seed', '–')}")
    source = None if run.share else source_of(run, entry)
    return lines + ([f"source {source_name(run, source)}"] if source is not None else [])
