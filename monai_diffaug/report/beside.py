"""Synthetic images beside the training images that they are nearest to, one picture a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["draw_pairs"]


def _middle(x: Tensor) -> Tensor:
    """The image (H, W), or a volume's middle slice, in [0, 1]."""
    flat = x.float()[0]
    flat = flat[..., flat.shape[-1] // 2].T.flip(0) if flat.ndim == 3 else flat
    low, high = flat.min(), flat.max()
    return (flat - low) / (high - low).clamp(min=1e-6)


def draw_pairs(pairs: Sequence[Mapping[str, Any]], images: Mapping[str, Tensor], folder: str | Path) -> list[Path]:
    """Draw each pair of an audit: the synthetic image, the training image, and where they differ.

    Args:
        pairs: as ``audit.json`` has them: ``image``, ``nearest``, ``space``, ``rare``, ``copy``,
            ``certain``.
        images: path -> image (C, *S).
        folder: of the pictures, ``pair01.png`` on.

    Returns:
        the pictures.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for n, pair in enumerate(pairs, 1):
        a, b = (_middle(images[pair[k]]) for k in ("image", "nearest"))
        flipped = (a.flip(-1) - b).abs().mean() < (a - b).abs().mean()
        figure, axes = plt.subplots(1, 3, figsize=(7.2, 3.0))
        shown = (a, b, (a.flip(-1) if flipped else a) - b)
        titles = (
            f"synthetic\n{Path(pair['image']).name}",
            f"training\n{Path(pair['nearest']).name}",
            f"difference{' (mirrored)' if flipped else ''}\nby {pair['space']}: {pair['scores'][pair['space']]:.3f}",
        )
        for axis, x, title in zip(axes, shown, titles, strict=True):
            ends = {"vmin": -1, "vmax": 1, "cmap": "coolwarm"} if "difference" in title else {"cmap": "gray"}
            axis.imshow(torch.as_tensor(x).numpy(), **ends)
            axis.set_title(title, fontsize=7)
            axis.axis("off")
        nearer = (
            "nearer than unseen patients come"
            if pair["copy"]
            else f"{pair['rare']:.1%} of unseen patients come as near"
        )
        said = "repeats it" if pair["certain"] else nearer
        figure.suptitle(said, fontsize=9, color="firebrick" if pair["copy"] else "black", y=0.04)
        figure.tight_layout(rect=(0, 0.06, 1, 1), pad=0.4)
        path = folder / f"pair{n:02d}.png"
        figure.savefig(path, dpi=130)
        plt.close(figure)
        made.append(path)
    return made
