"""Diffusion augmentation of one image, as a MONAI transform."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import RandomizableTransform
from monai.transforms.inverse import TraceableTransform
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor

from ..provenance import Record
from ..types import Backbone, Concept, DiffAugError
from .labels import class_of, is_mask
from .running import MethodRunner, Outcome, Request

__all__ = ["META_KEY", "RandDiffusionAugment"]

META_KEY = "diffaug"
"""Where an image's meta data holds the record (JSON, see ``monai_diffaug.provenance``); empty if nothing was done."""


class RandDiffusionAugment(RandomizableTransform, TraceableTransform):
    """With probability ``prob``, replace an image by what a diffusion method makes of it.

    The image may have any size, intensity range and real dtype: it is fitted to the backbone and brought back. Where an
    edit changes little, the image's own fine detail is kept. One class serves all generate, edit and expand methods.

    A MetaTensor keeps its affine; its ``meta["diffaug"]`` holds the record (method, parameters, seed, backbone digest)
    as JSON and its ``applied_operations`` a line. The same ``set_random_state`` gives the same images. The backbone is
    loaded once in each process.

    Args:
        method: name of a method (``diffaug list``).
        backbone: a shipped name, a folder, a hub id or a ``Backbone``.
        prob: how often.
        concepts: what ``learn`` methods found, or files with it, put on the backbone first.
        axes: order of a slice's axes: ``xy`` as MONAI's readers give them, ``yx`` rows first; ``auto`` takes it from
            the meta data, and plain arrays for rows first.
        detail: keep the source's fine detail where little changed; ``None``: for edits that keep the layout.
        strict: raise on an image that cannot be augmented; otherwise warn and pass it on as it is.
        precision: to run in, such as ``bfloat16``.
        device: for the weights; the CPU unless given. For a GPU in the training loop see ``BatchDiffusionAugment``.
        parameters: of the method; those that differ from image to image are given when calling.

    Raises:
        DiffAugError: method, backbone, parameter or concept do not fit together; one line that names the remedy.

    Example:
        >>> transform = RandDiffusionAugment("sdedit", "brain_mri", prob=0.5, prompt="tumor", strength=0.4)
        >>> image = transform(image)  # (C, H, W)
    """

    backend = (TransformBackends.TORCH,)

    def __init__(
        self,
        method: str,
        backbone: str | Path | Backbone,
        prob: float = 0.5,
        *,
        concepts: Sequence[Concept | str | Path] | Concept | str | Path = (),
        axes: str = "auto",
        detail: bool | None = None,
        strict: bool = True,
        precision: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        **parameters: Any,
    ) -> None:
        RandomizableTransform.__init__(self, _probability(prob))
        self.runner = MethodRunner(
            method,
            backbone,
            parameters,
            concepts,
            axes=axes,
            detail=detail,
            precision=precision,
            device=device,
        )
        self.strict = strict
        self.seed = 0
        self.outcome: Outcome | None = None
        """What the last call made, at the backbone's size too: mask, map, class, record."""

    def randomize(self, data: Any = None) -> None:
        """Draw whether to act, and the seed."""
        super().randomize(None)
        self.seed = int(self.R.randint(2**31 - 1))

    def __call__(self, img: NdarrayOrTensor, label: Any = None, randomize: bool = True, **given: Any) -> Tensor:
        """Augment one image.

        Args:
            img: (C, *S).
            label: what it shows, a class of the backbone or a label mask (c, *S): a method that keeps labels is told.
            randomize: draw anew; otherwise do again what the last call drew.
            given: parameters of this image, such as ``prompt`` or ``mask`` (1, *S).

        Returns:
            A tensor of the same size and dtype; a MetaTensor unless MONAI's ``set_track_meta(False)`` holds.
        """
        if randomize:
            self.randomize()
        image = as_tensor(img)
        self.outcome = None
        if not self._do_transform:
            return unmarked(image)
        outcome = self.outcome = self.attempt(image, [] if label is None else [label], given)
        return unmarked(image) if outcome is None else self.marked(outcome.image, outcome.record)

    def attempt(self, image: Tensor, labels: Sequence[Any], given: dict[str, Any]) -> Outcome | None:
        """Run the method on (C, *S) under the seed drawn; ``None`` if it cannot be run and need not."""
        try:
            return self.runner.run([request(self.runner, image, self.seed, labels, given)])[0]
        except DiffAugError as error:
            name = source_of(image)
            message = f"{name}: {error}" if name else str(error)
            if self.strict:
                raise DiffAugError(message) from error
            warnings.warn(f"passed on without augmentation: {message}", stacklevel=3)
            return None

    def marked(self, image: Tensor, record: Record) -> Tensor:
        """The image with its record in the meta data and a line in its history."""
        if not isinstance(image, MetaTensor):
            return image
        image.meta[META_KEY] = record.to_json()
        done: Tensor = self.push_transform(image, extra_info=asdict(record))
        return done


def request(runner: MethodRunner, image: Tensor, seed: int, labels: Sequence[Any], given: dict[str, Any]) -> Request:
    """What is asked for one image, with what its labels (classes and masks) say."""
    masks = [torch.as_tensor(x) for x in labels if is_mask(x, image)]
    classes = [class_of(x, runner) for x in labels if not is_mask(x, image)]
    kind = next((c for c in classes if c is not None), None)
    return Request(image, seed, given, kind, masks[0] if masks else None, source_of(image))


def as_tensor(img: NdarrayOrTensor) -> Tensor:
    """A tensor, with meta data if MONAI tracks them."""
    if isinstance(img, np.ndarray) and img.dtype in (np.uint16, np.uint32):  # of which PyTorch can do little
        img = img.astype(np.int32 if img.dtype == np.uint16 else np.int64)
    tensor: Tensor = convert_to_tensor(img, track_meta=get_track_meta())
    return tensor


def unmarked(image: Tensor) -> Tensor:
    """An image that nothing was done to, with an empty record, so that it collates with augmented ones."""
    if not isinstance(image, MetaTensor) or META_KEY in image.meta:
        return image
    out = MetaTensor(image.as_tensor())  # sharing the voxels, and leaving the caller's meta data alone
    out.copy_meta_from(image)
    out.meta[META_KEY] = ""
    return out


def source_of(image: Tensor) -> str | None:
    """The file that an image came from, if it says."""
    name = getattr(image, "meta", {}).get("filename_or_obj")
    return None if name is None else str(name)


def _probability(prob: float) -> float:
    if not 0 <= prob <= 1:
        raise DiffAugError(f"prob={prob} is no probability: give a number from 0 to 1")
    return float(prob)
