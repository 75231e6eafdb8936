"""All shipped domains at once: what the default extractor of scores has learned from.

A small residual classifier of twelve kinds of image at 64 pixels, which also tells whether an image was turned, blurred
or echoed: kinds alone are told apart too easily, and then its features see no damage. It is trained on training
patients only, and no generator or filter uses it.

Data: MedNIST (Dr. Bradley J. Erickson, Mayo Clinic), CC BY-SA 4.0; PneumoniaMNIST (MedMNIST v2), CC BY 4.0; COVID-19
image data collection (Cohen et al. 2020), the films under CC BY or CC BY-SA; TCGA-LUAD, TCGA-LUSC and TCGA-LGG (The
Cancer Imaging Archive), CC BY 3.0, the last without the masks that others made, but in a packaging under CC BY-NC-SA
4.0; what is learned is taken to be under that, the strictest.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..backbones.judge import Judge
from ..backbones.saving import save_judge
from ..backbones.writing import write_json
from ..primitives.runs import Settings
from ..types import DiffAugError
from . import chest_ct, chest_xray, mednist, part_of
from .recipe import train_judge

__all__ = ["KINDS", "LICENSE", "NAME", "STATES", "Films", "in_states", "jittered", "judge", "read", "save", "upright"]

NAME = "medical"
SIZE = 64
LICENSE = "CC BY-NC-SA 4.0"
SEQUENCES = ("brain mri t1", "brain mri flair", "brain mri t1 with contrast")  # the channels of brain_lgg_2d
KINDS = (
    *mednist.MODALITIES.values(),
    *SEQUENCES,
    "chest x-ray of a child, normal",
    "chest x-ray of a child, pneumonia",
    "chest ct in hounsfield units",
)
STATES = ("", "turned", "blurred", "echoed")
EACH = 450  # training images of a kind in each state


@dataclass(frozen=True)
class Films:
    """``images`` (N, 1, 64, 64) in [-1, 1] and ``kinds`` (N,), positions in :data:`KINDS`."""

    images: Tensor
    kinds: Tensor

    def __len__(self) -> int:
        return len(self.images)


def _small(images: Tensor) -> Tensor:
    """(N, 1, H, W) at 64 pixels a side."""
    if images.shape[-2:] == (SIZE, SIZE):
        return images
    return F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)


def _brains(data: Path, part: str) -> Iterable[tuple[Tensor, int]]:
    folder = data / "brain_lgg_2d" / "dev"
    if not (folder / "labels.csv").is_file():
        raise DiffAugError(f"{folder / 'labels.csv'} is missing: give the folder that holds brain_lgg_2d as --data")
    with (folder / "labels.csv").open(newline="") as f:
        rows = [r for r in csv.DictReader(f) if part_of(r["patient"]) == part]
    for row in rows:
        pixels = torch.from_numpy(np.array(Image.open(folder / row["file"]))).float().movedim(-1, 0)[:, None]
        there = (row["has_pre_contrast"] == "1", True, row["has_post_contrast"] == "1")
        for name, channel, known in zip(SEQUENCES, pixels, there, strict=True):
            if known:
                yield _small(channel[None] / 127.5 - 1)[0], KINDS.index(name)


def _slices(data: Path, part: str) -> Iterable[tuple[Tensor, int]]:
    low, high = chest_ct.WINDOW
    for item in chest_ct.items(data, part):
        units = torch.from_numpy(np.array(Image.open(item["image"])).astype(np.float32)) - chest_ct.OFFSET
        seen = ((units - low) / (high - low) * 2 - 1).clamp(-1, 1)
        yield _small(seen[None, None])[0], KINDS.index("chest ct in hounsfield units")


def _chests(data: Path, part: str) -> Iterable[tuple[Tensor, int]]:
    found = [i for i in chest_xray.items(data, part) if i["source"] != "mednist6"]  # those are read with MedNIST
    for film in chest_xray.films(found, replace(chest_xray.CONTRACT, size=(SIZE, SIZE))):
        child = ("chest x-ray of a child, normal", "chest x-ray of a child, pneumonia")
        name = child[film["label"]] if film["label"] >= 0 else "chest x-ray"
        yield film["image"], KINDS.index(name)


def _others(data: Path, part: str) -> Iterable[tuple[Tensor, int]]:
    films = mednist.read(data).part(part)
    yield from zip(films.images, (KINDS.index(m) for m in films.modalities), strict=True)


SOURCES: tuple[Callable[[Path, str], Iterable[tuple[Tensor, int]]], ...] = (_others, _brains, _chests, _slices)


def read(data: Path | str, part: str) -> Films:
    """The images of ``train``, ``validation`` or ``test`` patients of all shipped domains.

    Args:
        data: the folder that holds ``mednist6``, ``brain_lgg_2d``, ``cxr_pneumonia28``, ``cxr_covid`` and
            ``ct_tcga_lung``.
        part: which patients.

    Raises:
        DiffAugError: a set is not there.
    """
    found = [pair for source in SOURCES for pair in source(Path(data), part)]
    return Films(torch.stack([x for x, _ in found]), torch.tensor([k for _, k in found]))


def _even(films: Films, each: int = EACH) -> Films:
    """As many images of every kind, rare ones repeated."""
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for k in range(len(KINDS)):
        mine = (films.kinds == k).nonzero().flatten()
        mine = mine[torch.randperm(len(mine), generator=generator)]
        chosen.append(mine[torch.arange(each) % len(mine)])
    order = torch.cat(chosen)
    return Films(films.images[order], films.kinds[order])


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur (N, 1, H, W) of ``sigma`` pixels."""
    reach = int(3 * sigma) + 1
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = taps / taps.sum()
    rows = F.conv2d(F.pad(x, [reach, reach, 0, 0], mode="replicate"), taps.reshape(1, 1, 1, -1))
    return F.conv2d(F.pad(rows, [0, 0, reach, reach], mode="replicate"), taps.reshape(1, 1, -1, 1))


