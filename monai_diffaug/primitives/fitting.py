"""From a user's image to what a network was trained on, and back to the user's size, intensities and type.

Going down, an image is cut to a box with the contract's aspect (around the foreground if the contract says so, padded
with background), resized with anti-aliasing and brought into the value range. Coming back, only that box is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Contract, DiffAugError
from .orientation import Turn, turn_of, turned, turned_back

__all__ = ["PERCENTILES", "Fitted", "fit", "foreground_box", "resampled"]

PERCENTILES = (0.5, 99.5)
"""Where the window of 16-bit and float images ends; what lies beyond is put back by :meth:`Fitted.restore`."""

FOREGROUND = 0.1  # of the window: brighter is foreground
MARGIN = 0.04  # of the foreground's longest side, added around it
DETAIL = 0.06  # of the value range: a change of this size takes the source's fine detail away to 1/e

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Fitted:
    """An image as a network wants it, and the way back.

    ``tensor`` (C, *contract.size) lies in the contract's value range (a mask: 0 and 1, or its own labels). ``window``
    holds for each channel the source intensities at the two ends of the value range, ``turn`` for each axis of the
    tensor the source's axis and whether it runs backwards, ``box`` for each axis of the turned source where the part
    that was taken begins and ends (beyond the image: padding).
    """

    tensor: Tensor
    source: Tensor
    contract: Contract
    window: tuple[tuple[float, float], ...]
    box: Box
    turn: Turn
    mask: bool = False
    excess: Tensor | None = field(default=None, repr=False)

    def restore(self, new: Tensor, reference: Tensor | None = None) -> Tensor:
        """Bring a result back: the source's size, intensity range, dtype and, for a MetaTensor, meta data.

        Without ``reference`` the box is replaced by ``new``: an image that was not edited loses what resampling loses.
        With it, the source's own detail (all that ``reference`` lacks: resolution, what the autoencoder drops) is added
        wherever ``new`` is close to ``reference``, fading to none where the edit changed much, so that no ghost of what
        was there shines through. An image that was not edited then comes back unharmed. Use it for edits that keep the
        layout, as the transforms do, and not for images that were generated or moved.

        Args:
            new: (C, *contract.size) in the value range; a mask (c, *contract.size) if this is one.
            reference: what the backbone makes of ``tensor`` without editing, ``decode(encode(tensor))``; where ``new``
                is nearer to ``tensor`` itself (outside an edited region, say), ``tensor`` is the reference.

        Returns:
            A new tensor shaped like the source. Voxels outside the box are the source's.
        """
        if new.shape[1:] != self.tensor.shape[1:] or (not self.mask and new.shape != self.tensor.shape):
            raise DiffAugError(f"the result is {tuple(new.shape)}, it was fitted to {tuple(self.tensor.shape)}")
        if self.mask:
            return self._write(self._labels(new.to(self.tensor)))
        low, high = self.contract.value_range
        new = new.detach().to(self.tensor).clamp(low, high)
        if reference is None:
            still = (new - self.tensor).abs() <= 0.05 * (high - low)
            excess = 0.0 if self.excess is None else torch.where(still, self.excess, 0.0)
            return self._write(self._intensities(self._back(new + excess)))
        reference = reference.detach().to(self.tensor).clamp(low, high)
        nearer = torch.where((new - self.tensor).abs() < (new - reference).abs(), self.tensor, reference)
        # What counts as changed is judged on a 3-voxel average, so that the detail fades smoothly.
        change = _smooth((new - nearer).abs().amax(0, keepdim=True)) / (DETAIL * (high - low))
        keep = torch.exp(-self._back(change).square())
        detail = self._values(self._turned().float()) - self._back(nearer)
        return self._write(self._bounded(self._intensities(self._back(new) + keep * detail)))

    def restore_mask(self, mask: Tensor) -> Tensor:
        """A mask (1, *contract.size) of 0 and 1 that belongs to the result, at the source's size: uint8, 0 and 1."""
        like = torch.zeros_like(_plain(self.source)[:1], dtype=torch.uint8)
        blank = Fitted(mask, like, self.contract, ((0.0, 1.0),), self.box, self.turn, mask=True)
        return blank.restore(mask.float())

    def summary(self) -> dict[str, Any]:
        """What was done, for a record: all of it JSON-able."""
        return {
            "window": [list(w) for w in self.window],
            "box": [list(b) for b in self.box],
            "turn": [list(t) for t in self.turn],
        }

    # The rest turns tensors between the network's grid and the source's, both in the network's order of axes.

    def _turned(self) -> Tensor:
        return turned(_plain(self.source), self.turn)

    def _back(self, x: Tensor) -> Tensor:
        """From (c, *size) to the whole source grid; zeros outside the box, where nothing is written."""
        shape = self._turned().shape[1:]
        part = resampled(x, [b - a for a, b in self.box])
        inside = [slice(max(0, -a), min(b, n) - a) for (a, b), n in zip(self.box, shape, strict=True)]
        part = part[(slice(None), *inside)]
        around = [(max(0, a), max(0, n - b)) for (a, b), n in zip(self.box, shape, strict=True)]
        return F.pad(part, [p for pair in reversed(around) for p in pair])

    def _values(self, x: Tensor) -> Tensor:
        return _scale(x, self.window, (self.contract.value_range,) * len(self.window))

    def _intensities(self, x: Tensor) -> Tensor:
        return _scale(x, (self.contract.value_range,) * len(self.window), self.window)

    def _bounded(self, values: Tensor) -> Tensor:
        """Within what the window or the source reaches, by channel: detail must not take an 8-bit image below 0."""
        shape = (-1, *[1] * (values.ndim - 1))
        flat = self._turned().flatten(1).float()
        low, high = (torch.tensor(ends, device=flat.device) for ends in zip(*self.window, strict=True))
        low, high = torch.minimum(flat.amin(1), low), torch.maximum(flat.amax(1), high)
        return torch.minimum(torch.maximum(values, low.reshape(shape)), high.reshape(shape))

    def _labels(self, new: Tensor) -> Tensor:
        low, high = self.window[0]
        if _binary(self.tensor) and _binary(self._turned(), high):
            return torch.where(self._back(new) >= 0.5, high, low)
        index = [
            ((torch.arange(max(0, a), min(b, n)) - a + 0.5) * s / (b - a)).long()
            for (a, b), n, s in zip(self.box, self._turned().shape[1:], new.shape[1:], strict=True)
        ]
        out = self._turned().to(new).clone()
        out[_inside(self.box, out.shape[1:])] = new[(slice(None), *torch.meshgrid(*index, indexing="ij"))]
        return out

    def _write(self, values: Tensor) -> Tensor:
        """A copy of the source with ``values`` (C, *turned grid) in its box."""
        full = self._turned().clone()
        if full.shape[0] != values.shape[0]:
            raise DiffAugError(f"the mask has {values.shape[0]} channels, its source {full.shape[0]}: give as many")
        if full.dtype == torch.bool:
            values = values >= 0.5
        elif not full.dtype.is_floating_point:
            limits = torch.iinfo(full.dtype)
            values = values.double().round().clamp(limits.min, limits.max)
        where = _inside(self.box, values.shape[1:])
        full[where] = values[where].to(full.dtype)
        out = self.source.clone()
        _plain(out).copy_(turned_back(full, self.turn))
        return out


