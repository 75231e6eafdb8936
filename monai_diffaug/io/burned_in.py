"""Does a picture have writing in it? A look at the pixels, because the tag for it is mostly empty.

Writing that a machine burns in is thin strokes of one gray, brighter or darker than what lies around them, with sharp
edges, many of them side by side in a low, wide region. Regions of that kind are found by morphology, and a linear rule
on sixteen of their measures says which are writing. The rule was fitted by ``tests/benchmarks/burned_in.py`` on printed
words planted into real images. Side markers (a single L or R) name nobody and are not looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Writing", "measured", "writing_in"]

LONGEST = 1400  # pixels; larger pictures are halved until they are smaller
STROKE = 9  # pixels: no stroke is wider
CONTRAST = 0.11  # of the picture's range
HEIGHT = (5, 60)  # pixels
USUAL, STRICT = -0.9, 2.0
"""Limits on the rule's value: 4 in 5 words on small radiographs at 1 in 10 false alarms; and almost no false alarm."""

RULE = {
    # measure: mean and spread over the regions it was fitted on, weight
    "contrast": (-2.055, 0.817, 2.149),
    "paper": (0.948, 1.430, 0.942),
    "ink": (0.519, 0.585, -1.655),
    "strokes": (0.226, 0.475, 1.501),
    "density": (0.271, 0.138, 1.350),
    "columns": (0.814, 0.149, -0.518),
    "level": (0.634, 0.205, 0.254),
    "edges": (0.723, 1.150, 3.630),
    "slack": (0.253, 0.151, 0.082),
    "crooked": (0.221, 0.125, -0.769),
    "widths": (0.690, 0.227, -0.280),
    "width": (0.273, 0.241, -1.433),
    "long": (1.271, 0.468, 1.493),
    "tall": (2.600, 0.596, -0.095),
    "first": (0.482, 0.321, -0.005),
    "last": (0.476, 0.283, 0.303),
}
BIAS = -1.806


@dataclass(frozen=True)
class Writing:
    """A line of writing: where it is (first row, first column, last row, last column), and the rule's value."""

    box: tuple[int, int, int, int]
    value: float


def writing_in(image: np.ndarray, limit: float = USUAL) -> list[Writing]:
    """Lines of burned-in writing.

    Args:
        image: (rows, columns) or (rows, columns, 3), as it is looked at.
        limit: the rule's value from which a region counts as writing.

    Returns:
        what was found, the surest first; empty if there is none.
    """
    gray = image.astype(np.float32)
    gray = gray.max(-1) if gray.ndim == 3 else gray
    low, high = float(gray.min()), float(gray.max())
    if high <= low or min(gray.shape) < 24:
        return []
    gray = (gray - low) / (high - low)
    step = 1
    while max(gray.shape) / step > LONGEST:
        step *= 2
    if step > 1:
        rows, columns = (n // step * step for n in gray.shape)
        gray = gray[:rows, :columns].reshape(rows // step, step, columns // step, step).mean((1, 3))
    found = []
    for box, measures in measured(gray):
        value = BIAS + sum(w * (measures[name] - mean) / spread for name, (mean, spread, w) in RULE.items())
        if value > limit:
            a, b, c, d = (n * step for n in box)
            found.append(Writing((a, b, c, d), value))
    return sorted(found, key=lambda w: -w.value)


def measured(gray: np.ndarray) -> Iterator[tuple[tuple[int, int, int, int], dict[str, float]]]:
    """Low, wide regions of strokes, bright ones and dark ones, and the measures of each.

    Args:
        gray: (rows, columns) from 0 to 1.
    """
    from scipy import ndimage

    for image in (gray, 1 - gray):
        hat = _hat(image)
        strokes = hat > CONTRAST
        joined = ndimage.binary_closing(np.pad(strokes, 8), np.ones((1, 9)))[8:-8, 8:-8] | strokes
        labels, _ = ndimage.label(joined, np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            tall, wide = (s.stop - s.start for s in box)
            if HEIGHT[0] <= tall <= HEIGHT[1] and wide >= 1.5 * tall and wide >= 12:
                measures = _measures(strokes[box] & (labels[box] == number), image[box], hat[box])
                if measures is not None:
                    yield (box[0].start, box[1].start, box[0].stop, box[1].stop), measures


def _hat(image: np.ndarray) -> np.ndarray:
    """What an opening by a square takes away: bright things narrower than it is."""
    return image - _widest(-_widest(-image))


def _widest(image: np.ndarray) -> np.ndarray:
    """The largest value in a square around each pixel; windows of 2, 4, 8 and 9 from each other, which is fast."""
    half = STROKE // 2
    for _ in range(2):
        padded = np.pad(image, ((half, half), (0, 0)), constant_values=-np.inf)
        for step in (1, 2, 4, 1):
            padded = np.maximum(padded[:-step], padded[step:])
        image = padded.T
    return image


def _measures(mask: np.ndarray, gray: np.ndarray, hat: np.ndarray) -> dict[str, float] | None:
    """What a region (rows, columns) with strokes ``mask`` is like; ``None`` if it cannot be writing."""
    from scipy import ndimage

    tall, wide = mask.shape
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    runs = (steps == 1).sum(1)  # strokes that a row crosses
    crossed = float(np.median(runs[tall // 5 : tall - tall // 5]))
    ink, paper = gray[mask], gray[~mask]
    if crossed < 3 or paper.size < 10:
        return None
    contrast = float(np.median(ink) - np.median(paper))
    if contrast <= 0.02:
        return None
    widths = np.argwhere(steps == -1)[:, 1] - np.argwhere(steps == 1)[:, 1]
    slope = np.hypot(*np.gradient(gray))
    edge = mask ^ ndimage.binary_erosion(mask)
    tops, bottoms = _edges(mask)
    return {
        "contrast": float(np.log(contrast)),
        "paper": float(np.std(paper)) / contrast,
        "ink": float(np.std(ink[hat[mask] >= np.median(hat[mask])])) / contrast,
        "strokes": float(np.log(crossed * tall / wide)),
        "density": float(mask.mean()),
        "columns": float(mask.any(0).mean()),
        "level": float(np.median(ink)),
        "edges": float(slope[edge].mean()) / contrast,
        "slack": float(tops.mean() + tall - 1 - bottoms.mean()) / tall,
        "crooked": float(tops.std() + bottoms.std()) / tall,
        "widths": float(widths.std() / widths.mean()),
        "width": float(widths.mean()) / tall,
        "long": float(np.log(wide / tall)),
        "tall": float(np.log(tall)),
        "first": float(runs[0]) / crossed,
        "last": float(runs[-1]) / crossed,
    }


def _edges(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last row with ink, for pieces as wide as the region is tall."""
    tall, wide = mask.shape
    pieces = np.array_split(np.arange(wide), max(3, round(wide / tall)))
    rows = [np.flatnonzero(mask[:, piece].any(1)) for piece in pieces]
    return np.array([r[0] for r in rows if len(r)]), np.array([r[-1] for r in rows if len(r)])
