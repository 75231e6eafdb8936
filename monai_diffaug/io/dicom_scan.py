"""One DICOM file, or a folder with one series, as an image of a data set; and another one written like it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from ..types import DiffAugError
from . import dicom_out, dicom_seg, images
from .dicom_in import headers, pixels, series
from .dicom_in.headers import Frame
from .dicom_in.series import Stack
from .images import Scan

__all__ = ["found_in", "is_one", "read", "read_mask", "slices_first", "write"]

_SUFFIXES = (".dcm", ".dicom", ".ima")


def is_one(path: Path) -> bool:
    """Whether a path may be a DICOM image: a folder, or a file with the name or the mark of one."""
    if path.is_dir() or path.suffix.lower() in _SUFFIXES:
        return True
    return path.is_file() and not images.ending(path) and headers.is_dicom(path)


def found_in(folder: Path, *, slices: bool = False) -> list[Path]:
    """The DICOM images under a folder: a folder for each series, or the file where it has one.

    Damaged files are among them, so that who reads them says so.

    Args:
        folder: looked through with all that is in it.
        slices: give each file by itself, as 2D backbones want them.

    Raises:
        DiffAugError: the files of several series lie in one folder.
    """
    out: list[Path] = []
    by_folder: dict[Path, dict[Path, str]] = {}
    for file in headers.files_in(folder):
        if images.ending(file) in ("", ".dcm") and (name := _series_of(file)) is not None:
            by_folder.setdefault(file.parent, {})[file] = name
    for place, found in by_folder.items():
        kinds = set(found.values())
        if 1 < len(kinds) < len(found) and not slices:
            raise DiffAugError(f"{place} holds the files of several series: sort them with `diffaug import` first")
        out += [place] if len(kinds) == 1 < len(found) and not slices else found
    return out


def _series_of(file: Path) -> str | None:
    """The series that a DICOM image belongs to; a damaged file is one of its own; ``None`` for anything else."""
    try:
        frames = headers.frames_of(file) if headers.is_dicom(file) else None
    except DiffAugError:
        return str(file)
    if frames is None:
        return str(file) if images.ending(file) == ".dcm" else None
    return frames[0].series if frames else None


def read(path: Path, dims: int | None, orientation: str | None) -> Scan:
    """Read a series in the modality's units (HU); gray is as shown, MONOCHROME1 inverted.

    Args:
        path: a file, or a folder that holds one series and nothing else of DICOM.
        dims: spatial dimensions that are wanted.
        orientation: axis codes that a volume is turned to.

    Raises:
        DiffAugError: there is no image, there are several, or it cannot be decoded or has other dimensions.
    """
    stack = _one(path)
    first, count = stack.frames[0], len(stack.frames)
    thin = count == 1
    spatial = dims if dims is not None and thin and stack.affine is not None else (2 if thin else 3)
    if dims is not None and spatial != dims:
        size = (first.size[1], first.size[0], count)
        images.wrong_dims(path, size if spatial == 3 else size[:2], dims)
    if first.samples == 3 or "PALETTE" in first.photometric:
        return _colored(path, stack)
    if stack.affine is None and not thin:
        raise DiffAugError(f"{path} has {count} images without a place in space: give each as a file of its own")
    head = tuple(_header(frame) for frame in stack.frames)
    array = pixels.volume(stack)
    if first.photometric == "MONOCHROME1":
        array = _inverted(array, head)
    if stack.affine is None:
        return Scan(images.as_tensor(array[..., 0].T[None]), "dicom", array.dtype.name, path, header=head)
    moved = (array[..., 0] if spatial == 2 else array)[None]
    turn = images.turn_to(stack.affine, orientation, spatial)
    if turn is not None:
        moved = np.stack([images.turned(c, turn) for c in moved])
    shape = array.shape[:2] if spatial == 2 else array.shape
    return Scan(
        images.as_tensor(moved),
        "dicom",
        array.dtype.name,
        path,
        header=head,
        affine=stack.affine,
        shape=shape,
        turn=turn,
    )


def _one(path: Path) -> Stack:
    """The only image in a file or folder."""
    if not path.exists():
        raise DiffAugError(f"{path} does not exist: correct the path")
    found: list[Frame] = []
    for file in headers.files_in(path) if path.is_dir() else [path]:
        if headers.is_dicom(file):
            found += headers.frames_of(file)
    if not found:
        raise DiffAugError(f"{path} holds no DICOM image: give a file or the folder of a series")
    if len({frame.series for frame in found}) > 1:
        n = len({frame.series for frame in found})
        raise DiffAugError(f"{path} holds {n} series: give the folder of one, or sort them with `diffaug import`")
    stacks, problems = series.stacked(found, pictures=True)
    if not stacks or len(stacks) > 1:
        why = problems[0].line if problems else f"{path} holds {len(stacks)} images in one series"
        raise DiffAugError(f"{why}; `diffaug import` takes it apart")
    for problem in problems:
        warnings.warn(problem.line, stacklevel=2)
    return stacks[0]


def _header(frame: Frame) -> Dataset:
    """What an image written like this one may repeat, with the frame's own scale."""
    whole = dcmread(frame.path, stop_before_pixels=True, force=True)
    head = Dataset()
    for element in whole:
        if element.VR != "SQ" or element.keyword == "AnatomicRegionSequence":
            head.add(element)
    head.RescaleSlope, head.RescaleIntercept = frame.slope, frame.intercept
    return head


