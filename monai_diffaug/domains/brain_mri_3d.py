"""Brain MRI in three dimensions: FLAIR volumes of patients with a lower-grade glioma, told age, sex and lesion volume.

Data: TCGA-LGG (The Cancer Imaging Archive, CC BY 3.0) with the masks of Buda et al. 2019 (CC BY-NC-SA 4.0), 84
patients. What is learned from it is under CC BY-NC-SA 4.0: not for commercial use. The design follows Pinaya et al.
2022 (arXiv:2209.07162).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from torch import Tensor, nn

from ..backbones.monai_unet import MonaiAutoencoder, MonaiUNet
from ..backbones.schedules import schedule_from_config
from ..backbones.text import VectorConditioner
from ..io import images as files
from ..primitives.fitting import fit
from ..primitives.reconstruction import AutoencoderStage
from ..primitives.runs import Draws
from ..primitives.stages import Batch, plain, walk
from ..primitives.training import Settings
from ..types import Backbone, Condition, Contract, DiffAugError, Schedule
from . import part_of
from .brain_mri_3d_variants import Volumes, lesion_volume, varied
from .recipe import Examples, Recipe, autoencoder_config
from .recipe import train_autoencoder as first_stage
from .recipe import train_network as second_stage

__all__ = [
    "CONTRACT",
    "NAMES",
    "RANGES",
    "RECIPE",
    "Said",
    "Volumes",
    "conditioner",
    "dataset",
    "examples",
    "items",
    "opposite",
    "read",
    "train",
    "trainable",
    "varied",
    "vector",
]

NAMES = ("age", "sex", "lesion")
"""What the network is told: years, 0 (female) or 1 (male), and :func:`lesion_volume`; see :func:`vector`."""
RANGES = ((1.0, 4.0),) * 3  # that the network sees; 0 stands for what is not told
AGES = (20.0, 75.0)  # years, youngest and oldest of the data
UNITS = (AGES, (0.0, 1.0), (0.0, 1.0))
SEXES = ("female", "male")  # 0 and 1; codes 1 and 2 of the data

CONTRACT = Contract(
    name="brain_mri_3d",
    modality="MR FLAIR",
    spatial_dims=3,
    channels=1,
    size=(64, 64, 32),
    latent_channels=8,
    latent_scale=1.0,
    factor=4,
    value_range=(-1.0, 1.0),
    crop="foreground",
    intensity=(0.5, 99.5),
    orientation="LPS",
    spacing=(3.0, 3.0, 5.0),  # nominal, of a head of common size: the data has none
    license="CC BY-NC-SA 4.0 (non-commercial): the weights follow the masks that they were trained with",
    data="TCGA-LGG FLAIR volumes (TCIA, CC BY 3.0), lesion volumes from masks of Buda et al. 2019 (CC BY-NC-SA 4.0)",
    extra={"stretch": [2]},
)
"""The box fits the head: in the slice it keeps the head's shape, across the slices it is stretched, since slices of
20 to 88 a head say nothing of their thickness."""

RECIPE = Recipe(
    contract=CONTRACT,
    autoencoder=autoencoder_config(CONTRACT, (16, 32, 32)),
    autoencoder_settings=Settings(steps=3000, batch=2, lr=1e-3, ema=0.997),
    crop=32,
    network={
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        "spatial_dims": 3,
        "in_channels": CONTRACT.latent_channels + len(NAMES),
        "out_channels": CONTRACT.latent_channels,
        "channels": [48, 64, 128],
        "attention_levels": [False, True, True],
        "num_res_blocks": 1,
        "num_head_channels": [0, 32, 32],
        "norm_num_groups": 16,
        "with_conditioning": True,
        "cross_attention_dim": len(NAMES),
    },
    network_settings=Settings(steps=9000, batch=6, lr=5e-4, ema=0.998),
)


def vector(age: float | None = None, sex: str | None = None, lesion: float | None = None) -> Tensor:
    """What the network is told (3,); NaN for what is not said.

    Args:
        age: years, 20 to 75.
        sex: ``female`` or ``male``.
        lesion: 0 (none) to 1, see :func:`lesion_volume`.

    Raises:
        DiffAugError: a number outside its trained range, or another word for the sex.
    """
    if sex not in (None, "", *SEXES):
        raise DiffAugError(f"sex {sex!r} is unknown: give {' or '.join(SEXES)}, or leave it out")
    for name, value, (low, high) in (("age", age, AGES), ("lesion", lesion, (0.0, 1.0))):
        if value is not None and not low <= float(value) <= high:
            raise DiffAugError(f"{name} {value:g} lies outside its trained range: give {low:g} to {high:g}")
    kind = float(SEXES.index(sex)) if sex else math.nan
    numbers = (math.nan if age is None else float(age), kind, math.nan if lesion is None else float(lesion))
    return torch.tensor(numbers)


def numbers(age: float | None = None, sex: str | None = None, lesion: float | None = None) -> list[float | None]:
    """The same as :func:`vector`, as JSON has it."""
    return _json(vector(age, sex, lesion))


def opposite_numbers(age: float | None = None, sex: str | None = None, lesion: float | None = None) -> Any:
    """The :func:`opposite`, as JSON has it; nothing at all where no lesion is asked for."""
    return None if lesion is None else _json(opposite(vector(age, sex, lesion)))


def _json(vector: Tensor) -> list[float | None]:
    return [None if math.isnan(v) else round(v, 6) for v in vector.tolist()]


def opposite(vectors: Tensor) -> Tensor:
    """What guidance leads away from (*, 3): the same age and sex, and as small a lesion as the one asked for is large.

    Against nothing told, guidance drives age and sex further, by which few patients differ most, and not the lesion.
    """
    return torch.cat([vectors[..., :2], 1 - vectors[..., 2:]], -1)


def items(data: Path | str, part: str = "") -> list[dict[str, Any]]:
    """Datalist items of ``<data>/brain_lgg_3d/dev``: ``image``, ``mask``, ``patient``; ``age`` and ``sex`` if known.

    Args:
        data: the folder that holds ``brain_lgg_3d``.
        part: ``train``, ``validation``, ``test``, or nothing for all.

    Raises:
        DiffAugError: the folder or its ``labels.csv`` is not there.
    """
    folder = Path(data) / "brain_lgg_3d" / "dev"
    if not (folder / "labels.csv").is_file():
        raise DiffAugError(f"{folder / 'labels.csv'} is missing: give the folder that holds brain_lgg_3d as --data")
    found = []
    with (folder / "labels.csv").open(newline="") as f:
        for row in csv.DictReader(f):
            if part and part_of(row["patient"]) != part:
                continue
            item: dict[str, Any] = {"image": str(folder / row["file"]), "mask": str(folder / row["label_file"])}
            item["patient"] = row["patient"]
            if row["age"]:
                item["age"] = float(row["age"])
            if row["gender"]:  # 1 and 2 are not explained; TCGA's clinical tables say which is which
                item["sex"] = SEXES[int(row["gender"]) - 1]
            found.append(item)
    return found


def listed(datalist: Path | str, section: str = "training") -> list[dict[str, Any]]:
    """Items of one's own MONAI datalist: ``image``, and ``mask`` or ``label``, ``age``, ``sex``, ``lesion`` if known.

    Raises:
        DiffAugError: it cannot be read, or the section is empty.
    """
    path = Path(datalist)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DiffAugError(f"{path} is no datalist: give MONAI's JSON, with a list {section!r}") from None
    found = said.get(section) if isinstance(said, dict) else None
    if not found:
        raise DiffAugError(f"{path} has nothing under {section!r}: list the volumes there")
    items = []
    for item in found:
        mask = item.get("mask") or item.get("label")
        more = {"mask": str(path.parent / mask)} if isinstance(mask, str) else {}
        items.append({**item, "image": str(path.parent / item["image"]), **more})
    return items


def _known(item: Mapping[str, Any], mask: Tensor | None) -> Tensor:
    lesion = item.get("lesion")
    if lesion is None and mask is not None:
        lesion = float(lesion_volume(mask[None]))
    age = item.get("age")
    return vector(age if age is None else min(max(float(age), AGES[0]), AGES[1]), item.get("sex"), lesion)


def read(found: Sequence[Mapping[str, Any]], contract: Contract = CONTRACT) -> Volumes:
    """The volumes of datalist items, fitted; ``mask``, ``age``, ``sex`` and ``lesion`` may be missing.

    Without a ``lesion`` volume it is measured in the mask; without either it is not told.

    Raises:
        DiffAugError: a file that cannot be read or fitted; the message names it.
    """
    images, masks, vectors, patients = [], [], [], list[str]()
    for item in found:
        scan = files.read(item["image"], dims=3, orientation=contract.orientation)
        try:
            fitted = fit(scan.image, contract)
        except DiffAugError as error:
            raise DiffAugError(f"{item['image']}: {error}") from None
        mask = None
        if item.get("mask"):
            drawn = files.read(item["mask"], dims=3, orientation=contract.orientation, mask=True)
            mask = fit(drawn.image, contract, mask=True, like=fitted).tensor[:1]
        images.append(fitted.tensor)
        masks.append(torch.zeros_like(fitted.tensor) if mask is None else mask)
        vectors.append(_known(item, mask))
        patients.append(str(item.get("patient", item["image"])))
    return Volumes(torch.stack(images), torch.stack(masks), torch.stack(vectors), tuple(patients))


def conditioner(contract: Contract = CONTRACT) -> VectorConditioner:
    """Age, sex and lesion volume, told twice: as a token and as constant input channels."""
    return VectorConditioner(3, NAMES, RANGES, concat=True, latent_size=contract.latent_size, units=UNITS)


class Said:
    """What a stage tells the network of a batch, from its ``vector`` (B, 3); each number, and all of them, left out at
    times, so that the network learns to do without.
    """

    def __init__(self, conditioner: VectorConditioner, one: float = 0.1, all_of_them: float = 0.1):
        self.conditioner, self.one, self.all_of_them = conditioner, one, all_of_them

    def __call__(self, batch: Batch, draws: Draws) -> Condition:
        """The condition of a batch."""
        rows = plain(batch["vector"]).clone()
        n = len(rows)
        silent = torch.stack([draws.uniform(n) < self.one for _ in NAMES], 1)
        rows[silent | (draws.uniform(n) < self.all_of_them)[:, None]] = math.nan
        return self.conditioner(n, vector=rows)


class _Told:
    """The same, of training volumes by their positions."""

    def __init__(self, told: VectorConditioner, vectors: Tensor):
        self.said, self.vectors = Said(told), vectors

    def __call__(self, index: Tensor, generator: torch.Generator) -> Condition:
        return self.said({"vector": self.vectors[index]}, Draws(generator))


def examples(train: Volumes, unseen: Volumes, told: VectorConditioner) -> Examples:
    """Volumes to train on, and those of validation patients."""
    return Examples(train.images, unseen.images, _Told(told, train.vectors), _Told(told, unseen.vectors), {})


def train_autoencoder(data: Path, folder: Path, recipe: Recipe = RECIPE) -> MonaiAutoencoder:
    """The first stage, from the data's folder; ``folder`` holds the run and lets it go on."""
    volumes = read(items(data))
    train, unseen = varied(volumes.part("train"), 1), volumes.part("validation")
    return first_stage(recipe, examples(train, unseen, conditioner(recipe.contract)), folder)


