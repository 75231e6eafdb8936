"""DICOM without the patient: the Basic Application Confidentiality Profile (PS3.15 Annex E), and whether it held.

The table of what to do with each attribute is that of the library `dicom-anonymizer`. On top of it: it is applied in
sequences too; UIDs and patient identifiers become keyed hashes, so that references between files still hold; dates are
dropped or moved; text that repeats an identifying value in an attribute that no table lists goes as well; and the bytes
that are to be written are searched for every identifying value of the source before they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from .problems import BadInput, Problem
from .pseudonyms import Pseudonyms

__all__ = ["Policy", "age_of", "deidentified", "identifying", "leaks"]

TABLE = "dicomfields_2026c"
DATES = ("drop", "shift")
METHOD = "monai-diffaug: DICOM PS3.15 Basic Application Confidentiality Profile"
_CODES = {
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "shift": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "characteristics": ("113108", "Retain Patient Characteristics Option"),
}
_CHARACTERISTICS = ("PatientSex", "PatientAge", "PatientSize", "PatientWeight")
_DATED = {"DA", "DT", "TM"}
_TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR", "UI", "AS", "DA", "DT"}
_NAMING = (
    "PatientID",
    "PatientBirthDate",
    "OtherPatientIDs",
    "AccessionNumber",
    "StudyID",
    "InstitutionName",
    "InstitutionAddress",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "MedicalRecordLocator",
    "StationName",
    "DeviceSerialNumber",
    "AdmissionID",
)
_NOBODY = {"anonymized", "anonymous", "unknown", "none", "null", "patient", "19000101", "00010101"}
_DEFINED = {"Modality", "ImageType", "PhotometricInterpretation", "SpecificCharacterSet", "BurnedInAnnotation"}
"""Attributes whose values the standard lists; a name that is one of them by chance takes nothing away."""
_SYNTAXES = "1.2.840.10008."  # of the standard itself: these name formats, not files


@dataclass(frozen=True)
class Policy:
    """What may stay.

    Args:
        dates: ``drop``, or ``shift`` by a number of days that is the patient's own.
        characteristics: age (90 for all that are older), sex, size and weight stay.
    """

    dates: str = "drop"
    characteristics: bool = False


def age_of(text: str) -> int | None:
    """Years from a DICOM age string; 90 for everyone older, since so few are."""
    found = re.fullmatch(r"\s*(\d{1,3})([DWMY])\s*", text)
    if not found:
        return None
    return min(90, int(int(found[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[found[2]]))


def identifying(data: Any) -> set[str]:
    """Values of a data set that point to its patient, as texts of four characters or more (three for names).

    These are names, identifiers, addresses, the date of birth and all UIDs that are the file's own.
    """
    found: set[str] = set()
    for element in data.iterall():
        if element.VR == "PN":
            found |= {part for v in _values(element) for part in re.split(r"[\^=\s,]+", v) if len(part) >= 3}
        elif element.VR == "UI" and not element.keyword.endswith(("ClassUID", "TransferSyntaxUID")):
            found |= {v for v in _values(element) if v and not v.startswith(_SYNTAXES)}
        elif element.keyword in _NAMING:
            found |= {v.strip() for v in _values(element) if len(v.strip()) >= 4}
    return {v for v in found if v.lower() not in _NOBODY}


def _values(element: Any) -> list[str]:
    value = element.value
    if value is None:
        return []
    return [str(v) for v in value] if element.VM > 1 else [str(value)]


def leaks(data: bytes, values: set[str]) -> int:
    """How many of the identifying values occur in bytes that are to be written, in Latin-1, UTF-8 or UTF-16."""
    folded = data.lower()
    return sum(_occurs(v.lower(), folded) for v in values if len(v) >= 5)


def _occurs(value: str, data: bytes) -> bool:
    for form in {value.encode(kind, "ignore") for kind in ("latin-1", "utf-8", "utf-16-le")}:
        at = data.find(form) if form else -1
        while at >= 0:
            around = data[max(0, at - 1) : at] + data[at + len(form) : at + len(form) + 1]
            if not (value.isdigit() and re.search(rb"[\d.]", around)):  # a number within a longer one is another
                return True
            at = data.find(form, at + 1)
    return False


# ------------------------------------------------------------------------------------------------------------- rules


@cache
def _table() -> Mapping[tuple[int, ...], Callable[[Any, Any], None]]:
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    return initialize_actions(TABLE)


def _rules(names: Pseudonyms, policy: Policy, days: int) -> dict[tuple[int, ...], Callable[[Any, Any], None]]:
    """The library's table, with keyed UIDs and with dates as the policy wants them."""
    from pydicom.datadict import tag_for_keyword

    def careful(action: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def act(data: Any, tag: Any) -> None:
            element = data.get(tag)
            if element is not None:
                _act(data, element, action, names, policy, days)

        return act

    rules = {tag: careful(action) for tag, action in _table().items()}
    if policy.characteristics:
        for keyword in _CHARACTERISTICS:
            number = tag_for_keyword(keyword) or 0
            rules.pop((number >> 16, number & 0xFFFF), None)
    return rules


def _act(
    data: Any, element: Any, action: Callable[[Any, Any], None], names: Pseudonyms, policy: Policy, days: int
) -> None:
    """Do what the table says with one attribute, in our way where ours is better."""
    kind = action.__name__
    if element.VR == "UI" and kind != "delete":
        values = [names.uid(v) for v in _values(element) if v]
        element.value = values if len(values) > 1 else "".join(values)
    elif element.VR in _DATED:
        _date(element, policy, days, needed=kind in ("replace", "delete_or_replace"))
    elif element.VR == "SQ" and "UID" in kind:
        pass  # references: their items are gone through one by one
    else:
        try:
            action(data, (element.tag.group, element.tag.element))
        except NotImplementedError:  # numbers in bulk: nothing stands in for them
            del data[element.tag]


def _date(element: Any, policy: Policy, days: int, needed: bool) -> None:
    if policy.dates == "shift":
        moved = [_moved(v, element.VR, days) for v in _values(element)]
        element.value = moved if len(moved) > 1 else moved[0] if moved else ""
    elif needed:
        element.value = {"DA": "19000101", "TM": "000000", "DT": "19000101000000"}[element.VR]
    else:
        element.value = ""


def _moved(value: str, kind: str, days: int) -> str:
    if kind == "TM" or len(value) < 8:
        return value if kind == "TM" else ""
    try:
        date = datetime.strptime(value[:8], "%Y%m%d") + timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{date:%Y%m%d}{value[8:]}"


def _apply(data: Any, rules: Mapping[tuple[int, ...], Callable[[Any, Any], None]]) -> None:
    """The table on a data set and on everything nested in it; only rules for what is there are handed on."""
    from dicomanonymizer import anonymize_dataset

    here = {(e.tag.group, e.tag.element) for e in data}
    # The library restores what its rules name of private attributes; ours name none.
    anonymize_dataset(data, base_rules_gen=lambda: {t: rules[t] for t in here if t in rules})
    for element in list(data):
        repeating = 0x5000 <= element.tag.group <= 0x50FF or 0x6000 <= element.tag.group <= 0x60FF
        if repeating or element.tag.is_private or not element.keyword:  # what no dictionary knows, nobody can clear
            del data[element.tag]
        elif element.VR == "SQ":
            for item in element.value or ():
                _apply(item, rules)


def _swept(data: Any, values: set[str]) -> None:
    """Take away texts that repeat an identifying value, wherever they are."""
    words = re.compile("|".join(rf"(?<![^\W_]){re.escape(v)}(?![^\W_])" for v in sorted(values)) or r"(?!)", re.I)
    _sweep(data, words)


def _sweep(data: Any, words: re.Pattern[str]) -> None:
    for element in list(data):
        if element.VR == "SQ":
            for item in element.value or ():
                _sweep(item, words)
        elif element.VR in _TEXT and element.keyword not in _DEFINED and any(map(words.search, _values(element))):
            element.value = ""


def deidentified(data: Any, names: Pseudonyms, patient: str, policy: Policy, path: Path) -> bytes:
    """A DICOM file without its patient.

    Args:
        data: a pydicom data set, read whole; it is changed.
        names: give the pseudonyms.
        patient: the identifier from which the patient's pseudonym is made.
        policy: what may stay.
        path: of the source, for an error.

    Returns:
        the bytes of the new file.

    Raises:
        BadInput: an identifying value is left somewhere, such as in compressed pixels; nothing should be written then.
    """
    values = identifying(data)
    syntax = data.file_meta.TransferSyntaxUID
    days = names.days(patient)
    _apply(data, _rules(names, policy, days))
    _swept(data, values)
    _signed(data, names.patient(patient), policy)
    if policy.characteristics and data.get("PatientAge"):
        years = age_of(str(data.PatientAge))
        data.PatientAge = "090Y" if years is not None and years >= 90 else data.PatientAge
    _new_head(data, syntax)
    buffer = BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    written = buffer.getvalue()
    # Names of two or three letters occur in any text; what is searched for in the bytes is longer.
    if leaks(written, values):
        text = "an identifying value is left after de-identification (perhaps in its pixels): leave the file out"
        raise BadInput(Problem("identity left", path, text))
    return written


def _signed(data: Any, name: str, policy: Policy) -> None:
    """Say in the file that, and how, it was de-identified."""
    from pydicom import Dataset

    data.PatientID = data.PatientName = name
    data.PatientBirthDate = ""
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = METHOD[:64]
    data.LongitudinalTemporalInformationModified = "MODIFIED" if policy.dates == "shift" else "REMOVED"
    used = ["basic"] + ["shift"] * (policy.dates == "shift") + ["characteristics"] * policy.characteristics
    codes = []
    for key in used:
        code = Dataset()
        code.CodeValue, code.CodeMeaning = _CODES[key][0], _CODES[key][1][:64]
        code.CodingSchemeDesignator = "DCM"
        codes.append(code)
    data.DeidentificationMethodCodeSequence = codes


def _new_head(data: Any, syntax: Any) -> None:
    """A file head of our own: the old one names the machine that wrote it, and its preamble may hold anything."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = data.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    data.file_meta = meta
    data.preamble = b"\0" * 128
