"""The card of a backbone: what it was trained on, how good it is on patients not used, and a sheet to look at."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.metrics import SSIMMetric
from torch import Tensor

from ..domains.recipe import Bench
from ..metrics.distribution import copies, fid, floored, kid
from ..primitives import guidance, plans
from ..primitives.sampler import sample
from ..primitives.training import psnr
from ..types import Backbone, NoiseSource

__all__ = ["generated", "loss_plot", "measured", "sample_sheet", "write"]


def generated(
    backbone: Backbone,
    told: Mapping[str, Any],
    n: int,
    *,
    scale: float = 2.0,
    steps: int = 20,
    seed: int = 0,
    batch: int = 16,
) -> Tensor:
    """``n`` images (n, C, *S) under the conditions told, image i with seed ``seed + i``; clipped to the value range."""
    contract, out = backbone.contract, []
    plan = plans.make(backbone.schedule, steps)
    first = plan[0].level
    with torch.no_grad():
        for a in range(0, n, batch):
            b = min(a + batch, n)
            noise = NoiseSource(range(seed + a, seed + b))
            x = noise.normal(torch.empty(b - a, contract.latent_channels, *contract.latent_size))
            condition = backbone.condition(b - a, **{k: v[a:b] for k, v in told.items()})
            denoise = guidance.classifier_free(backbone, condition, scale)
            out.append(backbone.decode(sample(denoise, first.sigma * x, plan, noise=noise)))
    return torch.cat(out).clamp(*contract.value_range)


def _autoencoder(backbone: Backbone, images: Tensor) -> dict[str, Any]:
    low, high = backbone.contract.value_range
    with torch.no_grad():
        back = torch.cat([backbone.decode(backbone.encode(x)) for x in images.split(16)]).clamp(low, high)
    ssim = SSIMMetric(backbone.contract.spatial_dims, data_range=high - low)(back, images)
    noise = psnr(back, images, high - low)
    return {
        "psnr": round(float(noise.mean()), 2),
        "psnr_spread": round(float(noise.std()), 2),
        "ssim": round(float(torch.as_tensor(ssim).mean()), 4),
    }


def _agreement(backbone: Backbone, images: Tensor, expected: Sequence[str]) -> float | None:
    judge = backbone.judge
    if judge is None:
        return None
    with torch.no_grad():
        said = torch.cat([judge.classify(x) for x in images.split(64)]).argmax(1)
    return round(sum(judge.labels[i] == e for i, e in zip(said.tolist(), expected, strict=True)) / len(expected), 4)


def _features(backbone: Backbone, images: Tensor) -> Tensor:
    """The judge's, or the latent averaged to 4 voxels a side where there is none."""
    if backbone.judge is not None:
        return torch.cat([backbone.judge.features(x) for x in images.split(64)])
    with torch.no_grad():
        return torch.cat([_averaged(backbone.encode(x), 4) for x in images.split(16)])


def _averaged(x: Tensor, side: int) -> Tensor:
    pool = F.adaptive_avg_pool2d if x.ndim == 4 else F.adaptive_avg_pool3d
    return pool(x, side).flatten(1)


def _thumbnails(images: Tensor) -> Tensor:
    """Images as unit vectors of 24 voxels a side (12 in 3D), in which a copy is a copy whatever its gain."""
    small = _averaged(images, 24 if images.ndim == 4 else 12)
    small = small - small.mean(1, keepdim=True)
    return small / small.norm(dim=1, keepdim=True).clamp(min=1e-6)


def measured(backbone: Backbone, bench: Bench, *, n: int = 200, seed: int = 0, scale: float = 2.0) -> dict[str, Any]:
    """Every figure of the card, and the images (n, C, *S) under the key ``images``."""
    n = min(n, len(bench.expected))
    began = time.monotonic()
    made = generated(backbone, bench.told, n, seed=seed, scale=scale)
    seconds = time.monotonic() - began
    real, synthetic = _features(backbone, bench.test), _features(backbone, made)
    share, distance, which = copies(_thumbnails(made), _thumbnails(bench.train), _thumbnails(bench.test))
    expected = list(bench.expected[:n])
    shuffled = [expected[i] for i in torch.randperm(len(expected), generator=torch.Generator().manual_seed(seed))]
    return {
        "images": made,
        "nearest": which,
        "distance": distance,
        "reconstruction": _autoencoder(backbone, bench.test),
        "kid": floored(kid, synthetic, real),
        "fid": floored(fid, synthetic, real),
        "judge_on_real": _agreement(backbone, bench.test, bench.test_expected),
        "agreement": _agreement(backbone, made, expected),
        "agreement_shuffled": _agreement(backbone, made, shuffled),
        "copies": round(share, 4),
        "seconds_per_image": round(seconds / n, 3),
        "n": n,
        "seed": seed,
        "scale": scale,
    }


def _figure(rows: int, columns: int, size: float = 1.25) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(columns * size, rows * (size + 0.28)), squeeze=False)


