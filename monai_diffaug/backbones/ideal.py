"""The exact denoiser of a small data set, in closed form: no weights, no training, every oracle test's backbone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffaug.backbones.monai_unet import IdentityAutoencoder
from monai_diffaug.backbones.schedules import BRAIN_LDM, schedule_from_config
from monai_diffaug.backbones.text import ClassConditioner, NoConditioner
from monai_diffaug.types import Backbone, Condition, Contract, DiffAugError, Schedule

__all__ = ["IdealNetwork", "gaussian", "ideal"]


class _Points(nn.Module):
    """Data points (N, C, *S), kept as buffers so that there is nothing to train."""

    points: Tensor
    labels: Tensor

    def __init__(self, points: Tensor, labels: Tensor):
        super().__init__()
        self.register_buffer("points", points)
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, spread: float, labels: Tensor | None) -> Tensor:
        """E[x0 | x] for x (B, C, *S), alpha and sigma (B, 1), computed in float64."""
        flat, points = x.double().flatten(1), self.points.double().flatten(1)
        variance = (alpha**2 * spread**2 + sigma**2).clamp(min=1e-20)
        # -|x - alpha p|^2 / (2 var) without |x|^2, which all points share
        logits = (alpha * (flat @ points.T) - alpha**2 * points.square().sum(1) / 2) / variance
        if labels is not None:
            allowed = (labels[:, None] == 0) | (labels[:, None] == self.labels[None])
            logits = logits.masked_fill(~allowed, -torch.inf)
        mean = logits.softmax(1) @ points
        mean = mean + (alpha * spread**2 / variance) * (flat - alpha * mean)
        return mean.reshape(x.shape)


class IdealNetwork:
    """Posterior mean under ``p(x0) = 1/N sum_i N(x_i, spread^2)``, returned in the schedule's prediction type.

    Args:
        points: data (N, C, *S).
        schedule: says alpha and sigma at a time.
        labels: class index of each point, from 1; a condition's label 0 means all points.
        spread: standard deviation around each point.
    """

    def __init__(self, points: Tensor, schedule: Schedule, labels: Tensor | None = None, spread: float = 0.0):
        self.conditional = labels is not None
        kept = labels if labels is not None else torch.zeros(points.shape[0], dtype=torch.long)
        self.module: nn.Module = _Points(points, kept)
        self.schedule, self.spread = schedule, float(spread)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Exact network output for ``x`` (B, C, *S) at times ``t`` (B,); differentiable with respect to ``x``."""
        for name in ("tokens", "vector", "concat", "residuals"):
            if getattr(condition, name) is not None:
                raise DiffAugError(f"the ideal network takes no {name}: condition it with labels")
        if condition.labels is not None and not self.conditional:
            raise DiffAugError("the ideal network was built without labels: give ideal(images, labels=...)")
        levels = [self.schedule.at(float(s)) for s in t]
        shape = (-1, *[1] * (x.ndim - 1))
        alpha = torch.tensor([v.alpha for v in levels], dtype=torch.float64, device=x.device)
        sigma = torch.tensor([v.sigma for v in levels], dtype=torch.float64, device=x.device)
        x0 = self.module(x, alpha[:, None], sigma[:, None], self.spread, condition.labels)
        alpha, sigma = alpha.reshape(shape), sigma.reshape(shape).clamp(min=1e-12)
        eps = (x.double() - alpha * x0) / sigma
        return self.schedule.target(x0, eps, alpha, sigma).to(x.dtype)

    def attention_sites(self) -> Mapping[str, tuple[nn.Module, str]]:
        """None: it has no attention."""
        return {}

    def feature_sites(self) -> Mapping[str, nn.Module]:
        """None: it has no feature maps."""
        return {}


def ideal(
    images: Tensor,
    labels: Sequence[int] | Tensor | None = None,
    names: Sequence[str] | None = None,
    schedule: Schedule | Mapping[str, Any] | None = None,
    spread: float = 0.0,
) -> Backbone:
    """A backbone that knows its data set exactly.

    Args:
        images: (N, C, *S), 2D or 3D, in [-1, 1].
        labels: class of each image: positions in ``names``.
        names: class names; ``class0``, ``class1``, ... unless given.
        schedule: a schedule or scheduler config; that of MONAI's brain latent diffusion model unless given.
        spread: standard deviation of the data around each image; 0 gives the images themselves.

    Returns:
        a pixel backbone, conditioned on classes if ``labels`` are given.

    Raises:
        DiffAugError: images or labels of the wrong shape.
    """
    if images.ndim not in (4, 5):
        raise DiffAugError(f"images have shape {tuple(images.shape)}: give (N, C, H, W) or (N, C, H, W, D)")
    table = schedule if isinstance(schedule, Schedule) else schedule_from_config(schedule or BRAIN_LDM)
    conditioner: NoConditioner | ClassConditioner = NoConditioner()
    index = None
    if labels is not None:
        index = torch.as_tensor(labels, dtype=torch.long) + 1
        if index.shape != images.shape[:1]:
            raise DiffAugError(f"{images.shape[0]} images were given {index.numel()} labels: give one per image")
        names = tuple(names or (f"class{i}" for i in range(int(index.max()))))
        conditioner = ClassConditioner(names)
    size = tuple(int(s) for s in images.shape[2:])
    contract = Contract(
        name="ideal",
        modality="any",
        spatial_dims=len(size),
        channels=int(images.shape[1]),
        size=size,
        latent_channels=int(images.shape[1]),
        latent_scale=1.0,
        factor=1,
        labels=tuple(names or ()),
        vocabulary=tuple(names or ()),
    )
    return Backbone(
        name="ideal",
        autoencoder=IdentityAutoencoder(),
        network=IdealNetwork(images, table, index, spread),
        conditioner=conditioner,
        schedule=table,
        contract=contract,
        digest=hashlib.sha256(images.detach().double().cpu().numpy().tobytes()).hexdigest(),
    )


def gaussian(
    mean: float = 0.5,
    std: float = 0.3,
    shape: Sequence[int] = (1, 16, 16),
    schedule: Schedule | Mapping[str, Any] | None = None,
) -> Backbone:
    """The exact denoiser of N(mean, std^2) in every voxel of ``shape`` (C, *S): what solvers are measured against."""
    return ideal(torch.full((1, *shape), float(mean), dtype=torch.float64), schedule=schedule, spread=std)
