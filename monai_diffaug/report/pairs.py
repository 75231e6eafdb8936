"""Generated images beside the training images nearest to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["beside_nearest", "rejected_pairs"]

Row = tuple[Tensor, Tensor, str]


def beside_nearest(
    images: Tensor, audit: Sequence[Mapping[str, Any]], known: Mapping[str, Tensor], path: str | Path, most: int = 10
) -> Path:
    """Draw each image (N, 1, H, W) above the training image nearest to it, the likeliest to be recognized first.

    Args:
        images: in [-1, 1].
        audit: of each image: ``nearest`` and ``probability``.
        known: id -> training image (1, H, W).
        path: of the picture.
        most: pairs that are drawn.
    """
    order = sorted(range(len(audit)), key=lambda i: -audit[i]["probability"])[:most]
    rows = [(images[i], known[audit[i]["nearest"]], _said(audit[i])) for i in order]
    return _draw(rows, ("generated, kept", "nearest training film"), Path(path))


def rejected_pairs(
    images: Tensor, matches: Sequence[Mapping[str, Any]], known: Mapping[str, Tensor], path: str | Path, most: int = 10
) -> Path:
    """The same for images that were recognized, in the order given."""
    rows = [(x, known[m["nearest"]], _said(m)) for x, m in zip(images, matches, strict=True)]
    return _draw(rows[:most], ("rejected", "recognized as"), Path(path))


def _said(match: Mapping[str, Any]) -> str:
    return f"p = {match['probability']:.3f}"


def _draw(rows: Sequence[Row], names: tuple[str, str], path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(rows), figsize=(1.25 * len(rows) + 0.4, 2.9), squeeze=False)
    for column, (image, nearest, said) in enumerate(rows):
        for axis, x in zip(axes[:, column], (image, nearest), strict=True):
            axis.imshow(torch.as_tensor(x)[0].clamp(-1, 1).cpu(), cmap="gray", vmin=-1, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0, column].set_title(said, fontsize=8)
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name, fontsize=8)
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
