"""The contact sheet of a job: real and synthetic side by side, what changed, and how it was made."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colors, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..io import images
from ..io.atomic import write_bytes
from ..types import DiffAugError

__all__ = ["draw", "pick"]

TILE, CAPTION, GAP, HEAD, FOOT = 1.55, 2.35, 0.06, 0.95, 0.55  # inches
INK, QUIET, LINE = "#1b1f24", "#6a737d", "#ff5a36"
COLUMNS = ("real", "synthetic", "difference")


@dataclass(frozen=True)
class _Row:
    entry: Mapping[str, Any]
    real: np.ndarray | None
    new: np.ndarray
    real_mask: np.ndarray | None
    new_mask: np.ndarray | None
    ends: tuple[float, float]

    @property
    def change(self) -> np.ndarray | None:
        """Difference as a fraction of the real image's range."""
        if self.real is None or self.real.shape != self.new.shape:
            return None
        low, high = self.ends
        change: np.ndarray = (self.new - self.real) / (high - low)
        return change


def pick(entries: Sequence[Mapping[str, Any]], rows: int) -> list[Mapping[str, Any]]:
    """At most ``rows`` entries: the methods by turns, each spread over what it made."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_method.setdefault(str(entry.get("provenance", {}).get("method", "")), []).append(entry)
    share = -(-rows // max(len(by_method), 1))
    chosen: list[Mapping[str, Any]] = []
    for made in by_method.values():
        n = min(share, len(made))
        chosen += [made[round(i * (len(made) - 1) / max(n - 1, 1))] for i in range(n)]
    return chosen[:rows]


def draw(datalist: str | Path, out: str | Path | None = None, *, rows: int = 12) -> Path:
    """Draw the contact sheet of a datalist that `expand` or `generate` wrote.

    Args:
        datalist: its path.
        out: the PNG; ``overview.png`` beside the datalist unless given.
        rows: most pairs to show.

    Returns:
        the PNG's path.

    Raises:
        DiffAugError: the datalist or an image in it cannot be read, or the sheet cannot be written.
    """
    path = Path(datalist)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = data["training"]
    except (OSError, ValueError, KeyError) as error:
        raise DiffAugError(
            f"{path} is no datalist of synthetic images ({error}): give the one in a job's folder"
        ) from None
    if not entries:
        raise DiffAugError(f"{path} lists no image: there is nothing to draw")
    shown = [_row(entry, path.parent) for entry in pick(entries, rows)]
    made_of = len({e["source"] for e in entries if "source" in e})
    title = f"{len(entries)} synthetic image{'s' if len(entries) > 1 else ''}"
    title += f" from {made_of} real one{'s' if made_of > 1 else ''}" if made_of else " from noise"
    about = [f"backbone {data['backbone']} ({data['backbone_digest'][:12]})"] if "backbone" in data else []
    about += [f"{len(shown)} of {len(entries)} shown"] if len(shown) < len(entries) else []
    about += [str(data["licence"])] if data.get("licence") else []
    target = Path(out) if out is not None else path.parent / "overview.png"
    write_bytes(target, _png(_figure(shown, title, " · ".join(about))))
    return target


# ------------------------------------------------------------------------------------------------------------ images


def _row(entry: Mapping[str, Any], folder: Path) -> _Row:
    new = _plane(folder / entry["image"])
    source = folder / entry["source"] if "source" in entry else None
    real = _plane(source) if source is not None and source.is_file() else None
    mask = next(
        (entry[k] for k in ("label", "mask") if isinstance(entry.get(k), str) and images.ending(entry[k])), None
    )
    new_mask = _plane(folder / mask, mask=True) if mask else None
    like = real if real is not None else new
    ends = (float(like.min()), float(np.quantile(like, 0.999)))
    ends = ends if ends[1] > ends[0] else (ends[0], ends[0] + 1.0)
    theirs = folder / entry["source_mask"] if real is not None and "source_mask" in entry else None
    real_mask = _plane(theirs, mask=True) if theirs is not None and theirs.is_file() else None
    at = _depth(real_mask if real_mask is not None else new_mask, new)
    cut = lambda a: None if a is None else (a[..., min(at, a.shape[-1] - 1)].T if a.ndim == 3 else a)  # noqa: E731
    return _Row(entry, cut(real), cut(new), cut(real_mask), cut(new_mask), ends)  # type: ignore[arg-type]


def _plane(path: Path, mask: bool = False) -> np.ndarray:
    """An image as (*S): its first channel, or the mean of three colors."""
    scan = images.read(path, orientation="LPS", mask=mask)
    x = scan.image.double().numpy()
    array: np.ndarray = x.mean(0) if scan.kind != "nifti" and x.shape[0] == 3 else x[0]
    return array


def _depth(mask: np.ndarray | None, image: np.ndarray) -> int:
    """The slice of a volume to show: the one with most of the mask, else the middle."""
    if image.ndim < 3:
        return 0
    if mask is not None and mask.any():
        return int((mask > 0).sum((0, 1)).argmax())
    return image.shape[-1] // 2


# ------------------------------------------------------------------------------------------------------------ figure


def _figure(shown: Sequence[_Row], title: str, about: str) -> Figure:
    blocks = 1 if len(shown) <= 3 else 2
    lines = -(-len(shown) // blocks)
    block = 3 * TILE + 2 * GAP + CAPTION
    width, height = blocks * block + (blocks - 1) * 0.25 + 0.5, HEAD + lines * (TILE + GAP) + FOOT
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.25 / width, 1 - 0.30 / height, title, fontsize=15, fontweight="bold", color=INK, va="center")
    figure.text(0.25 / width, 1 - 0.53 / height, about, fontsize=8, color=QUIET, va="center")
    limit = _limit(shown)
    for i, row in enumerate(shown):
        left = 0.25 + (i // lines) * (block + 0.25)
        top = HEAD + (i % lines) * (TILE + GAP)
        axes = [_tile(figure, left + c * (TILE + GAP), top, width, height) for c in range(3)]
        if i % lines == 0:
            for ax, name in zip(axes, COLUMNS, strict=True):
                ax.set_title(name, fontsize=9, color=QUIET, pad=3)
        _fill(axes, row, limit)
        x = (left + 3 * (TILE + GAP) + 0.05) / width
        _caption(figure, row.entry, x, 1 - (top + 0.02) / height, height)
    _scale_bar(figure, limit, width, height)
    return figure


def _limit(shown: Sequence[_Row]) -> float:
    """End of the difference's color scale, the same for all rows, a round number of percent."""
    tops = [float(np.quantile(np.abs(r.change), 0.998)) for r in shown if r.change is not None]
    top = max(tops, default=0.1)
    return next((v for v in (0.05, 0.1, 0.2, 0.3, 0.5) if top <= v), 1.0)


