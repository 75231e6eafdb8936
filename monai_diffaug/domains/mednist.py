"""MedNIST: six modalities at 64 pixels, described in words.

Data: the MedNIST subset gathered by Dr. Bradley J. Erickson (Mayo Clinic), CC BY-SA 4.0; what is learned from it is
under the same license. One modality, ``head ct``, is kept out of the backbone and of its scorer, so that
personalization has something new to learn; the judge knows all six.

A training image is a real one that was scaled, dimmed, moved, turned or collimated, and the caption says so: every
attribute in it can be measured in the pixels.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.dual import dual_encoder, text_encoder, word_tokenizer
from ..backbones.judge import Judge
from ..backbones.scorer import Scorer
from ..backbones.text import TextConditioner
from ..primitives.training import Settings, train_contrastive
from ..types import Backbone, Condition, Contract, DiffAugError
from . import part_of
from .recipe import Bench, Examples, Recipe, autoencoder_config, train_backbone, train_judge

__all__ = ["CONTRACT", "KEPT_OUT", "MODALITIES", "RECIPE", "Films", "captioned", "judge", "read", "train"]

MODALITIES = {
    "AbdomenCT": "abdomen ct",
    "BreastMRI": "breast mri",
    "ChestCT": "chest ct",
    "CXR": "chest x-ray",
    "Hand": "hand x-ray",
    "HeadCT": "head ct",
}
KEPT_OUT = "head ct"
LABELS = tuple(m for m in MODALITIES.values() if m != KEPT_OUT)
WORDS = (
    *("a", "an", "the", "of", "on", "with", "photo", "image", "scan", "slice"),
    *("small", "large", "dark", "bright", "left", "right", "rotated", "cropped"),
    *("abdomen", "breast", "chest", "hand", "ct", "mri", "x-ray"),
)
SIZE = 64

CONTRACT = Contract(
    name="mednist",
    modality="CT, MR, X-ray",
    spatial_dims=2,
    channels=1,
    size=(SIZE, SIZE),
    latent_channels=4,
    latent_scale=1.0,
    factor=4,
    value_range=(-1.0, 1.0),
    labels=LABELS,
    vocabulary=WORDS,
    license="CC BY-SA 4.0: the weights follow their data",
    data="MedNIST (Dr. Bradley J. Erickson, Mayo Clinic), CC BY-SA 4.0",
    extra={"template": "a {}", "kept_out": KEPT_OUT},
)

TEXT_WIDTH, TEXT_LENGTH = 128, 20

RECIPE = Recipe(
    contract=CONTRACT,
    autoencoder=autoencoder_config(CONTRACT, (32, 64, 64)),
    autoencoder_settings=Settings(steps=4500, batch=16, lr=5e-4, ema=0.998),
    crop=48,
    network={
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        "spatial_dims": 2,
        "in_channels": CONTRACT.latent_channels,
        "out_channels": CONTRACT.latent_channels,
        "channels": [48, 96, 128],
        "attention_levels": [True, True, True],
        "num_res_blocks": 1,
        "num_head_channels": [24, 32, 32],
        "norm_num_groups": 16,
        "with_conditioning": True,
        "cross_attention_dim": TEXT_WIDTH,
        "transformer_num_layers": 1,
    },
    network_settings=Settings(steps=7500, batch=16, lr=3e-4, ema=0.999),
)


@dataclass(frozen=True)
class Films:
    """``images`` (N, 1, 64, 64) in [-1, 1], ``modalities`` and ``sources``, one an image."""

    images: Tensor
    modalities: tuple[str, ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def of(self, keep: list[bool]) -> Films:
        """Those whose flag is set."""
        which = [i for i, k in enumerate(keep) if k]
        return Films(
            self.images[which], tuple(self.modalities[i] for i in which), tuple(self.sources[i] for i in which)
        )

    def part(self, name: str) -> Films:
        """``train``, ``validation`` or ``test``."""
        return self.of([part_of(s) == name for s in self.sources])

    def known(self) -> Films:
        """All but the modality that is kept out."""
        return self.of([m != KEPT_OUT for m in self.modalities])


def read(data: Path) -> Films:
    """All images of ``<data>/mednist6/dev``.

    Raises:
        DiffAugError: the folder or a file in it is not there.
    """
    folder = Path(data) / "mednist6" / "dev"
    for name in ("labels.csv", "images.npz"):
        if not (folder / name).is_file():
            raise DiffAugError(f"{folder / name} is missing: give the folder that holds mednist6 as --data")
    pixels = np.load(folder / "images.npz")["images"]
    with (folder / "labels.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    images = torch.from_numpy(pixels[[int(r["index"]) for r in rows]]).float()[:, None] / 127.5 - 1
    sources = tuple(f"{r['label']}/{r['index']}" for r in rows)
    return Films(images, tuple(MODALITIES[r["label"]] for r in rows), sources)


# ---------------------------------------------------------------------------------------------- attributes and captions


@dataclass(frozen=True)
class Attributes:
    """What was done to an image, in words; an empty word is not said."""

    size: str = ""
    brightness: str = ""
    side: str = ""
    rotation: str = ""
    cropped: str = ""

    def caption(self, modality: str, opening: str = "") -> str:
        """Such as ``a small dark hand x-ray on the left rotated right cropped``."""
        middle = " ".join(w for w in (self.size, self.brightness, modality) if w)
        end = " ".join(w for w in (self.side and f"on the {self.side}", self.rotation, self.cropped) if w)
        article = "an" if middle[0] in "aeiou" else "a"
        return " ".join(w for w in (opening, article, middle, end) if w)


OPENINGS = ("", "", "", "", "an image of", "a scan of", "a photo of", "a slice of")
SAID = 0.4  # how often an attribute is changed, and said


def drawn(generator: torch.Generator) -> Attributes:
    """Attributes at random."""

    def one(*words: str, often: float = SAID) -> str:
        u, which = torch.rand(2, generator=generator).tolist()
        return words[int(which * len(words))] if u < often else ""

    return Attributes(
        one("small", "large"),
        one("dark", "bright"),
        one("left", "right", often=0.3),
        one("rotated left", "rotated right", often=0.3),
        one("cropped", often=0.15),
    )


def changed(image: Tensor, words: Attributes, generator: torch.Generator) -> Tensor:
    """An image (1, 64, 64) in [-1, 1] made to show the attributes; what is not said is left as it is.

    Small is 0.6 to 0.75 of the size, large 1.25 to 1.45; dark 0.5 to 0.65 of the intensity, bright 1.45 to 1.8, from
    black; a side is 9 to 14 pixels off center; a rotation 20 to 35 degrees; cropped leaves the middle 40 to 46 pixels.
    """

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    size = {"small": between(0.6, 0.75), "large": between(1.25, 1.45)}.get(words.size, 1.0)
    gain = {"dark": between(0.5, 0.65), "bright": between(1.45, 1.8)}.get(words.brightness, 1.0)
    reach = between(9, 14) / (SIZE / 2)
    shift = {"left": -reach, "right": reach}.get(words.side, 0.0)
    tilt = math.radians(between(20, 35))
    angle = {"rotated left": tilt, "rotated right": -tilt}.get(words.rotation, 0.0)
    if size != 1.0 or shift or angle:
        c, s = math.cos(angle) / size, math.sin(angle) / size
        matrix = torch.tensor([[c, -s, -c * shift], [s, c, -s * shift]])
        grid = F.affine_grid(matrix[None], [1, 1, SIZE, SIZE], align_corners=False)
        edge = torch.cat([image[0, 0], image[0, -1], image[0, :, 0], image[0, :, -1]]).median()
        image = F.grid_sample(image[None] - edge, grid, align_corners=False)[0] + edge  # beyond the edge: as at it
    image = ((image + 1) * gain - 1).clamp(-1, 1)
    if words.cropped:
        margin = int(between(9, 12.999))
        framed = torch.full_like(image, -1.0)
        framed[:, margin:-margin, margin:-margin] = image[:, margin:-margin, margin:-margin]
        image = framed
    return image


def captioned(films: Films, copies: int, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Every image ``copies`` times, the first time as it is: (copies * N, 1, 64, 64) and as many captions."""
    generator = torch.Generator().manual_seed(seed)
    images, captions = [], list[str]()
    for copy in range(copies):
        for image, modality in zip(films.images, films.modalities, strict=True):
            words = drawn(generator) if copy else Attributes()
            opening = OPENINGS[int(torch.randint(len(OPENINGS), (), generator=generator))]
            images.append(changed(image, words, generator))
            captions.append(words.caption(modality, opening))
    return torch.stack(images), captions


