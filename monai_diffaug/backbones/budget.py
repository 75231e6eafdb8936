"""The most faithful way to decode that fits into a given memory, and what a run needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffaug.backbones.decoder import factor_of, parts
from monai_diffaug.backbones.memory import peak_of, skeleton
from monai_diffaug.backbones.slabs import in_slabs
from monai_diffaug.backbones.tiled import in_tiles, tiles_peak
from monai_diffaug.types import Backbone, DiffAugError

__all__ = ["Need", "Way", "Within", "need_of", "ways"]

GIB = 2**30
MARGIN = 1.15  # measured over estimated, at 128^3: the allocator and oneDNN keep more than tensors take
OVERLAP = 4  # of neighboring tiles, on the grid on which they are cut: 16 voxels of the image after two doublings
SLABS = (16, 64, 256)  # that the largest maps are cut into, about


@dataclass(frozen=True)
class Way:
    """One way to decode: ``whole``, ``slabs`` or ``tiles``, its settings, and the bytes that it takes at most."""

    name: str
    peak: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether the result is that of the whole map, but for rounding."""
        return self.name != "tiles"

    def decode(self, module: nn.Module, latent: Tensor) -> Tensor:
        """Image (B, C, *S) of a latent (B, c, *S / factor) that is not scaled."""
        net: Any = module
        if self.name == "slabs":
            return in_slabs(module, latent, **self.settings)
        if self.name == "tiles":
            return in_tiles(module, latent, **self.settings)
        if self.settings.get("one by one"):
            return torch.cat([net.decode_stage_2_outputs(z[None]) for z in latent])
        out: Tensor = net.decode_stage_2_outputs(latent)
        return out

    def __str__(self) -> str:
        """In words."""
        more = ", ".join(k if v is True else f"{k.replace('_', ' ')} {v}" for k, v in self.settings.items())
        return f"{self.name} ({more})" if more else self.name


def ways(module: nn.Module, shape: Sequence[int], *, exact: bool = False) -> Iterator[Way]:
    """Ways to decode latents of ``shape`` (B, c, *S), the most faithful and fastest first, with their peaks.

    Args:
        module: the autoencoder.
        shape: of the latents.
        exact: leave out those that only come close.
    """
    bare: Any = skeleton(module)
    one = torch.empty(1, *shape[1:], device="meta")
    all_of_them = torch.empty(*shape, device="meta")
    result = partial(_bytes_of_image, bare, shape)
    yield Way("whole", peak_of(lambda: bare.decode_stage_2_outputs(all_of_them)))
    if shape[0] > 1:
        yield Way("whole", peak_of(lambda: bare.decode_stage_2_outputs(one)) + result(), {"one by one": True})
    if not hasattr(getattr(module, "decoder", None), "blocks"):
        return
    yield from _in_slabs(bare, one, result())
    if not exact:
        yield from _in_tiles(bare, one, result())


def _bytes_of_image(bare: Any, shape: Sequence[int]) -> int:
    """Of the images themselves, which are there whatever the way."""
    factor = factor_of(parts(bare)) if hasattr(getattr(bare, "decoder", None), "blocks") else 1
    return 4 * shape[0] * math.prod(s * factor for s in shape[2:])


