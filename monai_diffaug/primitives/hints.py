"""Hints read off an image, by name: what a control branch is shown."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import DiffAugError

__all__ = ["HINTS", "edges", "hint_of"]


def edges(image: Tensor, mask: Tensor | None = None, quantile: float = 0.85) -> Tensor:
    """Outlines (B, 1, *S), 0 or 1, of an image (B, C, *S), 2D or 3D: where it is steepest.

    Smoothed, differentiated (Sobel's kernels, the mean over channels of their norm), thinned to ridges and cut at a
    ``quantile`` of each image's own slopes, as Canny does without tracing.
    """
    dims = image.ndim - 2
    x = image.float().mean(1, keepdim=True)
    smooth = torch.tensor([1.0, 2.0, 1.0]) / 4
    slope = torch.tensor([-1.0, 0.0, 1.0]) / 2
    x = _along(x, [smooth] * dims)
    parts = [_along(x, [slope if i == axis else smooth for i in range(dims)]) for axis in range(dims)]
    norm = torch.stack(parts).square().sum(0).sqrt()
    ridge = torch.zeros_like(norm, dtype=torch.bool)
    steepest = torch.stack(parts).abs().argmax(0)
    for axis in range(dims):  # a ridge is no lower than its neighbors across it
        ahead, behind = norm.roll(1, axis + 2), norm.roll(-1, axis + 2)
        ridge |= (steepest == axis) & (norm >= ahead) & (norm >= behind)
    least = torch.quantile(norm.flatten(1), quantile, dim=1).clamp(min=1e-3)
    return (ridge & (norm >= least.reshape(-1, *[1] * (dims + 1)))).to(image)


def _along(x: Tensor, kernels: list[Tensor]) -> Tensor:
    """Filter (B, 1, *S) with one kernel of three along each axis, the border repeated."""
    conv = F.conv2d if len(kernels) == 2 else F.conv3d
    for axis, kernel in enumerate(kernels):
        shape, pad = [1] * len(kernels), [0] * (2 * len(kernels))
        shape[axis], at = 3, 2 * (len(kernels) - 1 - axis)
        pad[at] = pad[at + 1] = 1
        x = conv(F.pad(x, pad, mode="replicate"), kernel.to(x).reshape(1, 1, *shape))
    return x


def _mask(image: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        raise DiffAugError("this control branch follows a mask: give `mask`, (batch, 1, *spatial)")
    return mask.to(image).clamp(0, 1)


def _gray(image: Tensor, mask: Tensor | None) -> Tensor:
    return image.float().mean(1, keepdim=True)


HINTS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"edges": edges, "mask": _mask, "image": _gray}
"""``edges`` of the image, the label ``mask`` that came with it, or the ``image`` itself."""


def hint_of(name: str, image: Tensor, mask: Tensor | None = None) -> Tensor:
    """The hint called ``name`` for images (B, C, *S) and, where it wants them, masks (B, 1, *S): (B, 1, *S).

    Raises:
        DiffAugError: there is no such hint, or no mask for it.
    """
    if name not in HINTS:
        near = difflib.get_close_matches(name, HINTS, 1, 0.0)
        raise DiffAugError(f"hint {name!r} is unknown: did you mean {near[0]!r}? there are {', '.join(HINTS)}")
    return HINTS[name](image, mask)
