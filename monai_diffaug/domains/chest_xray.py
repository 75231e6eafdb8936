"""Chest X-rays at 64 pixels, described in words: three small public sets that know different things.

=================  ======  ===========================================================================================
``mednist6``       375     sharp films of adults; nothing is said of them (CC BY-SA 4.0)
``cxr_pneumonia28``  4406  films of children at 28 pixels, normal or pneumonia (CC BY 4.0)
``cxr_covid``      91      sharp films with view, sex, finding and, for seven, a report (CC BY or CC BY-SA; its other
                           48 are for non-commercial use and are not learned from)
=================  ======  ===========================================================================================

A prompt says what is known, in any subset: ``a coarse normal chest x-ray of a child``, ``an ap supine chest x-ray of a
man with covid-19 pneumonia``. ``coarse`` is always said of films at 28 pixels, also of sharp ones that were brought
down to them, so that a prompt without the word asks for a sharp film, whatever it says besides.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import Dataset
from monai.networks.nets import ResNet
from torch import Tensor

from ..backbones.judge import Judge
from ..io import images as files
from ..primitives import adapters
from ..primitives.fitting import fit
from ..types import Backbone, Contract, DiffAugError
from . import mednist, part_of
from .recipe import judge_config

__all__ = [
    "CONTRACT",
    "FINDINGS",
    "KINDS",
    "WORDS",
    "CoarseResNet",
    "by_finding",
    "caption",
    "coarse",
    "films",
    "items",
    "jittered",
    "judge",
    "judged",
    "known",
    "requested",
    "sentences",
    "spoken",
    "stacked",
    "taught",
    "unfrozen",
    "vocabulary",
]

SIZE, COARSE, LENGTH = 64, 28, 32
FINDINGS = ("normal", "pneumonia")
KINDS = ("child", "adult", "pa", "ap supine")
"""What the second judge tells apart: where a film is from and, in ``cxr_covid``, its view."""
WORDS = (
    *("coarse", "normal", "pneumonia", "covid-19", "pa", "ap", "supine", "child", "man", "woman"),
    *("no", "finding", "findings", "in", "both", "lungs", "lung", "shows", "and"),
)
LABELS = ("normal chest x-ray", "chest x-ray with pneumonia", "chest x-ray with covid-19 pneumonia")

CONTRACT = Contract(
    name="chest_xray_text_to_image",
    modality="X-ray",
    spatial_dims=2,
    channels=1,
    size=(SIZE, SIZE),
    latent_channels=4,
    latent_scale=1.0,
    factor=4,
    value_range=(-1.0, 1.0),
    intensity=(0.5, 99.5),
    labels=LABELS,
    vocabulary=(*mednist.WORDS, *WORDS),
    license="CC BY-SA 4.0: the weights follow their data",
    data="MedNIST (Dr. Bradley J. Erickson, Mayo Clinic), CC BY-SA 4.0; PneumoniaMNIST (MedMNIST v2, after Kermany et "
    "al. 2018), CC BY 4.0; COVID-19 image data collection (Cohen et al. 2020), the films under CC BY or CC BY-SA",
    extra={"template": "a {}"},
)

# ----------------------------------------------------------------------------------------------------------- reading


def items(data: Path | str, part: str, *, noncommercial: bool = False) -> list[dict[str, Any]]:
    """The films of ``train``, ``validation`` or ``test`` as MONAI items.

    ``image`` is an array (h, w) or a path. ``finding`` (``normal``, ``pneumonia``, ``covid-19 pneumonia``), ``view``
    (``pa``, ``ap supine``), ``person`` (``child``, ``man``, ``woman``), ``report`` (sentences) are empty where nothing
    is known; ``coarse`` says that the film has 28 pixels; ``source`` is the set, ``patient`` what the split goes by:
    the patient in ``cxr_covid``; elsewhere there are no patient ids and it is the film itself.

    Args:
        data: the folder that holds the three sets.
        part: which patients.
        noncommercial: also the films of ``cxr_covid`` that are for non-commercial use; what is learned from them is
            under CC BY-NC-SA 4.0, and that cannot be combined with ``mednist6``.

    Raises:
        DiffAugError: a set is not there.
    """
    folder = Path(data)
    found = [*_mednist(folder), *_pneumonia(folder), *_covid(folder, noncommercial)]
    return [item for item in found if part_of(item["patient"]) == part]


def _item(image: Any, patient: str, source: str, **said: Any) -> dict[str, Any]:
    nothing = {"finding": "", "view": "", "person": "", "report": (), "coarse": False}
    return {"image": image, "patient": patient, "source": source, **nothing, **said}


def _file(path: Path) -> Path:
    if not path.is_file():
        raise DiffAugError(f"{path} is missing: give the folder that holds mednist6, cxr_pneumonia28 and cxr_covid")
    return path


def stacked(dataset: Sequence[Mapping[str, Any]], most: int = 256) -> Tensor:
    """Images (N, C, *S) of a data set, ``most`` at the most, spread evenly over it."""
    return torch.stack([dataset[i]["image"] for i in range(0, len(dataset), -(-len(dataset) // most))])


def unfrozen(backbone: Backbone, device: str | torch.device = "cpu") -> Backbone:
    """A copy whose network and autoencoder may be trained; the hub's own stays as it is."""
    network, autoencoder = adapters.copied(backbone.network, None), copy.deepcopy(backbone.autoencoder)
    network.module.to(device, memory_format=torch.channels_last)
    autoencoder.module.to(device, memory_format=torch.channels_last).requires_grad_(True)
    return replace(backbone, network=network, autoencoder=autoencoder)


