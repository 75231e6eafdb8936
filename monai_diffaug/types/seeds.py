"""Random numbers: one stream per image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .errors import DiffAugError

__all__ = ["NoiseSource"]


class NoiseSource:
    """One random stream per image, so that an image does not depend on what else is in its batch.

    Args:
        seeds: one integer per batch item.
    """

    def __init__(self, seeds: Iterable[int]):
        self.seeds = tuple(int(s) for s in seeds)
        self._streams = [torch.Generator().manual_seed(s % (2**63)) for s in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def _each(self, n: int) -> list[torch.Generator]:
        if n != len(self._streams):
            raise DiffAugError(f"{n} images were given {len(self._streams)} seeds: give one seed per image")
        return self._streams

    def expect(self, n: int) -> None:
        """Refuse, before any work, a batch of ``n`` images if there are more or fewer seeds."""
        self._each(n)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape, dtype and device of ``like`` (B, ...)."""
        rows = [torch.randn(like.shape[1:], generator=g) for g in self._each(like.shape[0])]
        return torch.stack(rows).to(like)

    def uniform(self, batch: int) -> Tensor:
        """One number in [0, 1) per image: (B,)."""
        return torch.stack([torch.rand((), generator=g) for g in self._each(batch)])

    def state(self) -> list[Tensor]:
        """The streams' states, for a method that must draw the same noise twice."""
        return [g.get_state() for g in self._streams]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Go back to what ``state`` returned."""
        for g, s in zip(self._streams, state, strict=True):
            g.set_state(s)

    def spawn(self, n: int) -> NoiseSource:
        """Streams for a batch of ``n`` copies of each image, copies-major: row ``c * B + b`` is copy c of image b."""
        return NoiseSource((s * 1_000_003 + 7919 * c + 1) % (2**62) for c in range(n) for s in self.seeds)
