"""Do two images show the same patient: a siamese network, and the training images that it remembers.

Packhaeuser et al. 2022 (Scientific Reports 12:14851, arXiv:2103.08562) train one network to verify that two films show
one patient and another to retrieve a patient's other films. Here the two are heads of one trunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import Regressor
from torch import Tensor, nn

from monai_diffaug.types import DiffAugError

__all__ = ["Index", "Match", "SiameseNet", "Verifier"]

BATCH = 64
BAR = 0.95
"""AUROC on pairs of real visits below which a verifier vouches for nobody's anonymity."""
LEAST_PATIENTS = 10
"""Held-out patients with several images that this figure must rest on."""


class SiameseNet(nn.Module):
    """One trunk for both images, an embedding to find neighbors by, and a comparison.

    As in the paper, the comparison is a linear layer on the absolute differences of ``features`` numbers in (0, 1). The
    embeddings' distance is put beside these, and no difference may speak for the same patient, so that nothing is more
    like an image than itself. An image is seen twice: with its own mean and spread taken away, and with
    those of each neighborhood, so that brightness, contrast and exposure do not tell two visits apart.

    Args:
        size: of the images, (*S).
        channels: of the images.
        widths: of the trunk's residual units, each of which halves the size.
        embedding: length of the unit vector that neighbors are found by.
        features: length of what is compared.
    """

    def __init__(
        self,
        size: Sequence[int],
        channels: int = 1,
        widths: Sequence[int] = (24, 48, 96, 128),
        embedding: int = 64,
        features: int = 128,
    ):
        super().__init__()
        norm = ("GROUP", {"num_groups": 8})
        halved = [2] * len(widths)
        self.length = embedding
        self.trunk = Regressor((2 * channels, *size), (256,), widths, halved, num_res_units=2, norm=norm)
        self.embedding = nn.Linear(256, embedding)
        self.features = nn.Linear(256, features)
        self.compare = nn.Linear(features + 1, 1)
        with torch.no_grad():
            self.compare.weight.fill_(-3.0)
            self.compare.weight[0, -1] = 2.0

    def seen(self, images: Tensor) -> Tensor:
        """Signatures (B, E + D) of images (B, C, *S): the unit embedding, then the features in (0, 1)."""
        h = F.silu(self.trunk(_standardized(images)))
        return torch.cat([F.normalize(self.embedding(h), dim=-1), self.features(h).sigmoid()], -1)

    def same(self, a: Tensor, b: Tensor) -> Tensor:
        """Logit (...) that two signatures (..., E + D), which may be broadcast, are of one patient."""
        n = self.length
        cosine = (a[..., :n] * b[..., :n]).sum(-1, keepdim=True)
        off = torch.cat([(a[..., n:] - b[..., n:]).abs(), 1 - cosine], -1)
        return self.compare.bias[0] - (off * F.softplus(self.compare.weight[0])).sum(-1)

    def calibrate(self, line: float, slope: float) -> None:
        """Make of every logit ``slope * (logit - line)``."""
        with torch.no_grad():
            self.compare.bias.copy_(slope * (self.compare.bias - line))
            steep = slope * F.softplus(self.compare.weight)
            self.compare.weight.copy_(steep + torch.log(-torch.expm1(-steep)))  # whose softplus is ``steep``

    def forward(self, pairs: Tensor) -> Tensor:
        """Logit (B, 1) that the two images in the channels of (B, 2C, *S) show one patient."""
        a, b = pairs.chunk(2, 1)
        return self.same(self.seen(a), self.seen(b))[:, None]