def ghosted(x: Tensor, part: float) -> Tensor:
    """Echoes half a side away (N, 1, H, W): every other line of k-space lacks ``part`` of its strength."""
    gain = torch.ones(x.shape[-2])
    gain[1::2] = 1 - part
    return torch.fft.ifft(torch.fft.fft(x, dim=-2) * gain[:, None], dim=-2).real.clamp(-1, 1)


def in_states(films: Films) -> Films:
    """Every image in all of :data:`STATES`, each a class of its own: (4 N, ...), kinds up to four times as many.

    To tell how an image was turned one must see what is in it (Gidaris et al. 2018, arXiv:1803.07728); to tell that it
    was blurred or echoed is what features for scores are for. A third of the images is damaged little, one more, one
    much.
    """
    x = films.images
    thirds = [torch.arange(k, len(x), 3) for k in range(3)]
    soft, echoed = x.clone(), x.clone()
    for which, sigma, part in zip(thirds, (0.7, 1.1, 1.7), (0.2, 0.35, 0.5), strict=True):
        soft[which], echoed[which] = blurred(x[which], sigma), ghosted(x[which], part)
    states = [x, x.rot90(1, (-2, -1)), soft, echoed]
    return Films(torch.cat(states), torch.cat([films.kinds + k * len(KINDS) for k in range(len(states))]))


def jittered(x: Tensor, generator: torch.Generator) -> Tensor:
    """A batch (B, 1, H, W), moved, scaled and dimmed a little, each image in its own way; not blurred, not noisier.

    What a score must see (blur, noise) must not be trained away.
    """
    n = len(x)
    u = torch.rand(5, n, generator=generator) * 2 - 1
    scale = 1 + 0.12 * u[0]
    zero = torch.zeros(n)
    rows = [torch.stack([scale, zero, 0.1 * u[1]], -1), torch.stack([zero, scale, 0.1 * u[2]], -1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(-1, 1)
    gamma, gain = torch.exp(0.25 * u[3]).reshape(-1, 1, 1, 1), 1 + 0.1 * u[4].reshape(-1, 1, 1, 1)
    return ((((moved + 1) / 2).pow(gamma) * gain) * 2 - 1).clamp(-1, 1)


def judge(films: Films, folder: Path | str, steps: int = 2500, seed: int = 0) -> Judge:
    """Train the classifier; a run that was stopped goes on from ``folder``."""
    even = in_states(_even(films))
    names = tuple(f"{kind}, {state}" if state else kind for state in STATES for kind in KINDS)
    warmup, ema = min(200, steps // 4), min(0.995, 1 - 10 / steps)
    settings = Settings(steps=steps, batch=64, lr=2e-3, warmup=warmup, ema=ema, weight_decay=0.02, seed=seed)
    contract = replace(mednist.CONTRACT, name=NAME, size=(SIZE, SIZE))
    return train_judge(contract, even.images, even.kinds, names, settings, Path(folder), jittered)


def upright(network: Judge, images: Tensor) -> Tensor:
    """Probability (N, 12) of each kind; the state of an image does not matter."""
    with torch.no_grad():
        p = torch.cat([network.classify(x) for x in images.split(128)])
    return p.reshape(len(p), len(STATES), len(KINDS)).sum(1)


def save(network: Judge, folder: Path | str) -> Path:
    """Write what :func:`~monai_diffaug.backbones.extractors.extractor` reads."""
    place = Path(folder)
    save_judge(network, place)
    said = {"labels": list(network.labels), "head": network.head, "size": [SIZE, SIZE], "kinds": len(KINDS)}
    write_json(place / "judge.json", {**said, "license": LICENSE, "name": NAME})
    return place
