"""How well maps of change find lesions, method against method, with intervals over patients.

The threshold of each map is found on validation patients; everything reported is of test patients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from .. import registry
from ..metrics import lesions
from ..metrics.lesions import Counts, Interval
from ..types import Backbone, DiffAugError, NoiseSource

__all__ = ["Maps", "by_intensity", "by_method", "by_reconstruction", "compare", "picture", "report", "table"]

Maps = Callable[[Tensor], Tensor]
"""Images (N, C, *S) -> lesion maps (N, 1, *S)."""


def by_intensity(voxels: int = 9) -> Maps:
    """The images themselves, from 0 to 1: lesions are bright on FLAIR. What every method must beat."""
    return lambda images: lesions.smoothed((images.mean(1, keepdim=True) + 1) / 2, voxels)


def by_reconstruction(backbone: Backbone, sign: int = 0, voxels: int = 9) -> Maps:
    """What the autoencoder alone does not give back."""

    def maps(images: Tensor) -> Tensor:
        return lesions.change_map(images, _reconstructed(backbone, images), sign, voxels)

    return maps


def by_method(
    backbone: Backbone, method: str, sign: int = 0, voxels: int = 9, batch: int = 16, **settings: Any
) -> Maps:
    """What an ``edit`` method changes, beyond what the autoencoder does."""

    def maps(images: Tensor) -> Tensor:
        found = []
        for first in track(range(0, len(images), batch), description=method):
            x = images[first : first + batch]
            seeds = NoiseSource(range(first, first + len(x)))
            with torch.no_grad():
                after = registry.call(method, backbone, x, generator=seeds, **settings).image
            found.append(lesions.change_map(_reconstructed(backbone, x), after, sign, voxels))
        return torch.cat(found)

    return maps


def _reconstructed(backbone: Backbone, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([backbone.decode(backbone.encode(x)) for x in images.split(32)])


def _stacked(items: Sequence[Mapping[str, Any]], diseased: bool, most: int | None) -> tuple[Tensor, Tensor, list[str]]:
    """Images, masks and patients of the slices of one class; ``most`` of each patient, spread evenly."""
    chosen = [i for i in items if i["target"] == int(diseased)]
    if most is not None:
        by_patient: dict[str, list[Any]] = {}
        for item in chosen:
            by_patient.setdefault(item["patient"], []).append(item)
        chosen = [
            of[i * len(of) // min(most, len(of))] for of in by_patient.values() for i in range(min(most, len(of)))
        ]
    if not chosen:
        raise DiffAugError(f"no slice is {'diseased' if diseased else 'healthy'}: give items of more patients")
    images, masks = (torch.stack([torch.as_tensor(i[k]) for i in chosen]).float() for k in ("image", "mask"))
    return images, masks, [str(i["patient"]) for i in chosen]


def compare(
    contenders: Mapping[str, Maps],
    validation: Sequence[Mapping[str, Any]],
    test: Sequence[Mapping[str, Any]],
    *,
    against: str | None = None,
    most: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Measure every contender on the same patients.

    Args:
        contenders: name -> maps.
        validation: items with ``image``, ``mask``, ``target`` (0 healthy, 1 diseased) and ``patient``: for thresholds.
        test: likewise, for everything that is reported.
        against: the contender that the others are compared with, pair by pair; the first unless given.
        most: slices of a patient at most, spread evenly over its volume; all unless given.
        draws: of the bootstrap over patients.
        seed: of the draws.

    Returns:
        for each contender ``auprc`` and ``auroc`` over the voxels of diseased slices, ``dice`` (mean over patients) at
        ``threshold``, ``healthy_change``: mean of the map in healthy slices over its mean in the lesions of diseased
        ones, ``slice_auroc`` of the map's highest value, and ``auprc_gain`` and ``dice_gain`` over ``against``.
    """
    reference = against or next(iter(contenders))
    tuning, sick, well = _stacked(validation, True, most), _stacked(test, True, most), _stacked(test, False, most)
    counts = dict[str, tuple[Counts, float, Tensor, Tensor]]()
    for name, maps in contenders.items():
        threshold = lesions.best_threshold(lesions.count(maps(tuning[0]), *tuning[1:]))
        found = maps(sick[0])
        counts[name] = (lesions.count(found, *sick[1:]), threshold, found, maps(well[0]))
    first, first_threshold = counts[reference][:2]
    rows: dict[str, dict[str, Any]] = {}
    for name, (mine, threshold, found, quiet) in counts.items():
        dice, other = mine.dice(threshold), first.dice(first_threshold)

        def interval(statistic: Callable[[Any], float], n: int = len(mine.patients)) -> Interval:
            return lesions.bootstrap(statistic, n, draws, seed)

        rows[name] = {
            "auprc": interval(mine.auprc),
            "auroc": interval(mine.auroc),
            "dice": interval(lambda w, d=dice: float(w @ d / w.sum())),  # type: ignore[misc]
            "threshold": threshold,
            "healthy_change": float(quiet.mean() / found[sick[1] > 0].mean()),
            "slice_auroc": _slice_auroc(found, quiet),
            "auprc_gain": interval(lambda w, c=mine: c.auprc(w) - first.auprc(w)),  # type: ignore[misc]
            "dice_gain": interval(lambda w, d=dice - other: float(w @ d / w.sum())),  # type: ignore[misc]
        }
    counted = {"patients": len(set(sick[2])), "diseased": len(sick[0]), "healthy": len(well[0])}
    return {name: {**row, **counted, "against": reference} for name, row in rows.items()}