def _inverted(array: np.ndarray, head: Sequence[Dataset]) -> np.ndarray:
    """White for black; the window, which was for the other way round, goes."""
    first = head[0]
    bits, signed = int(first.BitsStored), bool(first.get("PixelRepresentation", 0))
    ends = -1 if signed else (1 << bits) - 1  # lowest and highest stored number together
    for each in head:
        each.pop("WindowCenter", None)
        each.pop("WindowWidth", None)
    mirrored = float(first.RescaleSlope) * ends + 2 * float(first.RescaleIntercept) - array.astype(np.float64)
    return mirrored.astype(np.float32 if array.dtype.kind == "f" else np.int32)


def _colored(path: Path, stack: Stack) -> Scan:
    if len(stack.frames) > 1:
        raise DiffAugError(f"{path} has {len(stack.frames)} color frames: give each as a file of its own")
    (picture,) = pixels.picture(stack.frames)
    head = _header(stack.frames[0])
    head.SamplesPerPixel = 3
    return Scan(images.as_tensor(np.moveaxis(picture, 2, 0)), "dicom", "uint8", path, header=(head,), mode="RGB")


def read_mask(path: Path, like: Scan | None) -> Scan | None:
    """A DICOM segmentation on the grid of the image that it belongs to; ``None`` if the file is something else."""
    if path.is_dir() or not path.is_file() or not headers.is_dicom(path):
        return None
    if str(dcmread(path, stop_before_pixels=True, force=True).get("Modality", "")) != "SEG":
        return None
    if like is None or like.kind != "dicom":
        raise DiffAugError(f"{path} is a DICOM segmentation: it belongs to a DICOM image, give that with it")
    return dicom_seg.read(path, like)


def slices_first(scan: Scan, image: np.ndarray) -> np.ndarray:
    """From (1, *S) as ``read`` gives it to (slices, rows, columns) as files have it."""
    plane = image[0]
    if scan.affine is None:
        return plane[None]
    if scan.turn is not None:
        plane = images.turned_back(plane, scan.turn)
    return np.ascontiguousarray(plane.reshape((*scan.shape, 1)[:3]).transpose(2, 1, 0))


def write(path: Path, image: np.ndarray, like: Scan, record: Mapping[str, Any] | None) -> None:
    """Write ``image`` (C, *S), in the values of ``like``, as a series of its own."""
    told: dict[str, Any] = {"record": record or {}, "like": like.header}
    if like.mode == "RGB":
        dicom_out.write_series(path, np.moveaxis(image, 0, 2), **told)
    else:
        dicom_out.write_series(path, slices_first(like, image), affine=like.affine, **told)
