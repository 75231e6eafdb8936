"""Which layout a folder has, and the cases in it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...types import DiffAugError
from .. import datalist, images
from ..deidentify import age_of
from ..importing import Found
from ..problems import Problem
from ..splits import REST
from .case import Case

__all__ = ["cases", "kind_of"]

_MODALITIES = {"anat": "MR", "ct": "CT", "pet": "PT"}
_PARTS = {"training": "train", "validation": "validation", "test": "test", "testing": "test"}


def kind_of(folder: Path) -> str:
    """``datalist``, ``nnunet``, ``bids``, ``dicom`` or ``nifti``.

    Raises:
        DiffAugError: there is nothing that can be imported.
    """
    if folder.is_file():
        if folder.suffix.lower() == ".json":
            return "datalist"
        raise DiffAugError(f"{folder} is a single file: give its folder, or a datalist JSON")
    if (folder / "imagesTr").is_dir() and (folder / "dataset.json").is_file():
        return "nnunet"
    if (folder / "dataset_description.json").is_file() or (folder / "participants.tsv").is_file():
        return "bids"
    if any((folder / name).is_file() for name in datalist.LISTS):
        return "datalist"
    from ..dicom_in.headers import files_in

    files = list(files_in(folder))
    if any(map(_is_dicom, [p for p in files if images.ending(p) in ("", ".dcm")])):
        return "dicom"
    if not any(images.ending(p) not in ("", ".dcm") for p in files):
        raise DiffAugError(f"{folder} holds neither DICOM nor NIfTI, PNG or JPEG files: give another folder")
    return "nifti"


def _is_dicom(path: Path) -> bool:
    from ..dicom_in.headers import is_dicom

    try:
        return is_dicom(path)
    except OSError:
        return False


def cases(folder: Path, kind: str, pattern: str = "") -> Found:
    """The cases of a folder.

    Args:
        folder: of a layout that :func:`kind_of` told, other than DICOM.
        kind: which.
        pattern: regular expression whose first group is the patient in a file's path; each layout has its own way
            unless given.

    Raises:
        DiffAugError: the pattern is wrong or does not fit, or the layout is damaged.
    """
    try:
        finder = re.compile(pattern)
    except re.error as error:
        raise DiffAugError(f"--patient-pattern {pattern} is no regular expression ({error}): correct it") from None
    if pattern and not finder.groups:
        raise DiffAugError(f"--patient-pattern {pattern} has no group: put the part that is the patient in brackets")
    root = folder if folder.is_dir() else folder.parent
    head: dict[str, Any] = {}
    problems: list[Problem] = []
    works = list({"nnunet": _nnunet, "bids": _bids, "datalist": _listed, "nifti": _plain}[kind](folder, head, problems))
    if pattern:
        works = [_renamed(case, finder, root, pattern) for case in works]
    elif len(works) > 1 and len({c.patient for c in works}) == len(works) and kind in ("nifti", "nnunet"):
        text = "each case counts as a patient of its own: --patient-pattern tells which belong together"
        problems.append(Problem("each file a patient", folder, text, lost=False))
    works.sort(key=lambda c: (c.patient, c.key))
    files = sum(len(c.paths) + (c.mask is not None) for c in works)
    return Found(works, len(works), files, problems=problems, head=head)


def _renamed(case: Case, finder: re.Pattern[str], root: Path, pattern: str) -> Case:
    from dataclasses import replace

    text = case.place.relative_to(root).as_posix() if case.place.is_relative_to(root) else case.place.as_posix()
    found = finder.search(text)
    if found is None or not found[1]:
        raise DiffAugError(f"--patient-pattern {pattern} finds no patient in {text}: correct it")
    return replace(case, patient=found[1])


# ----------------------------------------------------------------------------------------------------------- nnU-Net


def _nnunet(folder: Path, head: dict[str, Any], problems: list[Problem]) -> Iterator[Case]:
    try:
        about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        channels, end = about.get("channel_names") or about["modality"], str(about.get("file_ending", ".nii.gz"))
    except (OSError, ValueError, KeyError, AttributeError):
        raise DiffAugError(f"{folder / 'dataset.json'} is no description of nnU-Net's: repair it") from None
    head["labels"] = about.get("labels", {})
    head["channel_names"] = channels
    first = str(next(iter(channels.values()), "")).upper()
    modality = first if first in ("CT", "PT", "US", "CR", "DX") else "MR" if "MR" in first or first[:1] == "T" else ""
    held = any((folder / "imagesTs").glob(f"*{end}"))
    for part, where in ((REST if held else "", "Tr"), ("test", "Ts")):
        groups: dict[str, list[Path]] = {}
        for path in sorted((folder / f"images{where}").glob(f"*{end}")):
            stem = path.name[: -len(end)]
            groups.setdefault(stem[:-5] if re.search(r"_\d{4}$", stem) else stem, []).append(path)
        for name, paths in groups.items():
            if len(paths) != len(channels) and end != ".png":
                text = f"has {len(paths)} of {len(channels)} channels: add the others (_0000, _0001, ...)"
                problems.append(Problem("channel missing", paths[0], text))
                continue
            mask: Path | None = folder / f"labels{where}" / f"{name}{end}"
            if mask is not None and not mask.is_file():
                mask = None
                if part != "test":
                    problems.append(
                        Problem("no mask", paths[0], "has no mask in labelsTr: imported without", lost=False)
                    )
            yield Case(tuple(paths), name, name, mask, part, modality)


# -------------------------------------------------------------------------------------------------------------- BIDS


def _bids(folder: Path, head: dict[str, Any], problems: list[Problem]) -> Iterator[Case]:
    people = _participants(folder / "participants.tsv")
    masks = [p for p in sorted(folder.glob("derivatives/**/*.nii*")) if re.search(r"_(dseg|mask|label)\.nii", p.name)]
    for path in sorted(folder.glob("sub-*/**/*.nii*")):
        subject, kind = path.relative_to(folder).parts[0], path.parent.name
        if kind not in _MODALITIES:
            continue
        stem = datalist.stem_of(path.name)
        suffix = stem.rsplit("_", 1)[-1]
        person = people.get(subject, {})
        word = person.get("split", "").strip().lower()
        mask = _mask_of(stem, suffix, masks)
        fields = {"sequence": suffix} if kind == "anat" else {}
        personal: dict[str, Any] = {}
        years = person.get("age", "").strip()
        if years.replace(".", "", 1).isdigit():
            personal["age"] = min(90, int(float(years)))
        elif age_of(years) is not None:
            personal["age"] = age_of(years)
        if person.get("sex", "").strip().upper()[:1] in ("F", "M", "O"):
            personal["sex"] = person["sex"].strip().upper()[:1]
        part = _PARTS.get(word, word if word in _PARTS.values() else "")
        yield Case((path,), subject, stem, mask, part, _MODALITIES[kind], "label", fields, personal)


def _mask_of(stem: str, suffix: str, masks: list[Path]) -> Path | None:
    """The mask whose name goes on where the image's ends, be it with or without the image's suffix."""
    start = stem.removesuffix(suffix)
    found = [m for m in masks if m.name.startswith(start)]
    named = [m for m in found if suffix in m.name]
    return next(iter(named or found), None)


def _participants(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise DiffAugError(f"{path} cannot be read as a table with tabs: repair it") from None
    parts: dict[str, dict[str, str]] = {}
    for row in rows:
        who = str(row.get("participant_id") or "")
        clean = {k: str(v or "") for k, v in row.items() if k}
        before = parts.setdefault(who, clean)
        if before.get("split") != clean.get("split"):
            raise DiffAugError(f"{path} has {who} in two parts: keep one of them")
    return parts


# ----------------------------------------------------------------------------------------- datalists and plain folders


def _listed(folder: Path, head: dict[str, Any], problems: list[Problem]) -> Iterator[Case]:
    sections = datalist.sections(folder)
    for section in [s for s in sections if s in _PARTS] or sections:
        for item in datalist.read(folder, section=section):
            patient = str(item.fields.get("patient") or datalist.stem_of(item.id))
            part = _PARTS.get(section, "") if len(sections) > 1 else str(item.fields.get("split", ""))
            fields = {} if item.kind is None else {item.kind_key: item.kind}
            personal = {k: item.fields[k] for k in ("age", "sex") if k in item.fields}
            modality = str(item.fields.get("modality", ""))
            yield Case((item.image,), patient, item.id, item.mask, part, modality, item.mask_key, fields, personal)
    head["licence"] = datalist.license_of(folder)


def _plain(folder: Path, head: dict[str, Any], problems: list[Problem]) -> Iterator[Case]:
    """Files; a patient is the folder in which they lie, if they do, else the file."""
    items = datalist.read(folder)
    for item in items:
        parts = Path(item.id.split("#")[0]).parts
        inside = parts[1:] if parts[0] in ("images", "imagesTr") else parts
        patient = inside[0] if len(inside) > 1 else datalist.stem_of(inside[0]).removesuffix("_0000")
        yield Case((item.image,), patient, item.id, item.mask, "", "", item.mask_key)
