"""The header of a DICOM file, as far as it says which image this is and where its pixels lie."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..problems import BadInput, Problem

__all__ = ["Frame", "files_in", "frames_of", "is_dicom"]

NOT_IMAGES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "ECG", "DOC", "PLAN", "FID"}
DIRECTORY = "1.2.840.10008.1.3.10"
_NATIVE = {"1.2.840.10008.1.2": 8, "1.2.840.10008.1.2.1": 12}
"""Uncompressed little-endian syntaxes, and how long the head of the pixel element is in each."""
_TAGS = {
    "ImageType": 0x00080008,
    "SOPInstanceUID": 0x00080018,
    "AcquisitionTime": 0x00080032,
    "ContentTime": 0x00080033,
    "PatientSex": 0x00100040,
    "PatientAge": 0x00101010,
    "SliceThickness": 0x00180050,
    "EchoTime": 0x00180081,
    "TriggerTime": 0x00181060,
    "ImagerPixelSpacing": 0x00181164,
    "DiffusionBValue": 0x00189087,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "AcquisitionNumber": 0x00200012,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "TemporalPositionIdentifier": 0x00200100,
    "PhotometricInterpretation": 0x00280004,
    "PixelSpacing": 0x00280030,
    "BurnedInAnnotation": 0x00280301,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
}
_TELLERS = (
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "EchoTime",
    "DiffusionBValue",
    "ImageType",
    "TriggerTime",
    "AcquisitionTime",
    "ContentTime",
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One 2D image: a file, or one of the frames in it.

    Attributes:
        index: of the frame in a file of several, else ``None``.
        patient: the hospital's identifier, or the study's where that is empty.
        orientation: direction cosines of rows and columns (6), in DICOM's LPS.
        position: of the first pixel's center, mm.
        spacing: between rows and between columns, mm.
        thickness: of the slice, mm; 1 if unknown.
        tellers: what tells volumes of one series apart (time, echo, b-value, ...), in the order they are tried.
        native: where plain pixels lie in the file, ``(offset, number format)``; ``None`` if a decoder is needed.
        cut: the file ends before its pixels do.
    """

    path: Path
    index: int | None
    sop: str
    series: str
    study: str
    patient: str
    named: bool
    modality: str
    sop_class: str
    syntax: str
    size: tuple[int, int]
    samples: int
    photometric: str
    number: int
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float
    slope: float
    intercept: float
    tellers: tuple[str, ...]
    original: bool
    burned: bool
    native: tuple[int, str] | None
    cut: bool
    age: str
    sex: str

    @property
    def placed(self) -> bool:
        """Whether it is known where in the patient the image lies."""
        return None not in (self.orientation, self.position, self.spacing) and self.samples == 1


def files_in(folder: Path) -> Iterator[Path]:
    """All files of a folder tree, in a fixed order; hidden ones are left out."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(root) / name


def is_dicom(path: Path) -> bool:
    """Whether a file looks like DICOM: by its mark, or, as old files have none, by its first tag."""
    with open(path, "rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    if len(head) < 132:
        return False
    group, element = struct.unpack("<HH", head[:4])
    return (group, element) in {(2, 0), (2, 1), (2, 2), (8, 0), (8, 1), (8, 5), (8, 8), (8, 0x16)} or head[:6] in (
        b"\0\x08\0\x05CS",
        b"\0\x08\0\x08CS",
    )


def frames_of(path: Path) -> list[Frame]:
    """The images in a DICOM file; none if it holds something else, such as a report or a directory.

    Raises:
        BadInput: the file is damaged.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        with open(path, "rb") as file:
            header = dcmread(file, stop_before_pixels=True, force=True)
            start = file.tell()
            size = os.fstat(file.fileno()).st_size
        return _frames(path, header, start, size)
    except BadInput:
        raise
    except (InvalidDicomError, OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, struct.error) as e:
        why = (str(e).splitlines() or [""])[0][:80] if isinstance(e, OSError) else type(e).__name__
        raise BadInput(
            Problem("unreadable", path, f"the DICOM header is damaged ({why}): copy the file again")
        ) from None


def _frames(path: Path, header: Any, start: int, size: int) -> list[Frame]:
    meta = getattr(header, "file_meta", None)
    sop_class = str(header.get("SOPClassUID", "") or (meta or {}).get("MediaStorageSOPClassUID", ""))
    modality = str(header.get("Modality", "") or "").upper()
    if not sop_class and not modality and not header.get("Rows"):
        text = "holds nothing that can be read as DICOM, it is damaged: copy the file again"
        raise BadInput(Problem("unreadable", path, text))
    if sop_class == DIRECTORY or modality in NOT_IMAGES or not header.get("Rows") or not header.get("Columns"):
        return []
    syntax = _syntax(header, meta)
    one = _single(path, header, sop_class, modality, syntax)
    count = int(header.get("NumberOfFrames", 1) or 1)
    native, cut = _pixels(header, syntax, start, size, count)
    one = replace(one, native=native, cut=cut)
    if count == 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return [one]
    step = one.size[0] * one.size[1] * int(header.get("BitsAllocated", 16)) // 8
    frames = []
    for i in range(count):
        there = None if native is None else (native[0] + i * step, native[1])
        frames.append(_of_group(header, replace(one, index=i, number=i + 1, native=there), i))
    return frames