def _in_slabs(bare: Any, one: Tensor, result: int) -> Iterator[Way]:
    voxels_of_image = math.prod(s * factor_of(parts(bare)) for s in one.shape[2:])
    wide = 16 * voxels_of_image  # numbers: of a map with 16 channels in full size
    for more in ({}, {"half_from": wide}, {"half_from": wide, "fleeting_from": wide}):
        for pieces in SLABS:
            settings = {"voxels": max(512, voxels_of_image // pieces), **more}
            peak = peak_of(partial(in_slabs, bare, one, **settings))
            yield Way("slabs", int(MARGIN * peak) + result, settings)


def _in_tiles(bare: Any, one: Tensor, result: int) -> Iterator[Way]:
    doublings = int(math.log2(factor_of(parts(bare))))
    whole = max(0, doublings - 2)
    while True:
        side = max(one.shape[2:]) * 2**whole
        for tile in range(side - side % 2 - 2, max(OVERLAP, 7), -2):
            peak = tiles_peak(bare, one, tile, whole, peak_of)
            yield Way("tiles", int(MARGIN * peak) + result, {"tile": tile, "overlap": OVERLAP, "whole": whole})
        if whole == 0:
            return
        whole -= 1


def within(module: nn.Module, shape: Sequence[int], budget: int, *, exact: bool = False) -> Way:
    """The first way that fits.

    Raises:
        DiffAugError: none does; the message says what the least takes.
    """
    least: Way | None = None
    for way in ways(module, shape, exact=exact):
        if way.peak <= budget:
            return way
        least = way if least is None or way.peak < least.peak else least
    assert least is not None  # there is always one
    more = "without --exact, or " if exact else ""
    raise DiffAugError(
        f"decoding {tuple(shape)} does not fit into {budget / GIB:.2f} GB: {more}give {least.peak / GIB:.2f} GB or more"
    )


class Within:
    """An autoencoder that decodes within a memory budget; everything else is the autoencoder's own.

    Args:
        inner: an adapted autoencoder.
        budget: bytes beside what is there already.
        exact: refuse to come only close.
    """

    def __init__(self, inner: Any, budget: int, exact: bool = False):
        self.inner, self.budget, self.exact = inner, int(budget), exact
        self.module: nn.Module = inner.module
        self._chosen: dict[tuple[int, ...], Way] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def way(self, shape: Sequence[int]) -> Way:
        """How latents of a shape (B, c, *S) are decoded."""
        key = tuple(shape)
        if key not in self._chosen:
            self._chosen[key] = within(self.module, key, self.budget, exact=self.exact)
        return self._chosen[key]

    def encode(self, image: Tensor) -> Tensor:
        """As the autoencoder does."""
        latent: Tensor = self.inner.encode(image)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Image (B, C, *S), whole, in slabs or in tiles."""
        traced = torch.jit.is_tracing()  # a trace would hold the pieces of this size, and no plan can be made in one
        if traced or (latent.requires_grad and torch.is_grad_enabled()):
            whole: Tensor = self.inner.decode(latent)
            return whole
        return self.way(latent.shape).decode(self.module, latent / self.inner.scale)

    def within(self, budget: int, exact: bool = False) -> Within:
        """The same within another budget."""
        return Within(self.inner, budget, exact)


# ---------------------------------------------------------------------------------------------------------- a whole run


@dataclass(frozen=True)
class Need:
    """What a run needs, in bytes: weights, and the most that each part takes beside them."""

    precision: str
    batch: int
    size: tuple[int, ...]
    weights: int
    network: int
    encode: int
    way: Way

    @property
    def peak(self) -> int:
        """Weights and the largest of the rest."""
        return self.weights + max(self.network, self.encode, self.way.peak)


def need_of(
    backbone: Backbone, size: Sequence[int], batch: int, precision: torch.dtype, budget: int, *, exact: bool = False
) -> Need | None:
    """What sampling ``batch`` images of ``size`` with guidance needs; ``None`` if it does not fit into ``budget``.

    Nothing is computed; see :func:`.memory.peak_of`.
    """
    contract = backbone.contract
    latent = (contract.latent_channels, *(s // contract.factor for s in size))
    parts = [*backbone.modules().values()]
    weights = sum(p.nbytes for m in parts for p in [*m.parameters(), *m.buffers()])
    network = _network(backbone, latent, 2 * batch, precision)
    if weights + network > budget:
        return None
    if contract.factor == 1:
        return Need(_name(precision), batch, tuple(size), weights, network, 0, Way("whole", 0))
    bare: Any = skeleton(backbone.autoencoder)
    image = torch.empty(batch, contract.channels, *size, device="meta")
    encode = peak_of(lambda: bare.encode(image))
    try:
        way = within(backbone.autoencoder.module, (batch, *latent), budget - weights, exact=exact)
    except DiffAugError:
        return None
    return Need(_name(precision), batch, tuple(size), weights, network, encode, way)


def _network(backbone: Backbone, latent: Sequence[int], batch: int, precision: torch.dtype) -> int:
    bare: Any = skeleton(backbone.network)
    bare.module.to(precision)
    x = torch.empty(batch, *latent, device="meta", dtype=precision)
    told = (
        backbone.conditioner(batch)
        .to(torch.device("meta"))
        .map(lambda t: t.to(precision) if t.is_floating_point() else t)
    )
    if told.concat is not None:  # of the size that is asked for, not of the contract's
        told = type(told)(
            told.tokens, told.vector, told.concat.new_empty(*told.concat.shape[:2], *latent[1:]), told.labels
        )
    times = torch.empty(batch, device="meta")
    copies = 0 if precision == torch.float32 else sum(p.nbytes for p in bare.module.parameters())
    return copies + peak_of(lambda: bare(x, times, told))


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")
