"""What measures the lesion in a volume of :mod:`.brain_mri_3d`: a segmentation network that sees real volumes only."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from monai.networks.nets.segresnet import SegResNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn

from ..primitives.segmentation import SegmentationStage
from ..primitives.stages import walk
from ..primitives.training import Settings
from .brain_mri_3d_variants import Volumes, varied

__all__ = ["Outline", "segmenter"]


class Outline(nn.Module):
    """What measures the lesion, (B, 1, *S) -> logits (B, 1, *S): it sees real volumes only and shares nothing with the
    generator. A SegResNet (Myronenko 2018) on blocks of 2 x 2 x 2 voxels, which run as channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = SegResNet(3, 16, in_channels=8, out_channels=8, blocks_down=(1, 1, 2), blocks_up=(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = pixelshuffle(self.net(pixelunshuffle(x, 3, 2)), 3, 2)
        return logits


def _jittered(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirrored, shifted, brighter or darker, blurred or noisy: what the lesion's outline does not depend on."""
    flip, blur = (torch.rand(2, generator=generator) < 0.5).tolist()
    shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
    x, y = (t.flip(2) if flip else t for t in (x, y))
    x, y = (t.roll(shift, dims=(2, 3)) for t in (x, y))
    column = (len(x), 1, 1, 1, 1)
    power = 2 ** (0.8 * torch.rand(column, generator=generator) - 0.4)
    gain = 1 + 0.3 * (torch.rand(column, generator=generator) - 0.5)
    bright = ((x + 1) / 2).clamp(min=0).pow(power) * gain
    if blur:
        share = torch.rand(column, generator=generator)
        bright = torch.lerp(bright, F.avg_pool3d(bright, 3, 1, 1, count_include_pad=False), share)
    bright = bright + 0.03 * torch.rand(column, generator=generator) * torch.randn(x.shape, generator=generator)
    return (bright * 2 - 1).clamp(-1, 1), y


def segmenter(volumes: Volumes, folder: Path, settings: Settings | None = None) -> Outline:
    """Trained on training patients' real volumes and masks."""
    settings = settings or Settings(steps=3000, batch=2, lr=2e-3, ema=0.99, weight_decay=0.01, seed=1)
    torch.manual_seed(settings.seed)
    module = Outline()
    train, unseen = varied(volumes.part("train"), 3), volumes.part("validation")
    held_out = [{"image": unseen.images, "mask": unseen.masks}]
    stage = SegmentationStage(module, settings, augment=_jittered, held_out=held_out)
    walk(stage, folder, lambda index: {"image": train.images[index], "mask": train.masks[index]}, len(train))
    return module
