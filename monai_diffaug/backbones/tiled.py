"""Decoding an ``AutoencoderKL`` within a memory budget: in slabs, exactly, or in overlapping tiles, blended.

At 128^3 voxels the decoder of MONAI's brain latent diffusion model holds several maps of 1 GB each. Two ways around:

:func:`in_slabs` goes through the decoder layer by layer, a few rows of the first axis at a time. A group norm's mean
and variance are summed up over the whole map while the layer before it is written, so that the result is that of the
whole map. What must be kept are two maps of the last level, in half precision if need be.

:func:`in_tiles` runs the first levels, whose maps are small, on the whole, then the rest tile by tile. All tiles share
the group norms' statistics, averaged over a first pass, so that neighbors agree; where tiles overlap they are blended.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.types import DiffAugError

__all__ = ["in_slabs", "in_tiles", "parts", "tiles_peak"]

Norm = Callable[[nn.GroupNorm, Tensor], Tensor]

_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)


# ------------------------------------------------------------------------------------------------ what a decoder is of


def parts(module: nn.Module) -> list[Any]:
    """The layers that lead from a latent to an image, in order.

    Raises:
        DiffAugError: not an ``AutoencoderKL`` of MONAI or monai-generative.
    """
    net: Any = module
    blocks = getattr(getattr(net, "decoder", None), "blocks", None)
    if blocks is None or not hasattr(net, "post_quant_conv"):
        raise DiffAugError(
            f"{type(module).__name__} cannot be decoded piece by piece: use an AutoencoderKL of MONAI, or more memory"
        )
    return [net.post_quant_conv, *blocks]


def _is_residual(block: Any) -> bool:
    return hasattr(block, "norm1") and hasattr(block, "nin_shortcut")


def _is_attention(block: Any) -> bool:
    return "Attention" in type(block).__name__


def _is_upsampling(block: Any) -> bool:
    return type(block).__name__ in ("Upsample", "UpSample")


def _kernel(block: Any) -> nn.Module:
    """The one convolution of a layer."""
    found = [
        m for m in block.modules() if isinstance(m, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    ]
    if len(found) != 1:
        raise DiffAugError(
            f"a {type(block).__name__} in the decoder is not known here: decode with more memory, or in one piece"
        )
    return found[0]


def factor_of(blocks: Sequence[Any]) -> int:
    """How many times larger the image is than the latent, an axis."""
    return 2 ** sum(_is_upsampling(b) for b in blocks)


# ---------------------------------------------------------------------------------------------------------- statistics


class _Moments:
    """Mean and variance of each group of channels over a whole map, summed up piece by piece in double precision."""

    def __init__(self) -> None:
        self.n, self.sums, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """A piece (B, C, *S): sums of each channel."""
        flat = x.flatten(2)
        self.n += flat.shape[2]
        self.sums = self.sums.to(x.device) + flat.sum(2, dtype=torch.float64)
        self.squares = self.squares.to(x.device) + torch.stack(  # row by row, or all of it would be there in doubles
            [torch.linalg.vector_norm(row, dim=1, dtype=torch.float64).square() for row in flat]
        )

    def onto(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """What each channel is multiplied with and what is then added, (B, C) each."""
        b, c = self.sums.shape
        groups = (b, norm.num_groups, c // norm.num_groups)
        mean = self.sums.reshape(groups).mean(2, keepdim=True) / self.n
        square = self.squares.reshape(groups).mean(2, keepdim=True) / self.n
        inverse = (square - mean.square() + norm.eps).rsqrt()
        gain = (inverse.expand(groups).reshape(b, c) * norm.weight).float()
        return gain, (norm.bias - mean.expand(groups).reshape(b, c) * gain).float()


def _scaled(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    column = (*gain.shape, *[1] * (x.ndim - 2))
    return (x * gain.reshape(column)).add_(shift.reshape(column))


# --------------------------------------------------------------------------------------------------------------- slabs


class _Rows(Protocol):
    """A map (B, C, *S), some rows of its first axis at a time."""

    shape: tuple[int, ...]

    def rows(self, a: int, b: int) -> Tensor:
        """Rows a to b, all of them inside the map."""
        ...


class _Stored:
    """A map in memory."""

    def __init__(self, x: Tensor, moments: _Moments | None = None):
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
        self.source, self.conv, self.scale, self.activate, self.double = source, _kernel(block), scale, activate, double
        conv: Any = self.conv
        self.transposed = isinstance(conv, _TRANSPOSED)
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
            x = _scaled(x, *self.scale)
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
            made.append(_Stored(like, _Moments()))
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

    def moments(self, source: _Rows) -> _Moments:
        """Of a map that is kept, or in a pass over one that is not."""
        if isinstance(source, _Stored) and source.moments is not None:
            return source.moments
        found = _Moments()
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
        if _is_residual(block):
            x = _residual(block, x, walk)
        elif isinstance(block, nn.GroupNorm):
            scale = walk.moments(x).onto(block)
        elif _is_attention(block):
            whole = walk.kept(x)[0].x if isinstance(x, _Layer) else x.rows(0, x.shape[2])
            x = _Stored(block(whole.float()))
        else:
            double = _is_upsampling(block) and not isinstance(_kernel(block), _TRANSPOSED)
            layer = _Layer(x, block, scale, double=double)
            last, scale = i == len(blocks) - 1, None
            if last:
                out = torch.empty(layer.shape, device=latent.device)
                for a, b in walk.over(layer):
                    out[:, :, a:b] = layer.rows(a, b)
                return out
            passing = _is_upsampling(block) and math.prod(layer.shape) >= walk.fleeting_from
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


# --------------------------------------------------------------------------------------------------------------- tiles


def _through(blocks: Sequence[Any], x: Tensor, norm: Norm) -> Tensor:
    for block in blocks:
        if _is_residual(block):
            h = block.conv1(F.silu(norm(block.norm1, x), inplace=True))
            h = block.conv2(F.silu(norm(block.norm2, h), inplace=True))
            x = block.nin_shortcut(x) + h
            del h
        else:
            x = norm(block, x) if isinstance(block, nn.GroupNorm) else block(x)
    return x


def _own(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return norm(x)


def _begins(size: int, tile: int, overlap: int) -> list[int]:
    if size <= tile:
        return [0]
    n = -(-(size - overlap) // (tile - overlap))
    return [round(i * (size - tile) / (n - 1)) for i in range(n)]


def _ramp(length: int, overlap: int, first: bool, last: bool) -> Tensor:
    """Weight along one axis: up over the overlap, flat, down again; flat to the very edge of the map."""
    up = (torch.arange(length) + 0.5) / max(overlap, 1)
    ones = torch.ones(length)
    return torch.minimum(ones if first else up, ones if last else up.flip(0)).clamp(max=1.0)


def in_tiles(
    module: nn.Module, latent: Tensor, *, tile: int, overlap: int, whole: int = 0, share: bool = True
) -> Tensor:
    """Decode in overlapping tiles, blended where they overlap.

    Args:
        module: an ``AutoencoderKL``.
        latent: (B, c, *S), not scaled.
        tile: side of a tile, on the grid on which the tiles are cut (see ``whole``).
        overlap: of neighbors, on that grid.
        whole: upsamplings that are made on the whole map first; the tiles are cut just before the next one.
        share: take the group norms' statistics over all tiles, in a pass of its own, rather than each tile's.

    Returns:
        (B, C, *S * factor).

    Raises:
        DiffAugError: tiles that are no larger than what they overlap.
    """
    if tile <= overlap:
        raise DiffAugError(f"tiles of {tile} cannot overlap by {overlap}: give larger tiles")
    blocks = parts(module)
    ups = [i for i, block in enumerate(blocks) if _is_upsampling(block)]
    cut = ups[min(whole, len(ups) - 1)] if ups else 0
    with torch.no_grad():
        return torch.cat([_blended(blocks, cut, z[None], tile, overlap, share) for z in latent])


def tiles_peak(module: nn.Module, latent: Tensor, tile: int, whole: int, peak_of: Callable[[Any], int]) -> int:
    """Bytes that :func:`in_tiles` takes, from its two parts; ``latent`` (1, c, *S) and the weights on ``meta``."""
    blocks = parts(module)
    ups = [i for i, block in enumerate(blocks) if _is_upsampling(block)]
    cut = ups[min(whole, len(ups) - 1)] if ups else 0
    before = peak_of(lambda: _through(blocks[:cut], latent, _own))
    x = _through(blocks[:cut], latent, _own)
    piece = x[(slice(None), slice(None), *(slice(0, tile) for _ in x.shape[2:]))]
    image = 4 * math.prod(s * factor_of(blocks[cut:]) for s in x.shape[2:])
    return max(before, x.nbytes + 2 * image + peak_of(lambda: _through(blocks[cut:], piece, _own)))


def _blended(blocks: Sequence[Any], cut: int, latent: Tensor, tile: int, overlap: int, share: bool) -> Tensor:
    x = _through(blocks[:cut], latent, _own)
    rest, size = blocks[cut:], x.shape[2:]
    factor = factor_of(rest)
    places = list(itertools.product(*(_begins(s, tile, overlap) for s in size)))
    sides = [min(tile, s) for s in size]

    def piece(place: Sequence[int]) -> Tensor:
        return x[(slice(None), slice(None), *(slice(a, a + n) for a, n in zip(place, sides, strict=True)))]

    norm: Norm = _own
    if share and len(places) > 1:
        norm = _shared(rest, [piece(p) for p in itertools.product(*(_begins(s, tile, 0) for s in size))])
    channels = int(_kernel(rest[-1]).out_channels)
    total = torch.zeros(1, channels, *(s * factor for s in size), device=x.device)
    weights = torch.zeros(total.shape[2:], device=x.device)
    for place in places:
        weight = torch.ones((), device=x.device)
        for a, n, s in zip(place, sides, size, strict=True):
            weight = weight[..., None] * _ramp(n * factor, overlap * factor, a == 0, a + n == s).to(x.device)
        where = tuple(slice(a * factor, (a + n) * factor) for a, n in zip(place, sides, strict=True))
        total[(slice(None), slice(None), *where)] += _through(rest, piece(place), norm).mul_(weight)
        weights[where] += weight
    return total.div_(weights)


def _shared(blocks: Sequence[Any], pieces: Sequence[Tensor]) -> Norm:
    """Group norms with the moments of all pieces together, each piece normalized by its own on the way there."""
    found: dict[int, _Moments] = {}

    def record(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        found.setdefault(id(norm), _Moments()).add(x)
        return norm(x)

    for part in pieces:
        _through(blocks[:-1], part, record)
    scales: dict[int, tuple[Tensor, Tensor]] = {}

    def apply(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        if id(norm) not in scales:
            scales[id(norm)] = found[id(norm)].onto(norm)
        return _scaled(x, *scales[id(norm)])

    return apply
