"""A small detector without anchors: where objects' middles lie, and how large they are (Zhou et al. 2019,
arXiv:1904.07850). One scale, one class, in plain PyTorch: MONAI's detectors want torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from .data import Pool

__all__ = ["Detection", "boxes_of"]

STRIDE = 4
LEAST_PIXELS = 4
MOST = 10  # boxes of an image


def boxes_of(mask: Tensor) -> list[list[float]]:
    """``[x, y, width, height]`` around each connected part of a mask (1, H, W), those of a few pixels left out."""
    parts, _ = ndimage.label(mask[0].numpy() > 0.5, structure=np.ones((3, 3)))
    found = []
    for n, area in enumerate(ndimage.find_objects(parts), 1):
        if area is not None and int((parts[area] == n).sum()) >= LEAST_PIXELS:
            y, x = area
            found.append([float(v) for v in (x.start, y.start, x.stop - x.start, y.stop - y.start)])
    return found


class Detection:
    """Objects are the connected parts of masks; so augmentation moves masks, and boxes follow."""

    def __init__(self, widths: Sequence[int]):
        self.widths = tuple(widths)

    def network(self) -> nn.Module:
        """Images (B, 1, S, S) -> (B, 5, S / 4, S / 4): middle, its offset (x, y) and the logarithm of the size."""
        first, second, third = self.widths

        def block(a: int, b: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

        layers = [*block(1, first, 2), *block(first, second, 2)]
        for dilation in (1, 2, 4):  # the whole object must be in view
            layers += [
                nn.Conv2d(second if dilation == 1 else third, third, 3, 1, dilation, dilation, bias=False),
                nn.BatchNorm2d(third),
                nn.ReLU(),
            ]
        head = nn.Conv2d(third, 5, 1)
        nn.init.constant_(head.bias, 0.0)
        with torch.no_grad():
            head.bias[0] = -3.0  # middles are rare
        return nn.Sequential(*layers, head)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Focal loss of the middles (eq. 1), absolute error of offset and size where these are (eqs. 2 and 3)."""
        heat, known, wanted = _targets(target, out.shape[-2:])
        p = out[:, :1].sigmoid().clamp(1e-4, 1 - 1e-4)
        at = (heat == 1).float()
        focal = -(at * (1 - p) ** 2 * p.log() + (1 - at) * (1 - heat) ** 4 * p**2 * (1 - p).log()).sum()
        miss = ((out[:, 1:] - wanted).abs() * known).sum()
        return (focal + miss) / at.sum().clamp(min=1)

    def outputs(self, module: nn.Module, pool: Pool) -> Mapping[str, Any]:
        """Boxes with their scores."""
        found = [b for x in pool.images.split(64) for b in _boxes(module(x).float())]
        return {"boxes": [[[round(v, 4) for v in box] for box in image] for image in found]}


def _targets(masks: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Heat (B, 1, h, w), where offset and size are known (B, 1, h, w), and these (B, 4, h, w)."""
    heat, known = (torch.zeros(len(masks), 1, *shape) for _ in range(2))
    wanted = torch.zeros(len(masks), 4, *shape)
    rows, columns = (torch.arange(n).float() for n in shape)
    for b, mask in enumerate(masks):
        for x, y, w, h in boxes_of(mask):
            middle = ((x + w / 2) / STRIDE, (y + h / 2) / STRIDE)
            i, j = min(int(middle[1]), shape[0] - 1), min(int(middle[0]), shape[1] - 1)
            spread = max(1.0, min(w, h) / STRIDE / 4)
            bump = torch.exp(-((rows[:, None] - i) ** 2 + (columns[None] - j) ** 2) / (2 * spread**2))
            heat[b, 0] = torch.maximum(heat[b, 0], bump)
            known[b, 0, i, j] = 1
            wanted[b, :, i, j] = torch.tensor(
                [middle[0] - j, middle[1] - i, float(np.log(w / STRIDE)), float(np.log(h / STRIDE))]
            )
    return heat, known, wanted


def _boxes(out: Tensor) -> list[list[list[float]]]:
    """Peaks of the heat as boxes, of each image the most certain first; a peak takes the place of NMS."""
    heat = out[:, 0].sigmoid()
    heat = heat * (F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat)
    found = []
    for scores, rest in zip(heat, out[:, 1:], strict=True):
        top, where = scores.flatten().topk(min(MOST, scores.numel()))
        boxes = []
        for score, place in zip(top.tolist(), where.tolist()):
            i, j = divmod(place, scores.shape[1])
            dx, dy, w, h = rest[:, i, j].tolist()
            w, h = (float(np.exp(min(v, 5.0))) * STRIDE for v in (w, h))
            boxes.append([(j + dx) * STRIDE - w / 2, (i + dy) * STRIDE - h / 2, w, h, score])
        found.append(boxes)
    return found
