"""Real images of test patients, and the shipped backbones: what behavior is measured on.

The images are those that ship with the package, so that the same tests run on anyone's machine.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import monai_diffaug
from monai_diffaug.backbones import hub
from monai_diffaug.domains import brain_mri, mednist
from monai_diffaug.primitives.fitting import fit
from monai_diffaug.types import Backbone, Contract

FOLDER = Path(monai_diffaug.__file__).parent / "data"
CONTRACTS = {"brain_mri": brain_mri.CONTRACT, "mednist": mednist.CONTRACT}


@cache
def shipped(name: str) -> Backbone:
    """A shipped backbone, in float32 so that figures are the same on any machine."""
    return hub.load(name, precision=torch.float32)


def _pixels(path: Path, contract: Contract, mask: bool = False) -> Tensor:
    raw = torch.from_numpy(np.array(Image.open(path).convert("L")))[None].float()
    return fit((raw > 0).float() if mask else raw, contract, mask=mask).tensor


def _items(name: str) -> list[dict]:
    return json.loads((FOLDER / name / "datalist.json").read_text())["training"]


@cache
def brains() -> tuple[Tensor, Tensor, list[str]]:
    """Sixteen slices (16, 1, 96, 96) of eight test patients, lesion masks, and ``healthy`` or ``tumor``."""
    items, contract = _items("brain_mri"), CONTRACTS["brain_mri"]
    images = [_pixels(FOLDER / "brain_mri" / i["image"], contract) for i in items]
    masks = [_pixels(FOLDER / "brain_mri" / i["label"], contract, mask=True) for i in items]
    return torch.stack(images), torch.stack(masks), [i["class"] for i in items]


def slices(kind: str) -> tuple[Tensor, Tensor]:
    """Eight slices ``with`` or ``without`` lesion, and their masks."""
    images, masks, labels = brains()
    which = [i for i, label in enumerate(labels) if (label == "tumor") == (kind == "with")]
    return images[which], masks[which]


@cache
def films(modality: str) -> Tensor:
    """Six test images (6, 1, 64, 64) of a modality, such as ``hand x-ray``."""
    items = [i for i in _items("mednist") if i["class"] == modality]
    return torch.stack([_pixels(FOLDER / "mednist" / i["image"], CONTRACTS["mednist"]) for i in items])


def shown(modality: str, seed: int = 0, **attributes: str) -> tuple[Tensor, str]:
    """The test images of a modality made to show attributes (size="small", side="left", ...), and their prompt."""
    words, generator = mednist.Attributes(**attributes), torch.Generator().manual_seed(seed)
    changed = torch.stack([mednist.changed(x, words, generator) for x in films(modality)])
    return changed, words.caption(modality)
