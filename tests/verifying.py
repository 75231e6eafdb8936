"""A verifier by hand, that tells images apart by their pixels: what tests of filters and of sampling run on."""

import torch.nn.functional as F
from torch import nn

from monai_diffaug.backbones.verifier import Verifier


class ByPixels(nn.Module):
    """Signatures are pixels less their mean, as unit vectors; the logit rises with the cosine and is 0 at ``line``."""

    def __init__(self, length, line=0.975, slope=100.0):
        super().__init__()
        self.length, self.line, self.slope = length, line, slope
        self.compare = nn.Linear(1, 1)
        nn.init.zeros_(self.compare.bias)

    def seen(self, images):
        flat = images.flatten(1)
        return F.normalize(flat - flat.mean(1, keepdim=True), dim=-1)

    def same(self, a, b):
        return self.compare.bias[0] + self.slope * ((a * b).sum(-1) - self.line)

    def calibrate(self, line, slope):
        self.compare.bias.data.copy_(slope * (self.compare.bias.data - line))
        self.slope *= slope


def by_pixels(images, ids=None, line=0.975):
    """A verifier that remembers ``images`` (N, C, *S)."""
    module = ByPixels(images[0].numel(), line)
    return Verifier(module).remembering(images, ids or [f"film {i}" for i in range(len(images))])
