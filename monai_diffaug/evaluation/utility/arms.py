"""What each arm is trained on: batches, drawn so that all arms of a seed see the same real images in the same order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from monai.networks.layers import AffineTransform
from torch import Tensor

from ...types import DiffAugError
from .data import Pool, joined
from .study import MIXES, Arm, Study

__all__ = ["Batches", "borrowed", "classical", "mixed"]

TURN, SCALE, SHIFT = 0.2, 0.12, 0.08  # radians, share, share of half the side
GAIN, GAMMA, NOISE = 0.15, 0.35, 0.05

LIMITED = 0.8

Mix = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


# --------------------------------------------------------------------------------------------------- augmentation


def classical(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """MONAI's RandFlip, RandAffine, RandScaleIntensity, RandAdjustContrast and RandGaussianNoise, for a batch at once.

    Args:
        x: (B, C, S, S) in [-1, 1].
        y: classes (B, K), or masks (B, 1, S, S), which move along.
        generator: draws everything, for each image its own.
    """
    n = len(x)
    u = 2 * torch.rand(8, n, generator=generator) - 1
    noise = torch.randn(x.shape, generator=generator)
    angle, size = TURN * u[0], 1 + SCALE * u[1]
    mirror = torch.where(u[2] < 0, -1.0, 1.0)
    theta = torch.zeros(n, 3, 3)
    theta[:, 0, 0], theta[:, 0, 1], theta[:, 0, 2] = angle.cos() * size, -angle.sin() * size, SHIFT * u[3]
    theta[:, 1, 0], theta[:, 1, 1], theta[:, 1, 2] = angle.sin() * size, angle.cos() * size, SHIFT * u[4]
    theta[:, 2, 2] = 1
    theta[:, :2, 1] *= mirror[:, None]  # the last axis: left and right
    affine = AffineTransform(normalized=True, padding_mode="border", align_corners=False)
    moved = affine(torch.cat([x, y], 1) if y.ndim == x.ndim else x, theta)
    out, shape = moved[:, : x.shape[1]], (-1, *[1] * (x.ndim - 1))
    unit = ((out + 1) / 2).clamp(0, 1) * (1 + GAIN * u[5]).reshape(shape)
    unit = unit.clamp(1e-6, 1) ** torch.exp(GAMMA * u[6]).reshape(shape)
    out = (2 * unit - 1 + NOISE * u[7].clamp(min=0).reshape(shape) * noise).clamp(-1, 1)
    return out, (moved[:, x.shape[1] :] > 0.5).float() if y.ndim == x.ndim else y


def _mixup(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Zhang et al. 2018, arXiv:1710.09412, with alpha 0.4: a weight for each pair."""
    share = _beta(0.4, len(x), generator).reshape(-1, *[1] * (x.ndim - 1))
    order = torch.randperm(len(x), generator=generator)
    target = share.reshape(-1, *[1] * (y.ndim - 1))
    return share * x + (1 - share) * x[order], target * y + (1 - target) * y[order]


