"""What an inpainting network is told: what is known of the image, where the hole is, and which class goes where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.backbones.monai_unet import MonaiUNet
from monai_diffaug.types import Condition, DiffAugError

__all__ = ["RegionConditioner", "widened"]


class RegionConditioner:
    """A region map for every class, the hole, and the latent of the image with the hole cut out, as input channels.

    The layout is that of Rouzrokh et al. 2022 (arXiv:2210.12113): the masked image and one region map a class beside
    the noisy image, and the classes asked for in the embedding of time. Maps are averaged down to the latent grid.

    Args:
        labels: class names in the order of their integers; where regions overlap the last counts.
        latent_size: spatial size of the latent.
        latent_channels: c, of the latent.
    """

    accepts = frozenset({"regions", "known"})

    def __init__(self, labels: Sequence[str], latent_size: Sequence[int], latent_channels: int):
        self.module: nn.Module = nn.Module()
        self.labels = tuple(labels)
        self.latent_size, self.latent_channels = tuple(latent_size), latent_channels
        self.config: dict[str, Any] = {"kind": "regions", "labels": list(self.labels)}

    @property
    def channels(self) -> int:
        """Input channels that the network has beside the noisy latent."""
        return len(self.labels) + 1 + self.latent_channels

    def __call__(
        self, batch: int, *, regions: Tensor | None = None, known: Tensor | None = None, **_: Any
    ) -> Condition:
        """Encode.

        Args:
            batch: number of images.
            regions: (B, n + 1, *S) of 0 to 1: where each of the n classes is asked for, then the hole, which holds them
                all. Class maps of zeros leave open what goes into the hole: that is the null condition of guidance.
            known: (B, c, *s), the latent of the image with the hole cut out.

        Returns:
            ``concat`` and ``labels`` (position + 1 of the last class asked for, 0 for none). With neither argument all
            is zero: nothing is known, and the network makes an image of its own.

        Raises:
            DiffAugError: one is given without the other, or a shape does not fit.
        """
        if (regions is None) != (known is None):
            raise DiffAugError("an inpainting network needs the hole and the image around it: give regions and known")
        if regions is None or known is None:
            zeros = torch.zeros(batch, self.channels, *self.latent_size)
            return Condition(labels=torch.zeros(batch, dtype=torch.long), concat=zeros)
        wanted = (batch, len(self.labels) + 1), (batch, self.latent_channels, *self.latent_size)
        if tuple(regions.shape[:2]) != wanted[0] or tuple(known.shape) != wanted[1]:
            raise DiffAugError(
                f"regions are {tuple(regions.shape)} and known is {tuple(known.shape)}: give ({batch}, "
                f"{len(self.labels) + 1}, ...), one map a class and the hole, and a latent {wanted[1]}"
            )
        small = F.interpolate(regions.as_subclass(Tensor).float().clamp(0, 1), self.latent_size, mode="area")
        asked = regions[:, :-1].flatten(2).amax(2) > 0
        positions = torch.arange(1, len(self.labels) + 1, device=asked.device)
        return Condition(labels=(asked * positions).amax(1), concat=torch.cat([small, known.to(small)], 1))


def widened(network: MonaiUNet, source: MonaiUNet, channels: Mapping[int, int]) -> MonaiUNet:
    """Start a network from another that has fewer input channels; what is new acts on nothing at first.

    Args:
        network: the wider one; it is filled in place.
        source: the trained one, otherwise alike.
        channels: input channel of ``network`` -> that of ``source`` whose weights it takes; all others get zeros.
    """
    state = dict(source.module.state_dict())
    narrow = state["conv_in.conv.weight"]
    wide = torch.zeros_like(network.module.state_dict()["conv_in.conv.weight"])
    for new, old in channels.items():
        wide[:, new] = narrow[:, old]
    network.module.load_state_dict({**state, "conv_in.conv.weight": wide})
    return network