def fit(
    image: Tensor, contract: Contract, *, mask: bool = False, like: Fitted | None = None, axes: str = "auto"
) -> Fitted:
    """Fit an image (C, *S) to what a backbone was trained on.

    Intensities: with ``contract.intensity``, each channel's own percentiles go onto the value range, as in training.
    Without it, 8-bit images (also as floats, as ``LoadImage`` gives them) go from 0..255 exactly, floats within [0, 1]
    or [-1, 1] from there, others from ``contract.extra["window"]`` if it is there (CT, in Hounsfield units), else,
    channel by channel, from their ``PERCENTILES``. What lies beyond is cut off here and put back by ``restore``.

    Geometry: the whole image (``contract.crop == "none"``) or a box around its foreground, padded with background to
    the contract's aspect; ``contract.extra["aspect"] = "stretch"`` stretches instead, and ``contract.extra["stretch"]``
    names the axes that are stretched on their own (that across the slices, where slices are of any thickness). Resized
    with anti-aliasing; masks by half coverage, label maps to the nearest.

    Orientation: 2D networks see slices as a viewer shows them, rows first, the patient's left on the right. MONAI's
    readers have the axes the other way around; a MetaTensor says so (and which way the patient lies, if it came from
    NIfTI or DICOM), and is turned. Volumes are turned to the contract's ``orientation`` if both are known.

    Args:
        image: a tensor or MetaTensor of any real dtype.
        contract: of the backbone.
        mask: whether it is a mask (0 and anything), or a map of labels, rather than an image.
        like: for a mask, the fit of the image that it belongs to, whose box it shares.
        axes: ``auto``, ``xy`` or ``yx``: the order of a slice's axes, see :data:`~.orientation.AXES`.

    Raises:
        DiffAugError: dimensions or channels that the contract does not have, NaN or infinity, a constant image.
    """
    _check(image, contract, mask)
    turn = like.turn if like is not None else turn_of(image, contract, axes)
    x = turned(_plain(image).detach(), turn).float()
    if mask:
        box = like.box if like is not None else _whole(x.shape[1:], contract)
        top = float(x.max()) if _binary(x, float(x.max())) else 1.0
        window: tuple[tuple[float, float], ...] = ((0.0, top or 1.0),)
        return Fitted(_fit_mask(x, box, contract.size, top), image, contract, window, box, turn, True)
    window = like.window if like is not None else _windows(image, contract)
    values = _scale(x, window, (contract.value_range,) * len(window))
    box = like.box if like is not None else _boxed(values, contract)
    low, high = contract.value_range
    small = resampled(_take(values, box, low), contract.size)
    clamped = small.clamp(low, high)
    return Fitted(clamped, image, contract, window, box, turn, False, small - clamped)


