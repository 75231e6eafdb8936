"""NIfTI, PNG, JPEG, DICOM: to a tensor, and back to the same kind of file with the same geometry and number format."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..types import DiffAugError
from . import sidecar
from .atomic import write_bytes

__all__ = ["ENDINGS", "Scan", "blank", "ending", "mask_like", "read", "write"]

ENDINGS = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".dcm")
"""What can be read and written, beside DICOM files of any name and folders of them."""

PROVENANCE = "Provenance"
"""Key of the text in a PNG that says, as JSON, how it was made."""

_DISPLAY = {frozenset({0, 1}): "PL", frozenset({0, 2}): "IL", frozenset({1, 2}): "IP"}
"""Row and column codes of an axial, coronal and sagittal slice on a screen."""

_MODES = {"1": "1", "L": "L", "I;16": "I;16", "I": "I;16", "RGB": "RGB", "P": "RGB"}


@dataclass(frozen=True)
class Scan:
    """An image and what is needed to write another one like it.

    Attributes:
        image: (C, *S) as the file has it (uint8, int16, int32, float32; unsigned 16-bit numbers as int32). Slices have
            their rows first and look as on a viewer's screen (the patient's left on the right); volumes are turned to
            the orientation that was asked for.
        kind: ``nifti``, ``png``, ``jpeg``, ``dicom``, or ``seg`` for a DICOM mask.
        dtype: the number format in the file, in numpy's words.
        path: where it came from.
    """

    image: Tensor
    kind: str
    dtype: str
    path: Path
    mode: str = ""
    header: Any = None
    affine: Any = None
    shape: tuple[int, ...] = ()
    turn: Any = None
    scaling: tuple[float, float] = (1.0, 0.0)

    @property
    def ending(self) -> str:
        """Of files written like this one; nothing for a folder with a DICOM series."""
        if self.kind in ("dicom", "seg"):
            return "" if self.kind == "dicom" and self.path.is_dir() else ".dcm"
        return ending(self.path)


def ending(path: str | Path) -> str:
    """The ending that says the kind of file, or nothing."""
    name = str(path).lower()
    return next((e for e in ENDINGS if name.endswith(e)), "")


def read(
    path: str | Path,
    *,
    dims: int | None = None,
    orientation: str | None = None,
    mask: bool = False,
    like: Scan | None = None,
) -> Scan:
    """Read one image.

    Args:
        path: a ``.nii``, ``.nii.gz``, ``.png`` or ``.jpg`` file, a DICOM file, or the folder of a DICOM series.
        dims: spatial dimensions that are wanted; a slice of one voxel's thickness with an affine may be 2 or 3.
        orientation: axis codes, such as ``RAS``, that a volume is turned to, and turned back from on writing.
        mask: a label mask: may be constant.
        like: the image that a mask belongs to; a DICOM segmentation cannot be read without.

    Raises:
        DiffAugError: missing, unreadable, of another kind or dimension, not finite, or constant. One line, with the
            file's name and what to do.
    """
    path = Path(path)
    kind = ending(path)
    if kind in ("", ".dcm"):
        scan = _read_dicom(path, dims, orientation, like if mask else None)
    elif not path.is_file():
        raise DiffAugError(f"{path} does not exist: correct the path")
    else:
        scan = _read_nifti(path, dims, orientation) if kind.startswith(".nii") else _read_picture(path, dims)
    values = scan.image
    if values.numel() == 0:
        raise DiffAugError(f"{path} holds no voxels (shape {tuple(values.shape)}): leave it out")
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise DiffAugError(f"{path} holds NaN or infinity: clean it (monai.transforms.SignalFillEmpty) or leave it out")
    if not mask and scan.dtype == "bool":
        raise DiffAugError(f"{path} is black and white only: save it with 8 bits of gray, or list it as a mask")
    if not mask and bool(values.min() == values.max()):
        raise DiffAugError(f"{path} is constant, every voxel is {values.flatten()[0].item():g}: leave it out")
    return scan


def _read_dicom(path: Path, dims: int | None, orientation: str | None, like: Scan | None) -> Scan:
    from . import dicom_scan  # it needs this module, and pydicom is slow to load

    if not dicom_scan.is_one(path):
        raise DiffAugError(
            f"{path} is of no kind that can be read: give NIfTI, PNG or JPEG ({', '.join(ENDINGS)}) or a DICOM series"
        )
    return dicom_scan.read_mask(path, like) or dicom_scan.read(path, dims, orientation)


def _loaded(path: Path, load: Callable[[], Any]) -> Any:
    """Call a library's reader; whatever it makes of a broken file becomes one line."""
    try:
        return load()
    except PermissionError:
        raise DiffAugError(f"{path} may not be read: change its permissions") from None
    except MemoryError:
        raise DiffAugError(f"{path} does not fit into memory: crop or resample it") from None
    except Image.DecompressionBombError:
        raise DiffAugError(f"{path} claims more pixels than Pillow reads: crop it, or copy it again") from None
    except (OSError, EOFError, ValueError, SyntaxError, zlib.error, nib.filebasedimages.ImageFileError, TypeError) as e:
        why = (str(e).splitlines() or [type(e).__name__])[0][:120]
        raise DiffAugError(f"{path} is corrupt or truncated ({why}): copy it again") from None