# ------------------------------------------------------------------------------------------------------------ training


class _Told:
    """Captions as token ids; one in eight is left out."""

    def __init__(self, conditioner: TextConditioner, captions: list[str], unsaid: float = 0.125):
        self.conditioner, self.unsaid = conditioner, unsaid
        self.ids = conditioner.tokenize(captions)
        self.nothing = conditioner.tokenize([""])

    def __call__(self, index: Tensor, generator: torch.Generator) -> Condition:
        silent = torch.rand(len(index), 1, generator=generator) < self.unsaid
        ids = torch.where(silent, self.nothing, self.ids[index])
        return Condition(tokens=self.conditioner.encode_ids(ids))


def conditioner(seed: int = 0) -> TextConditioner:
    """A text encoder that knows nothing yet."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(WORDS, TEXT_LENGTH)
    return TextConditioner(text_encoder(tokenizer, TEXT_WIDTH, layers=2), tokenizer, WORDS, LABELS, "a {}")


def examples(films: Films, told: TextConditioner, copies: int = 8) -> Examples:
    """Training images with captions, the text encoder to be trained along; validation likewise."""
    images, captions = captioned(films.known().part("train"), copies)
    held_out, more = captioned(films.known().part("validation"), 2, seed=1)
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    held_out, more = held_out[order], [more[i] for i in order]
    return Examples(images, held_out, _Told(told, captions), _Told(told, more), {"text_encoder": told.module})


def judge(films: Films, folder: Path, steps: int = 1200) -> Judge:
    """All six modalities, however scaled, dimmed, moved or turned, from training images."""
    names = tuple(MODALITIES.values())
    images, _ = captioned(films.part("train"), 4, seed=2)
    labels = torch.tensor([names.index(m) for m in films.part("train").modalities]).repeat(4)
    settings = Settings(steps=steps, batch=48, lr=1e-3, ema=0.995, weight_decay=0.02, seed=1)
    return train_judge(CONTRACT, images, labels, names, settings, folder)


def scorer(films: Films, folder: Path, steps: int = 2500) -> Scorer:
    """Does an image show what a caption says: trained on captions of the modalities that the backbone knows."""
    torch.manual_seed(3)
    tokenizer = word_tokenizer(WORDS, TEXT_LENGTH)
    model = dual_encoder(tokenizer, width=96, layers=3, image_size=SIZE, patch=8, channels=1)
    made = Scorer(model, tokenizer, CONTRACT.value_range, (0.5,), (0.5,))
    images, captions = captioned(films.known().part("train"), 8, seed=4)
    ids = made.tokenize(captions)
    settings = Settings(steps=steps, batch=96, lr=1e-3, ema=0.998, weight_decay=0.05, seed=3)
    model.train()
    train_contrastive(made.embed_images, made.embed_ids, model, model.logit_scale, images, ids, settings, folder)
    model.eval()
    return made


def train(data: Path, folder: Path, recipe: Recipe = RECIPE) -> Backbone:
    """The whole backbone, from the data's folder; ``folder`` holds the run and lets it go on."""
    films, told = read(data), conditioner()
    return train_backbone(recipe, told, examples(films, told), folder, judge(films, folder), scorer(films, folder))


def bench(data: Path, contract: Contract = CONTRACT) -> Bench:
    """Test images to measure against; the backbone is told captions with attributes of the same distribution."""
    films = read(data)
    test = films.known().part("test")
    images, captions = captioned(test, 4, seed=5)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    images, captions = images[order], [captions[i] for i in order]
    names = [(test.modalities * 4)[i] for i in order]
    return Bench(
        train=captioned(films.known().part("train"), 8)[0],
        test=images,
        told={"prompt": captions},
        expected=names,
        test_expected=names,
        captions=captions,
        notes={
            "kept out": f"Head CT was kept out of the backbone, its text encoder and its scorer: {KEPT_OUT!r} is for "
            "personalization to learn. The judge knows all six modalities.",
            "patients": "The data has no patient ids: the split is by image, near-duplicates of training images may be "
            "among the test images.",
        },
    )
