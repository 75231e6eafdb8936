"""Decoding an ``AutoencoderKL`` within a memory budget, exactly: layer by layer, a few rows of an axis at a time.

At 128^3 voxels the decoder of MONAI's brain latent diffusion model holds several maps of 1 GB each. Here a group norm's
mean and variance are summed up over the whole map while the layer before it is written, so that the result is that of
the whole map. What must be kept are two maps of the last level, in half precision if need be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.backbones.decoder import (
    TRANSPOSED,
    Moments,
    is_attention,
    is_residual,
    is_upsampling,
    kernel_of,
    parts,
    scaled,
)
from monai_diffaug.types import DiffAugError

__all__ = ["in_slabs"]


class _Rows(Protocol):
    """A map (B, C, *S), some rows of its first axis at a time."""

    shape: tuple[int, ...]

    def rows(self, a: int, b: int) -> Tensor:
        """Rows a to b, all of them inside the map."""
        ...


class _Stored:
    """A map in memory."""

    def __init__(self, x: Tensor, moments: Moments | None = None):
        self.x, self.shape = x, tuple(x.shape)
        self.moments = moments

    def rows(self, a: int, b: int) -> Tensor:
        """Rows a to b, in single precision."""
        return self.x[:, :, a:b].float()


class _Layer:
    """A convolution of ``source``, after a group norm and an activation if given; nearest-neighbor doubling before it.

    The rows computed last are kept, for who asks for a part of them next.
    """

    def __init__(
        self,
        source: _Rows,
        block: Any,
        scale: tuple[Tensor, Tensor] | None = None,
        activate: bool = False,
        double: bool = False,
    ):
        self.source, self.conv, self.scale, self.activate, self.double = (
            source,
            kernel_of(block),
            scale,
            activate,
            double,
        )
        conv: Any = self.conv
        self.transposed = isinstance(conv, TRANSPOSED)
        reach = 0 if self.transposed else conv.kernel_size[0] // 2
        if self.transposed and tuple(conv.kernel_size) != tuple(conv.stride):
            raise DiffAugError("the decoder's transposed convolutions overlap: decode in one piece, with more memory")
        self.reach = reach
        grown = [s * (2 if double or self.transposed else 1) for s in source.shape[2:]]
        self.shape = (source.shape[0], int(conv.out_channels), *grown)
        self._kept: tuple[int, int, Tensor] | None = None

    def rows(self, a: int, b: int) -> Tensor:
        """Rows a to b."""
        if self._kept is not None and self._kept[0] <= a and b <= self._kept[1]:
            return self._kept[2][:, :, a - self._kept[0] : b - self._kept[0]]
        self._kept = None
        out = self._compute(a, b)
        if self.double:
            self._kept = (a, b, out)
        return out

    def forget(self) -> None:
        """Let everything go; it cannot be asked any more."""
        self._kept, self.source = None, _Zero(self)

    def _compute(self, a: int, b: int) -> Tensor:
        conv: Any = self.conv
        if self.transposed:
            x = self._input(a // 2, -(-b // 2))
            return conv(x)[:, :, a - a // 2 * 2 :][:, :, : b - a]
        total, r = self.shape[2], self.reach
        low, high = max(a - r, 0), min(b + r, total)
        if self.double:
            x = self.source.rows(low // 2, -(-high // 2))
            for dim in range(2, x.ndim):
                x = x.repeat_interleave(2, dim)
            x = x[:, :, low - low // 2 * 2 :][:, :, : high - low]
        else:
            x = self._input(low, high)
        before, after = low - (a - r), (b + r) - high
        if before or after:
            x = F.pad(x, [0, 0] * (x.ndim - 3) + [before, after])
        sides = (0, *conv.padding[1:])
        convolve: Any = F.conv2d if x.ndim == 4 else F.conv3d
        return convolve(x, conv.weight, conv.bias, padding=sides)

    def _input(self, a: int, b: int) -> Tensor:
        x = self.source.rows(a, b)
        if self.scale is not None:
            x = scaled(x, *self.scale)
        return F.silu(x, inplace=self.scale is not None) if self.activate else x


class _Sum:
    """Two maps added."""

    def __init__(self, a: _Rows, b: _Rows):
        self.a, self.b, self.shape = a, b, b.shape

    def rows(self, a: int, b: int) -> Tensor:
        """Rows a to b."""
        return self.b.rows(a, b).add_(self.a.rows(a, b))


class _Slabs:
    """How a decoder is walked: rows at a time, the size from which on maps are kept in half precision, and from which
    on the result of an upsampling is computed when it is asked for (twice) rather than kept.
    """

    def __init__(self, rows: Callable[[_Rows], int], half_from: float, fleeting_from: float):
        self.rows, self.half_from, self.fleeting_from = rows, half_from, fleeting_from

    def over(self, source: _Rows) -> Iterator[tuple[int, int]]:
        """The slabs of a map."""
        step, total = self.rows(source), source.shape[2]
        yield from ((a, min(a + step, total)) for a in range(0, total, step))

    def kept(self, *sources: _Rows, into: _Stored | None = None) -> list[_Stored]:
        """Compute maps side by side and keep them, with their moments; ``into`` is overwritten by the first."""
        made = []
        for i, source in enumerate(sources):
            like = into.x if into is not None and i == 0 else self._empty(source)
            made.append(_Stored(like, Moments()))
        for a, b in self.over(sources[0]):
            for source, target in zip(sources, made, strict=True):
                piece = source.rows(a, b)
                if target.moments is not None:
                    target.moments.add(piece)
                target.x[:, :, a:b] = piece
                del piece
        return made

    def _empty(self, source: _Rows) -> Tensor:
        base = source
        while not isinstance(base, _Stored):
            base = base.a if isinstance(base, _Sum) else getattr(base, "source")  # noqa: B009
        half = math.prod(source.shape) >= self.half_from
        return torch.empty(source.shape, dtype=torch.float16 if half else torch.float32, device=base.x.device)

    def moments(self, source: _Rows) -> Moments:
        """Of a map that is kept, or in a pass over one that is not."""
        if isinstance(source, _Stored) and source.moments is not None:
            return source.moments
        found = Moments()
        for a, b in self.over(source):
            found.add(source.rows(a, b))
        return found


def _residual(block: Any, x: _Rows, walk: _Slabs) -> _Stored:
    first = _Layer(x, block.conv1, walk.moments(x).onto(block.norm1), activate=True)
    same = isinstance(block.nin_shortcut, nn.Identity)
    if isinstance(x, _Stored) and same:
        (h,), shortcut = walk.kept(first), x
    else:  # both from one pass: x is not kept, or not needed any more
        h, shortcut = walk.kept(first, _Sum(_Zero(x), x) if same else _Layer(x, block.nin_shortcut))
    if isinstance(x, _Layer):
        x.forget()
    second = _Layer(h, block.conv2, walk.moments(h).onto(block.norm2), activate=True)
    return walk.kept(_Sum(shortcut, second), into=shortcut)[0]


class _Zero:
    """Nothing, shaped like a map."""

    def __init__(self, like: _Rows):
        self.source, self.shape = like, like.shape

    def rows(self, a: int, b: int) -> Tensor:
        """Rows a to b."""
        return torch.zeros(())


def _layers(blocks: Sequence[Any], latent: Tensor, walk: _Slabs) -> Tensor:
    x: _Rows = _Stored(latent)
    scale: tuple[Tensor, Tensor] | None = None
    for i, block in enumerate(blocks):
        if is_residual(block):
            x = _residual(block, x, walk)
        elif isinstance(block, nn.GroupNorm):
            scale = walk.moments(x).onto(block)
        elif is_attention(block):
            whole = walk.kept(x)[0].x if isinstance(x, _Layer) else x.rows(0, x.shape[2])
            x = _Stored(block(whole.float()))
        else:
            double = is_upsampling(block) and not isinstance(kernel_of(block), TRANSPOSED)
            layer = _Layer(x, block, scale, double=double)
            last, scale = i == len(blocks) - 1, None
            if last:
                out = torch.empty(layer.shape, device=latent.device)
                for a, b in walk.over(layer):
                    out[:, :, a:b] = layer.rows(a, b)
                return out
            passing = is_upsampling(block) and math.prod(layer.shape) >= walk.fleeting_from
            x = layer if passing else walk.kept(layer)[0]
    raise DiffAugError("the decoder does not end in a convolution: decode with more memory, or in one piece")


def in_slabs(
    module: nn.Module,
    latent: Tensor,
    *,
    voxels: int = 2**17,
    half_from: float = math.inf,
    fleeting_from: float = math.inf,
) -> Tensor:
    """Decode as ``AutoencoderKL.decode`` does, layer by layer and a few rows at a time.

    Args:
        module: an ``AutoencoderKL``.
        latent: (B, c, *S), not scaled.
        voxels: of a slab, about; at least one row is taken.
        half_from: maps of this many numbers or more are kept in half precision between layers; the result is then off
            by some 1e-4 of its range.
        fleeting_from: maps of this many numbers or more that an upsampling makes, the widest of all, are not kept but
            computed twice.

    Returns:
        (B, C, *S * factor), the same as from the whole map but for rounding.
    """

    def rows(source: _Rows) -> int:
        return max(1, voxels // math.prod(source.shape[3:]))

    with torch.no_grad():
        return torch.cat([_layers(parts(module), z[None], _Slabs(rows, half_from, fleeting_from)) for z in latent])
