"""The Brain Imaging Data Structure, 1.10: real images as raw data, synthetic ones as a derivative, masks beside them.

sub-X/anat/sub-X_T1w.nii.gz
derivatives/labels/sub-X/anat/sub-X_T1w_dseg.nii.gz
derivatives/monai-diffaug/sub-X/anat/sub-X_rec-synthetic_run-1_T1w.nii.gz, its JSON, its mask
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from ...types import DiffAugError
from .. import datalist
from ..datalist import Item
from ..problems import BadInput
from .writing import Ready, Sink, read_item

__all__ = ["write_bids"]

VERSION = "1.10.0"
_STANDARD = {"T1w", "T2w", "PDw", "FLAIR", "T2starw", "inplaneT1", "inplaneT2", "angio", "T1map", "T2map"}
_FOLDERS = {"CT": "ct", "PT": "pet"}


def write_bids(items: Sequence[Item], sink: Sink, head: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Write a data set.

    Args:
        items: real and synthetic volumes.
        sink: where.
        head: ``licence`` where it is known.
        say: called with a line for each item that is left out.

    Raises:
        DiffAugError: there is no NIfTI volume among the items.
    """
    people: dict[str, dict[str, Any]] = {}
    runs: Counter[tuple[str, str, bool]] = Counter()
    odd: set[str] = set()
    for item, name in zip(items, datalist.names(items)):
        try:
            ready = read_item(item, name)
        except BadInput as error:
            say(str(error))
            continue
        if ready.affine is None:
            say(f"{item.image}: is a picture, and BIDS takes NIfTI: left out")
            continue
        subject = re.sub(r"[^A-Za-z0-9]+", "", str(item.fields.get("patient") or ready.patient)) or "1"
        people.setdefault(subject, {k: item.fields.get(k) for k in ("age", "sex")})
        folder, suffix = _kind(item)
        if suffix not in _STANDARD and suffix != "pet":
            odd.add(folder if folder == "ct" else f"**/*_{suffix}.nii.gz")
        runs[subject, suffix, ready.synthetic] += 1
        _one(ready, sink, subject, folder, suffix, runs[subject, suffix, ready.synthetic])
    if not people:
        raise DiffAugError("there is no NIfTI volume, which BIDS needs: give --format nnunet or datalist")
    _about(sink, head, people, sorted(odd))


def _kind(item: Item) -> tuple[str, str]:
    """Folder and suffix; where the sequence is not known, one that BIDS does not know, which is then listed as such."""
    modality = str(item.fields.get("modality") or "").upper()
    if modality in _FOLDERS:
        return _FOLDERS[modality], _FOLDERS[modality]
    sequence = re.sub(r"[^A-Za-z0-9]+", "", str(item.fields.get("sequence") or ""))
    return "anat", next((s for s in _STANDARD if s.lower() in (sequence.lower(), f"{sequence.lower()}w")), "image")


def _one(ready: Ready, sink: Sink, subject: str, folder: str, suffix: str, run: int) -> None:
    import numpy as np

    made = "rec-synthetic_" if ready.synthetic else ""
    stem = f"sub-{subject}_{made}run-{run}"
    where = f"sub-{subject}/{folder}"
    root = f"derivatives/monai-diffaug/{where}" if ready.synthetic else where
    voxels = ready.channels[0] if len(ready.channels) == 1 else np.stack(ready.channels, -1)
    sink.file(f"{root}/{stem}_{suffix}.nii.gz", ready.encoded(voxels))
    told: dict[str, Any] = {"Modality": str(ready.item.fields.get("modality") or "n/a")}
    if ready.synthetic:
        told |= {"Synthetic": True, "Provenance": ready.item.fields.get("provenance", {})}
    if ready.item.kind is not None:
        told["Label"] = ready.item.kind
    sink.json(f"{root}/{stem}_{suffix}.json", told)
    if ready.mask is not None:
        base = root if ready.synthetic else f"derivatives/labels/{where}"
        sink.file(f"{base}/{stem}_desc-{suffix}_dseg.nii.gz", ready.encoded(ready.mask))


def _about(sink: Sink, head: Mapping[str, Any], people: Mapping[str, Mapping[str, Any]], odd: Sequence[str]) -> None:
    by = {"Name": "monai-diffaug", "Version": metadata.version("monai-diffaug")}
    shared = {"BIDSVersion": VERSION, "License": str(head.get("licence") or "unknown"), "GeneratedBy": [by]}
    sink.json("dataset_description.json", {"Name": "Real images", "DatasetType": "raw", **shared})
    for name, title in (("monai-diffaug", "Synthetic images and their masks"), ("labels", "Masks of real images")):
        if (sink.root / "derivatives" / name).is_dir():
            told = {"Name": title, "DatasetType": "derivative", **shared}
            sink.json(f"derivatives/{name}/dataset_description.json", told)
    columns = [k for k in ("age", "sex") if any(p.get(k) is not None for p in people.values())]
    rows = ["\t".join(["participant_id", *columns])]
    for subject in sorted(people):
        cells = [str(people[subject].get(k)) if people[subject].get(k) is not None else "n/a" for k in columns]
        rows.append("\t".join([f"sub-{subject}", *cells]))
    sink.file("participants.tsv", ("\n".join(rows) + "\n").encode())
    known: dict[str, Any] = {"age": {"Description": "years", "Units": "year"}, "sex": {"Description": "sex"}}
    sink.json("participants.json", {k: known[k] for k in columns} or {"participant_id": {"Description": "pseudonym"}})
    sink.file("README", b"Real images as raw data; synthetic ones in derivatives/monai-diffaug, each with its JSON.\n")
    if odd:
        sink.file(".bidsignore", ("\n".join(odd) + "\n").encode())
