"""Plots as SVG in the text of the page: legible in black and white, marks told by their shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from .words import brief

__all__ = ["Point", "Series", "counts_bar", "curves", "effect", "icon", "key_of", "row_plot", "swatch"]

INK, QUIET, LINE, BAND, EDGE = "#1b1f24", "#57606a", "#d0d7de", "#dfe4ea", "#8c959f"
BANDED = f'fill="{BAND}" stroke="{EDGE}" stroke-width="0.6"'
GOOD, CAUTION, BAD = "#0b6b52", "#8a5a00", "#a3320b"
COLORS = ("#1b1f24", "#0067a5", "#c04a00", "#007a5a", "#a8457c", "#7a5c00", "#2a8fbd", "#5b3f99")
"""After Okabe and Ito's palette for all kinds of color vision, darkened to be legible on white."""
DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "5 2", "1 3", "12 3", "4 2 1 2")
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross", "ring", "box")


def _shape(kind: str, x: float, y: float, r: float, color: str) -> str:
    """A mark; open ones are filled with white."""
    fill = f'fill="{color}"'
    hollow = f'fill="#fff" stroke="{color}" stroke-width="1.6"'
    polygons = {
        "triangle": [(0, -1.15), (1.05, 0.8), (-1.05, 0.8)],
        "down": [(0, 1.15), (1.05, -0.8), (-1.05, -0.8)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    }
    if kind in polygons:
        points = " ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in polygons[kind])
        return f'<polygon points="{points}" {fill}/>'
    if kind in ("square", "box"):
        return _rect(x - r, y - r, 2 * r, 2 * r, fill if kind == "square" else hollow)
    if kind == "cross":
        d = f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}"
        return f'<path d="{d}" stroke="{color}" stroke-width="2.2" fill="none"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {fill if kind == "circle" else hollow}/>'


