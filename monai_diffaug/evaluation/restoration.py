"""Restored slices against the real ones, method against method, with intervals over patients.

What a method leaves open is chosen on validation patients; everything reported is of test patients.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import registry
from ..io.atomic import write_json
from ..metrics.lesions import Interval, bootstrap
from ..metrics.restoration import bodies, figures, flat_regions
from ..primitives.regression import regressed
from ..types import Backbone, NoiseSource

__all__ = [
    "Pairs",
    "Restorer",
    "as_it_is",
    "by_method",
    "by_network",
    "by_non_local_means",
    "compare",
    "gain",
    "picture",
    "table",
]

Restorer = Callable[[Tensor], Tensor]
"""Worse slices (N, 1, H, W) in [-1, 1] -> restored ones."""


class Pairs:
    """Slices and their worse twins, (N, 1, H, W) in [-1, 1], with what figures are taken of.

    Args:
        dataset: items with ``image`` and ``source``, (1, H, W).
        patients: whose each is.
        hu: half the window's width, in Hounsfield units: what 1 stands for.
        crop: keep a window of this side, with its corner where the body's middle is; whole slices if None.
        each: at most so many slices a patient; all if None.
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        patients: Sequence[str],
        hu: float = 1000.0,
        crop: int | None = None,
        each: int | None = None,
    ):
        which = [i for i, p in enumerate(patients) if each is None or patients[:i].count(p) < each]
        items = [dataset[i] for i in which]
        self.patients, self.hu = tuple(patients[i] for i in which), hu
        self.image = torch.stack([torch.as_tensor(i["image"]).as_subclass(Tensor).float() for i in items])
        self.source = torch.stack([torch.as_tensor(i["source"]).as_subclass(Tensor).float() for i in items])
        self.body = bodies(self.image, -500 / hu)
        self.flat = flat_regions(self.image, self.body, -150 / hu, 200 / hu)
        if crop is not None:
            self._crop(crop)

    def _crop(self, side: int) -> None:
        corners = []
        for mask in self.body[:, 0]:
            where = mask.nonzero().float().mean(0)
            corners.append([int(min(max(w - side // 2, 0), n - side)) for w, n in zip(where, mask.shape, strict=True)])
        for name in ("image", "source", "body", "flat"):
            cut = [x[:, a : a + side, b : b + side] for x, (a, b) in zip(getattr(self, name), corners, strict=True)]
            setattr(self, name, torch.stack(cut))

    def figures(self, restored: Tensor) -> dict[str, list[float]]:
        """See :func:`monai_diffaug.metrics.restoration.figures`; ``bias`` in Hounsfield units."""
        found = figures(restored, self.image, self.body, self.flat)
        return {**found, "bias": [b * self.hu for b in found["bias"]]}


def as_it_is() -> Restorer:
    """The worse slices themselves."""
    return lambda source: source


def by_network(module: nn.Module, precision: torch.dtype = torch.bfloat16) -> Restorer:
    """A plain U-Net; see :mod:`monai_diffaug.primitives.regression`."""

    def restore(source: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([regressed(module.eval(), x, precision) for x in source.split(1)])

    return restore


def by_method(backbone: Backbone, name: str = "low_dose_ct_denoising", seed: int = 0, **options: Any) -> Restorer:
    """A method of the registry that takes an image; its batches hold about one 256 x 256 slice's voxels."""

    def restore(source: Tensor) -> Tensor:
        out, at_once = [], max(1, 65536 // source[0].numel())
        for start in range(0, len(source), at_once):
            part = source[start : start + at_once]
            seeds = NoiseSource(seed * 100_003 + start + i for i in range(len(part)))
            condition = registry.get(name).function  # the slices' size is free here, so without the contract's check
            out.append(condition(backbone, part, generator=seeds, **options).image)
        return torch.cat(out)

    return restore


def by_non_local_means(strength: float = 1.0, patch: int = 5, distance: int = 6) -> Restorer:
    """Non-local means (Buades et al. 2005) of scikit-image; ``strength`` is the filter's h over the estimated noise.

    The noise is estimated in each slice, as in Immerkaer 1996, from the median over what is no air.
    """

    def restore(source: Tensor) -> Tensor:
        from skimage.restoration import denoise_nl_means

        out = []
        for x in source[:, 0]:
            sigma = _noise(x)
            done = denoise_nl_means(x.numpy(), patch, distance, h=strength * sigma, sigma=sigma, fast_mode=True)
            out.append(torch.from_numpy(done).float()[None])
        return torch.stack(out)

    return restore


def _noise(image: Tensor) -> float:
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6
    rough = F.conv2d(image[None, None], kernel[None, None], padding=1)[0, 0]
    return float(1.4826 * rough[image > -0.5].abs().median())


def compare(
    restorers: Mapping[str, Restorer], pairs: Pairs, file: str | Path, key: str = "psnr_body"
) -> dict[str, dict[str, Any]]:
    """Run them all; what is done already in ``file`` (JSON) is not done again.

    Returns:
        for each its figures a slice (lists), ``seconds`` a slice, and ``patients``.
    """
    place = Path(file)
    done: dict[str, dict[str, Any]] = json.loads(place.read_text()) if place.is_file() else {}
    for name, restore in restorers.items():
        if name in done:
            continue
        began = time.monotonic()
        restored = restore(pairs.source)
        seconds = (time.monotonic() - began) / len(pairs.source)
        done[name] = {**pairs.figures(restored), "seconds": seconds, "patients": list(pairs.patients)}
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, done)
        print(f"{name}: {key} {gain(done, name, None, key)}, {seconds:.2f} s a slice", flush=True)
    return done


def gain(done: Mapping[str, Mapping[str, Any]], name: str, over: str | None, key: str = "psnr_body") -> Interval:
    """Mean of a figure over patients (each patient's slices averaged first), or of its difference to another's."""
    import numpy as np

    values = np.asarray(done[name][key], dtype=float) - (0.0 if over is None else np.asarray(done[over][key]))
    patients = done[name]["patients"]
    slices = [values[[p == q for q in patients]] for p in dict.fromkeys(patients)]
    each = np.array(
        [v[np.isfinite(v)].mean() for v in slices if np.isfinite(v).any()]
    )  # a window may hold nothing flat
    return bootstrap(lambda weights: float(np.average(each, weights=weights)), len(each))


def table(
    done: Mapping[str, Mapping[str, Any]], keys: Sequence[str] = ("psnr", "psnr_body", "ssim_body", "bias")
) -> str:
    """A Markdown table, one row a method."""
    rows = ["| method | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
    rows += [f"| {name} | " + " | ".join(str(gain(done, name, None, k)) for k in keys) + " |" for name in done]
    return "\n".join(rows)


def picture(
    restorers: Mapping[str, Restorer],
    pairs: Pairs,
    which: int,
    file: str | Path,
    windows: Mapping[str, tuple[float, float]] | None = None,
    zoom: tuple[int, int, int] | None = None,
) -> None:
    """A sheet of one slice: a column a method, the normal dose last; a row a window in Hounsfield units.

    Args:
        restorers: what is shown; each runs on this slice.
        pairs: of which slice ``which`` is taken.
        which: its place.
        file: a PNG.
        windows: name -> lowest and highest value shown; lung and soft tissue unless given.
        zoom: row, column and side of a part that is shown in place of the whole slice, enlarged.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {"lung": (-1350.0, 150.0), "soft tissue": (-160.0, 240.0)} if windows is None else dict(windows)
    source = pairs.source[which : which + 1]
    images = {name: restore(source)[0, 0] for name, restore in restorers.items()}
    images["normal dose"] = pairs.image[which, 0]
    if zoom is not None:
        row, column, side = zoom
        images = {name: x[row : row + side, column : column + side] for name, x in images.items()}
    height = 2.5 * next(iter(images.values())).shape[0] / next(iter(images.values())).shape[1]
    figure, axes = pyplot.subplots(
        len(shown), len(images), figsize=(2.5 * len(images), height * len(shown) + 0.3), squeeze=False
    )
    for place, (line, (window, (low, high))) in enumerate(zip(axes, shown.items(), strict=True)):
        for axis, (name, x) in zip(line, images.items(), strict=True):
            axis.imshow(x.clamp(-1, 1).numpy() * pairs.hu, cmap="gray", vmin=low, vmax=high)
            axis.set_xticks([])
            axis.set_yticks([])
            if place == 0:
                axis.set_title(name, fontsize=9)
        line[0].set_ylabel(window, fontsize=9)
    figure.tight_layout(pad=0.3)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
