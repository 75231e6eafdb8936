"""What lesion inpainting does to test patients, as judged by networks that saw real scans only.

Lesions are taken out and compared with biharmonic inpainting; regions of healthy tissue are restored, where the truth
is known; lesions are put in, and an independent segmentation network looks for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from rich.progress import track
from torch import Tensor

from .. import registry
from ..metrics import lesions
from ..metrics.lesions import Interval
from ..primitives import masks
from ..primitives.regions import moved
from ..primitives.runs import Resumable, Settings, averaged, descend, pick
from ..types import Backbone, DiffAugError, NoiseSource

__all__ = ["biharmonic", "measure", "picture", "report", "segmenter"]

Segmenter = Callable[[Tensor], Tensor]


def segmenter(items: Sequence[Mapping[str, Any]], folder: str | Path, steps: int = 700, seed: int = 3) -> Segmenter:
    """A U-Net that finds lesions, trained on real slices and their masks: images (N, 1, H, W) -> probabilities.

    Args:
        items: training slices with ``image`` and ``mask``.
        folder: where its run lies; goes on, or is done, if it has been trained there.
        steps: of training.
        seed: of its weights and draws.
    """
    images, truth = (torch.stack([torch.as_tensor(i[k]) for i in items]).float() for k in ("image", "mask"))
    torch.manual_seed(seed)
    module = BasicUNet(
        spatial_dims=2, out_channels=1, features=(16, 16, 32, 64, 96, 16), norm=("group", {"num_groups": 8})
    )
    settings = Settings(steps=steps, batch=16, lr=2e-3, ema=0.99, seed=seed)
    average, loss = averaged(module, settings.ema), DiceCELoss(sigmoid=True, batch=True)
    optimizer = torch.optim.AdamW(module.parameters(), settings.lr)
    state = {"module": module, "average": average, "optimizer": optimizer}
    run = Resumable(Path(folder), "segmenter", settings, state)

    def one(step: int, generator: torch.Generator) -> dict[str, float]:
        index = pick(len(images), settings.batch, generator)
        x, y = images[index], truth[index]
        if torch.rand((), generator=generator) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        with settings.autocast(x.device):
            logits = module(x)
        found = loss(logits.float(), y)
        descend(optimizer, found, settings, step, list(module.parameters()))
        average.update_parameters(module)
        return {"loss": float(found.detach())}

    run.walk(one)
    module.load_state_dict(average.module.state_dict())
    module.eval()

    def find(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([module(part).sigmoid() for part in x.clamp(-1, 1).split(32)])

    return find


def biharmonic(images: Tensor, hole: Tensor) -> Tensor:
    """Each image (N, 1, H, W) with its hole filled by the biharmonic equation: the rival without learning."""
    from skimage.restoration import inpaint_biharmonic

    filled = [inpaint_biharmonic(x[0].double().numpy(), h[0].numpy() > 0) for x, h in zip(images, hole, strict=True)]
    return torch.as_tensor(np.stack(filled)[:, None]).to(images).clamp(-1, 1)


def _some(items: Sequence[Mapping[str, Any]], target: int, each: int) -> tuple[Tensor, Tensor, list[str]]:
    by_patient: dict[str, list[Any]] = {}
    for item in items:
        if item["target"] == target:
            by_patient.setdefault(str(item["patient"]), []).append(item)
    chosen = [
        of[(2 * i + 1) * len(of) // (2 * min(each, len(of)))]
        for of in by_patient.values()
        for i in range(min(each, len(of)))
    ]
    if not chosen:
        raise DiffAugError("no slice is of the class that is wanted: give items of more patients")
    images, truth = (torch.stack([torch.as_tensor(i[k]) for i in chosen]).float() for k in ("image", "mask"))
    return images, truth, [str(i["patient"]) for i in chosen]


def places(images: Tensor, truth: Tensor, shapes: Tensor, seed: int) -> Tensor:
    """For each image a lesion's shape (N, 1, H, W) moved into its lesion-free tissue; at least 40 voxels of it."""
    generator = torch.Generator().manual_seed(seed)
    brain = masks.shrink((lesions.smoothed(images, 5) > -0.6).float(), 4)  # not the skull
    allowed = brain * (1 - masks.grow(truth, 6))
    found = []
    for i in range(len(images)):
        best = torch.zeros_like(truth[i])
        for _ in range(50):
            which, where = torch.rand(2, generator=generator).tolist()
            region = moved(shapes[int(which * len(shapes))], allowed[i], where)
            best = region if region.sum() > best.sum() else best
            if best.sum() >= 40:
                break
        found.append(best)
    return torch.stack(found)