def _svg(width: float, height: float, title: str, parts: Sequence[str], kind: str = "plot") -> Markup:
    """The parts, with a title for those who cannot see them."""
    head = f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">'
    return Markup(f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>")


def _text(
    x: float, y: float, text: object, size: float = 9, anchor: str = "middle", color: str = QUIET, bold: bool = False
) -> str:
    how = f'font-size="{size:g}" text-anchor="{anchor}" fill="{color}"' + (' font-weight="600"' if bold else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str = INK, width: float = 1.0, dash: str = "") -> str:
    how = f'stroke="{color}" stroke-width="{width:g}"' + (f' stroke-dasharray="{dash}"' if dash else "")
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {how}/>'


def _rect(x: float, y: float, width: float, height: float, how: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {how}/>'


def _whisker(x1: float, x2: float, y: float, color: str, cap: float = 4, width: float = 1.8) -> str:
    return (
        _line(x1, y, x2, y, color, width) + _line(x1, y - cap, x1, y + cap, color, width)
        + _line(x2, y - cap, x2, y + cap, color, width)
    )  # fmt: skip


def ticks(low: float, high: float, n: int = 3) -> list[float]:
    """Round numbers between two."""
    if not high > low:
        return [low]
    raw = (high - low) / n
    base: float = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 2.5, 5, 10) if base * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _finite(values: Sequence[float | None]) -> list[float]:
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def _scaled(low: float, high: float, a: float, b: float) -> Callable[[float], float]:
    return lambda v: a + (v - low) / (high - low) * (b - a)


def row_plot(
    title: str,
    value: float,
    ends: Sequence[float] | None,
    floor: float | None,
    floor_ends: Sequence[float] | None,
    good: bool | None,
    width: float = 300,
    within: tuple[float, float] | None = None,
) -> Markup:
    """One score with its interval, over the band of its floor.

    Args:
        title: for those who cannot see it.
        value: of the synthetic images.
        ends: its interval.
        floor: of real against real images; a line.
        floor_ends: its interval; a band.
        good: whether the value is as it should be: a filled circle, else an open diamond; nothing: a gray circle.
        width: of the plot.
        within: ends of the axis; from the numbers unless given.
    """
    known = _finite([value, floor, *(ends or ()), *(floor_ends or ())])
    if not known:
        return Markup("")
    low, high = within or (min(known), max(known))
    pad = 0.0 if within else (0.06 * (high - low) or abs(high) * 0.1 or 1.0)
    low, high = low - pad, high + pad
    at, height, middle = _scaled(low, high, 12, width - 12), 38, 13
    parts = [_line(4, 26, width - 4, 26, LINE)]
    for t in ticks(low, high, 5):
        parts += [_line(at(t), 24, at(t), 28, EDGE), _text(at(t), 37, brief(t), 9.5)]
    if floor_ends and len(_finite(floor_ends)) == 2:
        a, b = (at(v) for v in floor_ends)
        parts.append(_rect(a, 2, max(b - a, 1.5), 22, BANDED))
    if floor is not None and _finite([floor]):
        parts.append(_line(at(floor), 2, at(floor), 24, QUIET, 1.2, "2 2"))
    color = QUIET if good is None else GOOD if good else BAD
    if ends and len(_finite(ends)) == 2:
        parts.append(_whisker(at(ends[0]), at(ends[1]), middle, color))
    if _finite([value]):
        parts.append(_shape("diamond" if good is False else "circle", at(value), middle, 4.6, color))
    return _svg(width, height, title, parts)


def key_of() -> Markup:
    """What the marks of :func:`row_plot` mean."""
    parts = [
        _rect(4, 4, 46, 20, BANDED),
        _line(27, 4, 27, 24, QUIET, 1.2, "2 2"),
        _text(58, 18, "real against real images: the noise floor, mean and 95 % interval", 11, "start", INK),
        _whisker(444, 484, 14, GOOD), _shape("circle", 464, 14, 4.6, GOOD),
        _text(492, 18, "synthetic, as real", 11, "start", INK),
        _whisker(618, 658, 14, BAD), _shape("diamond", 638, 14, 4.6, BAD),
        _text(666, 18, "not as real", 11, "start", INK),
    ]  # fmt: skip
    return _svg(
        742, 28, "Key: the gray band is the floor, a circle is as real images are, a diamond is not", parts, "key"
    )


def effect(
    title: str, value: float, ends: Sequence[float] | None, within: tuple[float, float], sure: bool,
    low_is_good: bool = False, width: float = 220,
) -> Markup:  # fmt: skip
    """A difference with its interval on a scale with a line at zero; a triangle if it is sure, up for better."""
    low, high = within
    at = _scaled(low, high, 6, width - 6)
    parts = [_line(at(0), 1, at(0), 25, EDGE, 1, "3 2")]
    better = (value < 0) if low_is_good else (value > 0)
    color = (GOOD if better else BAD) if sure else QUIET
    if ends and len(_finite(ends)) == 2:
        parts.append(_whisker(at(max(low, ends[0])), at(min(high, ends[1])), 13, color, 3.5))
    parts.append(_shape(("triangle" if better else "down") if sure else "ring", at(value), 13, 4.6, color))
    return _svg(width, 26, title, parts)


@dataclass(frozen=True)
class Point:
    """A point of a curve: position on the axis (0, 1, ...), mean, and the ends of its interval."""

    x: int
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A curve and its name; ``muted`` ones are drawn thin."""

    name: str
    points: tuple[Point, ...]
    style: int
    muted: bool = False


def swatch(style: int) -> Markup:
    """A curve's line and mark, for the key."""
    color, dash, shape = (x[style % len(x)] for x in (COLORS, DASHES, SHAPES))
    return _svg(44, 14, "", [_line(2, 7, 42, 7, color, 2, dash), _shape(shape, 22, 7, 4, color)], "swatch")


def curves(
    title: str, series: Sequence[Series], labels: Sequence[str], axis: str, width: float = 340, height: float = 250,
    within: tuple[float, float] | None = None,
) -> Markup:  # fmt: skip
    """A score against the number of patients, one curve an arm; curves stand a little apart where they would cover
    each other.
    """
    known = _finite([v for s in series for p in s.points for v in (p.y, p.low, p.high)])
    if not known:
        return Markup("")
    low, high = within or (min(known), max(known))
    pad = 0.06 * (high - low) or 0.05
    marks = ticks(low - pad, high + pad, 6)
    low, high = min(low - pad, marks[0]), max(high + pad, marks[-1])
    left, right, top, bottom = 44, width - 10, 12, height - 36
    y = _scaled(low, high, bottom, top)
    step = (right - left) / max(len(labels), 1)
    x = [left + step * (i + 0.5) for i in range(len(labels))]
    parts = []
    for t in marks:
        parts += [_line(left, y(t), right, y(t), LINE, 0.8), _text(left - 6, y(t) + 3.5, brief(t), 10, "end")]
    parts += [_text(x[i], bottom + 15, name, 10.5, "middle", INK) for i, name in enumerate(labels)]
    parts.append(_text((left + right) / 2, height - 5, axis, 10.5))
    apart = min(step * 0.11, 8)
    for i, s in enumerate(series):
        shift = (i - (len(series) - 1) / 2) * apart
        parts.append(_curve(s, [v + shift for v in x], y))
    return _svg(width, height, title, parts)


def _curve(s: Series, x: Sequence[float], y: Callable[[float], float]) -> str:
    color, dash, shape = (v[s.style % len(v)] for v in (COLORS, DASHES, SHAPES))
    at = [(x[p.x], y(p.y)) for p in s.points]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in at)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    parts = [f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{1 if s.muted else 1.7}"{dashed}/>']
    for p, (a, b) in zip(s.points, at, strict=True):
        if p.high > p.low:
            parts.append(_line(a, y(p.low), a, y(p.high), color, 1.1))
        parts.append(_shape(shape, a, b, 3.6, color))
    return "".join(parts)


def counts_bar(title: str, counts: Sequence[int], width: float = 260) -> Markup:
    """Marks from 1 to 5 as a bar of shares, light to dark; the shares of a tenth and more are written in."""
    total = sum(counts)
    if not total:
        return Markup("")
    shades = ("#f1f3f5", "#cdd9e5", "#9dbbd6", "#4d87b5", "#14507f")
    parts, at = [], 1.0
    for i, (n, shade) in enumerate(zip(counts, shades, strict=True), 1):
        wide = n / total * (width - 2)
        if not n:
            continue
        parts.append(_rect(at, 1, wide, 20, f'fill="{shade}" stroke="{QUIET}" stroke-width="0.6"'))
        if n / total >= 0.1:
            parts.append(_text(at + wide / 2, 15, i, 10.5, "middle", "#fff" if i > 3 else INK, True))
        at += wide
    return _svg(width, 22, title, parts)


def icon(mark: str) -> Markup:
    """A verdict's mark: circle with a check, triangle with an exclamation, octagon with a cross, dashed ring."""
    white = 'stroke="#fff" stroke-width="2.6" stroke-linecap="round" stroke-linejoin="round" fill="none"'
    drawn = {
        "good": f'<circle cx="12" cy="12" r="11" fill="{GOOD}"/><path d="M6.8 12.4l3.6 3.6 6.8-7.4" {white}/>',
        "caution": f'<path d="M12 1.4L23.4 22H.6Z" fill="{CAUTION}"/><path d="M12 9v6M12 18.6v.2" {white}/>',
        "bad": f'<path d="M7.4 1h9.2L23 7.4v9.2L16.6 23H7.4L1 16.6V7.4Z" fill="{BAD}"/>'
        f'<path d="M8 8l8 8M16 8l-8 8" {white}/>',
    }
    ring = (
        f'<circle cx="12" cy="12" r="10" fill="#fff" stroke="{QUIET}" stroke-width="1.8" stroke-dasharray="3.4 2.6"/>'
    )
    ring += f'<path d="M7.5 12h9" stroke="{QUIET}" stroke-width="2.2" stroke-linecap="round"/>'
    return Markup(
        f'<svg class="icon" viewBox="0 0 24 24" width="24" height="24" aria-hidden="true">{drawn.get(mark, ring)}</svg>'
    )
