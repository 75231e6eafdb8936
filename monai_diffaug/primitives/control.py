"""A trainable branch that sees a hint (edges, a mask, a sketch) and adds to a frozen network's feature maps.

ControlNet (Zhang, Rao and Agrawala 2023, arXiv:2302.05543). How a branch is built belongs to the network's library: its
adapter offers ``control_branch(hint_channels, factor)``. Here is how a branch is joined to the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..types import Backbone, Condition, DiffAugError, Network, current_level

__all__ = ["Branch", "branch", "check_hint", "controlled"]


class Branch(Protocol):
    """The trainable copy of an encoder with zero convolutions."""

    module: nn.Module

    def __call__(self, x: Tensor, t: Tensor, condition: Condition, hint: Tensor) -> tuple[Tensor, ...]:
        """Residuals for the network's down features and its middle, for a hint (B, C, *image size)."""
        ...


def branch(backbone: Backbone, hint_channels: int, state: Mapping[str, Tensor] | None = None, seed: int = 0) -> Branch:
    """A branch for this backbone: its encoder's weights, or those in ``state``.

    Args:
        backbone: stays as it is.
        hint_channels: channels of the hint.
        state: tensors of a trained branch.
        seed: of the hint's layers, the only ones that do not start from the encoder's weights or from zero.

    Raises:
        DiffAugError: the network cannot have one, or the tensors are not for it.
    """
    build = getattr(backbone.network, "control_branch", None)
    if build is None:
        raise DiffAugError(f"backbone {backbone.name!r} cannot carry a control branch: use a U-Net backbone")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made: Branch = build(hint_channels, backbone.contract.factor)
    if state is not None:
        try:
            made.module.load_state_dict(dict(state))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise DiffAugError(f"this control branch does not fit backbone {backbone.name!r}: {reason}") from None
        made.module.requires_grad_(False)
    return made


def check_hint(backbone: Backbone, hint: Tensor, channels: int | None = None) -> Tensor:
    """A hint (B, C, *S) of the backbone's image size, as float; anything else is refused."""
    size = backbone.contract.size
    if hint.ndim != len(size) + 2 or tuple(hint.shape[2:]) != tuple(size) or channels not in (None, hint.shape[1]):
        want = ", ".join(map(str, (channels or "channels", *size)))
        raise DiffAugError(f"hint is {tuple(hint.shape)}: give (batch, {want})")
    if not bool(hint.isfinite().all()):
        raise DiffAugError("hint holds NaN or infinity: clean it first")
    return hint.to(backbone.device, torch.float32)


class _Controlled:
    """A network and a branch, as a network."""

    def __init__(self, network: Network, joined: Branch, hint: Tensor, scale: float, guess: bool):
        self.network, self.joined, self.hint, self.scale, self.guess = network, joined, hint, scale, guess
        self.module = network.module

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        if self.scale == 0.0:
            return self.network(x, t, condition)
        if x.shape[0] % self.hint.shape[0]:
            raise DiffAugError(f"{x.shape[0]} images were given {self.hint.shape[0]} hints: give one, or one per image")
        copies = x.shape[0] // self.hint.shape[0]
        hint = self.hint.repeat(copies, *[1] * (self.hint.ndim - 1)).to(x)
        residuals = self.joined(x, t, replace(condition, residuals=None), hint)
        weights = [self.scale] * len(residuals)
        if self.guess:  # from 0.1 at the finest map to 1 in the middle, and only where the condition is the wanted one
            steps = max(len(residuals) - 1, 1)
            weights = [self.scale * math.pow(10.0, i / steps - 1.0) for i in range(len(residuals))]
            residuals = tuple(r * _wanted(r) for r in residuals)
        residuals = tuple(w * r for w, r in zip(weights, residuals, strict=True))
        if condition.residuals is not None:  # several controls add up
            residuals = tuple(a + b for a, b in zip(residuals, condition.residuals, strict=True))
        return self.network(x, t, replace(condition, residuals=residuals))

    def __getattr__(self, name: str) -> Any:
        if name == "network":  # not there yet: the object is being copied
            raise AttributeError(name)
        return getattr(self.network, name)

    def attention_sites(self) -> Mapping[str, tuple[nn.Module, str]]:
        return self.network.attention_sites()

    def feature_sites(self) -> Mapping[str, nn.Module]:
        return self.network.feature_sites()


def _wanted(residual: Tensor) -> Tensor:
    """1 for the rows of a stacked call that belong to the condition, 0 for the negative ones."""
    level = current_level()
    names = ("condition",) if level is None else level.branches
    rows = torch.tensor([float(n != "negative") for n in names]).repeat_interleave(residual.shape[0] // len(names))
    return rows.to(residual).reshape(-1, *[1] * (residual.ndim - 1))


def controlled(
    backbone: Backbone, joined: Branch, hint: Tensor, *, scale: float = 1.0, guess: bool = False
) -> Backbone:
    """The same backbone, its network joined by a branch that sees ``hint``.

    Args:
        backbone: shared, as it is.
        joined: the branch.
        hint: (B or 1, C, *S) at image size.
        scale: weight of the residuals; 0 is the network alone.
        guess: let the hint act on the wanted condition only, weakly on fine maps and fully in the middle (section 3.5's
            "guess mode"), so that it may be followed without a prompt.
    """
    hint = check_hint(backbone, hint)
    return replace(backbone, network=_Controlled(backbone.network, joined, hint, scale, guess))