def _mednist(folder: Path) -> list[dict[str, Any]]:
    place = folder / "mednist6" / "dev"
    pixels = np.load(_file(place / "images.npz"))["images"]
    with _file(place / "labels.csv").open(newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["label"] == "CXR"]
    return [_item(pixels[int(r["index"])], f"CXR/{r['index']}", "mednist6") for r in rows]


def _pneumonia(folder: Path) -> list[dict[str, Any]]:
    arrays = np.load(_file(folder / "cxr_pneumonia28" / "dev" / "dev.npz"))
    films = zip(arrays["images"], arrays["labels"].ravel().tolist(), strict=True)
    return [
        # by content, so that the exact duplicates in the set fall into one part
        _item(x, hashlib.sha256(x.tobytes()).hexdigest(), "cxr_pneumonia28", finding=FINDINGS[y], person="child",
              coarse=True)
        for x, y in films
    ]  # fmt: skip


def _covid(folder: Path, noncommercial: bool) -> list[dict[str, Any]]:
    place = folder / "cxr_covid" / "dev"
    with _file(place / "labels.csv").open(newline="") as f:
        rows = [r for r in csv.DictReader(f) if noncommercial or "NC" not in r["license"]]
    findings = {"COVID-19": "covid-19 pneumonia", "No Finding": "normal", "": "", "ARDS": ""}
    return [
        _item(
            place / r["file"],
            r["patient"],
            "cxr_covid",
            finding=findings.get(r["finding"], "pneumonia"),
            view={"PA": "pa", "AP Supine": "ap supine"}.get(r["view"], ""),
            person={"M": "man", "F": "woman"}.get(r["sex"], ""),
            report=tuple(sentences(r["report"])),
            license=r["license"],
            doi=r["doi"],
        )
        for r in rows
    ]


def coarse(x: Tensor) -> Tensor:
    """Films (B, 1, H, W) in [-1, 1] as if they had been stored with 28 pixels a side."""
    small = F.interpolate(x, (COARSE, COARSE), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, x.shape[-2:], mode="bicubic", align_corners=False).clamp(-1, 1)


def _pixels(image: Any, contract: Contract = CONTRACT) -> Tensor:
    """(1, *size) in the value range, of an array (h, w) or a file."""
    if isinstance(image, str | Path):
        raw = files.read(Path(image), dims=2).image[:1].float()
    else:
        raw = torch.as_tensor(np.asarray(image)).float()[None]
    if raw.shape[-1] < contract.size[-1]:
        raw = F.interpolate(raw[None], contract.size, mode="bicubic", align_corners=False)[0]
    gray = replace(contract, channels=1, intensity=CONTRACT.intensity, crop="none")
    return fit(raw, gray).tensor.as_subclass(Tensor)


