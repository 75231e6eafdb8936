"""Does a network of volumes do what it is told: lesion volume asked for against lesion volume measured, and diversity.

The instrument, :class:`monai_diffaug.domains.brain_mri_3d_outline.Outline`, has seen real volumes only; how good it is
comes first. The claims and their controls are those of Pinaya et al. 2022 (arXiv:2209.07162).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.metrics.regression import MultiScaleSSIMMetric
from PIL import Image
from torch import Tensor, nn

from ..domains.brain_mri_3d import AGES, opposite
from ..domains.brain_mri_3d_outline import Outline
from ..domains.brain_mri_3d_variants import Volumes, lesion_volume
from ..primitives import guidance, plans
from ..primitives.reconstruction import psnr
from ..primitives.sampler import sample
from ..primitives.segmentation import dice
from ..types import Backbone, DiffAugError, NoiseSource

__all__ = ["compare", "instrument", "made", "measured", "montage", "report", "spearman"]

SWEEP = (0.15, 0.35, 0.55, 0.75, 0.95)


def instrument(path: str | Path) -> Outline:
    """The outlining network, from its weights.

    Raises:
        DiffAugError: the file is missing.
    """
    if not Path(path).is_file():
        raise DiffAugError(f"{path} is missing: train the instrument first, see the bundle's README")
    net = Outline()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False)


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two lists of numbers (N,)."""
    ranks = torch.stack([x.double().argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def measured(outline: nn.Module, images: Tensor, batch: int = 8) -> Tensor:
    """Lesion volume (N,), see :func:`lesion_volume`, of images (N, 1, *S)."""
    with torch.no_grad():
        return torch.cat([lesion_volume(outline(x) > 0) for x in images.split(batch)])


def made(
    backbone: Backbone, vectors: Tensor, seeds: Sequence[int], *, scale: float = 1.0, steps: int = 20, batch: int = 8
) -> Tensor:
    """Volumes (N, C, *S) of what ``vectors`` (N, 3) say, away from the opposite lesion; equal seeds, equal noise."""
    contract, out = backbone.contract, []
    plan = plans.make(backbone.schedule, steps)
    with torch.no_grad():
        for start in range(0, len(vectors), batch):
            rows, noise = vectors[start : start + batch], NoiseSource(seeds[start : start + batch])
            told, other = (backbone.condition(len(rows), vector=v) for v in (rows, opposite(rows)))
            denoise = guidance.classifier_free(backbone, told, scale, negative=other)
            like = torch.empty(len(rows), contract.latent_channels, *contract.latent_size, device=backbone.device)
            z = sample(denoise, plan[0].level.sigma * noise.normal(like), plan, noise=noise)
            out.append(backbone.decode(z).cpu().clamp(*contract.value_range))
    return torch.cat(out)


def likeness(images: Tensor, pairs: int, seed: int = 0) -> float:
    """Mean MS-SSIM of random pairs of images (N, 1, *S) in [-1, 1]: near 1 if all are one."""
    metric = MultiScaleSSIMMetric(3, data_range=1.0, kernel_size=5, weights=(1 / 3, 1 / 3, 1 / 3))
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(pairs):
        i, j = torch.randperm(len(images), generator=generator)[:2].tolist()
        found.append(metric(((images[i] + 1) / 2)[None], ((images[j] + 1) / 2)[None]))
    return float(torch.cat(found).mean())


def drawn(n: int, seed: int = 0) -> Tensor:
    """Vectors (n, 3) to ask for: ages, sexes and lesion volumes, each evenly over its range."""
    u = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))
    return torch.stack([AGES[0] + u[:, 0] * (AGES[1] - AGES[0]), (u[:, 1] < 0.5).float(), 0.1 + 0.9 * u[:, 2]], 1)