def _show(axis: Any, image: Tensor, title: str, value_range: tuple[float, float]) -> None:
    plane = image[0] if image.ndim == 3 else image[0, ..., image.shape[-1] // 2].T
    axis.imshow(plane.numpy(), cmap="gray", vmin=value_range[0], vmax=value_range[1])
    axis.set_title(textwrap.fill(title, 28), fontsize=5.5, pad=2)
    axis.axis("off")


def sample_sheet(backbone: Backbone, bench: Bench, figures: Mapping[str, Any], path: Path, columns: int = 8) -> Path:
    """Real test images, their reconstructions, synthetic ones, and those with their nearest training images."""
    made, value_range = figures["images"], backbone.contract.value_range
    n, step = columns, max(1, len(bench.test) // columns)
    picked = bench.test[::step][:n]
    with torch.no_grad():
        back = backbone.decode(backbone.encode(picked))
    captions = list(bench.captions or bench.expected)
    figure, axes = _figure(6, columns)
    for j in range(n):
        _show(axes[0][j], picked[j], "real, not trained on", value_range)
        _show(axes[1][j], back[j], "autoencoder", value_range)
        for r in range(3):
            i = r * n + j
            _show(axes[2 + r][j], made[i], captions[i], value_range)
    nearest = figures["distance"].argsort()[: n // 2]
    for j, i in enumerate(nearest.tolist()):
        _show(axes[5][2 * j], made[i], f"nearest pair, {figures['distance'][i]:.2f}", value_range)
        _show(axes[5][2 * j + 1], bench.train[figures["nearest"][i]], "training image", value_range)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)
    return path


def loss_plot(run: Path, path: Path) -> Path | None:
    """Losses over steps of every log in a run's folder."""
    logs = sorted(run.glob("*.jsonl"))
    if not logs:
        return None
    figure, axes = _figure(1, len(logs), 3.0)
    for axis, log in zip(axes[0], logs, strict=True):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        for key in sorted({k for r in rows for k in r} - {"step", "seconds", "kl", "psnr", "spread"}):
            points = [(r["step"], r[key]) for r in rows if key in r]
            axis.plot(*zip(*points, strict=True), label=key, linewidth=0.8)
        axis.set(title=log.stem, xlabel="step", yscale="symlog" if "verdict" in rows[-1] else "log")
        axis.legend(fontsize=6)
        axis.tick_params(labelsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path


def _training(run: Path) -> list[str]:
    lines = []
    for log in sorted(run.glob("*.jsonl")):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        seconds, before = 0.0, 0.0
        for r in rows:  # the clock starts again when a run goes on
            seconds += r["seconds"] - before if r["seconds"] > before else r["seconds"]
            before = r["seconds"]
        last = {k: v for k, v in rows[-1].items() if k not in ("step", "seconds")}
        told = ", ".join(f"{k} {v:.4g}" for k, v in last.items())
        lines.append(f"| {log.stem} | {rows[-1]['step']} | {seconds / 60:.0f} | {told} |")
    return lines


def _percent(share: float | None) -> str:
    return "no judge" if share is None else f"{share:.1%}"


def write(backbone: Backbone, bench: Bench, folder: Path, run: Path | None = None, **how: Any) -> dict[str, Any]:
    """Measure, and write ``README.md``, ``samples.png`` and ``losses.png`` into a checkpoint's folder."""
    figures = measured(backbone, bench, **how)
    sample_sheet(backbone, bench, figures, folder / "samples.png")
    plot = loss_plot(run, folder / "losses.png") if run else None
    c, r = backbone.contract, figures["reconstruction"]
    low, high = c.value_range
    agreed, by_chance = _percent(figures["agreement"]), _percent(figures["agreement_shuffled"])
    size = sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6
    text = f"""# {c.name}

{c.modality}, {c.spatial_dims}D, {" x ".join(map(str, c.size))}, {c.channels} channel(s), values in {low:g} to {high:g}.

**License: {c.license}.** Data: {c.data}.

{" ".join(bench.notes.get(k, "") for k in sorted(bench.notes)).strip()}

![samples](samples.png)

## Measured on patients not used for training

| what | figure |
| --- | --- |
| reconstruction, PSNR | {r["psnr"]} ± {r["psnr_spread"]} dB |
| reconstruction, SSIM | {r["ssim"]} |
| KID, features of the judge | {figures["kid"]} |
| FID, features of the judge | {figures["fid"]} |
| judge's accuracy on real test images | {_percent(figures["judge_on_real"])} |
| judge agrees with the condition | {agreed} (conditions shuffled: {by_chance}) |
| nearer to a training image than all but 1 % of unseen real ones are | {figures["copies"]:.1%} |
| seconds per image, 20 steps, one machine | {figures["seconds_per_image"]} |

{figures["n"]} images, guidance {figures["scale"]:g}, seeds from {figures["seed"]}. The judge is a small classifier
trained on real images alone; distances for the copy check are between thumbnails.

## Training

| part | steps | minutes | last figures |
| --- | --- | --- | --- |
{chr(10).join(_training(run)) if run else ""}

{"![losses](losses.png)" if plot else ""}

Repeat: `diffaug train {c.name} --data DATA --out {c.name}`. Weights: {size:.1f} MB.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
    return figures