def _cutout(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """DeVries and Taylor 2017, arXiv:1708.04552: a square of half the side, perhaps partly outside; targets stay."""
    side = x.shape[-1]
    hole = _boxes(torch.full((len(x),), 0.5), side, torch.rand(2, len(x), generator=generator))
    return torch.where(hole, -1.0, x), y


def _cutmix(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Yun et al. 2019, arXiv:1905.04899, with alpha 1: a box of another image, its share of the target as well."""
    cut = (1 - _beta(1.0, len(x), generator)).sqrt()
    box = _boxes(cut, x.shape[-1], torch.rand(2, len(x), generator=generator))
    order = torch.randperm(len(x), generator=generator)
    out = torch.where(box, x[order], x)
    if y.ndim == x.ndim:
        return out, torch.where(box, y[order], y)
    share = box.flatten(1).float().mean(1, keepdim=True)
    return out, (1 - share) * y + share * y[order]


def _patchshuffle(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Kang et al. 2017, arXiv:1707.07103: pixels trade places within patches of 2 x 2, in one image of twenty."""
    b, c, h, w = x.shape
    rows = x[..., : h // 2 * 2, : w // 2 * 2].reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    order = torch.rand(b, h // 2, w // 2, 4, generator=generator).argsort(-1)[:, :, :, None].expand(-1, -1, -1, c, -1)
    mixed = rows.reshape(b, h // 2, w // 2, c, 4).gather(-1, order)
    back = mixed.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h // 2 * 2, w // 2 * 2)
    out = x.clone()
    out[..., : h // 2 * 2, : w // 2 * 2] = back
    chosen = torch.rand(b, 1, 1, 1, generator=generator) < 0.05
    return torch.where(chosen, out, x), y


def _beta(alpha: float, n: int, generator: torch.Generator) -> Tensor:
    """(n,) of the Beta distribution with both parameters alpha, by Johnk's rejection so that the generator counts."""
    found: list[Tensor] = []
    while sum(map(len, found)) < n:
        a, b = torch.rand(2, 4 * n, generator=generator) ** (1 / alpha)
        keep = (a + b <= 1) & (a + b > 0)
        found.append((a / (a + b))[keep])
    return torch.cat(found)[:n]


def _boxes(share: Tensor, side: int, middle: Tensor) -> Tensor:
    """(B, 1, S, S), true in squares whose sides are a share of the image's."""
    at = (torch.arange(side) + 0.5) / side
    y, x = ((at[None] - m[:, None]).abs() <= share[:, None] / 2 for m in middle)
    return (y[:, :, None] & x[:, None, :])[:, None]


_BY_NAME: dict[str, Mix] = {"mixup": _mixup, "cutout": _cutout, "cutmix": _cutmix, "patchshuffle": _patchshuffle}


def mixed(kind: str, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One of ``MIXES`` on a batch."""
    return _BY_NAME[kind](x, y, generator)


# -------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batches:
    """The batches of one training.

    Half of a batch is drawn from either class (images with and without a lesion, in a study of masks), whatever is in
    the pools. A draw takes a synthetic image with probability ratio / (1 + ratio), or less if there are fewer of that
    class.

    Attributes:
        study: for classes and training.
        arm: what is done to the images.
        real: the labeled patients' images.
        made: what is added to them, if anything.
        ratio: of ``made`` to ``real``.
        seed: of the order.
    """

    study: Study
    arm: Arm
    real: Pool
    made: Pool | None
    ratio: float
    seed: int

    def check(self) -> None:
        """Refuse a training that would never see a class.

        Raises:
            DiffAugError: synthetic images alone are trained on, and they lack a class.
        """
        if self.arm.kind in ("synthetic_only", "pretraining") and self.made is not None:
            lacking = set(self.real.labels.tolist()) - set(self.made.labels.tolist())
            if lacking:
                raise DiffAugError(
                    f"the images of {self.arm.of!r} do not show every class: {self.arm.kind} wants an arm whose do"
                )

    @cached_property
    def _by_label(self) -> dict[int, list[tuple[Pool, list[int]]]]:
        """Of each class: the real and, if there are any, the synthetic images, and where they lie in their pools."""
        found: dict[int, list[tuple[Pool, list[int]]]] = {}
        for pool in [self.real] if self.made is None else [self.real, self.made]:
            for i, label in enumerate(pool.labels.tolist()):
                if not (of := found.setdefault(label, [])) or of[-1][0] is not pool:
                    of.append((pool, []))
                of[-1][1].append(i)
        return found

    @cached_property
    def limited(self) -> dict[int, float]:
        """Of classes of which there are fewer added images than the ratio wants, the ratio that there is.

        They are then drawn no more often than each real image; a difference by rounding does not count.
        """
        found = {}
        for label, pools in self._by_label.items():
            if self.made is not None and len(pools) > 1:
                there = len(pools[1][1]) / len(pools[0][1])
                if there < LIMITED * self.ratio:
                    found[label] = there
        return found

    def _share(self, step: int, label: int) -> float:
        """How often a synthetic image is taken."""
        if self.made is None or not len(self.made):
            return 0.0
        if self.arm.kind == "synthetic_only":
            return 1.0
        if self.arm.kind == "pretraining":
            return 1.0 if step < self.study.training.pretraining * self.study.training.steps else 0.0
        ratio = self.limited.get(label, self.ratio)
        return ratio / (1 + ratio)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) and targets: classes (B, K) or masks (B, 1, S, S), of one step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        n = self.study.training.batch
        kinds = sorted(set(self.real.labels.tolist()))
        u = torch.rand(4, n, generator=generator)  # drawn for every arm alike, so that seeds pair them
        x, y = [], []
        for kind, which, place, other in u.T.tolist():
            label = kinds[int(kind * len(kinds))]
            pools = self._by_label[label]
            pool, index = pools[0]
            if len(pools) > 1 and which < self._share(step, label):
                (pool, index), place = pools[1], other
            i = index[int(place * len(index))]
            x.append(pool.images[i])
            y.append(pool.labels[i] if pool.masks is None else pool.masks[i])
        images, targets = torch.stack(x), torch.stack(y)
        if self.real.masks is None:
            targets = torch.nn.functional.one_hot(targets, len(self.study.classes)).float()
        if self.arm.kind == "classical" or (self.arm.kind != "real" and self.arm.classical):
            images, targets = classical(images, targets, generator)
        if self.arm.kind in MIXES:
            images, targets = mixed(self.arm.kind, images, targets, generator)
        return images, targets


def borrowed(arm: Arm, pool: Pool, real: Pool, others: Pool, ratio: float, seed: int) -> Pool:
    """What an arm adds to the real images: some of the synthetic ones, or what a check puts in their place.

    Args:
        arm: of a kind that adds something.
        pool: synthetic images of the labeled patients, or of none; empty for arms that need none.
        real: the labeled patients' images.
        others: real images of patients who are neither labeled nor tested.
        ratio: added images to real ones.
        seed: of the choice.
    """
    generator = torch.Generator().manual_seed(2000 + seed)
    wanted = max(1, round(ratio * len(real)))
    if arm.kind == "duplicated":
        return real.at([i % len(real) for i in range(wanted)])
    source = others if arm.kind == "oracle" else pool
    chosen = source.at(_spread(source, wanted, generator))
    if arm.kind == "shuffled":
        return chosen.with_targets_of(torch.randperm(len(chosen), generator=generator).tolist())
    return chosen


def _spread(pool: Pool, wanted: int, generator: torch.Generator) -> Sequence[int]:
    """At most ``wanted`` images, as many of each class as there are."""
    order = torch.randperm(len(pool), generator=generator).tolist()
    by_label: dict[int, list[int]] = {}
    for i in order:
        by_label.setdefault(int(pool.labels[i]), []).append(i)
    turns = [of[k] for k in range(len(order)) for of in by_label.values() if k < len(of)]
    return turns[:wanted]


def others_than(patients: Sequence[str], train: Pool, validation: Pool) -> Pool:
    """Real images of patients who are neither labeled nor tested."""
    rest = train.of([p for p in dict.fromkeys(train.patients) if p not in set(patients)])
    return joined(rest, validation) if len(validation) else rest
