"""What becomes of a label, by the method's card: kept, moved, replaced or generated."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..primitives.fitting import fit
from ..registry import Entry
from ..types import Contract, DiffAugError
from .running import MethodRunner, Outcome

__all__ = ["class_of", "is_mask", "new_label"]


def is_mask(value: Any, image: Any) -> bool:
    """Whether a label is a map of voxels, like the image, and not a class."""
    return hasattr(value, "ndim") and value.ndim == image.ndim and value.ndim > 1


def class_of(value: Any, runner: MethodRunner) -> str | None:
    """The name of the class that a label says, if the backbone knows it: a name, or a position in its ``labels``."""
    contract: Contract = runner.backbone.contract
    if isinstance(value, str):
        return value if runner.knows(value) else None
    if isinstance(value, bool) or _count(value) != 1:
        return None
    number = value.item() if hasattr(value, "item") else value
    whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
    return contract.labels[int(number)] if whole and 0 <= number < len(contract.labels) else None


def _count(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else int(np.size(value))


def new_label(method: Entry, key: Any, old: Any, outcome: Outcome) -> Any:
    """The label that belongs to the new image, of the kind and type of the old one.

    Masks keep their value for foreground (1, 255); one that was empty, and so does not say, gets 1.

    Raises:
        DiffAugError: the method changes labels, and does not say to what.
    """
    if method.labels == "kept":
        return old
    if is_mask(old, outcome.image):
        if outcome.sample.mask is None:
            raise DiffAugError(
                f"{method.name} leaves label masks {method.labels} and makes none: take {key!r} out of `keys` and of "
                "the data, or choose a method that keeps labels (`diffaug list`)"
            )
        new = outcome.sample.mask[0].to(outcome.image.device)
        return fit(torch.as_tensor(old), outcome.fitted.contract, mask=True, like=outcome.fitted).restore(new)
    return old if method.labels == "moved" else _new_class(method, key, old, outcome)


def _new_class(method: Entry, key: Any, old: Any, outcome: Outcome) -> Any:
    name = outcome.record.label if outcome.record.label is not None else outcome.record.prompt
    if name is None:
        raise DiffAugError(f"{method.name} does not say what class its image is: give prompt=..., or leave {key!r} out")
    if isinstance(old, str):
        return str(name)
    if _count(old) != 1:
        raise DiffAugError(f"{key!r} is no single class, and {method.name} changes classes: give a name or a number")
    labels = outcome.fitted.contract.labels
    if isinstance(name, str) and name not in labels:
        raise DiffAugError(
            f"{key!r} holds class numbers and {name!r} is no class of the backbone ({', '.join(labels)}): "
            "give class names in the data, or such a prompt"
        )
    number = labels.index(name) if isinstance(name, str) else int(name)
    if isinstance(old, Tensor):
        return torch.full_like(old, number)
    return np.full_like(old, number) if isinstance(old, np.ndarray) else type(old)(number)