def _slice_auroc(sick: Tensor, well: Tensor) -> float:
    """Whether the highest value of a map tells diseased slices from healthy ones."""
    a, b = (m.flatten(1).amax(1).double().numpy() for m in (sick, well))
    return float(((a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])).mean())


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    heads = ("map", "AUPRC", "Dice", "AUPRC gained", "Dice gained", "change in healthy slices", "slice AUROC")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, row in rows.items():
        figures = [str(row[k]) for k in ("auprc", "dice", "auprc_gain", "dice_gain")]
        if name == row["against"]:
            figures[2:] = ["", ""]
        lines.append(f"| {name} | {' | '.join(figures)} | {row['healthy_change']:.2f} | {row['slice_auroc']:.2f} |")
    return "\n".join(lines)


def report(rows: Mapping[str, Mapping[str, Any]], folder: str | Path) -> Path:
    """Write ``localization.md`` and ``localization.json``; returns the first."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    plain = json.dumps(
        rows, default=lambda i: [i.value, i.low, i.high] if isinstance(i, Interval) else str(i), indent=1
    )
    (place / "localization.json").write_text(plain + "\n")
    (place / "localization.md").write_text(table(rows) + "\n")
    print(table(rows))
    return place / "localization.md"


def picture(
    backbone: Backbone,
    items: Sequence[Mapping[str, Any]],
    methods: Mapping[str, Mapping[str, Any]],
    thresholds: Mapping[str, float],
    path: str | Path,
    *,
    rows: int = 8,
    sign: int = 1,
    voxels: int = 9,
) -> Path:
    """A contact sheet: every method's counterfactual and map, for the slice of each patient with the largest lesion.

    Args:
        backbone: for the methods.
        items: as for :func:`compare`.
        methods: name -> settings.
        thresholds: name -> where its map is outlined.
        path: of the PNG.
        rows: slices, each of another patient; a quarter of them healthy.
        sign: see :func:`monai_diffaug.metrics.lesions.change_map`.
        voxels: likewise.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    largest = sorted(items, key=lambda item: -float(torch.as_tensor(item["mask"]).sum()))
    largest = list({item["patient"]: item for item in reversed(largest) if item["target"] == 1}.values())
    sick, well = _stacked(largest, True, 1), _stacked(items, False, 1)
    spare = rows // 4
    images, masks = (torch.cat([a[: rows - spare], b[-spare:]]) for a, b in zip(sick[:2], well[:2], strict=True))
    columns: list[tuple[str, Tensor, str, float, Tensor | None, float]] = [("real", images, "gray", 1.0, masks, 0.5)]
    for name, settings in methods.items():
        with torch.no_grad():
            after = registry.call(name, backbone, images, generator=NoiseSource(range(len(images))), **settings).image
        heat = lesions.change_map(_reconstructed(backbone, images), after, sign, voxels)
        columns += [(name.replace("_", " "), after, "gray", 1.0, None, 0.5)]
        columns += [("what had to change", heat, "inferno", 3 * thresholds[name], heat, thresholds[name])]
    figure = Figure(figsize=(1.7 * len(columns), 1.6 * len(images) + 0.3))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for j, (title, shown, colors, top, outlined, at) in enumerate(columns):
        axes[0][j].set_title(title, fontsize=8)
        for i in range(len(images)):
            axes[i][j].imshow(shown[i, 0].numpy(), cmap=colors, vmin=-1 if colors == "gray" else 0, vmax=top)
            if outlined is not None and bool((outlined[i] >= at).any()):
                axes[i][j].contour(outlined[i, 0].numpy(), [at], colors="#39d353", linewidths=0.8)
            axes[i][j].set_axis_off()
    figure.tight_layout(pad=0.2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return Path(path)
