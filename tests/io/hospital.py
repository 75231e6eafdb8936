"""DICOM files such as hospitals have: series of real slices under a patient's name, and what can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import monai_diffaug

BRAINS = Path(monai_diffaug.__file__).parent / "data" / "brain_mri" / "images"
CT, MR, CR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.1"

PERSON = {
    "PatientName": "Featherstone^Wilhelmina^Q",
    "PatientID": "HOSP-4711-88",
    "PatientBirthDate": "19430817",
    "OtherPatientIDs": "OLDID-55512",
    "ReferringPhysicianName": "Quackenbush^Theo",
    "InstitutionName": "St. Elsewhere General",
    "AccessionNumber": "ACC-900001",
    "StationName": "SCANNER07X",
    "PatientAddress": "12 Nowhere Lane",
    "StudyDate": "20190305",
    "StudyDescription": "Head of Featherstone",
    "PatientComments": "is called Minnie",
}


def brain(count: int = 8, size: int = 64) -> np.ndarray:
    """Real slices (count, size, size), int16, 0 to 2550."""
    files = sorted(BRAINS.glob("*.png"))
    planes = [np.asarray(Image.open(f).convert("L").resize((size, size))) for f in files]
    return np.stack([planes[i % len(planes)].astype(np.int16) * 10 + i for i in range(count)])


def slice_of(
    pixels, *, sop_class=MR, modality="MR", study="", series="", position=(0, 0, 0), number=1, **more
) -> Dataset:
    """One image as a data set; further attributes by keyword, ``None`` leaves one out."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, more.pop("sop", None) or generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = study or generate_uid(), series or generate_uid()
    data.FrameOfReferenceUID = generate_uid(entropy_srcs=[data.StudyInstanceUID])
    data.Modality, data.InstanceNumber = modality, number
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelSpacing, data.SliceThickness = [1.5, 1.0], 2
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], list(position)
    for key, value in {**PERSON, **more}.items():
        if value is None:
            if key in data:
                delattr(data, key)
        else:
            setattr(data, key, value)
    data.PixelData = np.ascontiguousarray(pixels).tobytes()
    return data


def save(data: Dataset, path: Path, syntax=ExplicitVRLittleEndian) -> Path:
    """As a file, with a preamble that says something."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.SourceApplicationEntityTitle = "FEATHERSTONE_AE"
    data.preamble = b"FEATHERSTONE".ljust(128, b"\0")
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, volume=None, *, step=3.0, orientation=(1, 0, 0, 0, 1, 0), origin=(-30.0, -40.0, 10.0), **more):
    """A series of files, shuffled and named without endings; returns the files in order of their slices."""
    volume = brain() if volume is None else volume
    study, uid = more.pop("study", None) or generate_uid(), more.pop("series", None) or generate_uid()
    normal = np.cross(orientation[:3], orientation[3:])
    files = []
    for i, plane in enumerate(volume):
        position = [round(float(v), 4) for v in np.array(origin) + i * step * normal]
        data = slice_of(
            plane, study=study, series=uid, position=position, number=i + 1,
            ImageOrientationPatient=list(orientation), **more,
        )  # fmt: skip
        files.append(save(data, folder / f"IM{(i * 7) % len(volume):04d}_{i}"))
    return files


def secrets_of(*datasets: Dataset) -> set[str]:
    """Every value in these that points to the patient, as texts to look for."""
    found = set()
    for data in datasets:
        for key in PERSON:
            found |= {p for p in str(data.get(key, "")).replace("^", " ").split() if len(p) > 3 and p != "Head"}
        found |= {
            str(data.get(k)) for k in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
        }
    return found - {"None", ""}


def names_left(folder: Path, secrets: set[str]) -> list[str]:
    """Which secrets occur in the files' bytes (unzipped where they are zipped) or names."""
    import gzip

    found = []
    for path in sorted(p for p in folder.rglob("*")):
        data = b"" if path.is_dir() else path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        text = str(path.relative_to(folder)).encode() + b"\0" + data
        found += [f"{s} in {path.name}" for s in secrets if s.lower().encode() in text.lower()]
    return found
