"""The sets of an audit from files: at the size that copies are looked for at, a model's, or a verifier's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.verifier import Verifier
from ..evaluation.attributes import UNKNOWN, group_of
from ..evaluation.images import Pictures, contract_of_size
from ..io import images as files
from ..primitives.fitting import fit
from ..types import Contract, DiffAugError
from .recognition import Patients

__all__ = ["at_contract", "contract_of_verifier", "named", "values_of"]


def named(pictures: Pictures) -> Patients:
    """Images with their patients and paths."""
    # An image that does not say whose it is, is a patient of its own: by its path, which no other set shares.
    fields = pictures.fields or ({},) * len(pictures)
    whose = [str(f.get("patient", p.resolve())) for f, p in zip(fields, pictures.paths, strict=True)]
    return Patients(pictures.images, tuple(whose), tuple(str(p) for p in pictures.paths))


def at_contract(pictures: Pictures, contract: Contract) -> Patients:
    """The same images as a model takes them.

    Raises:
        DiffAugError: one has other dimensions or channels; the message names the file.
    """
    fitted = [_fitted(path, contract) for path in pictures.paths]
    given = named(pictures)
    return Patients(torch.stack(fitted), given.patients, given.ids)


def _fitted(path: Path, contract: Contract) -> Tensor:
    scan = files.read(path, dims=contract.spatial_dims, orientation=contract.orientation)
    image = scan.image
    if contract.channels == 3 and len(image) == 1:
        image = image.expand(3, *image.shape[1:])
    elif contract.channels == 1 and len(image) == 3 and bool((image == image[:1]).all()):
        image = image[:1]
    try:
        return fit(image, contract, axes="yx" if contract.spatial_dims == 2 else "xy").tensor
    except DiffAugError as error:
        raise DiffAugError(f"{path}: {error}") from None


def contract_of_verifier(verifier: Verifier, first: Tensor) -> Contract:
    """What a verifier's images are fitted to.

    Raises:
        DiffAugError: it does not say, or takes other images than ``first`` (C, *S).
    """
    config: dict[str, Any] = verifier.config or {}
    size = config.get("size")
    if not isinstance(size, Sequence) or not size:
        raise DiffAugError("the verifier does not say the size of its images: save it again with its config")
    channels = int(config.get("channels", 1))
    if len(size) != first.ndim - 1 or channels != len(first):
        raise DiffAugError(
            f"the verifier takes {len(size)}D images of {channels} channels and these are {first.ndim - 1}D of "
            f"{len(first)}: give a verifier of this kind of image"
        )
    return contract_of_size("verifier", int(size[0]), first)


def values_of(pictures: Pictures, attribute: str) -> list[str]:
    """The group of each image by a field of the datalist, ``""`` where it does not say."""
    fields = pictures.fields or ({},) * len(pictures)
    found = [group_of(f, k, attribute) for f, k in zip(fields, pictures.kinds, strict=True)]
    return ["" if UNKNOWN in g.split() else g for g in found]
