"""The card of a fine-tuned bundle: what was gained and forgotten, curves, and a sheet to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .measuring import as_rows

if TYPE_CHECKING:
    from .writing import Made

__all__ = ["curves", "sheet", "write"]

ROWS = (
    ("real", "real, patients not trained on"),
    ("before", "before"),
    ("after", "after"),
    ("nearest", "after | nearest training image"),
    ("old_before", "old kind, before"),
    ("old_after", "old kind, after"),
)


def write(made: Made, folder: Path) -> None:
    """``README.md``, ``samples.png`` and ``curves.png``."""
    sheet(made.shown, made.backbone.contract.value_range, folder / "samples.png")
    drawn = curves(made.run, made.figures, folder / "curves.png")
    (folder / "README.md").write_text(text(made, drawn), encoding="utf-8")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def sheet(shown: Mapping[str, Tensor], value_range: tuple[float, float], path: Path, columns: int = 8) -> Path:
    """Rows of images, real beside synthetic; of volumes the middle slice."""
    pyplot = _pyplot()
    rows = []
    for key, title in ROWS:
        images = shown.get(key)
        for first in range(0, 0 if images is None else len(images), columns):
            rows.append((title, images[first : first + columns]))  # type: ignore[index]
    figure, axes = pyplot.subplots(len(rows), columns, figsize=(columns * 1.25, len(rows) * 1.4), squeeze=False)
    for line, (title, images) in zip(axes, rows, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, image in zip(line, images, strict=False):
            plane = image[0] if image.ndim == 3 else image[0, ..., image.shape[-1] // 2].T
            axis.imshow(plane.numpy(), cmap="gray", vmin=value_range[0], vmax=value_range[1])
        line[0].set_title(title, fontsize=7, loc="left", pad=2)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def curves(run: Path, figures: Mapping[str, Any], path: Path) -> bool:
    """Losses, and nearness to training patients, over the steps; whether there was anything to draw."""
    log = run / "network.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    if not rows:
        return False
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 2.6))
    left.plot([r["step"] for r in rows], [r["loss"] for r in rows], linewidth=0.9, label="training images")
    checks = figures.get("checks") or []
    steps = [c["step"] for c in checks]
    left.plot(steps, [c["held_out"] for c in checks], ".-", linewidth=0.9, label="held-out patients")
    left.set(xlabel="step", title="loss", yscale="log")
    ratios, lows = [c["ratio"] for c in checks], [c["low"] for c in checks]
    right.plot(steps, ratios, ".-", linewidth=0.9, label="ratio")
    if any(lows):
        right.fill_between(steps, lows, ratios, alpha=0.2, label="to the low end of its interval")
    right.axhline(1.0, color="gray", linewidth=0.6)
    right.set(xlabel="step", title="times nearer to training than to unseen patients")
    for axis in (left, right):
        axis.axvline(figures["kept_step"], color="#ff5a36", linewidth=0.8, label="kept")
        axis.legend(fontsize=6)
        axis.tick_params(labelsize=7)
        axis.title.set_fontsize(8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def text(made: Made, drawn: bool) -> str:
    """The card, in Markdown."""
    c, f = made.backbone.contract, made.figures
    low, high = c.value_range
    counts = ", ".join(f"{v['images']} {k} images of {v['patients']} patients" for k, v in f["counts"].items())
    gain = f["new"]["kid_gain"]
    rows = "\n".join(f"| {a} | {b} | {d} |" for a, b, d in as_rows(f))
    ended = f["stopped"] or f"all {f['steps']} steps were taken"
    remarks = "".join(f"- {note}\n" for note in made.notes)
    return f"""# {c.name}

{c.modality}, {c.spatial_dims}D, {" x ".join(map(str, c.size))}, {c.channels} channel(s), values in {low:g} to {high:g}.
Fine-tuned from `{Path(made.origin).name}` in mode `{f["mode"]}`: {f["trained"]:,} numbers trained.
Classes: {", ".join(c.labels) or "none"}.

**License: {c.license}.** Data: {c.data}.

![samples](samples.png)

## Measured on patients not used for training

| what | before | after |
| --- | --- | --- |
{rows}

KID fell by {gain["gain"]:.4g} (95 % interval over patients and images {gain["low"]:.4g} to {gain["high"]:.4g}), on
{f["features"]}. Nearer to a training image than all but 1 % of unseen real images are: {f["copies"]:.1%}.
{_judge(f)}{_old(f)}{_private(f)}
## Training

{counts}. The autoencoder brings held-out images back at {_decibels(f["autoencoder"])}.
It ended so: {ended}. Kept: step {f["kept_step"]}.
{"" if not drawn else chr(10) + "![curves](curves.png)" + chr(10)}
{remarks}
## Use

    diffaug generate FOLDER_OF_THIS_BUNDLE --out OUT
    python -m monai.bundle run --config_file configs/inference.json --bundle_root .
    python -m monai.bundle run --config_file configs/finetune.json --bundle_root . --dataset_dir YOUR_DATALIST
"""


def _decibels(figures: Mapping[str, Any]) -> str:
    after = figures.get("after")
    return (
        f"{figures['before']} dB" if after is None else f"{after} dB, its decoder trained ({figures['before']} before)"
    )


def _judge(figures: Mapping[str, Any]) -> str:
    right = figures.get("judge_on_real")
    return (
        ""
        if right is None
        else f"The judge, a classifier of real training images, is right in {right:.1%} of real test images.\n"
    )


def _old(figures: Mapping[str, Any]) -> str:
    if not figures.get("old"):
        return "What was forgotten of the old kind of image was not measured (`--old DATALIST` does).\n"
    gain = figures["old"]["kid_gain"]
    return (
        f"Of the old kind of image, KID rose by {-gain['gain']:.4g} (95 % interval {-gain['high']:.4g} to "
        f"{-gain['low']:.4g}).\n"
    )


def _private(figures: Mapping[str, Any]) -> str:
    terms = figures.get("privacy")
    if not terms:
        return ""
    return f"""
## Privacy

DP-SGD, patient by patient: epsilon {terms["epsilon"]:.3g} at delta {terms["delta"]:.2g} for each of
{terms["patients"]} training patients, all of a patient's images together. Noise {terms["noise"]:.3g}, clipping length
{terms["clip"]:g}, {terms["steps"]} steps, each patient in a step with chance {terms["rate"]:.3g}; Renyi accounting.
The bound is for the weights in `models/`. It does not cover the figures above, nor the held-out and test patients whom
they are made of. No real image and no judge of real images is in this bundle.
"""
