"""Which way an image lies: from the axes of MONAI's readers to those of the networks, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import Contract, DiffAugError

__all__ = ["AXES", "Turn", "turn_of", "turned", "turned_back"]

AXES = ("auto", "xy", "yx")
"""Order of a slice's axes: ``yx``, rows first, as in matrices and as 2D networks see them; ``xy``, as MONAI's readers
give pictures; ``auto`` reads it from a MetaTensor's meta data, and takes anything else for rows first."""

Turn = tuple[tuple[int, bool], ...]
"""For each axis of the network, the image's axis and whether it runs backwards."""

_SCREEN = {frozenset({0, 1}): "PL", frozenset({0, 2}): "IL", frozenset({1, 2}): "IP"}
"""Where rows and columns go on a screen, for an axial, coronal and sagittal slice."""

_PLUS, _MINUS = "RAS", "LPI"


def turn_of(image: Tensor, contract: Contract, axes: str) -> Turn:
    """How the axes of an image (C, *S) become the network's.

    Args:
        image: a tensor or MetaTensor.
        contract: says the dimensions and, of volumes, the orientation.
        axes: one of ``AXES``.

    Raises:
        DiffAugError: ``axes`` is none of them.
    """
    if axes not in AXES:
        raise DiffAugError(f"axes={axes!r} is unknown: use one of {', '.join(AXES)}")
    dims = contract.spatial_dims
    straight: Turn = tuple((i, False) for i in range(dims))
    meta = getattr(image, "meta", None)
    if dims == 2 and axes != "auto":
        return straight if axes == "yx" else ((1, False), (0, False))
    if not meta:
        return straight
    if {"mode", "width"} <= set(meta):  # Pillow's reader
        return ((1, False), (0, False)) if dims == 2 else straight
    own = _codes(image, dims)
    wanted = contract.orientation or "" if dims == 3 else _SCREEN[frozenset(_axis(c) for c in own)] if own else ""
    known = len({_axis(c) for c in wanted}) == len(wanted) == dims
    return _to_codes(own, wanted) if known and own else straight


def _codes(image: Any, dims: int) -> str:
    """Where each axis of a MetaTensor goes in the patient, such as ``LPS``; nothing if it does not say."""
    if str(image.meta.get("space", "")) not in ("RAS", "SpaceKeys.RAS"):
        return ""
    default = bool((image.affine == torch.eye(len(image.affine)).to(image.affine)).all())
    if default and "filename_or_obj" not in image.meta:  # MONAI's own default, for a tensor that came from nowhere
        return ""
    columns = image.affine[: min(3, len(image.affine) - 1), :dims].double()
    codes = ""
    for column in columns.T:
        way = column / column.norm().clamp(min=1e-12)
        way[[_axis(c) for c in codes]] = 0  # no direction twice, however oblique
        axis = int(way.abs().argmax())
        codes += (_PLUS if way[axis] >= 0 else _MINUS)[axis]
    return codes


def _axis(code: str) -> int:
    return max(_PLUS.find(code), _MINUS.find(code))


def _to_codes(own: str, wanted: str) -> Turn:
    place = {_axis(c): i for i, c in enumerate(own)}
    return tuple((place[_axis(c)], own[place[_axis(c)]] != c) for c in wanted)


def turned(x: Tensor, turn: Turn) -> Tensor:
    """(C, *S) with the network's axes."""
    x = x.permute(0, *[axis + 1 for axis, _ in turn])
    flipped = [i for i, (_, flip) in enumerate(turn, 1) if flip]
    return x.flip(flipped) if flipped else x


def turned_back(x: Tensor, turn: Turn) -> Tensor:
    """Undo :func:`turned`."""
    flipped = [i for i, (_, flip) in enumerate(turn, 1) if flip]
    x = x.flip(flipped) if flipped else x
    order = [axis for axis, _ in turn]
    return x.permute(0, *[order.index(i) + 1 for i in range(len(order))])