def _syntax(header: Any, meta: Any) -> str:
    told = str((meta or {}).get("TransferSyntaxUID", "") or "")
    if told:
        return told
    if not header.original_encoding[1]:
        return "1.2.840.10008.1.2.2"
    return "1.2.840.10008.1.2" if header.original_encoding[0] else "1.2.840.10008.1.2.1"


def _single(path: Path, header: Any, sop_class: str, modality: str, syntax: str) -> Frame:
    study = _text(header, "StudyInstanceUID") or str(path.parent)
    patient = str(header.get("PatientID", "") or "").strip()
    kind = _text(header, "ImageType").upper().split("\\")
    return Frame(
        path=path,
        index=None,
        sop=_text(header, "SOPInstanceUID") or str(path),
        series=_text(header, "SeriesInstanceUID") or f"{study}/{path.parent}",
        study=study,
        patient=patient or f"study {study}",
        named=bool(patient),
        modality=modality or "OT",
        sop_class=sop_class,
        syntax=syntax,
        size=(int(header.Rows), int(header.Columns)),
        samples=int(header.get("SamplesPerPixel", 1) or 1),
        photometric=_text(header, "PhotometricInterpretation"),
        number=int(float(_text(header, "InstanceNumber") or 0)),
        orientation=_numbers(_listed(header, "ImageOrientationPatient"), 6),
        position=_numbers(_listed(header, "ImagePositionPatient"), 3),
        spacing=_numbers(_listed(header, "PixelSpacing") or _listed(header, "ImagerPixelSpacing"), 2),
        thickness=_or(_text(header, "SliceThickness"), 1.0) or 1.0,
        slope=_or(_text(header, "RescaleSlope"), 1.0),
        intercept=_or(_text(header, "RescaleIntercept"), 0.0),
        tellers=tuple(_text(header, t) for t in _TELLERS),
        original=kind[:2] == ["ORIGINAL", "PRIMARY"],
        burned=_text(header, "BurnedInAnnotation").upper() == "YES" or _overlaid(header),
        native=None,
        cut=False,
        age=_text(header, "PatientAge"),
        sex=_text(header, "PatientSex"),
    )


def _text(header: Any, keyword: str) -> str:
    """A text as the file has it, with backslashes between several: pydicom's checks cost most of the reading time."""
    number = _TAGS[keyword]
    if number not in header:
        return ""
    item = header.get_item(number)
    value = item.value
    if isinstance(value, bytes):
        return "\\".join(part.strip(" \0") for part in value.decode("latin-1").split("\\"))
    if value is None or getattr(item, "VM", 1) > 1:
        return "\\".join(map(str, value or ()))
    return str(value)


def _listed(header: Any, keyword: str) -> list[str]:
    text = _text(header, keyword)
    return text.split("\\") if text else []


def _overlaid(header: Any) -> bool:
    """Old files hide drawings in unused bits of the pixels."""
    at = [(group << 16) + 0x0102 for group in range(0x6000, 0x6020, 2)]
    return any(number in header and bool(header[number].value) for number in at)


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    try:
        found = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        return None
    if len(found) != count or any(v != v or abs(v) == float("inf") for v in found):
        return None
    return None if count == 2 and min(found) <= 0 else found


def _or(value: Any, usual: float) -> float:
    return usual if value is None or value == "" else float(value)


def _pixels(header: Any, syntax: str, start: int, size: int, count: int) -> tuple[tuple[int, str] | None, bool]:
    """Where plain pixels begin, with their number format; and whether the file is too short to hold them all."""
    head = _NATIVE.get(syntax)
    bits, samples = int(header.get("BitsAllocated", 16) or 16), int(header.get("SamplesPerPixel", 1) or 1)
    if head is None or bits not in (8, 16, 32) or "422" in str(header.get("PhotometricInterpretation", "")):
        return None, False
    wanted = int(header.Rows) * int(header.Columns) * samples * count * bits // 8
    if start + head + wanted > size:
        return None, True
    sign = "i" if header.get("PixelRepresentation", 0) else "u"
    return ((start + head, f"<{sign}{bits // 8}") if samples == 1 else None), False


def _of_group(header: Any, frame: Frame, i: int) -> Frame:
    """A frame with what the functional groups of an enhanced file say of it."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    each: Sequence[Any] = header.get("PerFrameFunctionalGroupsSequence") or []
    own = each[i] if i < len(each) else None

    def told(sequence: str, name: str) -> Any:
        for group in (own, shared):
            items = None if group is None else group.get(sequence)
            if items and items[0].get(name) is not None:
                return items[0].get(name)
        return None

    content = [told("FrameContentSequence", n) for n in ("TemporalPositionIndex", "StackID", "FrameAcquisitionNumber")]
    more = [told("MREchoSequence", "EffectiveEchoTime"), told("MRDiffusionSequence", "DiffusionBValue")]
    slope = told("PixelValueTransformationSequence", "RescaleSlope")
    intercept = told("PixelValueTransformationSequence", "RescaleIntercept")
    return replace(
        frame,
        orientation=_numbers(told("PlaneOrientationSequence", "ImageOrientationPatient"), 6) or frame.orientation,
        position=_numbers(told("PlanePositionSequence", "ImagePositionPatient"), 3),
        spacing=_numbers(told("PixelMeasuresSequence", "PixelSpacing"), 2) or frame.spacing,
        thickness=_or(told("PixelMeasuresSequence", "SliceThickness"), frame.thickness) or 1.0,
        slope=_or(slope, frame.slope),
        intercept=_or(intercept, frame.intercept),
        tellers=tuple("" if v is None else str(v) for v in (*content, *more)),
    )
