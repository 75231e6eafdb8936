"""Brain MRI: FLAIR slices of patients with a lower-grade glioma, with and without tumor in the slice.

Data: TCGA-LGG (The Cancer Imaging Archive, CC BY 3.0) with the masks of Buda et al. 2019 (CC BY-NC-SA 4.0), 84
patients. What is learned from it is under CC BY-NC-SA 4.0: not for commercial use.
"""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Affine, LoadImage
from torch import Tensor

from ..backbones.judge import Judge
from ..backbones.text import ClassConditioner
from ..primitives.training import Settings
from ..types import Backbone, Condition, Contract, DiffAugError
from . import part_of
from .recipe import Bench, Examples, Recipe, autoencoder_config, train_backbone, train_judge

__all__ = [
    "CONTRACT",
    "LABELS",
    "RECIPE",
    "Slices",
    "balanced",
    "examples",
    "items",
    "judge",
    "read",
    "train",
    "views",
]

LABELS = ("healthy", "tumor")
SIZE = 96
PARTS = ("train", "validation", "test")
LEAST_HEAD = 0.12  # of the slice; less is the very top or bottom of the head
LEAST_TUMOR = 20  # voxels of 96 x 96; slices with fewer (and not none) carry no label
# Where in the volume, from its foot, tumors lie (5th to 97th percentile). Lesion-free slices from elsewhere carry no
# label: two in five show the skull base, and a network told that these are healthy turns brains into skull bases.
LEVELS = (0.3, 0.9)

CONTRACT = Contract(
    name="brain_mri",
    modality="MR FLAIR",
    spatial_dims=2,
    channels=1,
    size=(SIZE, SIZE),
    latent_channels=4,
    latent_scale=1.0,
    factor=4,
    value_range=(-1.0, 1.0),
    intensity=(0.5, 99.5),
    orientation="axial, patient's front up",
    labels=LABELS,
    vocabulary=LABELS,
    license="CC BY-NC-SA 4.0 (non-commercial): the weights follow the masks that they were trained with",
    data="TCGA-LGG FLAIR slices (TCIA, CC BY 3.0), masks Buda et al. 2019 (CC BY-NC-SA 4.0)",
)

RECIPE = Recipe(
    contract=CONTRACT,
    autoencoder=autoencoder_config(CONTRACT, (32, 64, 64)),
    autoencoder_settings=Settings(steps=5000, batch=8, lr=8e-4, ema=0.998),
    crop=64,
    network={
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        "spatial_dims": 2,
        "in_channels": CONTRACT.latent_channels + 2,
        "out_channels": CONTRACT.latent_channels,
        "channels": [48, 96, 160],
        "attention_levels": [False, True, True],
        "num_res_blocks": 1,
        "num_head_channels": [0, 32, 32],
        "norm_num_groups": 16,
        "num_class_embeds": len(LABELS) + 1,
    },
    network_settings=Settings(steps=10000, batch=16, lr=3e-4, ema=0.999),
)


@dataclass(frozen=True)
class Slices:
    """``images`` (N, 1, 96, 96) in [-1, 1], ``masks`` (N, 1, 96, 96) of 0 and 1, ``labels`` (N,): 0, 1, or -1 for
    neither; ``patients`` and ``sources``, one a slice; ``levels`` (N,) from 0, the foot of the volume, to 1.
    """

    images: Tensor
    masks: Tensor
    labels: Tensor
    patients: tuple[str, ...]
    sources: tuple[str, ...]
    levels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def at(self, which: list[int]) -> Slices:
        """Those at the given positions, in that order."""
        return Slices(
            self.images[which],
            self.masks[which],
            self.labels[which],
            tuple(self.patients[i] for i in which),
            tuple(self.sources[i] for i in which),
            self.levels[which],
        )

    def of(self, keep: Tensor) -> Slices:
        """Those whose flag is set."""
        return self.at(keep.nonzero().flatten().tolist())

    def shuffled(self, seed: int = 0) -> Slices:
        """In another order, so that the first few are of many patients."""
        return self.at(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist())

    def part(self, name: str) -> Slices:
        """``train``, ``validation`` or ``test``."""
        return self.of(torch.tensor([part_of(p) == name for p in self.patients]))


