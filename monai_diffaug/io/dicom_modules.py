"""What a DICOM object of each kind must say, and what of a source may be said again: technique, never identity.

Written by allow-list: an attribute that is not named here does not leave the source. Standard: DICOM PS3.3, the tables
of the CT (A.3), MR (A.4), CR (A.2), DX (A.26) and Secondary Capture (A.8) objects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

__all__ = ["KINDS", "as_ds", "code", "complete", "kind_of", "repeated"]

KINDS: Mapping[str, str] = {
    "CT": uid.CTImageStorage,
    "MR": uid.MRImageStorage,
    "CR": uid.ComputedRadiographyImageStorage,
    "DX": uid.DigitalXRayImageStorageForPresentation,
}
"""Modalities with an object of their own; all others become secondary captures."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SHARED = _words(
    "BodyPartExamined Laterality PatientPosition SliceThickness SpacingBetweenSlices WindowCenter WindowWidth "
    "LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod"
)
OWN: Mapping[str, tuple[str, ...]] = {
    "CT": _words(
        "KVP ScanOptions DataCollectionDiameter ReconstructionDiameter GantryDetectorTilt ExposureTime "
        "XRayTubeCurrent Exposure FilterType ConvolutionKernel"
    ),
    "MR": _words(
        "ScanningSequence SequenceVariant ScanOptions MRAcquisitionType RepetitionTime EchoTime InversionTime "
        "EchoTrainLength FlipAngle NumberOfAverages ImagedNucleus EchoNumbers MagneticFieldStrength"
    ),
    "CR": _words("ViewPosition PatientOrientation KVP ImagerPixelSpacing"),
    "DX": _words(
        "ViewPosition PatientOrientation KVP ImagerPixelSpacing ImageLaterality DetectorType "
        "PixelIntensityRelationship PixelIntensityRelationshipSign"
    ),
}

FILLED: Mapping[str, Mapping[str, Any]] = {
    "CT": {"KVP": None, "AcquisitionNumber": None, "PatientPosition": "", "RescaleType": "HU"},
    "MR": {
        "ScanningSequence": "RM",  # research mode
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "",
        "RepetitionTime": None,
        "EchoTime": None,
        "EchoTrainLength": None,
        "PatientPosition": "",
    },
    "CR": {"BodyPartExamined": "", "ViewPosition": "", "PatientOrientation": ""},
    "DX": {
        "PresentationIntentType": "FOR PRESENTATION",
        "ImageLaterality": "U",
        "AnatomicRegionSequence": [],
        "PositionerType": "",
        "PatientOrientation": ["L", "F"],  # as films hang
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": -1,
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
        "RescaleType": "US",
        "PresentationLUTShape": "IDENTITY",
        "DetectorType": "",
        "ImagerPixelSpacing": [1, 1],
        "AcquisitionContextSequence": [],
    },
    "SC": {"ConversionType": "SYN", "PatientOrientation": ""},  # SYN: a synthetic image
}
"""What an object of a kind must have and its source did not say."""

UNPAIRED = frozenset(
    _words(
        "SKULL CSPINE TSPINE LSPINE SSPINE TLSPINE COCCYX CHEST ABDOMEN PELVIS HEAD HEART NECK JAW BRAIN LIVER SPINE "
        "WHOLEBODY UTERUS PROSTATE LARYNX HEADNECK"
    )
)
"""Body parts of which there is one, so that laterality may not be said."""

_THIRD = {"CT": ("AXIAL", "LOCALIZER"), "CR": (), "DX": ()}


def kind_of(modality: str) -> str:
    """``CT``, ``MR``, ``CR`` or ``DX``, else ``SC``."""
    return modality if modality in KINDS else "SC"


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def repeated(dataset: Dataset, like: Dataset, kind: str) -> None:
    """Say again what ``like`` says of the technique; values that break the standard are left out."""
    for keyword in (*SHARED, *OWN.get(kind, ())):
        if keyword not in like:
            continue
        try:
            value = _sound(like[keyword].VR, like[keyword].value)
        except ValueError:  # not even readable
            continue
        if value is not None:
            setattr(dataset, keyword, value)
    if kind == "DX":
        _region(dataset, like)


def _region(dataset: Dataset, like: Dataset) -> None:
    """The body part as a code, which a DX image must have where it has a body part at all."""
    item = next(iter(like.get("AnatomicRegionSequence") or ()), Dataset())
    told = [str(item.get(keyword) or "") for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")]
    if all(told) and max(map(len, told[:2])) <= 16 and len(told[2]) <= 64:
        dataset.AnatomicRegionSequence = [code(*told)]
    else:
        dataset.pop("BodyPartExamined", None)


def _sound(vr: str, value: Any) -> Any:
    """A value in its shortest lawful form; ``None`` if there is none."""
    if value is None or value == "":
        return None
    values = list(value) if not isinstance(value, str) and hasattr(value, "__iter__") else [value]
    out: list[Any] = []
    for each in values:
        try:
            if vr == "DS":
                out.append(as_ds(float(each)))
            elif vr in ("IS", "US", "SS"):
                out.append(int(float(each)))
            elif len(str(each)) <= 16 and (vr != "CS" or re.fullmatch(r"[A-Z0-9 _]+", str(each))):
                out.append(str(each))
            else:
                return None
        except (TypeError, ValueError, OverflowError):
            return None
    return out[0] if len(out) == 1 else out


def as_ds(number: float) -> str:
    """A decimal string of at most 16 characters."""
    return format_number_as_ds(float(number)) if number != int(number) else str(int(number))


def complete(dataset: Dataset, kind: str, third: str) -> None:
    """Fill in what an object of this kind must have.

    Args:
        dataset: to be completed.
        kind: of :func:`kind_of`.
        third: what the source's image type says behind original and primary.
    """
    unpaired = dataset.get("BodyPartExamined") in UNPAIRED
    if kind == "DX" or unpaired:
        dataset.pop("Laterality", None)
    else:
        dataset.setdefault("Laterality", "")
    for keyword, value in FILLED[kind].items():
        if keyword not in dataset:
            setattr(dataset, keyword, value)
    if kind == "CT":
        third = third if third in _THIRD["CT"] else "AXIAL"
    elif kind in ("CR", "DX", "SC"):
        third = ""
    else:
        third = third if re.fullmatch(r"[A-Z0-9 _]{1,16}", third) else "OTHER"
    dataset.ImageType = ["DERIVED", "SECONDARY", third] if third or kind == "DX" else ["DERIVED", "SECONDARY"]
