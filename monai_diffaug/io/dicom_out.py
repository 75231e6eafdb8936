"""A synthetic image as a derived DICOM series: new identity, the source's technique and geometry, and how it was made.

Who reads a slice on a viewer sees SYNTHETIC in the patient's name, the series' description and the comments. Software
sees the image type DERIVED, SECONDARY, the synthesizing equipment and, as JSON in a private element, all that is needed
to make the image again. Synthetic Data = YES (0008,001C) is written if asked for: validators older than that attribute
call it an error. UIDs follow from content and record: the same image made twice is the same DICOM object, another one
never is. No date is written, since nothing was acquired.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filewriter import dcmwrite

from ..types import DiffAugError
from . import sidecar
from .atomic import write_bytes, write_folder
from .dicom_modules import KINDS, as_ds, code, complete, kind_of, repeated

__all__ = ["CREATOR", "GROUP", "encoded", "said_in", "uid_of", "write_series"]

CREATOR, GROUP = "MONAI-DIFFAUG", 0x0099
"""Where the JSON record lies: private creator and group."""

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # between NIfTI's world axes and DICOM's
SKEW = 1e-3  # cosines farther from a right angle cannot be said in DICOM


@dataclass(frozen=True)
class _Grid:
    """Where each slice lies: (N, 3) positions in mm, six direction cosines, mm between rows and between columns."""

    positions: np.ndarray
    cosines: np.ndarray
    spacing: tuple[float, float]
    gap: float


@dataclass(frozen=True)
class _Stored:
    """Numbers as they go into the file, and what they mean: ``values = slope * numbers + intercept``."""

    numbers: np.ndarray
    bits: int
    slope: float = 1.0
    intercept: float = 0.0


def write_series(
    out: str | Path,
    pixels: np.ndarray,
    *,
    record: Mapping[str, Any],
    like: Sequence[Dataset] = (),
    affine: np.ndarray | None = None,
    modality: str | None = None,
    burned_in: bool = False,
    refer: bool = False,
    flag: bool = False,
) -> list[Path]:
    """Write an image as a DICOM series of its own, in a study and of a patient of its own.

    Args:
        out: a file ``NAME.dcm`` for one slice, else a folder, which is there whole or not at all.
        pixels: (rows, columns), (slices, rows, columns) or, in color, (rows, columns, 3), in the modality's units (HU).
        record: how it was made (:class:`monai_diffaug.provenance.Record` as a mapping); its source is not written.
        like: the source's datasets, one for each slice or one for all: technique, number format and, without
            ``affine``, geometry are theirs. Nothing else of them is written.
        affine: (4, 4) from (column, row, slice) to RAS+ millimeters, as NIfTI has it.
        modality: such as ``CT``; the source's, or ``OT``, unless given. What is not CT, MR, CR or DX, and a CT
            or MR image without geometry, becomes a secondary capture.
        burned_in: draw the word SYNTHETIC into a corner.
        refer: name the source's SOP instances in the Source Image Sequence, which ties the image to the patient.
        flag: write Synthetic Data (0008,001C), which the standard has since 2023.

    Returns:
        the files, in the order of the slices.

    Raises:
        DiffAugError: the geometry or the values cannot be said in DICOM, or the files cannot be written.
    """
    out = Path(out)
    files = encoded(
        pixels,
        record=record,
        like=like,
        affine=affine,
        modality=modality,
        burned_in=burned_in,
        refer=refer,
        flag=flag,
    )
    if out.suffix.lower() == ".dcm":
        if len(files) > 1:
            raise DiffAugError(f"{out}: {len(files)} slices do not go into one file: give a folder")
        write_bytes(out, files[0])
        return [out]
    names = [f"{i:04d}.dcm" for i in range(1, len(files) + 1)]
    write_folder(out, dict(zip(names, files, strict=True)))
    return [out / name for name in names]


def encoded(
    pixels: np.ndarray,
    *,
    record: Mapping[str, Any],
    like: Sequence[Dataset] = (),
    affine: np.ndarray | None = None,
    modality: str | None = None,
    burned_in: bool = False,
    refer: bool = False,
    flag: bool = False,
) -> list[bytes]:
    """The files of :func:`write_series`, not written yet."""
    pixels = np.asarray(pixels)
    colored = not like and affine is None and pixels.ndim == 3 and pixels.shape[-1] == 3
    color = colored or (bool(like) and like[0].get("SamplesPerPixel") == 3)
    slices = pixels[None] if color or pixels.ndim == 2 else pixels
    if slices.ndim != (4 if color else 3) or not slices.size or not np.isfinite(slices).all():
        raise DiffAugError(f"{pixels.shape} numbers are no slices: give finite (slices, rows, columns)")
    if len(like) not in (0, 1, len(slices)):
        raise DiffAugError(f"the source has {len(like)} slices, the image {len(slices)}: give one for each, or one")
    name = str(modality or (like[0].get("Modality", "OT") if like else "OT")).upper()
    kind = "SC" if color else kind_of(name)
    grid = _grid_of(slices, like, affine)
    if grid is None and kind in ("CT", "MR"):
        kind = "SC"  # those two must lie somewhere in a patient
    sources = [like[0]] * len(slices) if len(like) == 1 else list(like) or [None] * len(slices)
    stored = _stored(slices, sources, kind, color)
    key = hashlib.sha256(sidecar.inside(record).encode())
    for each in stored:
        key.update(each.numbers.tobytes())
    key.update(repr(None if grid is None else grid.positions.round(4).tolist()).encode())
    entropy = key.hexdigest()
    out = []
    for i, (source, numbers) in enumerate(zip(sources, stored, strict=True)):
        dataset = _headed(entropy, i, name, record)
        if source is not None:
            repeated(dataset, source, kind)
            if refer:
                dataset.SourceImageSequence = [_reference(source)]
        _placed(dataset, kind, grid, i, entropy, source)
        _filled(dataset, _burned(numbers) if burned_in else numbers, kind, color, burned_in)
        if flag:
            dataset.SyntheticData = "YES"
        complete(dataset, kind, _third(source))
        dataset.SOPClassUID = KINDS.get(kind, uid.SecondaryCaptureImageStorage)
        out.append(_file(dataset))
    return out


# ---------------------------------------------------------------------------------------------------------- geometry


def _grid_of(slices: np.ndarray, like: Sequence[Dataset], affine: np.ndarray | None) -> _Grid | None:
    """From the affine, else from the source's slices; ``None`` for a film without position."""
    n = len(slices)
    if affine is not None:
        return _from_affine(np.asarray(affine, float), n)
    known = [d for d in like if "ImagePositionPatient" in d and "ImageOrientationPatient" in d]
    if len(known) != n:
        if n > 1:
            raise DiffAugError("several slices have no position in space: give an affine, or the source's datasets")
        return None
    positions = np.array([[float(v) for v in d.ImagePositionPatient] for d in known])
    cosines = np.array([float(v) for v in known[0].ImageOrientationPatient])
    spacing = [float(v) for v in known[0].get("PixelSpacing", (1.0, 1.0))]
    gap = float(np.linalg.norm(positions[1] - positions[0])) if n > 1 else _thickness(known[0])
    return _Grid(positions, cosines, (spacing[0], spacing[1]), gap)