def resampled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (C, *S) to ``size`` linearly, axis by axis, with anti-aliasing where it shrinks; any number of axes."""
    for axis, n in enumerate(size, 1):
        if x.shape[axis] != n:
            rows = x.movedim(axis, -1)
            flat = F.interpolate(rows.reshape(1, -1, 1, rows.shape[-1]), (1, int(n)), mode="bilinear", antialias=True)
            x = flat.reshape(*rows.shape[:-1], int(n)).movedim(-1, axis)
    return x


def foreground_box(
    image: Tensor, size: Sequence[int], background: float, foreground: float, stretch: Sequence[int] = ()
) -> Box:
    """The smallest box of ``size``'s aspect around what is brighter than ``background`` + a tenth of the way up.

    A row of voxels counts from one in fifty bright ones, so that specks of noise do not move the box.

    Args:
        image: (C, *S).
        size: whose aspect the box takes.
        background: value of the background.
        foreground: value of the brightest.
        stretch: axes that end where the foreground does, whatever the aspect.

    Returns:
        For each axis its begin and end, which may lie outside the image.
    """
    bright = (image > background + FOREGROUND * (foreground - background)).any(0).float()
    dims = tuple(range(bright.ndim))
    spans = []
    for axis in dims:
        profile = bright.mean(tuple(d for d in dims if d != axis))
        hit = (profile >= 0.02).nonzero().flatten().tolist()
        spans.append((hit[0], hit[-1] + 1) if hit else (0, int(bright.shape[axis])))
    margin = MARGIN * max(b - a for i, (a, b) in enumerate(spans) if i not in stretch)
    margins = [MARGIN * (b - a) if i in stretch else margin for i, (a, b) in enumerate(spans)]
    return _with_aspect([(a - m, b + m) for (a, b), m in zip(spans, margins, strict=True)], size, stretch)


def _boxed(values: Tensor, contract: Contract) -> Box:
    if contract.crop == "foreground":
        return foreground_box(values, contract.size, *contract.value_range, contract.extra.get("stretch", ()))
    if contract.crop != "none":
        raise DiffAugError(f"the contract's crop {contract.crop!r} is unknown: use 'foreground' or 'none'")
    return _whole(values.shape[1:], contract)


def _whole(shape: Sequence[int], contract: Contract) -> Box:
    spans = [(0.0, float(n)) for n in shape]
    if contract.extra.get("aspect") == "stretch":
        return tuple((0, int(n)) for n in shape)
    return _with_aspect(spans, contract.size)


def _with_aspect(spans: Sequence[tuple[float, float]], size: Sequence[int], stretch: Sequence[int] = ()) -> Box:
    """Grow a box about its middle until it has the aspect of ``size``, in whole voxels, but for axes to ``stretch``."""
    scales = [(b - a) / s for (a, b), s in zip(spans, size, strict=True)]
    common = max(scale for i, scale in enumerate(scales) if i not in stretch)
    box = []
    for i, ((a, b), s) in enumerate(zip(spans, size, strict=True)):
        length = max(1, round(scales[i] * s if i in stretch else common * s))
        start = round((a + b - length) / 2)
        box.append((start, start + length))
    return tuple(box)


def _inside(box: Box, shape: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), *(slice(max(0, a), min(b, n)) for (a, b), n in zip(box, shape, strict=True)))


def _take(x: Tensor, box: Box, fill: float) -> Tensor:
    """The box out of (C, *S), padded with ``fill`` beyond the image."""
    around = [(max(0, -a), max(0, b - n)) for (a, b), n in zip(box, x.shape[1:], strict=True)]
    return F.pad(x[_inside(box, x.shape[1:])], [p for pair in reversed(around) for p in pair], value=fill)


def _fit_mask(x: Tensor, box: Box, size: Sequence[int], top: float) -> Tensor:
    x = _take(x, box, 0.0)
    if _binary(x, top):
        return (resampled(x / (top or 1.0), size) >= 0.5).float()
    return F.interpolate(x[None], [int(s) for s in size], mode="nearest-exact")[0]


def _binary(x: Tensor, top: float = 1.0) -> bool:
    x = _plain(x)
    return bool(((x == 0) | (x == top)).all())


def _scale(x: Tensor, source: Sequence[tuple[float, float]], target: Sequence[tuple[float, float]]) -> Tensor:
    """Map each channel's interval ``source`` onto ``target``; one pair serves all channels."""
    shape = (-1, *[1] * (x.ndim - 1))
    a, b = (torch.tensor(pair, dtype=x.dtype, device=x.device) for pair in zip(*source, strict=True))
    c, d = (torch.tensor(pair, dtype=x.dtype, device=x.device) for pair in zip(*target, strict=True))
    return (x - a.reshape(shape)) * ((d - c) / (b - a)).reshape(shape) + c.reshape(shape)


