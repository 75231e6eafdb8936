"""What the decoder of an ``AutoencoderKL`` is made of, and the statistics of its group norms over a map in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffaug.types import DiffAugError

TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)


def parts(module: nn.Module) -> list[Any]:
    """The layers that lead from a latent to an image, in order.

    Raises:
        DiffAugError: not an ``AutoencoderKL`` of MONAI or monai-generative.
    """
    net: Any = module
    blocks = getattr(getattr(net, "decoder", None), "blocks", None)
    if blocks is None or not hasattr(net, "post_quant_conv"):
        raise DiffAugError(
            f"{type(module).__name__} cannot be decoded piece by piece: use an AutoencoderKL of MONAI, or more memory"
        )
    return [net.post_quant_conv, *blocks]


def is_residual(block: Any) -> bool:
    """Whether a layer adds its input to what two normed convolutions make of it."""
    return hasattr(block, "norm1") and hasattr(block, "nin_shortcut")


def is_attention(block: Any) -> bool:
    """Whether a layer attends."""
    return "Attention" in type(block).__name__


def is_upsampling(block: Any) -> bool:
    """Whether a layer doubles the map."""
    return type(block).__name__ in ("Upsample", "UpSample")


def kernel_of(block: Any) -> nn.Module:
    """The one convolution of a layer."""
    found = [
        m for m in block.modules() if isinstance(m, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    ]
    if len(found) != 1:
        raise DiffAugError(
            f"a {type(block).__name__} in the decoder is not known here: decode with more memory, or in one piece"
        )
    return found[0]


def factor_of(blocks: Sequence[Any]) -> int:
    """How many times larger the image is than the latent, an axis."""
    return 2 ** sum(is_upsampling(b) for b in blocks)


class Moments:
    """Mean and variance of each group of channels over a whole map, summed up piece by piece in double precision."""

    def __init__(self) -> None:
        self.n, self.sums, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """A piece (B, C, *S): sums of each channel."""
        flat = x.flatten(2)
        self.n += flat.shape[2]
        self.sums = self.sums.to(x.device) + flat.sum(2, dtype=torch.float64)
        self.squares = self.squares.to(x.device) + torch.stack(  # row by row, or all of it would be there in doubles
            [torch.linalg.vector_norm(row, dim=1, dtype=torch.float64).square() for row in flat]
        )

    def onto(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """What each channel is multiplied with and what is then added, (B, C) each."""
        b, c = self.sums.shape
        groups = (b, norm.num_groups, c // norm.num_groups)
        mean = self.sums.reshape(groups).mean(2, keepdim=True) / self.n
        square = self.squares.reshape(groups).mean(2, keepdim=True) / self.n
        inverse = (square - mean.square() + norm.eps).rsqrt()
        gain = (inverse.expand(groups).reshape(b, c) * norm.weight).float()
        return gain, (norm.bias - mean.expand(groups).reshape(b, c) * gain).float()


def scaled(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """``x * gain + shift`` by channel, in the precision of ``x``."""
    column = (*gain.shape, *[1] * (x.ndim - 2))
    return (x * gain.reshape(column)).add_(shift.reshape(column))