def as_tensor(array: np.ndarray) -> Tensor:
    """The numbers of a file in the nearest format that torch reckons with."""
    known: dict[str, Any] = {"bool": np.uint8, "uint8": np.uint8, "int8": np.int16, "int16": np.int16}
    known |= {"uint16": np.int32, "int32": np.int32, "float64": np.float64}
    return torch.from_numpy(np.array(array, dtype=known.get(array.dtype.name, np.float32), order="C"))


# ------------------------------------------------------------------------------------------------------------- NIfTI


def _read_nifti(path: Path, dims: int | None, orientation: str | None) -> Scan:
    def load() -> tuple[Any, np.ndarray, tuple[float, float]]:
        image: Any = nib.load(path)
        return image, np.asanyarray(image.dataobj), (float(image.dataobj.slope), float(image.dataobj.inter))

    image, array, scaling = _loaded(path, load)
    if array.dtype.names or np.iscomplexobj(array):
        raise DiffAugError(f"{path} holds {array.dtype} voxels: convert it to one number a voxel")
    shape = tuple(array.shape)
    flat = shape + (1,) * (3 - len(shape))  # (X, Y) is (X, Y, 1)
    channels = int(np.prod(flat[3:], dtype=int))
    thin = flat[2] == 1
    spatial = dims if dims is not None and (thin or dims == 3) else (2 if thin else 3)
    if spatial == 3 and len(shape) == 2:
        spatial = 2
    if dims is not None and spatial != dims:
        wrong_dims(path, flat[:3] if spatial == 3 else flat[:2], dims)
    moved = np.moveaxis(array.reshape(*flat[:3], channels), 3, 0)
    moved = moved[..., 0] if spatial == 2 else moved
    turn = turn_to(image.affine, orientation, spatial)
    if turn is not None:
        moved = np.stack([turned(c, turn) for c in moved])
    dtype = image.get_data_dtype().name
    return Scan(
        as_tensor(moved),
        "nifti",
        dtype,
        path,
        header=image.header.copy(),
        affine=image.affine,
        shape=shape,
        turn=turn,
        scaling=scaling,
    )


def wrong_dims(path: Path, size: tuple[int, ...], dims: int) -> None:
    """Refuse an image of ``size`` where one of ``dims`` dimensions is wanted."""
    what = f"a volume ({' x '.join(map(str, size))})" if len(size) == 3 else f"a slice ({' x '.join(map(str, size))})"
    remedy = "save its slices as files" if dims == 2 else "stack slices to a volume"
    raise DiffAugError(f"{path} is {what} and the backbone is {dims}D: {remedy}, or choose a {len(size)}D backbone")


def turn_to(affine: np.ndarray | None, codes: str | None, dims: int) -> np.ndarray | None:
    """Orientation transform (dims, 2) from the file's axes to the wanted ones, or ``None`` when nothing is to turn."""
    if affine is None:
        return None
    own = orientations.aff2axcodes(affine)
    start = orientations.io_orientation(affine)
    if dims == 2:
        plane = frozenset(int(axis) for axis in start[:2, 0])
        wanted: tuple[str, ...] = (*_DISPLAY.get(plane, own[:2]), own[2])
    elif codes is not None and set(codes) <= set("RLAPSI") and len(codes) == 3:
        wanted = tuple(codes)
    else:
        return None
    transform: np.ndarray = orientations.ornt_transform(start, orientations.axcodes2ornt(wanted))[:dims]
    return None if np.array_equal(transform, [[i, 1] for i in range(dims)]) else transform