def _smooth(x: Tensor) -> Tensor:
    pool = F.avg_pool2d if x.ndim == 3 else F.avg_pool3d
    return pool(x, 3, stride=1, padding=1, count_include_pad=False)


def _plain(x: Tensor) -> Tensor:
    """Without meta data, sharing memory (a MetaTensor runs every operation much slower)."""
    plain: Tensor = x.as_tensor() if hasattr(x, "as_tensor") else x
    return plain


# ------------------------------------------------------------------------------------------------------- intensities


def _windows(image: Tensor, contract: Contract) -> tuple[tuple[float, float], ...]:
    """For each channel the intensities that go to the ends of the value range."""
    x = _plain(image).detach()
    if contract.intensity is not None:
        return tuple(_percentile_window(channel, contract.intensity) for channel in x.flatten(1).float())
    fixed = _fixed_window(x, getattr(image, "meta", None) or {}, float(x.min()), float(x.max()))
    if fixed is None and "window" in contract.extra:
        a, b = contract.extra["window"]
        fixed = (float(a), float(b))
    if fixed is not None:
        return (fixed,) * x.shape[0]
    return tuple(_percentile_window(channel, PERCENTILES) for channel in x.flatten(1).float())


def _fixed_window(x: Tensor, meta: Any, low: float, high: float) -> tuple[float, float] | None:
    """The interval of a known kind of image (8-bit, [0, 1], [-1, 1]), else ``None``."""
    if x.dtype in (torch.uint8, torch.bool):
        return (0.0, 255.0) if high > 1 or x.dtype == torch.uint8 else (0.0, 1.0)
    if not x.dtype.is_floating_point:
        return None
    if low >= 0 and 0.1 <= high <= 1:
        return (0.0, 1.0)
    if -1 <= low <= -0.5 and high <= 1:
        return (-1.0, 1.0)
    if low >= 0 and 1 < high <= 255 and _eight_bit(x, meta):
        return (0.0, 255.0)
    return None