def montage(rows: Sequence[Tensor], path: str | Path, slices: int = 9) -> None:
    """A picture of volumes (1, *S) in [-1, 1], one a row, axial slices from the foot to the top; twice as large."""
    strips = []
    for volume in rows:
        depth = volume.shape[-1]
        at = [round((i + 0.7) * depth / slices) for i in range(slices)]
        strips.append(torch.cat([volume[0, :, :, min(k, depth - 1)].T for k in at], 1))
    picture = ((torch.cat(strips).clamp(-1, 1) + 1) * 127.5).byte().repeat_interleave(2, 0).repeat_interleave(2, 1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.numpy()).save(path)


def compare(
    backbone: Backbone,
    outline: nn.Module,
    test: Volumes,
    *,
    samples: int = 104,
    seeds: int = 8,
    scale: float = 1.0,
    steps: int = 20,
    pairs: int = 60,
    folder: str | Path | None = None,
) -> dict[str, Any]:
    """All figures; with a ``folder`` pictures too.

    Args:
        backbone: what is measured.
        outline: the instrument.
        test: real volumes of patients that neither has seen.
        samples: volumes with conditions drawn at random.
        seeds: sweeps of the lesion volume, each from one noise.
        scale: guidance.
        steps: network calls.
        pairs: of images that are compared for diversity.
        folder: for ``real.png``, ``synthetic.png`` and ``sweep.png``.
    """
    with torch.no_grad():
        outlined = torch.cat([(outline(x) > 0).float() for x in test.images.split(8)])
        back = torch.cat([backbone.decode(backbone.encode(x)) for x in test.images.split(4)]).clamp(-1, 1)
    truth, found = lesion_volume(test.masks), lesion_volume(outlined)
    asked = drawn(samples)
    images = made(backbone, asked, range(samples), scale=scale, steps=steps)
    got = measured(outline, images)
    shuffled = [spearman(asked[torch.randperm(samples, generator=_generator(i)), 2], got) for i in range(200)]
    sweep = torch.tensor([[50.0, 0.0, v] for v in SWEEP]).repeat(seeds, 1)
    swept = made(backbone, sweep, [1000 + i // 5 for i in range(5 * seeds)], scale=scale, steps=steps)
    curves = measured(outline, swept).reshape(seeds, 5)
    if folder is not None:
        montage(list(test.images[:6]), Path(folder) / "real.png")
        montage(list(images[:6]), Path(folder) / "synthetic.png")
        montage(list(swept[:5]), Path(folder) / "sweep.png")
    return {
        "instrument": {
            "patients": len(test),
            "dice": _round(dice(outlined, test.masks).mean()),
            "spearman": _round(spearman(truth, found)),
            "mean error": _round((truth - found).abs().mean()),
            "spearman after the autoencoder": _round(spearman(truth, measured(outline, back))),
        },
        "round trip PSNR": {"mean": _round(psnr(back, test.images, 2.0).mean()), "patients": len(test)},
        "asked against measured": {
            "samples": samples,
            "spearman": _round(spearman(asked[:, 2], got)),
            "permuted, 95 % of |spearman| below": _round(torch.tensor(shuffled).abs().quantile(0.95)),
            "permuted, mean of |spearman|": _round(torch.tensor(shuffled).abs().mean()),
        },
        "sweep, same noise": {
            "asked": list(SWEEP),
            "measured, mean": [_round(v) for v in curves.mean(0)],
            "monotone in the mean": bool((curves.mean(0).diff() > 0).all()),
            "monotone sweeps": f"{int((curves.diff(dim=1) >= 0).all(1).sum())} of {seeds}",
        },
        "MS-SSIM of pairs": {
            "synthetic": _round(likeness(images, pairs)),
            "real": _round(likeness(test.images, pairs)),
        },
        "guidance": scale,
        "steps": steps,
    }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _round(x: Any) -> float:
    return round(float(x), 3)


def report(figures: dict[str, Any], folder: str | Path) -> Path:
    """Write ``figures.json``; returns its path."""
    path = Path(folder) / "figures.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    return path