def _thickness(dataset: Dataset) -> float:
    return float(dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness") or 1.0)


def _from_affine(affine: np.ndarray, n: int) -> _Grid:
    lps = LPS @ affine
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths < 1e-6).any():
        raise DiffAugError("the affine is singular: give one with three independent axes")
    axes = lps[:3, :3] / lengths
    normal = np.cross(axes[:, 0], axes[:, 1])
    if abs(axes[:, 0] @ axes[:, 1]) > SKEW or abs(abs(axes[:, 2] @ normal) - 1) > SKEW:
        raise DiffAugError("the affine is sheared, which DICOM cannot say: resample the image to right angles")
    positions = lps[:3, 3] + np.arange(n)[:, None] * lps[:3, 2]
    spacing = (float(lengths[1]), float(lengths[0]))
    return _Grid(positions, axes[:, :2].T.ravel(), spacing, float(lengths[2]))


def _placed(dataset: Dataset, kind: str, grid: _Grid | None, i: int, entropy: str, source: Dataset | None) -> None:
    if grid is None:
        spacing = None if source is None else source.get("PixelSpacing")
        if spacing is not None:
            dataset.PixelSpacing = [as_ds(float(v)) for v in spacing]
        for keyword in ("PatientPosition", "SliceThickness", "SpacingBetweenSlices"):
            dataset.pop(keyword, None)
        return
    dataset.FrameOfReferenceUID = uid_of(entropy, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.PixelSpacing = [as_ds(round(v, 8)) for v in grid.spacing]
    if kind in ("CR", "DX"):  # a projection has no plane in the patient
        del dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator
        dataset.setdefault("ImagerPixelSpacing", dataset.PixelSpacing)
        return
    dataset.ImagePositionPatient = [as_ds(round(float(v), 6)) for v in grid.positions[i]]
    dataset.ImageOrientationPatient = [as_ds(round(float(v), 9)) for v in grid.cosines]
    normal = np.cross(grid.cosines[:3], grid.cosines[3:])
    dataset.SliceLocation = as_ds(round(float(grid.positions[i] @ normal), 4))
    if "SliceThickness" not in dataset:
        dataset.SliceThickness = as_ds(round(grid.gap, 6))
    dataset.pop("SpacingBetweenSlices", None)
    if kind == "MR" and len(grid.positions) > 1:
        dataset.SpacingBetweenSlices = as_ds(round(grid.gap, 6))


# ------------------------------------------------------------------------------------------------------------ values


def _stored(slices: np.ndarray, sources: Sequence[Dataset | None], kind: str, color: bool) -> list[_Stored]:
    """The source's number format where there is one, else 16 bits and the scale that loses least."""
    if color:
        return [_Stored(np.clip(np.rint(s), 0, 255).astype(np.uint8), 8) for s in slices]
    if all(s is not None and "BitsStored" in s for s in sources):
        return [_as_source(values, source) for values, source in zip(slices, sources, strict=True)]
    low, high = float(slices.min()), float(slices.max())
    if slices.dtype == np.uint8 and kind == "SC":
        return [_Stored(s, 8) for s in slices]
    whole = kind == "CT" or bool((slices == np.rint(slices)).all())
    if kind == "DX" and not (whole and low >= 0):
        raise DiffAugError("a DX image holds whole numbers from 0: scale the values to 0 ... 4095, or choose CR")
    slope, intercept = 1.0, float(np.floor(min(-1024.0 if kind == "CT" else 0.0, low)))
    if not whole or np.rint(high) - intercept > 65535:
        slope, intercept = float(as_ds((high - low) / 65535)) or 1.0, float(as_ds(low))
    numbers = np.clip(np.rint((slices.astype(np.float64) - intercept) / slope), 0, 65535).astype(np.uint16)
    return [_Stored(s, 16, slope, intercept) for s in numbers]


def _as_source(values: np.ndarray, source: Dataset) -> _Stored:
    slope, intercept = float(source.get("RescaleSlope", 1) or 1), float(source.get("RescaleIntercept", 0) or 0)
    bits, signed = int(source.BitsStored), bool(source.get("PixelRepresentation", 0))
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    formats = {(8, False): np.uint8, (8, True): np.int8, (16, False): np.uint16, (16, True): np.int16}
    dtype = formats.get((8 if bits <= 8 else 16, signed), np.uint16)
    numbers = np.clip(np.rint((values.astype(np.float64) - intercept) / slope), low, high)
    return _Stored(numbers.astype(dtype), bits, slope, intercept)


def _burned(stored: _Stored) -> _Stored:
    """The word SYNTHETIC in the lower left corner, white on black, an eighth of the width or legible."""
    from PIL import Image, ImageDraw, ImageFont

    numbers = stored.numbers.copy()
    rows, columns = numbers.shape[:2]
    font = ImageFont.load_default(max(8, columns // 24))
    word = Image.new("L", (columns, rows))
    pen = ImageDraw.Draw(word)
    left, top, right, bottom = (int(v) for v in pen.textbbox((0, 0), "SYNTHETIC", font=font))
    corner = (2, max(0, rows - bottom - 3))
    pen.text(corner, "SYNTHETIC", fill=255, font=font)
    box = np.s_[corner[1] + top : corner[1] + bottom + 1, corner[0] + left : corner[0] + right + 1]
    numbers[box] = stored.numbers.min()
    numbers[np.asarray(word) > 127] = stored.numbers.max()
    return _Stored(numbers, stored.bits, stored.slope, stored.intercept)


def _filled(dataset: Dataset, stored: _Stored, kind: str, color: bool, burned_in: bool) -> None:
    numbers = np.ascontiguousarray(stored.numbers)
    dataset.Rows, dataset.Columns = numbers.shape[:2]
    dataset.SamplesPerPixel = 3 if color else 1
    dataset.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = numbers.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit = stored.bits, stored.bits - 1
    dataset.PixelRepresentation = int(numbers.dtype.kind == "i")
    dataset.BurnedInAnnotation = "YES" if burned_in else "NO"
    dataset.setdefault("LossyImageCompression", "00")
    if kind != "DX" and (kind == "CT" or stored.slope != 1 or stored.intercept != 0):
        dataset.RescaleSlope, dataset.RescaleIntercept = as_ds(stored.slope), as_ds(stored.intercept)
        dataset.RescaleType = "HU" if kind == "CT" else "US"
    if color:
        dataset.pop("WindowCenter", None)
        dataset.pop("WindowWidth", None)
    elif "WindowCenter" not in dataset or "WindowWidth" not in dataset:
        _window(dataset, stored, kind)
    data = numbers.tobytes()
    dataset.add_new("PixelData", "OB" if numbers.dtype.itemsize == 1 else "OW", data + b"\0" * (len(data) % 2))


def _window(dataset: Dataset, stored: _Stored, kind: str) -> None:
    """Soft tissue for CT, else all but the outermost values of this slice."""
    if kind == "CT":
        dataset.WindowCenter, dataset.WindowWidth = "40", "400"
        return
    low, high = (float(v) * stored.slope + stored.intercept for v in np.percentile(stored.numbers, (0.5, 99.5)))
    dataset.WindowCenter, dataset.WindowWidth = as_ds(round((low + high) / 2, 6)), as_ds(round(max(high - low, 1), 6))


# ----------------------------------------------------------------------------------------------------------- identity


def uid_of(entropy: str, *what: object) -> str:
    """A UID of the UUID-derived kind (PS3.5 B.2) that follows from content."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(31).join([entropy, *map(str, what)])).int}"


def _headed(entropy: str, i: int, modality: str, record: Mapping[str, Any]) -> Dataset:
    """Patient, study, series, equipment and derivation."""
    said = sidecar.about(record)
    version = f"monai-diffaug {said['versions'].get('monai-diffaug', '')}".strip()
    text, number = sidecar.sentence(record), entropy[:10].upper()
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 192"
    d.SOPInstanceUID = uid_of(entropy, "instance", i)
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = f"SYNTHETIC^{number}", f"SYNTHETIC-{number}", "", ""
    d.PatientIdentityRemoved, d.DeidentificationMethod = "YES", "Synthetic image: nothing of a patient's was copied"
    d.StudyInstanceUID, d.StudyID, d.AccessionNumber = uid_of(entropy, "study"), "SYNTHETIC", ""
    d.StudyDate, d.StudyTime, d.ReferringPhysicianName = "", "", ""
    d.StudyDescription = "SYNTHETIC images, not for diagnosis"
    d.SeriesInstanceUID, d.SeriesNumber, d.Modality = uid_of(entropy, "series"), 1, modality
    d.SeriesDescription = f"SYNTHETIC {record.get('method', '')} {Path(str(record.get('backbone', ''))).name}"[
        :64
    ].strip()
    d.Manufacturer, d.ManufacturerModelName, d.SoftwareVersions = "monai-diffaug", "monai-diffaug", version
    d.InstanceNumber, d.ContentDate, d.ContentTime = i + 1, "", ""
    d.ImageComments, d.DerivationDescription = text[:10240], text[:1024]
    d.DerivationCodeSequence = [code("123110", "DCM", "Artificial Intelligence")]
    d.ContributingEquipmentSequence = [_equipment(said, version, text)]
    d.private_block(GROUP, CREATOR, create=True).add_new(0x01, "UT", sidecar.inside(record))
    return d


def _equipment(said: Mapping[str, Any], version: str, text: str) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code("109100", "DCM", "Synthesizing Equipment")]
    item.Manufacturer, item.SoftwareVersions = "monai-diffaug", version
    item.ManufacturerModelName = Path(str(said.get("backbone", "monai-diffaug"))).name[:64]
    item.DeviceSerialNumber = str(said.get("backbone_digest", ""))[:64]  # a network's number is its digest
    item.ContributionDescription = text[:1024]
    return item


def _third(source: Dataset | None) -> str:
    values = [] if source is None else list(source.get("ImageType") or ())
    return str(values[2]) if len(values) > 2 else ""


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [code("121322", "DCM", "Source image for image processing operation")]
    return item


def _file(dataset: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta = meta
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def said_in(path: str | Path) -> str:
    """The JSON record in a DICOM file, or in the first file of a folder; nothing if there is none."""
    path = Path(path)
    if path.is_dir():
        path = next((p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith(".")), path)
    try:
        dataset = dcmread(path, stop_before_pixels=True)
        return str(dataset.private_block(GROUP, CREATOR)[0x01].value)
    except (InvalidDicomError, KeyError, OSError):
        return ""