def _eight_bit(x: Tensor, meta: Any) -> bool:
    """Whether floats in 0..255 were read from an 8-bit file: its header says so, else all are whole numbers."""
    if "mode" in meta:  # Pillow
        return str(meta["mode"]) in ("L", "P", "RGB", "RGBA")
    if "datatype" in meta:  # NIfTI; 2 is unsigned char
        return int(meta["datatype"]) == 2
    return bool((x == x.round()).all())


def _percentile_window(channel: Tensor, percentiles: Sequence[float]) -> tuple[float, float]:
    """The percentiles of (n,); with hardly any foreground, and so next to nothing between them, the extremes."""
    ordered = channel.sort().values  # torch.quantile takes no more than 16 million
    places = [p / 100 * (ordered.numel() - 1) for p in percentiles]
    low, high = (float(torch.lerp(ordered[int(p)], ordered[math.ceil(p)], p - int(p))) for p in places)
    bottom, top = float(ordered[0]), float(ordered[-1])
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-30):
        low, high = bottom, top
    return (low, high) if high > low else (low, low + 1.0)


# ------------------------------------------------------------------------------------------------------------- checks


def _check(image: Tensor, contract: Contract, mask: bool) -> None:
    what, dims = ("mask" if mask else "image"), contract.spatial_dims
    if image.is_complex():
        raise DiffAugError(f"the {what} is complex: take its magnitude first")
    shape = tuple(int(n) for n in image.shape)
    if len(shape) == dims:
        raise DiffAugError(
            f"the {what} is {shape}, backbone {contract.name!r} is {dims}D and wants channels before {dims} more axes: "
            f"put EnsureChannelFirst before, or choose a backbone of {dims - 1} dimensions"
        )
    if len(shape) != dims + 1:
        raise DiffAugError(
            f"the {what} is {len(shape) - 1}D {shape}, backbone {contract.name!r} is {dims}D: "
            f"take slices of it first, or choose a backbone of {len(shape) - 1} dimensions"
        )
    if 0 in shape:
        raise DiffAugError(f"the {what} is empty, {shape}: leave it out")
    if not mask and shape[0] != contract.channels:
        raise DiffAugError(
            f"the image has {shape[0]} channels, backbone {contract.name!r} takes {contract.channels}: "
            "select or stack channels first"
        )
    if not bool(_plain(image).isfinite().all()):
        raise DiffAugError(f"the {what} holds NaN or infinity: clean it (monai.transforms.SignalFillEmpty) first")
    if not mask and bool((_plain(image) == _plain(image).flatten()[0]).all()):
        raise DiffAugError("the image is constant, there is nothing to augment: leave it out")
