"""Diffusion augmentation of a whole batch on the training device, between the loader and the step."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Randomizable
from monai.utils import ensure_tuple
from torch import Tensor

from ..types import Backbone, Concept, DiffAugError
from .array import META_KEY, request
from .labels import new_label
from .running import MethodRunner, Outcome

__all__ = ["BatchDiffusionAugment"]


class BatchDiffusionAugment(Randomizable):
    """With probability ``prob`` for each image of a batch, replace it (and its label) by what a method makes of it.

    The method runs once on all the images that were drawn, where the backbone is, such as the GPU that trains. Images
    keep their size, intensities, dtype and device. ``batch["diffaug"]`` lists each image's record as JSON, empty where
    nothing was done.

    Args:
        keys: image, and perhaps labels, as in :class:`~monai_diffaug.transforms.RandDiffusionAugmentd`.
        method: name of a method.
        backbone: a shipped name, a folder, a hub id or a ``Backbone``.
        prob: how often.
        largest: images in one call of the method at most.
        allow_missing_keys: pass over labels and ``NAME_key`` that are not there.
        concepts: what ``learn`` methods found, or files with it.
        axes: see :class:`~monai_diffaug.transforms.RandDiffusionAugment`, as for the following.
        detail: keep the source's fine detail where little changed.
        strict: raise on an image that cannot be augmented; otherwise warn and leave what was drawn with it.
        precision: to run in.
        device: for the weights.
        parameters: of the method, and ``NAME_key`` for those in the data.

    Raises:
        DiffAugError: method, backbone, parameter or concept do not fit together; one line that names the remedy.

    Example:
        >>> augment = BatchDiffusionAugment(["image", "label"], "da_fusion", "brain_mri", prob=0.25, device="cuda")
        >>> for batch in loader:
        ...     batch = augment({k: v.to("cuda") for k, v in batch.items()})
    """

    def __init__(
        self,
        keys: KeysCollection,
        method: str,
        backbone: str | Path | Backbone,
        prob: float = 0.5,
        *,
        largest: int = 16,
        allow_missing_keys: bool = False,
        concepts: Sequence[Concept | str | Path] | Concept | str | Path = (),
        axes: str = "auto",
        detail: bool | None = None,
        strict: bool = True,
        precision: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        **parameters: Any,
    ) -> None:
        if not 0 <= prob <= 1 or largest < 1:
            raise DiffAugError(f"prob={prob}, largest={largest}: give a probability, and one image or more")
        self.keys: tuple[Hashable, ...] = ensure_tuple(keys)
        self.prob, self.largest, self.strict, self.allow_missing_keys = prob, largest, strict, allow_missing_keys
        options: dict[str, Any] = {"axes": axes, "detail": detail, "precision": precision, "device": device}
        self.runner = MethodRunner(method, backbone, parameters, concepts, **options)
        self.runner.require()
        self.drawn: list[tuple[int, int]] = []

    def randomize(self, data: int) -> None:
        """Draw which of ``data`` images change, and a seed for each."""
        act = self.R.rand(data) < self.prob
        seeds = self.R.randint(2**31 - 1, size=data)
        self.drawn = [(i, int(seeds[i])) for i in range(data) if act[i]]

    def __call__(self, batch: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Augment a collated batch.

        Args:
            batch: image (B, C, *S); labels as masks (B, c, *S), numbers (B,) or a list of names.

        Returns:
            A new dictionary; the tensors of ``batch`` are not written to.
        """
        out = dict(batch)
        image = self.keys[0]
        if image not in out:
            raise KeyError(f"the batch has no {image!r}: it has {', '.join(map(str, out))}")
        self._present(out)
        count = len(out[image])
        self.randomize(count)
        records = [""] * count
        labels = [key for key in self.keys[1:] if key in out]
        for key in (image, *labels):
            out[key] = out[key].clone() if isinstance(out[key], Tensor) else list(out[key])
        for start in range(0, len(self.drawn), self.largest):
            part = self.drawn[start : start + self.largest]
            for (i, _), outcome in zip(part, self._run(batch, labels, part), strict=False):
                for key in labels:
                    new = new_label(self.runner.entry, key, batch[key][i], outcome)
                    _put(out[key], i, new)
                _put(out[image], i, outcome.image)
                records[i] = outcome.record.to_json()
        out[META_KEY] = records
        return out

    def _present(self, batch: Mapping[Hashable, Any]) -> None:
        wanted = [*self.keys, *self.runner.keys.values()]
        missing = [key for key in wanted if key not in batch]
        if missing and not self.allow_missing_keys:
            raise KeyError(f"the batch lacks {', '.join(map(repr, missing))} and allow_missing_keys==False")

    def _run(
        self, batch: Mapping[Hashable, Any], labels: Sequence[Hashable], part: Sequence[tuple[int, int]]
    ) -> list[Outcome]:
        requests = []
        for i, seed in part:
            given = {name: batch[key][i] for name, key in self.runner.keys.items() if key in batch}
            own = [batch[key][i] for key in labels]
            requests.append(request(self.runner, batch[self.keys[0]][i], seed, own, given))
        try:
            return self.runner.run(requests)
        except DiffAugError as error:
            if self.strict:
                raise
            warnings.warn(f"passed on without augmentation: {error}", stacklevel=3)
            return []


def _put(column: Any, i: int, value: Any) -> None:
    """Write one row; of a MetaTensor, its voxels only."""
    plain = column.as_tensor() if hasattr(column, "as_tensor") else column
    plain[i] = value.as_tensor() if hasattr(value, "as_tensor") else value
