"""What an extractor is blind to: real images spoiled in known ways, step by step, scored against those left alone.

A score that does not rise with blur says nothing of blur. Which extractor sees what is measured here, not assumed:
medical features are not better by their name (Woodland et al. 2024, arXiv:2311.13717).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.extractors import Extractor
from ..metrics.distribution import floored, kid
from .planes import by_plane, features_of

__all__ = ["CORRUPTIONS", "Sight", "sight", "table"]

Spoil = Callable[[Tensor, float, torch.Generator], Tensor]


def _axes(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _blur(x: Tensor, strength: float, _: torch.Generator) -> Tensor:
    """Gaussian, of a width of up to 3 % of a side."""
    sigma = max(strength * 0.03 * x.shape[-1], 0.3)
    reach = int(3 * sigma) + 1
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = taps / taps.sum()
    for axis in _axes(x):
        shape = [1] * x.ndim
        shape[axis] = -1
        pad = [0] * (2 * (x.ndim - 2))
        pad[2 * (x.ndim - 1 - axis)] = pad[2 * (x.ndim - 1 - axis) + 1] = reach
        conv = F.conv2d if x.ndim == 4 else F.conv3d
        flat = x.reshape(-1, 1, *x.shape[2:])
        x = conv(F.pad(flat, pad, mode="replicate"), taps.reshape(shape)).reshape(x.shape)
    return x


def _noise(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """White, of up to an eighth of the range."""
    return (x + 0.25 * strength * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def _ghosting(x: Tensor, strength: float, _: torch.Generator) -> Tensor:
    """Echoes along one axis, as motion leaves in MR: every other line of k-space is damped by up to six tenths."""
    spectrum = torch.fft.fft(x, dim=-2)
    gain = torch.ones(x.shape[-2])
    gain[1::2] = 1 - 0.6 * strength
    return torch.fft.ifft(spectrum * gain[:, None], dim=-2).real.clamp(-1, 1)


def _window(x: Tensor, strength: float, _: torch.Generator) -> Tensor:
    """The darkest and brightest parts cut off, as by a window that is up to half too narrow."""
    return (x / (1 - 0.5 * strength)).clamp(-1, 1)


def _shift(x: Tensor, strength: float, _: torch.Generator) -> Tensor:
    """Blocks of a quarter of a side moved against each other by up to a sixth: anatomy that does not exist."""
    step = x.shape[-1] // 4
    move = max(1, round(strength * x.shape[-1] / 6))
    rows = [b.roll((-1) ** i * move, -1) for i, b in enumerate(x.split(step, -2))]
    return torch.cat(rows, -2)


def _mode(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Fewer different images: down to a tenth of them, repeated."""
    kept = max(2, round(len(x) * (1 - 0.9 * strength)))
    chosen = torch.randperm(len(x), generator=generator)[:kept]
    return x[chosen[torch.arange(len(x)) % kept]]


def _slices(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Slices of a volume (N, C, D, H, W) in disorder; up to all of them."""
    if x.ndim != 5:
        return x
    n = x.shape[-1]
    moved = torch.randperm(n, generator=generator)[: round(strength * n)]
    order = torch.arange(n)
    order[moved.sort().values] = moved
    return x[..., order]


CORRUPTIONS: dict[str, Spoil] = {
    "blur": _blur,
    "noise": _noise,
    "ghosting": _ghosting,
    "wrong window": _window,
    "broken anatomy": _shift,
    "few different images": _mode,
    "slices in disorder": _slices,
}


@dataclass(frozen=True)
class Sight:
    """KID of one corruption at rising ``strengths``, with the floor's upper end.

    ``seen_from`` is the least strength from which on the score lies above all that real images score against each
    other; ``None`` if it never does. ``rising`` says whether each step is worse than the one before.
    """

    corruption: str
    strengths: tuple[float, ...]
    scores: tuple[float, ...]
    floor: float
    rising: bool
    seen_from: float | None


def sight(
    found: Extractor,
    real: Tensor,
    *,
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0),
    draws: int = 20,
    seed: int = 0,
) -> tuple[Sight, ...]:
    """What an extractor sees of each corruption of one half of real images, scored against the other half.

    Args:
        found: the extractor.
        real: images (N, C, *S) in [-1, 1], each of another patient.
        strengths: of the corruption, from 0 to 1.
        draws: of halves of halves.
        seed: of the draws and of what is random in a corruption.
    """
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    spoiled, kept = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
    b = features_of(found, kept)
    score = kid if real.ndim == 4 or found.dims == 3 else lambda x, y: by_plane(kid, x, y)
    rows = []
    for name, spoil in CORRUPTIONS.items():
        if name == "slices in disorder" and real.ndim != 5:
            continue
        scores, floors = [], []
        for strength in strengths:
            made = spoil(spoiled.float(), strength, torch.Generator().manual_seed(seed))
            value = floored(score, features_of(found, made), b, draws=draws, seed=seed)
            scores.append(value.score)
            floors.append(value.floor_interval[1])
        floor = max(floors)
        above = [s for s, v in zip(strengths, scores, strict=True) if v > floor]
        rows.append(Sight(name, strengths, tuple(scores), floor, scores == sorted(scores), above[0] if above else None))
    return tuple(rows)


def table(sights: dict[str, tuple[Sight, ...]]) -> str:
    """Markdown: a row a corruption, a column an extractor, each cell the least strength that is seen."""
    names = [s.corruption for s in next(iter(sights.values()))]
    lines = [f"| seen from strength | {' | '.join(sights)} |", "| --- |" + " ---: |" * len(sights)]
    for i, name in enumerate(names):
        cells = [_cell(found[i]) for found in sights.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(sight: Sight) -> str:
    return "blind" if sight.seen_from is None else f"{sight.seen_from:g}" + ("" if sight.rising else " (not rising)")