def turned(array: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Turn one channel as :func:`turn_to` says."""
    return np.asarray(orientations.apply_orientation(array, transform))


def turned_back(array: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Undo :func:`turned`."""
    array = np.transpose(array, [int(axis) for axis in transform[:, 0]])
    flipped = [axis for axis, flip in enumerate(transform[:, 1]) if flip < 0]
    return np.flip(array, tuple(flipped))


def _write_nifti(scan: Scan, image: np.ndarray, remark: str, record: Mapping[str, Any] | None) -> bytes:
    if scan.turn is not None:
        image = np.stack([turned_back(c, scan.turn) for c in image])
    flat = scan.shape + (1,) * (3 - len(scan.shape))
    array = np.moveaxis(image.reshape(-1, *flat[:3]), 0, 3).reshape(scan.shape)
    header = scan.header.copy()
    stored = np.dtype(scan.dtype)
    header.set_data_dtype(stored)
    header["descrip"], header["intent_name"] = remark.encode()[:79], b"SYNTHETIC"
    for name in ("db_name", "aux_file") if "db_name" in header else ("aux_file",):
        header[name] = b""  # converters put the patient here
    header.extensions = type(header.extensions)()  # the source's may hold a DICOM header, and a name in it
    if record is not None:
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", sidecar.inside(record).encode()))
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    slope, inter = scan.scaling
    array = _cast((array - inter) / slope, stored)
    data = bytearray(kind(array, scan.affine, header).to_bytes())
    for name, value in (("scl_slope", slope), ("scl_inter", inter)):  # which nibabel would choose anew
        field, at = header.template_dtype.fields[name][:2]
        data[at : at + field.itemsize] = np.array(value, field.newbyteorder(header.endianness)).tobytes()
    return gzip.compress(bytes(data), 6, mtime=0) if ending(scan.path) == ".nii.gz" else bytes(data)


# ---------------------------------------------------------------------------------------------------------- pictures


def _read_picture(path: Path, dims: int | None) -> Scan:
    def load() -> Any:
        with Image.open(path) as opened:
            opened.load()
            return opened.copy(), opened.format, getattr(opened, "n_frames", 1)

    picture, kind, frames = _loaded(path, load)
    if kind not in ("PNG", "JPEG"):
        raise DiffAugError(f"{path} is a {kind} file: save it as PNG, JPEG or NIfTI")
    if frames > 1:
        raise DiffAugError(f"{path} holds {frames} frames: save each of them as a file")
    if picture.mode in ("LA", "RGBA") and picture.getchannel("A").getextrema() == (255, 255):
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")  # an alpha channel that hides nothing
    if picture.mode not in _MODES:
        raise DiffAugError(f"{path} is of mode {picture.mode}: save it as gray or RGB without transparency")
    if kind == "PNG" and picture.mode == "RGB" and path.read_bytes()[24] == 16:
        raise DiffAugError(f"{path} has 16 bits in each of three colors: save it as 16-bit gray or 8-bit RGB")
    if dims == 3:
        wrong_dims(path, (picture.height, picture.width), 3)
    picture = picture.convert("RGB") if picture.mode == "P" else picture
    array = np.asarray(picture)
    array = array.astype(np.uint16) if picture.mode in ("I", "I;16") else array
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)
    return Scan(as_tensor(planes), kind.lower(), array.dtype.name, path, mode=_MODES[picture.mode])


def _write_picture(scan: Scan, image: np.ndarray, remark: str, record: Mapping[str, Any] | None) -> bytes:
    array = _cast(image, np.dtype(scan.dtype))
    array = array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, 2)
    buffer = BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(array))
    if scan.kind == "jpeg":
        picture.save(buffer, "JPEG", quality=95, subsampling=0, comment=remark.encode())
    else:
        about = PngImagePlugin.PngInfo()
        about.add_text("Description", remark)
        if record is not None:
            about.add_text(PROVENANCE, sidecar.inside(record))
        picture.save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()


def remarks_of(path: Path) -> str:
    """What was written into a PNG of how it was made, as JSON; nothing for a JPEG, which has no room."""
    with Image.open(path) as opened:
        return str(getattr(opened, "text", {}).get(PROVENANCE, ""))


