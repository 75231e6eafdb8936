"""A few numbers by which a wrong conversion of weights shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from monai_diffaug.backbones import weights as files
from monai_diffaug.types import Backbone, DiffAugError

__all__ = ["check_fingerprint", "fingerprint"]


def fingerprint(backbone: Backbone) -> list[float]:
    """A few numbers of one forward pass on fixed noise, by which a wrong conversion of weights shows."""
    c = backbone.contract
    shape = (1, c.latent_channels, *c.latent_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(backbone.device)
    with torch.no_grad():
        middle = backbone.schedule.times[len(backbone.schedule.times) // 2]
        out = replace(backbone, precision=torch.float32).output(x, middle, backbone.condition(1)).double().flatten()
    picks = torch.linspace(0, out.numel() - 1, 6).long()
    return [float(out.mean()), float(out.std()), *out[picks].tolist()]


def check_fingerprint(folder: Path, backbone: Backbone) -> None:
    """Refuse a backbone whose output is not what ``fingerprint.json`` says, if there is one."""
    if not (folder / "fingerprint.json").is_file():
        return
    expected = files.read_json(folder / "fingerprint.json")["output"]
    found = fingerprint(backbone)
    worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    if worst > 1e-2 * max(abs(expected[1]), 1e-6):
        raise DiffAugError(
            f"{folder}: converted weights give another output than fingerprint.json (off by {worst:.2g}): load them "
            "with the library that they were trained with and save them anew"
        )
