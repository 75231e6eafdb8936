"""What there is to import: a folder of DICOM, of NIfTI, in BIDS or nnU-Net's form, or a DICOMweb server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..types import DiffAugError
from .deidentify import DATES, Policy
from .importing import Found, Imported, Progress, Say, import_all
from .pseudonyms import open_secret
from .splits import parse
from .work import Rules

__all__ = ["intake"]


def intake(
    source: str | Path,
    out: str | Path,
    *,
    usual: Callable[[str], str],
    secret: str | Path | None = None,
    modality: tuple[str, ...] = (),
    split: str = "",
    seed: int = 0,
    dims: int = 0,
    spacing: str = "",
    keep_dicom: bool = False,
    dates: str = "drop",
    characteristics: bool = False,
    allow_burned_in: bool = False,
    patient_pattern: str = "",
    patients: tuple[str, ...] = (),
    compress: bool = True,
    workers: int = 0,
    strict: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Imported:
    """Import a folder or what a DICOMweb server has.

    Args:
        source: a folder, a datalist JSON, or the address of a DICOMweb service.
        out: a new folder, or that of the same import begun before.
        usual: part (``train``, ``validation``, ``test``) of a patient by hash.
        secret: file with the key of the pseudonyms; see :func:`monai_diffaug.io.pseudonyms.open_secret`.
        modality: those wanted; for NIfTI, which does not say it, what it is.
        split: see :func:`monai_diffaug.io.splits.parse`; unless given, the source's own, or by hash.
        seed: of the split.
        dims: see :class:`monai_diffaug.io.work.Rules`.
        spacing: mm, one number or three with commas; empty to leave voxels as they are.
        keep_dicom: see :class:`monai_diffaug.io.work.Rules`.
        dates: ``drop`` or ``shift``, in DICOM copies.
        characteristics: age and sex stay.
        allow_burned_in: take images with writing in them.
        patient_pattern: for NIfTI, finds the patient in a path.
        patients: for DICOMweb, patient identifiers.
        compress: NIfTI with gzip.
        workers: processes.
        strict: stop at the first bad input.
        progress: called with pieces done, pieces in all (0 while files are looked at) and a name.
        say: called with every problem.

    Raises:
        DiffAugError: see :func:`monai_diffaug.io.importing.import_all`.
    """
    if dates not in DATES:
        raise DiffAugError(f"--dates {dates} is not known: give {' or '.join(DATES)}")
    if dims not in (0, 2, 3):
        raise DiffAugError(f"--dims {dims} is not known: give 2 or 3, or leave it out")
    web = str(source).startswith(("http://", "https://"))
    folder = Path(source).expanduser()
    if not web and not folder.exists():
        raise DiffAugError(f"{source} does not exist: give a folder, a datalist JSON or a DICOMweb address")
    if not web and Path(out).expanduser().resolve() == folder.resolve():
        raise DiffAugError(f"{out} is the source itself: give another output folder")
    names = open_secret(secret, out)
    rules = Rules(
        out=Path(out).expanduser(),
        names=names,
        policy=Policy(dates, characteristics),
        dims=dims,
        spacing=_spacing(spacing),
        keep_dicom=keep_dicom,
        allow_burned_in=allow_burned_in,
        compress=compress,
        modality=modality[0].upper() if modality else "",
    )
    divide = parse(split or "hash", seed, usual, names.patient)
    settings = {
        "format": 1,
        "source": names.token(str(source) if web else str(folder.resolve())),
        "modality": sorted(m.upper() for m in modality),
        "dims": dims,
        "spacing": list(rules.spacing),
        "keep_dicom": keep_dicom,
        "dates": dates,
        "characteristics": characteristics,
        "allow_burned_in": allow_burned_in,
        "patients": sorted(names.token(p) for p in patients),
        "patient_pattern": names.token(patient_pattern),
        "compress": compress,
    }
    found = _found(source, folder, web, modality, patients, patient_pattern, progress)
    found.divided = not split  # what the user asks for comes before what the source says
    return import_all(
        found,
        rules,
        divide,
        settings,
        strict=strict,
        workers=workers,
        progress=progress,
        say=say,
    )


def _spacing(text: str) -> tuple[float, ...]:
    if not text:
        return ()
    try:
        numbers = tuple(float(t) for t in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or min(numbers) <= 0:
        raise DiffAugError(f"--spacing {text} is no voxel size: write one number or three, as 1 or 1,1,3")
    return numbers


def _found(
    source: str | Path,
    folder: Path,
    web: bool,
    modality: tuple[str, ...],
    patients: tuple[str, ...],
    pattern: str,
    progress: Progress | None,
) -> Found:
    """What the source holds."""
    if web:
        from .dicomweb import search

        return search(str(source), modality, patients)
    from . import layouts

    layout = layouts.kind_of(folder)
    if layout == "dicom":
        from .dicom_in.scan import scan

        return scan(folder, modality, progress)
    return layouts.cases(folder, layout, pattern)