def films(found: Sequence[Mapping[str, Any]], contract: Contract = CONTRACT) -> Dataset:
    """Items with their pixels in memory: ``image`` (1, *size) in the value range, and the judges' classes.

    ``label`` is 0 for normal and 1 for pneumonia in films of children, ``kind`` a position in :data:`KINDS`; -1 where
    it is not known.
    """
    read = []
    for item in found:
        child = item["source"] == "cxr_pneumonia28"
        kind = {"cxr_pneumonia28": "child", "mednist6": "adult"}.get(item["source"], item["view"])
        read.append(
            {
                **item,
                "image": _pixels(item["image"], contract),
                "label": FINDINGS.index(item["finding"]) if child else -1,
                "kind": KINDS.index(kind) if kind in KINDS else -1,
            }
        )
    return Dataset(read)


# ------------------------------------------------------------------------------------------------------------- words

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


def spoken(text: str) -> str:
    """A text as the tokenizer takes it: words in lower case, without punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def sentences(report: str, longest: int = LENGTH - 2) -> list[str]:
    """The sentences of a report, spoken; those that are too long are left out, as are fragments of one or two words."""
    parts = [spoken(part) for part in re.split(r"(?<=[^\d])[.;!]\s+|[.;!]\s*$|\n", report)]
    return [p for p in parts if 2 < len(p.split()) <= longest]


def vocabulary(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The words of all prompts that can be made of these items, beyond those of ``mednist``."""
    told = sorted({w for item in found for sentence in item["report"] for w in sentence.split()})
    return list(dict.fromkeys((*WORDS, *told)))


