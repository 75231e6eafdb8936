"""A conditioner for networks that turn one image into another: the source goes in beside the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.types import Condition, DiffAugError

__all__ = ["ImageConditioner"]


class ImageConditioner:
    """An image (B, C, *S) in the value range as C more input channels, averaged down to the latent grid.

    Its size is free, as a convolutional network's is. Not told, the channels are zero.

    Args:
        latent_size: spatial size of the latent that the network was trained on; that of the zeros.
        channels: of the image.
        factor: image size over latent size.
    """

    accepts: frozenset[str] = frozenset({"image"})

    def __init__(self, latent_size: Sequence[int], channels: int = 1, factor: int = 1):
        self.module: nn.Module = nn.Module()
        self.latent_size, self.channels, self.factor = tuple(latent_size), channels, factor
        self.config: dict[str, Any] = {"kind": "image", "channels": channels, "factor": factor}

    def __call__(self, batch: int, *, image: Tensor | None = None, **_: Any) -> Condition:
        """Encode ``image``, one for all or one each."""
        if image is None:
            return Condition(concat=torch.zeros(batch, self.channels, *self.latent_size))
        dims = len(self.latent_size)
        if image.ndim != dims + 2 or image.shape[0] not in (1, batch) or image.shape[1] != self.channels:
            raise DiffAugError(
                f"the image to start from is {tuple(image.shape)}: give ({batch}, {self.channels}, "
                f"{', '.join(['size'] * dims)})"
            )
        if self.factor > 1:
            image = (F.avg_pool2d if dims == 2 else F.avg_pool3d)(image, self.factor)
        return Condition(concat=image.expand(batch, *image.shape[1:]).float())
