"""Real or synthetic images as one stack that scores can be taken of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from ..io import datalist
from ..io import images as files
from ..primitives.fitting import fit
from ..types import Contract, DiffAugError

__all__ = ["Pictures", "contract_of_size", "pictures"]


@dataclass(frozen=True)
class Pictures:
    """``images`` (N, C, *S) in [-1, 1], ``masks`` (N, 1, *S) if every image has one, and what the datalist says.

    ``patients`` names each image's patient (its own name where the list does not say), ``sources`` the real image that
    a synthetic one was made of.
    """

    images: Tensor
    masks: Tensor | None
    kinds: tuple[str, ...]
    patients: tuple[str, ...]
    paths: tuple[Path, ...]
    sources: tuple[Path | None, ...]
    skipped: tuple[str, ...] = ()
    fields: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.images)


def contract_of_size(source: str | Path, size: int, first: Tensor) -> Contract:
    """What images like ``first`` (C, *S) are fitted to: ``size`` voxels a side, values in [-1, 1]."""
    dims = first.ndim - 1
    return Contract(
        name=str(source),
        modality="any",
        spatial_dims=dims,
        channels=int(first.shape[0]),
        size=(size,) * dims,
        latent_channels=1,
        latent_scale=1.0,
        factor=1,
        intensity=None if first.dtype == torch.uint8 else (0.5, 99.5),
        orientation="RAS" if dims == 3 else None,
    )


def pictures(source: str | Path, size: int = 96, dims: int | None = None, most: int | None = None) -> Pictures:
    """Read a datalist or a folder, every image fitted to ``size`` voxels a side; bad files are skipped and named.

    Args:
        source: as for ``diffaug expand``.
        size: of the fitted images.
        dims: 2 or 3; that of the first image unless given.
        most: how many at most, evenly spread over the list.

    Raises:
        DiffAugError: fewer than four images can be read.
    """
    items = datalist.read(source)
    step = 1 if most is None else max(1, -(-len(items) // most))
    kept: list[tuple[datalist.Item, Tensor, Tensor | None]] = []
    skipped = []
    contract: Contract | None = None
    for item in track(items[::step], description=f"reading {Path(source).name}", transient=True):
        try:
            scan = files.read(item.image, dims=dims or (contract.spatial_dims if contract else None))
            contract = contract or contract_of_size(source, size, scan.image)
            fitted = fit(scan.image, contract)
            mask = None
            if item.mask is not None:
                seen = files.read(item.mask, dims=contract.spatial_dims, mask=True).image
                mask = fit(seen, contract, mask=True, like=fitted).tensor
        except DiffAugError as error:
            skipped.append(str(error))
            continue
        kept.append((item, fitted.tensor, mask))
    if len(kept) < 4:
        why = f" ({skipped[0]})" if skipped else ""
        raise DiffAugError(f"{source} has {len(kept)} images that can be read{why}: give at least 4")
    masks = [m for _, _, m in kept if m is not None]
    base = Path(source) if Path(source).is_dir() else Path(source).parent
    return Pictures(
        torch.stack([x for _, x, _ in kept]),
        torch.stack(masks) if len(masks) == len(kept) else None,
        tuple(str(i.kind) if i.kind is not None else "" for i, _, _ in kept),
        tuple(str(i.fields.get("patient", i.id)) for i, _, _ in kept),
        tuple(i.image for i, _, _ in kept),
        tuple(base / str(i.fields["source"]) if i.fields.get("source") else None for i, _, _ in kept),
        tuple(skipped),
        tuple(i.fields for i, _, _ in kept),
    )
