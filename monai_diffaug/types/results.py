"""What methods return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

__all__ = ["Concept", "Sample", "iterate"]


@dataclass(frozen=True)
class Sample:
    """What a method returns. Tensors are batched (B, ...), except from an ``expand`` method, which yields single items.

    ``image`` in the contract's value range. ``mask`` is a label mask that belongs to the new image, ``map`` a float map
    (difference, anomaly), ``label`` class names, ``boxes`` (N, 2 * dims) voxel corners, ``info`` JSON-able remarks.
    """

    image: Tensor
    label: Any = None
    mask: Tensor | None = None
    map: Tensor | None = None
    boxes: Any = None
    prompt: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Concept:
    """What a ``learn`` method returns: tensors by name, and how they are put on a backbone.

    ``kind`` is one of ``tokens`` (rows for new words), ``lora`` (adapter weights), ``weights`` (replacement tensors of
    the network), ``controlnet``, ``direction`` (a shift of the bottleneck).
    """

    kind: str
    tensors: Mapping[str, Tensor]
    backbone_digest: str
    word: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)


def iterate(samples: Sample) -> Iterator[Sample]:
    """Split a batched sample into single ones, each still with a batch axis of 1."""
    for i in range(samples.image.shape[0]):
        pick: dict[str, Any] = {}
        for name in ("label", "mask", "map", "boxes", "prompt"):
            v = getattr(samples, name)
            pick[name] = v[i : i + 1] if isinstance(v, Tensor | list | tuple) else v
        yield replace(samples, image=samples.image[i : i + 1], **pick)