def _standardized(x: Tensor) -> Tensor:
    """Images (B, C, *S) to (B, 2C, *S): globally and locally of mean 0 and spread 1."""
    dims = tuple(range(2, x.ndim))
    whole = (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True).clamp(min=1e-3)
    pool: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(dims)]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(dims)]

    def around(y: Tensor) -> Tensor:  # a mean over about a quarter of each side, on a coarse grid since it is smooth
        coarse = pool(y, 4)
        k = min(5, (min(coarse.shape[2:]) - 1) // 2 * 2 + 1)
        coarse = pool(coarse, k, 1, k // 2, count_include_pad=False)
        return F.interpolate(coarse, y.shape[2:], mode=mode, align_corners=False)

    off = whole - around(whole)
    return torch.cat([whole, off / (around(off.square()) + 0.01).sqrt()], 1)


@dataclass(frozen=True)
class Index:
    """Images that are remembered: an id for each, and its signature (N, E + D)."""

    ids: tuple[str, ...]
    signatures: Tensor


@dataclass(frozen=True)
class Match:
    """Where an image lies among those remembered.

    ``probability`` that it shows the patient of one of the nearest, the largest over these; ``nearest`` is the id of
    that one, ``distance`` the cosine distance to it, and ``logit`` that of the probability.
    """

    nearest: str
    distance: float
    probability: float
    logit: float


class Verifier:
    """Finds the nearest images that it remembers and says whether they show the same patient.

    Args:
        module: a :class:`SiameseNet`, or anything with its ``seen``, ``same`` and ``length``.
        threshold: probability from which on two images are taken for one patient's.
        figures: what it reached on held-out patients: ``auroc`` with ``interval``, ``pairs``, ``patients``, and others.
        index: what it remembers; mostly the training images of the backbone that it lies beside.
        config: ``_target_`` and arguments that rebuild the module; wanted by ``hub.save``.
    """

    def __init__(
        self,
        module: nn.Module,
        threshold: float = 0.5,
        figures: Mapping[str, Any] | None = None,
        index: Index | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self.module = module.eval()
        self.threshold, self.figures, self.index = float(threshold), dict(figures or {}), index
        self.config = dict(config) if config else None

    def seen(self, images: Tensor) -> Tensor:
        """Signatures (B, E + D), on the CPU."""
        net: Any = self.module
        device = next(net.parameters(), torch.empty(0)).device
        with torch.no_grad():
            return torch.cat([net.seen(x.float().to(device)).float().cpu() for x in images.split(BATCH)])

    def same(self, images: Tensor, others: Tensor) -> Tensor:
        """Probability (B,) that each image shows the patient of the other."""
        return self.probability(self.seen(images), self.seen(others))

    def probability(self, a: Tensor, b: Tensor) -> Tensor:
        """The same for signatures (..., E + D), which may be broadcast."""
        net: Any = self.module
        with torch.no_grad():
            return net.same(a, b).sigmoid()

    def remembering(self, images: Tensor, ids: Sequence[str]) -> Verifier:
        """A verifier that remembers these images instead."""
        index = Index(tuple(str(i) for i in ids), self.seen(images))
        return Verifier(self.module, self.threshold, self.figures, index, self.config)

    def nearest(self, images: Tensor, k: int = 5) -> list[Match]:
        """For each image (B, C, *S) the likeliest of its ``k`` nearest among those remembered.

        Raises:
            DiffAugError: nothing is remembered.
        """
        if self.index is None or not len(self.index.ids):
            raise DiffAugError("the verifier remembers no training images: call remembering(images, ids) first")
        net: Any = self.module
        found, kept = [], self.index.signatures
        for seen in self.seen(images):
            cosine = kept[:, : net.length] @ seen[: net.length]
            near = cosine.topk(min(k, len(kept))).indices
            with torch.no_grad():
                logits = net.same(seen, kept[near])
            best = int(logits.argmax())
            which = int(near[best])
            p = float(logits[best].sigmoid())
            found.append(Match(self.index.ids[which], 1 - float(cosine[which]), p, float(logits[best])))
        return found

    def withheld(self) -> str:
        """Why no certificate is given; nothing if one may be."""
        reached, patients = self.figures.get("auroc"), int(self.figures.get("patients", 0))
        if reached is None:
            return "no certificate: the verifier was never measured on two visits of held-out patients"
        on = f"{self.figures.get('pairs', '?')} pairs of visits of {patients} held-out patients"
        if reached < BAR:
            return (
                f"no certificate: the verifier reaches an AUROC of {reached:.3f} on {on}, where {BAR} is wanted: a "
                "patient who was not recognized may still be there"
            )
        if patients < LEAST_PATIENTS:
            return (
                f"no certificate: an AUROC of {reached:.3f} was measured on {on}, too few to vouch for "
                f"({LEAST_PATIENTS} are wanted)"
            )
        return ""