def _tile(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    ax = figure.add_axes((left / width, 1 - (top + TILE) / height, TILE / width, TILE / height))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_facecolor("#f3f4f6")
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _fill(axes: Sequence[Axes], row: _Row, limit: float) -> None:
    low, high = row.ends
    for ax, picture, mask in ((axes[0], row.real, row.real_mask), (axes[1], row.new, row.new_mask)):
        if picture is None:
            ax.text(0.5, 0.5, "from noise", ha="center", va="center", fontsize=9, color=QUIET, transform=ax.transAxes)
            continue
        ax.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="lanczos")
        if mask is not None and mask.any():
            ax.contour(mask > 0, levels=[0.5], colors=LINE, linewidths=0.8, alpha=0.9)
    if row.change is None:
        axes[2].set_visible(False)
    else:
        axes[2].imshow(row.change, cmap="RdBu_r", norm=colors.Normalize(-limit, limit), interpolation="lanczos")


def _caption(figure: Figure, entry: Mapping[str, Any], x: float, y: float, height: float) -> None:
    made = entry.get("provenance", {})
    kind = next(
        (entry[k] for k in ("class", "label") if isinstance(entry.get(k), str) and not images.ending(entry[k])), ""
    )
    prompt = made.get("prompt")
    parameters = {k: v for k, v in made.get("parameters", {}).items() if k not in ("prompt", "source_prompt", "label")}
    told = [f"{k} {_number(v)}" for k, v in parameters.items()]
    scores = [f"{k} {_number(v)}" for k, v in made.get("scores", {}).items()]
    lines: list[tuple[str, float, str, str]] = [(str(made.get("method", "")).replace("_", " "), 9.5, INK, "bold")]
    if prompt or kind:
        lines.append((f"“{prompt}”" if prompt else f"class {kind}", 8.5, INK, "normal"))
    lines += [(line, 7, QUIET, "normal") for line in textwrap.wrap(", ".join(told), 38)[:2]]
    lines += [(line, 7, QUIET, "normal") for line in textwrap.wrap(", ".join(scores), 38)[:3]]
    lines.append((f"seed {made.get('seed', '?')}", 7, QUIET, "normal"))
    if "source" in entry:
        lines.append((_shortened(Path(entry["source"]).name, 36), 7, QUIET, "normal"))
    for text, size, color, weight in lines:
        figure.text(x, y, text, fontsize=size, color=color, fontweight=weight, va="top", ha="left")
        y -= (size * 1.5 / 72) / height


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def _scale_bar(figure: Figure, limit: float, width: float, height: float) -> None:
    ax = figure.add_axes((0.40 / width, 0.30 / height, 2.0 / width, 0.09 / height))
    ax.imshow(np.linspace(-1, 1, 256)[None], cmap="RdBu_r", aspect="auto", extent=(-limit, limit, 0, 1))
    ax.set_yticks([])
    ax.set_xticks([-limit, 0, limit], [f"−{limit:.0%}", "0", f"+{limit:.0%}"])
    ax.tick_params(labelsize=7, length=0, pad=2, colors=QUIET)
    for spine in ax.spines.values():
        spine.set_visible(False)
    figure.text(
        2.75 / width,
        0.345 / height,
        "synthetic minus real, in percent of the real image's range; outlined: the label mask",
        fontsize=7,
        color=QUIET,
        va="center",
    )


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    before = rcParams["font.family"]
    try:
        rcParams["font.family"] = "DejaVu Sans"  # the same on every machine: it comes with matplotlib
        figure.savefig(buffer, format="png", metadata={"Software": None})
    finally:
        rcParams["font.family"] = before
    return buffer.getvalue()
