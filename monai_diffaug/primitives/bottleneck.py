"""The bottleneck of a network as a space of meanings: read it, shift it, predict with the shift and without.

Kwon, Jeong and Uh 2023 (arXiv:2210.10960) call it h-space: a direction in it means the same for every image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..types import Backbone, Concept, Condition, Denoiser, DiffAugError, NoiseLevel, Prediction, at_level
from .concepts import check, load_concept
from .features import features

__all__ = ["Block", "Shift", "asymmetric", "direction", "read"]

Shift = Callable[[Tensor, NoiseLevel], Tensor]
"""From a bottleneck map (B, C, *S) and the noise level to what is added to it."""

_WAVES = 32


def read(backbone: Backbone, x: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
    """The bottleneck map (B, C, *s) that the network makes of the noisy latent ``x``."""
    seen: list[Tensor] = []
    with features(backbone, lambda site, h, _: seen.append(h)):
        backbone.denoiser(condition)(x, level)
    return seen[-1]


class Block(nn.Module):
    """The shift as a small network that all noise levels share (section 3.4 and figure 3): two 1x1 convolutions.

    Args:
        channels: of the bottleneck.
        dims: spatial dimensions.
    """

    def __init__(self, channels: int, dims: int):
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        groups = max(g for g in range(1, 33) if channels % g == 0)
        self.first, self.second = conv(channels, channels, 1), conv(channels, channels, 1)
        self.time, self.norm = nn.Linear(2 * _WAVES, channels), nn.GroupNorm(groups, channels)

    def forward(self, h: Tensor, level: NoiseLevel) -> Tensor:
        """What is added to ``h`` (B, C, *S)."""
        rates = torch.exp(-math.log(1e4) * torch.arange(_WAVES, device=h.device) / _WAVES)
        waves = torch.cat([(level.t * rates).sin(), (level.t * rates).cos()])
        y = self.first(h) + self.time(waves).reshape(1, -1, *[1] * (h.ndim - 2))
        return self.second(nn.functional.silu(self.norm(y)))


def direction(concept: Concept | str | Path, backbone: Backbone) -> tuple[Concept, Shift]:
    """A concept of kind ``direction``, or its file, and the shift that it stands for.

    Raises:
        DiffAugError: it is of another kind, or was learned on another backbone.
    """
    found = concept if isinstance(concept, Concept) else load_concept(concept)
    if check(found, backbone).kind != "direction":
        raise DiffAugError(f"a concept of kind {found.kind!r} is no direction: learn one with the method `h_space`")
    tensors = {k: v.to(backbone.device) for k, v in found.tensors.items()}
    if "shift" in tensors:
        times, shifts = tensors["times"], tensors["shift"]
        return found, lambda h, level: shifts[int((times - level.t).abs().argmin())].to(h)
    weight = tensors["first.weight"]
    block = Block(weight.shape[0], weight.ndim - 2)
    block.load_state_dict(tensors)
    return found, block.requires_grad_(False).to(backbone.device)


def asymmetric(
    backbone: Backbone, condition: Condition, shift: Shift, *, until: float = 0.0, symmetric: bool = False
) -> Denoiser:
    """A denoiser whose ``x0`` comes from a pass with the shift and whose ``eps`` from one without (eq. 5).

    Both passes are one network call of twice the batch. Taking both predictions from the shifted pass all but cancels
    the edit (theorem 1); ``symmetric`` does that, to show it.

    Args:
        backbone: the model.
        condition: what both passes are told.
        shift: what is added to the bottleneck.
        until: network time, as a fraction of the last, below which nothing is shifted.
        symmetric: take ``eps`` from the shifted pass as well.
    """
    plain, end = backbone.denoiser(condition), backbone.schedule.times[-1]
    twice = condition.repeat(2)

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        if level.t < until * end:
            return plain(x, level)

        def rule(site: str, h: Tensor, _: NoiseLevel | None) -> Tensor:
            h, shifted = h.chunk(2)
            return torch.cat([h, shifted + shift(shifted, level)])

        with features(backbone, rule), at_level(level):
            out, edited = backbone.output(torch.cat([x, x]), level.t, twice).chunk(2)
        x0, eps = backbone.schedule.convert(edited, x, level.alpha, level.sigma)
        return Prediction(x0, eps if symmetric else backbone.schedule.convert(out, x, level.alpha, level.sigma).eps)

    return denoise
