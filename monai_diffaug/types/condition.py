"""What a network is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .errors import DiffAugError

__all__ = ["Condition"]


@dataclass(frozen=True)
class Condition:
    """Every way in which a network can be told something. Absent parts are ``None``.

    Shapes: ``tokens (B, L, D)``, ``vector (B, D)``, ``concat (B, C, *spatial)`` at latent size, ``labels (B,)``
    integers, ``residuals``: feature maps added inside the network (down blocks..., middle).
    """

    tokens: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None
    labels: Tensor | None = None
    residuals: tuple[Tensor, ...] | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Condition:
        """Apply ``fn`` to every tensor in it."""
        values: dict[str, Any] = {}
        for f in fields(self):
            v = getattr(self, f.name)
            values[f.name] = None if v is None else tuple(fn(r) for r in v) if isinstance(v, tuple) else fn(v)
        return Condition(**values)

    def to(self, *args: Any) -> Condition:
        """Move to a device; floating tensors also take a dtype."""
        return self.map(
            lambda t: (
                t.to(*args) if t.is_floating_point() else t.to(*[a for a in args if not isinstance(a, torch.dtype)])
            )
        )

    def __getitem__(self, index: Any) -> Condition:
        return self.map(lambda t: t[index])

    def repeat(self, n: int) -> Condition:
        """``n`` copies of the batch, one after the other."""
        return self.map(lambda t: t.repeat(n, *[1] * (t.ndim - 1)))

    def dropped(self, null: Condition, keep: Mapping[str, Tensor]) -> Condition:
        """With the rows of ``null`` wherever ``keep[part]`` (B,) is false; parts that ``keep`` does not name stay."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, flags in keep.items():
            told, untold = values[name], getattr(null, name)
            column = flags.to(told.device).reshape(-1, *[1] * (told.ndim - 1))
            values[name] = torch.where(column, told, untold)
        return Condition(**values)

    @property
    def batch(self) -> int | None:
        """Number of rows, or ``None`` for the empty condition."""
        for f in fields(self):
            v = getattr(self, f.name)
            if v is not None:
                return int(v[0].shape[0] if isinstance(v, tuple) else v.shape[0])
        return None

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Stack conditions along the batch. All must have the same parts, so that none is dropped in silence."""
        values: dict[str, Any] = {}
        for f in fields(Condition):
            vs = [getattr(p, f.name) for p in parts]
            present = [v is not None for v in vs]
            if any(present) and not all(present):
                if f.name == "residuals":  # a branch without residuals is a branch with zeros
                    like = next(v for v in vs if v is not None)
                    vs = [v if v is not None else tuple(torch.zeros_like(r) for r in like) for v in vs]
                else:
                    raise DiffAugError(
                        f"conditions differ in {f.name!r}: make all of them with the same backbone's conditioner"
                    )
            elif not any(present):
                values[f.name] = None
                continue
            if isinstance(vs[0], tuple):
                values[f.name] = tuple(torch.cat(rs) for rs in zip(*vs, strict=True))
            else:
                values[f.name] = torch.cat(vs)
        return Condition(**values)