def extension_of(path: Path) -> str:
    """The same of a NIfTI file."""
    image: Any = nib.load(path)
    texts = (e.get_content() for e in image.header.extensions if e.get_code() == 6)
    said = (t.decode(errors="replace") if isinstance(t, bytes) else str(t) for t in texts)
    return next((t.rstrip("\0") for t in said if '"synthetic"' in t), "")


# ----------------------------------------------------------------------------------------------------------- writing


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded and clipped to what the number format can hold."""
    if dtype.kind == "b":
        return values >= 0.5
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def write(
    path: str | Path,
    image: Tensor,
    like: Scan,
    *,
    remark: str = "synthetic",
    record: Mapping[str, Any] | None = None,
    of: Path | None = None,
) -> None:
    """Write ``image`` (C, *S), in the values of ``like.image``, as the same kind of file with the same geometry.

    Args:
        path: where; the file is there whole or not at all.
        image: of the size of ``like.image``, in the file's values; integers are rounded and clipped.
        like: what ``read`` returned for the source.
        remark: goes into the file's description, so that it says what it is.
        record: how the image was made; goes into the file too, but for its source.
        of: the synthetic image that a mask belongs to, already written; a DICOM mask says so.

    Raises:
        DiffAugError: the size differs, a value is not finite, or the file cannot be written.
    """
    if image.shape != like.image.shape:
        raise DiffAugError(f"{path}: an image {tuple(image.shape)} cannot be written like {tuple(like.image.shape)}")
    values = image.detach().cpu().to(torch.float64).numpy()
    if not np.isfinite(values).all():
        raise DiffAugError(f"{path}: the image to write holds NaN or infinity; use more steps or a lower scale")
    if like.kind in ("dicom", "seg"):
        _write_dicom(Path(path), values, like, record, of)
        return
    encode = _write_nifti if like.kind == "nifti" else _write_picture
    write_bytes(path, encode(like, values, remark, record))


def _write_dicom(path: Path, values: np.ndarray, like: Scan, record: Mapping[str, Any] | None, of: Path | None) -> None:
    from . import dicom_scan, dicom_seg

    if like.kind == "seg":
        dicom_seg.write(path, values, like, of, record)
    else:
        dicom_scan.write(path, values, like, record)


def mask_like(scan: Scan) -> Scan:
    """An empty mask (1, *S) of 8 bits with the geometry of ``scan``; for pictures a PNG, since JPEG blurs."""
    blank = torch.zeros_like(scan.image[:1], dtype=torch.uint8)
    if scan.kind == "dicom":
        return replace(scan, image=blank, kind="seg", dtype="uint8", header=(), mode="")
    if scan.kind != "nifti":
        return Scan(blank, "png", "uint8", scan.path.with_suffix(".png"), mode="L")
    return replace(scan, image=blank, dtype="uint8", shape=(*scan.shape, 1, 1)[:3], scaling=(1.0, 0.0))


def blank(
    channels: int, size: Sequence[int], spacing: Sequence[float] | None = None, orientation: str | None = None
) -> Scan:
    """Black, to write an image like it that comes from no file: a PNG for 2D gray or color, else float NIfTI, whose
    axes lie as ``orientation`` says (such as ``LPS``).
    """
    if len(size) == 2 and channels in (1, 3):
        mode = "L" if channels == 1 else "RGB"
        return Scan(torch.zeros((channels, *size), dtype=torch.uint8), "png", "uint8", Path("blank.png"), mode=mode)
    flat = (*size, 1)[:3]
    shape = flat if channels == 1 else (*flat, channels)
    spaces = [*(spacing or ()), 1.0, 1.0, 1.0][:3]
    affine = np.diag([*spaces, 1.0])
    if orientation and len(orientation) == 3 and set(orientation) <= set("RLAPSI"):
        affine[:3, :3] = 0
        for axis, (world, sign) in enumerate(orientations.axcodes2ornt(tuple(orientation))):
            affine[int(world), axis] = sign * spaces[axis]
    header = nib.Nifti1Image(np.zeros(shape, np.float32), affine).header
    image = torch.zeros((channels, *size))
    return Scan(image, "nifti", "float32", Path("blank.nii.gz"), header=header, affine=affine, shape=shape)
