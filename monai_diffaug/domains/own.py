"""One's own images: a datalist or a folder, with or without classes, 2D or 3D, trained by one recipe for all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.judge import Judge
from ..backbones.text import ClassConditioner, NoConditioner
from ..io import datalist
from ..io import images as files
from ..primitives.fitting import fit
from ..primitives.training import Settings
from ..types import Backbone, Condition, Contract, DiffAugError
from . import part_of
from .recipe import Bench, Examples, Recipe, autoencoder_config, train_backbone, train_judge

__all__ = ["Images", "bench", "read", "recipe", "train"]

LEAST = 32  # images: fewer are learned by heart


@dataclass(frozen=True)
class Images:
    """``images`` (N, C, *S) in the value range, ``labels`` (N,) positions in ``classes`` or -1, and whose they are."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    patients: tuple[str, ...]

    def part(self, *names: str) -> Tensor:
        """Positions of the images of a part; a set without one takes every eighth image instead."""
        found = [i for i, p in enumerate(self.patients) if part_of(p) in names]
        return torch.tensor(found or list(range(0, len(self.images), 8)))


def recipe(source: Path, size: int, license: str, name: str) -> Recipe:  # noqa: A002
    """Networks that fit the first image's dimensions and channels.

    Raises:
        DiffAugError: the size is no multiple of 16, or no license is given.
    """
    if size % 16:
        raise DiffAugError(f"size is {size}: give a multiple of 16, such as {round(size / 16) * 16 or 16}")
    if not license:
        raise DiffAugError('weights follow the license of their data: name it, such as --license "CC BY 4.0"')
    items = datalist.read(source)
    first = files.read(items[0].image).image
    dims = first.ndim - 1
    classes = tuple(sorted({str(i.kind) for i in items if i.kind is not None}))
    contract = Contract(
        name=name,
        modality="unknown",
        spatial_dims=dims,
        channels=int(first.shape[0]),
        size=(size,) * dims,
        latent_channels=4,
        latent_scale=1.0,
        factor=4,
        intensity=None if first.dtype == torch.uint8 else (0.5, 99.5),
        orientation="RAS" if dims == 3 else None,
        labels=classes,
        vocabulary=classes,
        license=license,
        data=str(source),
    )
    channels = [48, 96, 160] if dims == 2 else [32, 64, 96]
    network = {
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        "spatial_dims": dims,
        "in_channels": contract.latent_channels,
        "out_channels": contract.latent_channels,
        "channels": channels,
        "attention_levels": [False, dims == 2, True],
        "num_res_blocks": 1,
        "num_head_channels": [0, 32 if dims == 2 else 0, 32],
        "norm_num_groups": 16,
    }
    if classes:
        network["num_class_embeds"] = len(classes) + 1
    return Recipe(
        contract=contract,
        network=network,
        network_settings=Settings(steps=10000, batch=16 if dims == 2 else 4, lr=3e-4, ema=0.999),
        autoencoder=autoencoder_config(contract, (32, 64, 64) if dims == 2 else (16, 32, 32)),
        autoencoder_settings=Settings(steps=5000, batch=8 if dims == 2 else 2, lr=5e-4, ema=0.998),
        crop=min(size, 64) if dims == 2 else min(size, 32),
    )


def read(source: Path, contract: Contract) -> Images:
    """All images, fitted. One that cannot be read or fitted is an error that names it.

    Raises:
        DiffAugError: an image is bad, or there are too few.
    """
    items = datalist.read(source)
    if len(items) < LEAST:
        raise DiffAugError(
            f"{source} holds {len(items)} images: give at least {LEAST}, or edit with a shipped backbone"
        )
    classes = contract.labels
    fitted = []
    for item in items:
        scan = files.read(item.image, dims=contract.spatial_dims, orientation=contract.orientation)
        try:
            fitted.append(fit(scan.image, contract).tensor)
        except DiffAugError as error:
            raise DiffAugError(f"{item.image}: {error}") from None
    labels = torch.tensor([classes.index(str(i.kind)) if i.kind is not None and classes else -1 for i in items])
    return Images(torch.stack(fitted), labels, classes, tuple(str(i.fields.get("patient", i.id)) for i in items))


class _Told:
    """The class of an image, left out one time in six."""

    def __init__(self, labels: Tensor, conditional: bool):
        self.labels, self.conditional = labels + 1, conditional

    def __call__(self, index: Tensor, generator: torch.Generator) -> Condition:
        if not self.conditional:
            return Condition()
        return Condition(labels=self.labels[index] * (torch.rand(len(index), generator=generator) >= 1 / 6).long())


def _judge(data: Images, recipe: Recipe, folder: Path) -> Judge | None:
    if len(data.classes) < 2:
        return None
    which = data.part("train")
    which = which[data.labels[which] >= 0]
    steps = min(800, recipe.network_settings.steps)
    settings = Settings(steps=steps, batch=16, lr=1e-3, ema=0.99, weight_decay=0.02, seed=1)
    return train_judge(recipe.contract, data.images[which], data.labels[which], data.classes, settings, folder)


def train(source: Path, folder: Path, recipe: Recipe) -> Backbone:
    """The whole backbone; ``folder`` holds the run and lets it go on."""
    data = read(source, recipe.contract)
    known, unseen = data.part("train"), data.part("validation", "test")
    conditional = bool(data.classes)
    examples = Examples(
        data.images[known],
        data.images[unseen],
        _Told(data.labels[known], conditional),
        _Told(data.labels[unseen], conditional),
        {},
    )
    conditioner = ClassConditioner(data.classes) if conditional else NoConditioner()
    judge = _judge(data, recipe, folder)
    made = train_backbone(recipe, conditioner, examples, folder, judge)
    return replace(made, name=recipe.contract.name)


def bench(source: Path, contract: Contract) -> Bench:
    """Images of patients that were not trained on."""
    data = read(source, contract)
    unseen = data.part("validation", "test")
    names = [data.classes[i] if i >= 0 else "" for i in data.labels[unseen].tolist()]
    return Bench(
        train=data.images[data.part("train")],
        test=data.images[unseen],
        told={"label": names * 8} if data.classes else {},
        expected=names * 8,
        test_expected=names,
    )