def _painted(backbone: Backbone, x: Tensor, mask: Tensor, seed: int, batch: int = 16, **settings: Any) -> Tensor:
    out = []
    for first in track(range(0, len(x), batch), description="inpainting"):
        part = slice(first, first + batch)
        more = {k: v[part] if isinstance(v, Tensor) else v for k, v in settings.items()}
        seeds = NoiseSource(range(seed * 10_000 + first, seed * 10_000 + first + len(x[part])))
        with torch.no_grad():
            made = registry.call("lesion_inpainting", backbone, x[part], mask=mask[part], generator=seeds, **more)
        out.append(made.image)
    return torch.cat(out)


def _psnr(a: Tensor, b: Tensor, area: Tensor) -> Tensor:
    square = ((a - b).square() * area).flatten(1).sum(1) / area.flatten(1).sum(1).clamp(min=1)
    return 10 * torch.log10(4 / square.clamp(min=1e-9))


def _steep(x: Tensor, edge: Tensor) -> Tensor:
    """Mean gradient magnitude on an edge, one number an image."""
    down, across = x.diff(dim=-2, append=x[..., -1:, :]), x.diff(dim=-1, append=x[..., -1:])
    size = (down.square() + across.square()).sqrt()
    return (size * edge).flatten(1).sum(1) / edge.flatten(1).sum(1).clamp(min=1)


def measure(
    backbone: Backbone,
    test: Sequence[Mapping[str, Any]],
    find: Segmenter,
    *,
    each: int = 3,
    seeds: Sequence[int] = (0, 1),
    dilation: int = 4,
    draws: int = 1000,
    **settings: Any,
) -> dict[str, Any]:
    """Every figure on test patients, with intervals over patients; images of all seeds together.

    Args:
        backbone: for ``lesion_inpainting``, with a ``judge``.
        test: items with ``image``, ``mask``, ``target`` and ``patient``.
        find: see :func:`segmenter`.
        each: slices of a patient, diseased and healthy.
        seeds: of the noise and of where regions lie.
        dilation: see the method.
        draws: of the bootstrap.
        settings: of the method.
    """
    sick, truth, owners = _some(test, 1, each)
    well, nothing, others = _some(test, 0, each)
    whose, rows = (owners * len(seeds), others * len(seeds)), dict[str, Any]()

    def interval(name: str, values: Tensor, of: Sequence[str]) -> None:
        patients = tuple(dict.fromkeys(of))
        mean = np.array([values[[p == q for q in of]].double().mean().item() for p in patients])
        rows[name] = lesions.bootstrap(lambda w: float(w @ mean / w.sum()), len(patients), draws)

    def tumor(x: Tensor) -> Tensor:
        return backbone.judge.classify(x.clamp(-1, 1))[:, backbone.judge.labels.index("tumor")]

    def voxels(x: Tensor, area: Tensor) -> Tensor:
        """Share of an area that the segmenter calls lesion."""
        return ((find(x) > 0.5) * area).flatten(1).sum(1) / area.flatten(1).sum(1).clamp(min=1)

    runs: dict[str, list[Tensor]] = {k: [] for k in ("gone", "kept", "region", "back", "added", "two", "new")}
    for seed in seeds:
        region, new = (places(x, m, truth, seed) for x, m in ((well, nothing), (sick, truth)))
        more = {"seed": seed, "dilation": dilation, **settings}
        runs["region"].append(region)
        runs["new"].append(new)
        runs["gone"].append(_painted(backbone, sick, truth, prompt="healthy", **more))
        runs["kept"].append(_painted(backbone, sick, truth, prompt="tumor", **more))
        runs["back"].append(_painted(backbone, well, region, prompt="healthy", **more))
        runs["added"].append(_painted(backbone, well, region, prompt="tumor", **more))
        runs["two"].append(_painted(backbone, sick, new, prompt="tumor", erase=truth, **more))
    made = {k: torch.cat(v) for k, v in runs.items()}
    n = len(seeds)
    many = lambda x: x.repeat(n, 1, 1, 1)  # noqa: E731
    region, hole = made["region"], masks.grow(made["region"], dilation)
    filled = torch.cat([biharmonic(well, masks.grow(r, dilation)) for r in runs["region"]])
    flat = biharmonic(sick, masks.grow(truth, dilation))
    outside = [
        ((made[k] - many(x)).abs() * (1 - masks.grow(m, dilation))).max()
        for k, x, m in (("gone", sick, many(truth)), ("added", well, region))
    ]
    rows["outside the hole: largest change"] = float(torch.stack(outside).max())
    interval("removal: tumor probability before", tumor(sick), owners)
    interval("removal: tumor probability after", tumor(made["gone"]), whose[0])
    interval("removal: tumor probability, lesion asked for instead", tumor(made["kept"]), whose[0])
    interval("removal: tumor probability, biharmonic", tumor(flat), owners)
    interval("removal: share of the region segmented before", voxels(sick, truth), owners)
    interval("removal: share of the region segmented after", voxels(made["gone"], many(truth)), whose[0])
    interval(
        "removal: share of the region segmented, lesion asked for instead", voxels(made["kept"], many(truth)), whose[0]
    )
    interval("removal: share of the region segmented, biharmonic", voxels(flat, truth), owners)
    here, there = (_psnr(x, many(well), region) for x in (made["back"], filled))
    interval("restoration: PSNR in the region (dB)", here, whose[1])
    interval("restoration: PSNR in the region, biharmonic (dB)", there, whose[1])
    interval("restoration: PSNR gained over biharmonic (dB)", here - there, whose[1])
    edge = hole - masks.shrink(hole, 2)
    ratio = _steep(made["back"], edge) / _steep(many(well), edge).clamp(min=1e-6)
    interval("restoration: gradient on the seam over that of the real image", ratio, whose[1])
    interval("addition: tumor probability before", tumor(well), others)
    interval("addition: tumor probability after", tumor(made["added"]), whose[1])
    interval("addition: tumor probability, healthy asked for instead", tumor(made["back"]), whose[1])
    found = find(made["added"]) > 0.5
    interval("addition: Dice of segmenter and region", lesions.dice(found, region), whose[1])
    interval("addition: the same, regions shuffled", lesions.dice(found, region.roll(1, 0)), whose[1])
    interval("addition: the same, healthy asked for instead", lesions.dice(find(made["back"]) > 0.5, region), whose[1])
    interval("real lesions: Dice of segmenter and mask", lesions.dice(find(sick) > 0.5, truth), owners)
    interval(
        "both in one run: Dice of segmenter and new region",
        lesions.dice(find(made["two"]) > 0.5, made["new"]),
        whose[0],
    )
    interval("both in one run: share of the old region segmented", voxels(made["two"], many(truth)), whose[0])
    rows |= {"patients": len(set(owners)), "slices with lesion": len(sick), "slices without": len(well), "seeds": n}
    rows["shown"] = {"sick": sick, "truth": truth, "flat": flat, "well": well, "filled": filled, **made}
    return rows