def onto_range(images: Tensor, percentiles: tuple[float, float] = (0.5, 99.5)) -> Tensor:
    """Each image (N, C, *S) with its own percentiles on -1 and 1, cut off there."""
    flat = images.float().flatten(1)
    low, high = (torch.quantile(flat, q / 100, dim=1).reshape(-1, *[1] * (images.ndim - 1)) for q in percentiles)
    return ((images.float() - low) / (high - low).clamp(min=1e-6) * 2 - 1).clamp(-1, 1)


def read(data: Path) -> Slices:
    """Axial slices of all volumes of ``<data>/brain_lgg_3d/dev``.

    Raises:
        DiffAugError: the folder or its ``labels.csv`` is not there.
    """
    folder = Path(data) / "brain_lgg_3d" / "dev"
    if not (folder / "labels.csv").is_file():
        raise DiffAugError(f"{folder / 'labels.csv'} is missing: give the folder that holds brain_lgg_3d as --data")
    images, masks, levels, patients, sources = [], [], list[float](), list[str](), list[str]()
    load = LoadImage(image_only=True)
    with (folder / "labels.csv").open(newline="") as f:
        for row in csv.DictReader(f):
            volume = torch.as_tensor(load(folder / row["file"]).numpy())
            lesion = torch.as_tensor(load(folder / row["label_file"]).numpy() > 0).float()
            for k in range(volume.shape[-1]):
                if (volume[..., k] > 25).float().mean() >= LEAST_HEAD:
                    images.append(volume[..., k].T[None])  # (x, y) to rows and columns
                    masks.append(lesion[..., k].T[None])
                    levels.append(k / max(volume.shape[-1] - 1, 1))
                    patients.append(row["patient"])
                    sources.append(f"{row['file']}#{k}")
    mask = torch.stack(masks)
    voxels = mask.flatten(1).sum(1)
    level = torch.tensor(levels)
    healthy = (voxels == 0) & (level >= LEVELS[0]) & (level <= LEVELS[1])
    labels = torch.where(voxels >= LEAST_TUMOR, 1, torch.where(healthy, 0, -1))
    return Slices(onto_range(torch.stack(images)), mask, labels, tuple(patients), tuple(sources), level)


def items(data: Path | str, part: str) -> list[dict[str, Any]]:
    """Slices of the patients of ``part`` (``train``, ``validation``, ``test``) as MONAI's transforms take them.

    Returns:
        for each slice ``image`` (1, 96, 96) in [-1, 1], ``mask`` (1, 96, 96) of 0 and 1, ``label`` (a class name, or
        nothing where neither applies), ``target`` (its position in ``LABELS``, or -1), ``patient``, ``source`` and
        ``level``.
    """
    slices = read(Path(data)).part(part)
    return [
        {
            "image": slices.images[i],
            "mask": slices.masks[i],
            "label": LABELS[int(slices.labels[i])] if slices.labels[i] >= 0 else "",
            "target": int(slices.labels[i]),
            "patient": slices.patients[i],
            "source": slices.sources[i],
            "level": float(slices.levels[i]),
        }
        for i in range(len(slices))
    ]


def balanced(items: Sequence[Mapping[str, Any]], bands: int = 6) -> list[dict[str, Any]]:
    """Items repeated so that in every band of levels healthy slices and slices with tumor weigh the same.

    Slices with tumor lie elsewhere in the head than those without: a network that learns from labels alone would learn
    where, and its counterfactuals would change the anatomy. At levels where only one kind is, no label is told.
    """
    low, high = LEVELS
    found: list[dict[str, Any]] = []
    by_band: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for item in items:
        if item["target"] < 0 or not low <= item["level"] <= high:
            found.append({**item, "label": "", "target": -1})
            continue
        band = min(int((item["level"] - low) / (high - low) * bands), bands - 1)
        by_band.setdefault((band, item["target"]), []).append(dict(item))
    for band in range(bands):
        kinds = [by_band.get((band, target), []) for target in range(len(LABELS))]
        most = max(map(len, kinds))
        found += [kind[i % len(kind)] for kind in kinds if kind for i in range(most)]
    return found


