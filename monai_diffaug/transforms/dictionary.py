"""Diffusion augmentation of an image and its label in a data dictionary, as a MONAI transform."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from ..types import Backbone, Concept, DiffAugError
from .array import RandDiffusionAugment, as_tensor, unmarked
from .labels import new_label
from .running import Outcome

__all__ = ["RandDiffusionAugmentd"]


class RandDiffusionAugmentd(RandomizableTransform, MapTransform):
    """Dictionary form of :class:`RandDiffusionAugment`: the image changes, and its label with it.

    The first key is the image; any others are its labels: masks, like the image in shape, or classes (names, numbers).
    What becomes of them stands on the method's card (``diffaug where NAME``): *kept* as they are (the method is then
    told what they say, unless it is given a prompt), *replaced* or *generated* by what the method says it made, *moved*
    with the layout.

    Any parameter of the method may come from the data, item by item: ``prompt_key="report"``, ``mask_key="lesion"``.

    Args:
        keys: image, and perhaps labels.
        method: name of a method (``diffaug list``).
        backbone: a shipped name, a folder, a hub id or a ``Backbone``.
        prob: how often.
        allow_missing_keys: pass over items without the image, labels that are not there, and ``NAME_key`` likewise.
        concepts: what ``learn`` methods found, or files with it.
        axes: see :class:`RandDiffusionAugment`, as for the following.
        detail: keep the source's fine detail where little changed.
        strict: raise on an image that cannot be augmented; otherwise warn and pass it on as it is.
        precision: to run in.
        device: for the weights.
        parameters: of the method, and ``NAME_key`` for those in the data.

    Raises:
        DiffAugError: method, backbone, parameter or concept do not fit together; one line that names the remedy.

    Example:
        >>> chain = Compose([LoadImaged(keys), EnsureChannelFirstd(keys),
        ...     RandDiffusionAugmentd(keys, method="da_fusion", backbone="brain_mri", prob=0.5)])
    """

    backend = RandDiffusionAugment.backend

    def __init__(
        self,
        keys: KeysCollection,
        method: str,
        backbone: str | Path | Backbone,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
        *,
        concepts: Sequence[Concept | str | Path] | Concept | str | Path = (),
        axes: str = "auto",
        detail: bool | None = None,
        strict: bool = True,
        precision: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        **parameters: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.augment = RandDiffusionAugment(
            method,
            backbone,
            prob,
            concepts=concepts,
            axes=axes,
            detail=detail,
            strict=strict,
            precision=precision,
            device=device,
            **parameters,
        )
        self.augment.runner.require()
        RandomizableTransform.__init__(self, self.augment.prob)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandDiffusionAugmentd:
        """Seed it; the array form inside draws from the same state."""
        super().set_random_state(seed, state)
        self.augment.set_random_state(state=self.R)
        return self

    def randomize(self, data: Any = None) -> None:
        """Draw whether to act, and the seed."""
        self.augment.randomize()
        self._do_transform = self.augment._do_transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new dictionary; that of the caller and its tensors stay as they are."""
        d = dict(data)
        self.randomize()
        present = list(self.key_iterator(d))
        for key in present:
            if getattr(d[key], "ndim", 0) > 1:
                d[key] = unmarked(as_tensor(d[key]))
        image = self.keys[0]
        if not self._do_transform or image not in present:
            return d
        if not isinstance(d[image], Tensor):
            raise DiffAugError(f"{image!r} holds a {type(d[image]).__name__} and no image: put LoadImaged before")
        labels = [key for key in present if key != image]
        outcome = self.augment.attempt(d[image], [d[key] for key in labels], self._given(d))
        if outcome is not None:
            for key in labels:
                d[key] = self._label(key, d[key], outcome)
            d[image] = self.augment.marked(outcome.image, outcome.record)
        return d

    def _given(self, d: Mapping[Hashable, Any]) -> dict[str, Any]:
        """The parameters that this item brings."""
        given = {}
        for name, key in self.augment.runner.keys.items():
            if key in d:
                given[name] = d[key]
            elif not self.allow_missing_keys:
                raise KeyError(
                    f"Key `{key}` of {name}_key was missing in the data of {type(self).__name__} and "
                    "allow_missing_keys==False."
                )
        return given

    def _label(self, key: Hashable, old: Any, outcome: Outcome) -> Any:
        new = new_label(self.augment.runner.entry, key, old, outcome)
        changed = new is not old and isinstance(new, MetaTensor)
        return self.augment.marked(new, outcome.record) if changed else new