def report(rows: Mapping[str, Any], folder: str | Path) -> Path:
    """Write ``inpainting.md``, ``inpainting.json`` and ``inpainting.png``; returns the first."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    figures = {k: v for k, v in rows.items() if k != "shown"}
    plain = {k: [v.value, v.low, v.high] if isinstance(v, Interval) else v for k, v in figures.items()}
    (place / "inpainting.json").write_text(json.dumps(plain, indent=1) + "\n")
    lines = ["| figure | value |", "|---|---|"]
    lines += [f"| {k} | {v if isinstance(v, Interval | int) else f'{v:.2g}'} |" for k, v in figures.items()]
    (place / "inpainting.md").write_text("\n".join(lines) + "\n")
    if "shown" in rows:
        picture(rows["shown"], place / "inpainting.png")
    print("\n".join(lines))
    return place / "inpainting.md"


def picture(shown: Mapping[str, Tensor], path: Path, rows: int = 8) -> None:
    """A contact sheet: removal, addition, and both in one run; regions are outlined."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [
        ("real", "sick", "truth"),
        ("lesion removed", "gone", "truth"),
        ("biharmonic", "flat", None),
        ("removed, another put in", "two", "new"),
        ("real, no lesion", "well", "region"),
        ("lesion put in", "added", "region"),
        ("region restored", "back", None),
    ]
    n = min(rows, len(shown["sick"]), len(shown["well"]))
    figure = Figure(figsize=(1.5 * len(columns), 1.5 * n + 0.3))
    FigureCanvasAgg(figure)
    axes = figure.subplots(n, len(columns), squeeze=False)
    for i in range(n):
        a, b = (round(i * (len(shown[k]) - 1) / max(n - 1, 1)) for k in ("sick", "well"))
        for j, (title, key, outline) in enumerate(columns):
            ax, at = axes[i][j], (a if j < 4 else b)
            ax.imshow(shown[key][at, 0].numpy(), cmap="gray", vmin=-1, vmax=1)
            if outline is not None and bool(shown[outline][at].any()):
                ax.contour(shown[outline][at, 0].numpy(), [0.5], colors="#ff5a36", linewidths=0.7)
            ax.set_axis_off()
            if i == 0:
                ax.set_title(title, fontsize=7)
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=110)
