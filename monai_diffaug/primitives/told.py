"""Telling a backbone more than a method tells it: the mask of the label, with every class or prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..types import Backbone, Condition, DiffAugError

__all__ = ["with_mask"]


class _Masked:
    """A conditioner that adds one mask wherever it is told anything; the null condition stays the null condition."""

    def __init__(self, inner: Any, mask: Tensor):
        self.inner, self.mask = inner, mask
        self.module, self.accepts = inner.module, inner.accepts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(
        self,
        batch: int,
        *,
        prompt: str | Sequence[str] | None = None,
        label: Sequence[Any] | Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> Condition:
        told = any(x is not None for x in (prompt, label, vector))
        if mask is None and told:
            mask = self.mask.repeat(batch // len(self.mask), *[1] * (self.mask.ndim - 1))
        result: Condition = self.inner(batch, prompt=prompt, label=label, mask=mask, vector=vector)
        return result


def with_mask(backbone: Backbone, mask: Tensor) -> Backbone:
    """The backbone that is told ``mask`` (B, 1, *S) along with every prompt or class.

    A method that keeps labels then keeps the lesion where its label has it, without knowing of masks. To replay its
    record, put the mask on the backbone again.

    Raises:
        DiffAugError: the backbone takes no mask.
    """
    if "mask" not in backbone.conditioner.accepts:
        raise DiffAugError(f"backbone {backbone.name!r} takes no mask: choose one that does, such as brain_mri")
    return replace(backbone, conditioner=_Masked(backbone.conditioner, mask))