def train(data: Path, folder: Path, recipe: Recipe = RECIPE) -> Backbone:
    """The whole backbone: the autoencoder, then the network on latents of varied volumes."""
    volumes, told = read(items(data)), conditioner(recipe.contract)
    known, unseen = volumes.part("train"), volumes.part("validation")
    mirrored = varied(known, 1)
    autoencoder = first_stage(recipe, examples(mirrored, unseen, told), folder)
    refine(autoencoder, mirrored, folder / "refined", held_out=unseen.images)
    return second_stage(recipe, autoencoder, told, examples(varied(known, 3), unseen, told), folder)


def refine(
    autoencoder: MonaiAutoencoder,
    volumes: Volumes,
    folder: Path,
    settings: Settings | None = None,
    held_out: Tensor | None = None,
) -> dict[str, float]:
    """Train the decoder on while the encoder stands still, so that latents stay what they are; by L1 and edges alone.

    Returns:
        the last losses and, with ``held_out`` images, their PSNR.
    """
    settings = settings or Settings(steps=600, batch=2, lr=8e-4, ema=0.997, seed=2)
    net: Any = autoencoder.module
    stage = AutoencoderStage(net, nn.Linear(1, 1), settings, held_out=held_out, crop=32, adversarial=0.0, matching=0.0)
    for part in (net.encoder, net.quant_conv_mu, net.quant_conv_log_sigma):
        part.requires_grad_(False)
    found = walk(stage, folder, lambda index: {"image": volumes.images[index]}, len(volumes))
    net.eval().requires_grad_(False)
    return found


# ----------------------------------------------------------------------------------- what the bundle's configs name


def schedule() -> Schedule:
    """The noise that the network is trained with."""
    return schedule_from_config(RECIPE.scheduler)


def dataset(volumes: Volumes) -> Dataset:
    """Volumes as items with ``image`` and ``vector``."""
    return Dataset([{"image": x, "vector": v} for x, v in zip(volumes.images, volumes.vectors, strict=True)])


def trainable(network: MonaiUNet) -> MonaiUNet:
    """A loaded network, to be trained on."""
    network.module.requires_grad_(True).train()
    return network
