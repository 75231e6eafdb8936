"""A label mask as a DICOM segmentation (PS3.3 A.51) of the image it belongs to, and back."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite

from ..types import DiffAugError
from . import dicom_out, images, sidecar
from .atomic import write_bytes
from .images import Scan

__all__ = ["Segment", "read", "write", "write_mask"]

Code = tuple[str, str, str]
ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")
LESION: Code = ("52988006", "SCT", "Lesion")
NEOPLASM: Code = ("108369006", "SCT", "Neoplasm")
_TUMORS = ("tumor", "tumour", "glioma", "cancer", "carcinoma", "neoplasm", "metastas")
_DAY, _TIME = "19700101", "000000"
"""The standard wants a date in a segmentation; one that cannot be mistaken for a day on which something was made."""


@dataclass(frozen=True)
class Segment:
    """What one number of a mask means: a name, and codes for category and type."""

    name: str
    category: Code = ABNORMAL
    kind: Code = LESION

    @classmethod
    def named(cls, name: str) -> Segment:
        """With the codes of a tumor if the name says that it is one, else of a lesion."""
        return cls(name, kind=NEOPLASM if any(word in name.lower() for word in _TUMORS) else LESION)


def write_mask(
    out: str | Path,
    mask: np.ndarray,
    images_of: Sequence[Dataset],
    *,
    record: Mapping[str, Any],
    segments: Sequence[Segment] = (),
) -> Path:
    """Write a mask as a segmentation of a synthetic image.

    Args:
        out: a file ``NAME.dcm``.
        mask: (rows, columns) or (slices, rows, columns) of whole numbers; 0 is background.
        images_of: the image's datasets, as written, one for each slice.
        record: how it was made; its source is not written.
        segments: what 1, 2, ... mean; one lesion, or ``label N``, unless given.

    Raises:
        DiffAugError: the mask is of another size, or the file cannot be written.
    """
    out, volume = Path(out), np.asarray(mask)
    volume = np.rint(volume if volume.ndim == 3 else volume[None]).astype(np.int64)
    if len(images_of) != len(volume) or volume.shape[1:] != (images_of[0].Rows, images_of[0].Columns):
        size = (len(images_of), images_of[0].Rows, images_of[0].Columns)
        raise DiffAugError(f"{out}: the mask is {volume.shape} and its image {size}: give them on one grid")
    values = [int(v) for v in np.unique(volume) if v]
    if segments:
        wanted = list(range(1, len(segments) + 1))
        named = list(segments)
        if not set(values) <= set(wanted):
            raise DiffAugError(f"{out}: the mask has the labels {values} and {len(segments)} names: name them all")
    else:
        wanted = values or [1]
        named = [Segment("lesion" if wanted == [1] or len(wanted) == 1 else f"label {v}") for v in wanted]
    numbers = np.zeros(volume.shape, np.uint8)
    for number, value in enumerate(wanted, 1):
        numbers[volume == value] = number
    write_bytes(out, _encoded(numbers, images_of, record, named))
    return out


def _encoded(
    numbers: np.ndarray, images_of: Sequence[Dataset], record: Mapping[str, Any], segments: Sequence[Segment]
) -> bytes:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    said = sidecar.about(record)
    version = f"monai-diffaug {said['versions'].get('monai-diffaug', '')}".strip()
    key = sidecar.inside(record) + images_of[0].SeriesInstanceUID + hashlib.sha256(numbers.tobytes()).hexdigest()
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"{record.get('method') or 'monai-diffaug'}"[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=version,
        source="monai-diffaug",
    )
    described = [
        hd.seg.SegmentDescription(
            segment_number=n,
            segment_label=f"{segment.name}"[:64],
            segmented_property_category=hd.sr.CodedConcept(*segment.category),
            segmented_property_type=hd.sr.CodedConcept(*segment.kind),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for n, segment in enumerate(segments, 1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on attributes that are empty on purpose
        made = hd.seg.Segmentation(
            source_images=list(images_of),
            pixel_array=numbers,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=dicom_out.uid_of(key, "segmentation series"),
            series_number=2,
            sop_instance_uid=dicom_out.uid_of(key, "segmentation"),
            instance_number=1,
            manufacturer="monai-diffaug",
            manufacturer_model_name="monai-diffaug",
            software_versions=version,
            device_serial_number=(str(said.get("backbone_digest", "")) or "0")[:64],
            omit_empty_frames=False,
            content_label="SYNTHETIC",
            content_description="Label of a synthetic image",
            series_description="SYNTHETIC label",
        )
    _settled(made, key)
    if "FrameOfReferenceUID" not in made:
        made.PatientOrientation = images_of[0].get("PatientOrientation", "")
    made.DerivationDescription = sidecar.sentence(record)[:1024]
    made.private_block(dicom_out.GROUP, dicom_out.CREATOR, create=True).add_new(0x01, "UT", sidecar.inside(record))
    buffer = BytesIO()
    dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def _settled(made: Dataset, key: str) -> None:
    """Take the clock and chance out, so that the same mask is the same file."""
    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime"):
        made.pop(keyword, None)
    made.ContentDate, made.ContentTime = _DAY, _TIME
    dimension = dicom_out.uid_of(key, "dimensions")
    for item in [*made.DimensionOrganizationSequence, *made.DimensionIndexSequence]:
        item.DimensionOrganizationUID = dimension
    for equipment in made.get("ContributingEquipmentSequence", []):
        equipment.pop("ContributionDateTime", None)


def write(path: Path, image: np.ndarray, like: Scan, of: Path | None, record: Mapping[str, Any] | None) -> None:
    """Write a mask (1, *S) like ``like`` as a segmentation of the synthetic image at ``of``."""
    from .dicom_scan import slices_first

    if of is None:
        raise DiffAugError(f"{path}: a DICOM mask belongs to an image: write that first, and name it")
    files = sorted(of.glob("*.dcm")) if of.is_dir() else [of]
    written = [dcmread(file, stop_before_pixels=True) for file in files]
    write_mask(path, slices_first(like, image), written, record=record or {}, segments=like.header or ())


def read(path: Path, like: Scan) -> Scan:
    """A segmentation as label numbers on the grid of ``like``, whose instances it must name.

    Raises:
        DiffAugError: it belongs to another image, or its segments overlap.
    """
    import highdicom as hd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seg = hd.seg.segread(path)
            numbers = seg.get_pixels_by_source_instance(
                [head.SOPInstanceUID for head in like.header],
                combine_segments=True,
                assert_missing_frames_are_empty=True,
                ignore_spatial_locations=True,
            )
    except (KeyError, ValueError) as error:
        raise DiffAugError(f"{path} is no segmentation of its image ({str(error)[:80]}): correct the list") from None
    except RuntimeError:
        raise DiffAugError(f"{path} has segments that overlap: save them as masks of their own") from None
    segments = tuple(_segment(seg.get_segment_description(n)) for n in seg.segment_numbers)
    array = numbers.astype(np.uint8).transpose(2, 1, 0)
    if like.affine is None:
        moved = array[..., 0].T
    else:
        moved = array.reshape(like.shape)
        moved = moved if like.turn is None else images.turned(moved, like.turn)
    tensor = images.as_tensor(moved[None])
    return replace(like, image=tensor, kind="seg", dtype="uint8", path=path, header=segments, mode="")


def _segment(item: Any) -> Segment:
    def triple(concept: Any) -> Code:
        return str(concept.value), str(concept.scheme_designator), str(concept.meaning)

    return Segment(
        str(item.segment_label), triple(item.segmented_property_category), triple(item.segmented_property_type)
    )