def known(text: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """A report sentence in words that the backbone knows, and the words that had to be left out."""
    have = {w.lower() for entry in words for w in _WORD.findall(entry)}
    said = spoken(text).split()
    return " ".join(w for w in said if w in have), [w for w in said if w not in have]


def requested(backbone: Backbone, prompts: Sequence[str] = (), report: str | Path | None = None) -> list[str]:
    """Prompts as they are given, and the lines of a text file in words that the backbone knows.

    What is left out of a line is said in a warning; of a line of which nothing is known no film is made. Backbones that
    know every word get the lines as they are.

    Raises:
        DiffAugError: the file is not there, or there is nothing to show.
    """
    asked = list(prompts)
    if report is not None:
        if not Path(report).is_file():
            raise DiffAugError(f"{report} is missing: give a text file with one sentence a line")
        for line in Path(report).read_text(encoding="utf-8").splitlines():
            if not line.strip():
                continue
            words = backbone.contract.vocabulary
            text, unknown = known(line, words) if words else (line.strip(), [])
            if unknown:
                warnings.warn(f"not known, and left out: {', '.join(unknown)} (of {line.strip()!r})", stacklevel=2)
            asked += [text] if text else []
    if not asked:
        raise DiffAugError("there is nothing to show: give prompts, or a report of sentences in words that are known")
    return list(dict.fromkeys(asked))


def caption(item: Mapping[str, Any], generator: torch.Generator | None = None) -> str:
    """What is known of a film in one sentence; with a generator a random part of it, or a sentence of its report."""

    def said(often: float) -> bool:
        return generator is None or float(torch.rand((), generator=generator)) < often

    if item["report"] and generator is not None and said(0.5):
        sentence = item["report"][int(torch.randint(len(item["report"]), (), generator=generator))]
        return f"coarse {sentence}" if item["coarse"] else sentence
    finding = item["finding"] if said(0.85) else ""
    words = ["coarse"] if item["coarse"] else []
    words += ["normal"] if finding == "normal" else []
    words += [item["view"]] if item["view"] and said(0.7) else []
    words += ["chest x-ray"]
    words += [f"of a {item['person']}"] if item["person"] and said(0.6) else []
    words += [f"with {finding}"] if finding not in ("", "normal") else []
    article = "an" if words[0][0] == "a" else "a"
    return " ".join([article, *words])


# ---------------------------------------------------------------------------------------------------------- training


def jittered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Films (B, 1, H, W) turned by up to 4 degrees, moved, scaled and dimmed a little, each in its own way."""
    n = len(x)
    u = torch.rand(5, n, generator=generator) * 2 - 1
    angle, scale = u[0] * 0.07, 1 + 0.07 * u[1]
    c, s = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([torch.stack([c, -s, 0.06 * u[2]], -1), torch.stack([s, c, 0.06 * u[3]], -1)], 1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
    gamma = torch.exp(0.15 * u[4]).reshape(-1, 1, 1, 1)
    return (((moved.clamp(-1, 1) + 1) / 2).pow(gamma) * 2 - 1).clamp(-1, 1)


COPIES = {"mednist6": 9, "cxr_covid": 22, "normal": 4, "pneumonia": 1}
MOST_PNEUMONIA = 1568  # as many films as there are of normal ones, copies included


def by_finding(dataset: Sequence[Mapping[str, Any]], most: int = 400) -> dict[str, Tensor]:
    """Films (N, 1, *S) of children by finding, at most so many of each."""
    found = {name: [f["image"] for f in dataset if f["label"] == i][:most] for i, name in enumerate(FINDINGS)}
    return {name: torch.stack(images) for name, images in found.items()}


def taught(
    dataset: Sequence[Mapping[str, Any]],
    seed: int = 0,
    copies: Mapping[str, int] | None = None,
    most_pneumonia: int = MOST_PNEUMONIA,
) -> Dataset:
    """Training films and what is said of them: ``image`` (1, 64, 64) and ``prompt``.

    Each film comes several times (the first time as it is), so that sets and findings are balanced: 31 % sharp films of
    adults of which nothing is known, 19 % of ``cxr_covid``, and as many normal as pneumonia films of children. One in
    five of the sharp ones is made coarse, and said to be.

    Args:
        dataset: from :func:`films`.
        seed: of jitter and captions.
        copies: of each film, by source, and by finding for ``cxr_pneumonia28``.
        most_pneumonia: films of children with pneumonia at the most; there are eight times as many as normal ones.
    """
    often = copies or COPIES
    generator = torch.Generator().manual_seed(seed)
    taken, made = 0, list[dict[str, Any]]()
    for item in dataset:
        key = item["finding"] if item["source"] == "cxr_pneumonia28" else item["source"]
        taken += key == "pneumonia"
        if key == "pneumonia" and taken > most_pneumonia:
            continue
        for turn in range(often[key]):
            image, said = item["image"], item
            if turn:
                image = jittered(image[None], generator)[0]
            if turn % 5 == 4 and not item["coarse"]:
                image, said = coarse(image[None])[0], {**item, "coarse": True}
            made.append({"image": image, "prompt": caption(said, generator), "source": item["source"]})
    return Dataset(made)


# ------------------------------------------------------------------------------------------------------------ judges


class CoarseResNet(ResNet):
    """A classifier that sees every film at 28 pixels, so that it judges sharp and coarse ones alike."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n) of films (B, 1, H, W) in [-1, 1]."""
        logits: Tensor = super().forward(coarse(x.float()))
        return logits


def judge(labels: Sequence[str], seed: int = 1, *, at_28_pixels: bool = False) -> Judge:
    """A small residual classifier with random weights, to be trained on real films."""
    config = judge_config(CONTRACT, len(labels))
    if at_28_pixels:
        config["_target_"] = f"{__name__}.CoarseResNet"
    arguments = {k: v for k, v in config.items() if k != "_target_"}
    torch.manual_seed(seed)
    return Judge((CoarseResNet if at_28_pixels else ResNet)(**arguments), labels, "fc", config)


def judged(dataset: Sequence[Mapping[str, Any]], target: str) -> Dataset:
    """The films whose class ``target`` (``label``, ``kind``) is known, each class as often as the largest one."""
    by = dict[int, list[dict[str, Any]]]()
    for item in dataset:
        if item[target] >= 0:
            by.setdefault(int(item[target]), []).append({"image": item["image"], target: item[target]})
    most = max((len(v) for v in by.values()), default=0)
    return Dataset([v[i % len(v)] for v in by.values() for i in range(most)])
