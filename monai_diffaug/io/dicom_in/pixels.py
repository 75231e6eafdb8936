"""The numbers in DICOM files: a volume in the modality's units, a radiograph as one looks at it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..problems import BadInput, Problem
from .headers import Frame
from .series import Stack

__all__ = ["decoder_missing", "picture", "volume"]

EXTRA = 'pip install "monai-diffaug[jpeg]"'


def decoder_missing(frame: Frame) -> Problem | None:
    """Why a file's pixels cannot be decoded on this machine, if they cannot."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    syntax = UID(frame.syntax)
    if not syntax.is_transfer_syntax or not syntax.is_encapsulated:
        return None
    try:
        if get_decoder(syntax).is_available:
            return None
        remedy = f"install one ({EXTRA})"
    except NotImplementedError:
        remedy = "export it uncompressed"
    text = f"is compressed as {syntax.name} and there is no decoder for that here: {remedy}"
    return Problem("no decoder", frame.path, text)


def volume(stack: Stack) -> np.ndarray:
    """The voxels (columns, rows, slices) in the modality's units, such as Hounsfield units.

    They are int16 where that loses nothing, else float32.

    Raises:
        BadInput: a file is damaged; the error says which.
    """
    frames = stack.frames
    exact = all(float(v).is_integer() for f in frames for v in (f.slope, f.intercept))
    kind = np.int16 if exact else np.float32
    out = np.empty((len(frames), *frames[0].size), kind)
    cache: dict[Path, np.ndarray] = {}
    for i, frame in enumerate(frames):
        stored = _stored(frame, cache)
        if kind == np.int16:
            # in 64 bits first, so that what does not fit is seen and not wrapped
            values = stored if frame.slope == 1 and not frame.intercept else _scaled(stored, frame)
            low, high = int(values.min()), int(values.max())
            if low < -32768 or high > 32767:
                kind = np.float32
                out = out.astype(np.float32)
            out[i] = values
        else:
            out[i] = stored.astype(np.float32) * np.float32(frame.slope) + np.float32(frame.intercept)
    return out.transpose(2, 1, 0)


def _scaled(stored: np.ndarray, frame: Frame) -> np.ndarray:
    wide = np.int32 if stored.dtype.itemsize <= 2 else np.int64
    slope, intercept = int(frame.slope), int(frame.intercept)
    values = stored.astype(wide)
    return values * slope + intercept if slope != 1 else values + intercept


def _stored(frame: Frame, cache: dict[Path, np.ndarray]) -> np.ndarray:
    """What the file has for a frame (rows, columns)."""
    if frame.native is not None:
        offset, kind = frame.native
        rows, columns = frame.size
        with open(frame.path, "rb") as file:
            file.seek(offset)
            values = np.fromfile(file, kind, rows * columns)
        if values.size == rows * columns:
            return values.reshape(rows, columns)
    if frame.path not in cache:
        cache.clear()
        cache[frame.path] = _decoded(frame)
    array = cache[frame.path]
    array = array[frame.index or 0] if frame.index is not None and array.ndim > 2 else array
    if array.shape != frame.size:
        raise BadInput(
            Problem("unreadable", frame.path, "its pixels do not have the size that it says: export it again")
        )
    return array


def _decoded(frame: Frame) -> np.ndarray:
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    def load() -> np.ndarray:
        data = dcmread(frame.path, force=True)
        _complete(data, frame)
        return np.asarray(pixel_array(data))

    return _guarded(frame, load)


def _complete(data: Any, frame: Frame) -> None:
    if "TransferSyntaxUID" not in data.file_meta:
        from pydicom.uid import UID

        data.file_meta.TransferSyntaxUID = UID(frame.syntax)


def _guarded(frame: Frame, load: Any) -> np.ndarray:
    missing = decoder_missing(frame)
    if missing is not None:
        raise BadInput(missing)
    try:
        return load()
    except MemoryError:
        problem = Problem("unreadable", frame.path, "does not fit into memory: leave it out")
    except Exception as error:  # a decoder's plug-in may raise anything on a damaged stream
        text = f"its pixels cannot be decoded ({type(error).__name__}): copy or export the file again"
        problem = Problem("unreadable", frame.path, text)
    raise BadInput(problem)


def picture(frames: Sequence[Frame]) -> list[np.ndarray]:
    """Frames of one file as one looks at them.

    Gray values go through the modality and the VOI transform (PS3.3 C.11), MONOCHROME1 is inverted.

    Returns:
        for each frame uint8 or uint16 (rows, columns), or uint8 (rows, columns, 3) if it is in color.

    Raises:
        BadInput: the file is damaged.
    """
    first = frames[0]

    def load() -> np.ndarray:
        from pydicom import dcmread
        from pydicom.pixels import pixel_array

        data = dcmread(first.path, force=True)
        _complete(data, first)
        pixels = np.asarray(pixel_array(data))
        pixels = pixels if first.index is not None and int(data.get("NumberOfFrames", 1) or 1) > 1 else pixels[None]
        chosen = [pixels[f.index or 0] for f in frames]
        return np.stack(
            [_color(p, data) if first.samples > 1 or "PALETTE" in first.photometric else _gray(p, data) for p in chosen]
        )

    return list(_guarded(first, load))


def _color(pixels: np.ndarray, data: Any) -> np.ndarray:
    from pydicom.pixels import apply_color_lut

    if data.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, data)
    if pixels.dtype.itemsize > 1:
        stored = 16 if data.PhotometricInterpretation == "PALETTE COLOR" else int(data.BitsStored)
        pixels = np.right_shift(pixels, max(0, stored - 8))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _gray(pixels: np.ndarray, data: Any) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    bits = int(data.BitsStored)
    values = np.asarray(apply_modality_lut(pixels, data), dtype=np.float64)
    windowed = "VOILUTSequence" in data or ("WindowWidth" in data and "WindowCenter" in data)
    if windowed:
        # a LUT is an index into a table, and wants integers; a window does not
        argument = values.astype(np.int64) if "VOILUTSequence" in data else values
        values = np.asarray(apply_voi_lut(argument, data), dtype=np.float64)
    low, high = _range(values, data, bits, windowed)
    top = 255 if bits <= 8 else 65535
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * top
    if data.PhotometricInterpretation == "MONOCHROME1":
        scaled = top - scaled
    return np.rint(scaled).astype(np.uint8 if top == 255 else np.uint16)


def _range(values: np.ndarray, data: Any, bits: int, windowed: bool) -> tuple[float, float]:
    """The values that become black and white."""
    slope, intercept = float(data.get("RescaleSlope", 1) or 1), float(data.get("RescaleIntercept", 0) or 0)
    signed = bool(data.get("PixelRepresentation", 0))
    if windowed and "VOILUTSequence" in data:
        depth = int(data.VOILUTSequence[0].LUTDescriptor[2])
        return 0.0, float(2**depth - 1)
    if not windowed and "ModalityLUTSequence" in data:
        return float(values.min()), float(values.max())
    stored = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    ends = sorted(v * slope + intercept for v in stored)
    if signed and not windowed:
        return float(values.min()), float(values.max())
    return ends[0], ends[1]