def views(image: Tensor, turned: int = 3) -> list[Tensor]:
    """An image (1, H, W), ``turned`` others turned, scaled and moved a little, and the mirror images of all of them."""
    generator = torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes()))
    found = [image]
    for _ in range(turned):
        angle, size, across, down = (2 * torch.rand(4, generator=generator) - 1).tolist()
        move = Affine(
            rotate_params=math.radians(8 * angle),
            scale_params=(1 + 0.06 * size,) * 2,
            translate_params=(3 * across, 3 * down),
            padding_mode="border",
            image_only=True,
        )
        found.append(torch.as_tensor(move(image)).as_subclass(Tensor).clamp(-1, 1))
    return [view for x in found for view in (x, x.flip(-1))]


def _mirrored(slices: Slices) -> Slices:
    return Slices(
        torch.cat([slices.images, slices.images.flip(-1)]),
        torch.cat([slices.masks, slices.masks.flip(-1)]),
        slices.labels.repeat(2),
        slices.patients * 2,
        slices.sources * 2,
        slices.levels.repeat(2),
    )


class _Told:
    """A class and a mask for training images, each left out at times."""

    def __init__(self, conditioner: ClassConditioner, slices: Slices, unlabeled: float, unmasked: float):
        channels = [conditioner(len(m), mask=m).concat for m in slices.masks.split(256)]
        self.channels = torch.cat([c for c in channels if c is not None])
        self.labels = slices.labels + 1  # -1, for neither, is 0: not told
        self.unlabeled, self.unmasked = unlabeled, unmasked

    def __call__(self, index: Tensor, generator: torch.Generator) -> Condition:
        keep = (
            torch.rand(2, len(index), generator=generator) >= torch.tensor([[self.unlabeled], [self.unmasked]])
        ).long()
        return Condition(
            labels=self.labels[index] * keep[0], concat=self.channels[index] * keep[1].reshape(-1, 1, 1, 1)
        )


def examples(slices: Slices, conditioner: ClassConditioner) -> Examples:
    """Training and validation patients; left and right are exchanged at random, the rest stays as it is."""
    train, validation = _mirrored(slices.part("train")), slices.part("validation").shuffled()
    return Examples(
        train.images,
        validation.images,
        _Told(conditioner, train, 0.2, 0.5),
        _Told(conditioner, validation, 0.2, 0.5),
        {},
    )


def conditioner() -> ClassConditioner:
    """Class and mask."""
    return ClassConditioner(LABELS, True, CONTRACT.latent_size)


def _jittered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flips, small shifts and gains: what a tumor does not depend on."""
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(-1)
    shift = torch.randint(-5, 6, (2,), generator=generator).tolist()
    gain = 1 + 0.2 * (torch.rand(len(x), 1, 1, 1, generator=generator) - 0.5)
    return (((x + 1) * gain) - 1).roll(shift, dims=(-2, -1)).clamp(-1, 1)


def judge(slices: Slices, folder: Path, steps: int = 1500) -> Judge:
    """Tumor or not, from training patients."""
    known = slices.part("train").of(slices.part("train").labels >= 0)
    settings = Settings(steps=steps, batch=32, lr=1e-3, ema=0.995, weight_decay=0.02, seed=1)
    return train_judge(CONTRACT, known.images, known.labels, LABELS, settings, folder, _jittered)


def train(data: Path, folder: Path, recipe: Recipe = RECIPE) -> Backbone:
    """The whole backbone, from the data's folder; ``folder`` holds the run and lets it go on."""
    slices, told = read(data), conditioner()
    return train_backbone(recipe, told, examples(slices, told), folder, judge(slices, folder))


def prompts(labels: Sequence[int]) -> list[str]:
    """What a slice shows, in the backbone's words."""
    return [LABELS[i] if i >= 0 else "" for i in labels]


def bench(data: Path, contract: Contract = CONTRACT) -> Bench:
    """Test patients to measure against; the backbone is told their classes."""
    slices = read(data)
    test = slices.part("test").of(slices.part("test").labels >= 0)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).tolist()
    expected = prompts([int(test.labels[i]) for i in order])
    return Bench(
        train=slices.part("train").images,
        test=test.images,
        told={"label": expected},
        expected=expected,
        test_expected=prompts(test.labels.tolist()),
        notes={
            "history": "The first 8,000 of the network's 10,000 steps called every lesion-free slice healthy; the "
            "rest, the judge and the figures below call healthy only those at levels where tumors lie.",
            "labels": "Slices called healthy come from patients who have a tumor elsewhere, not from healthy people.",
            "split": f"Patients: {', '.join(f'{len(set(slices.part(p).patients))} {p}' for p in PARTS)}.",
        },
    )
