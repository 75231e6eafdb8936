"""Which frames of a series make one volume, in which order, and where it lies in the patient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..problems import Problem
from .headers import Frame

__all__ = ["Stack", "affine_of", "stacked"]

VOLUMES = {"CT", "MR", "PT", "NM"}
"""Kinds of image that mean little without their place in the patient."""

GAP = 1.5  # times the usual step: a slice is missing
UNEVEN = 0.1  # of the usual step


@dataclass(frozen=True)
class Stack:
    """Frames that belong together, in order.

    Attributes:
        frames: along the normal of the slices.
        affine: (4, 4) from (column, row, slice) to mm in RAS; ``None`` for pictures, which have no place.
    """

    frames: tuple[Frame, ...]
    affine: np.ndarray | None = None

    @property
    def step(self) -> tuple[float, float, float]:
        """Voxel size in mm, columns, rows, slices."""
        if self.affine is None:
            raise ValueError("pictures have no affine")
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(0))
        return float(x), float(y), float(z)


def affine_of(frames: Sequence[Frame]) -> np.ndarray:
    """The affine (4, 4) of frames in order, RAS, mm (PS3.3 C.7.6.2.1.1); a single slice is as long as it is thick."""
    first = frames[0]
    assert first.orientation is not None
    assert first.spacing is not None
    along_row, along_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    start = np.array(first.position)
    if len(frames) > 1:
        step = (np.array(frames[-1].position) - start) / (len(frames) - 1)
    else:
        step = np.cross(along_row, along_column) * first.thickness
    lps = np.eye(4)
    lps[:3, 0] = along_row * first.spacing[1]
    lps[:3, 1] = along_column * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = start
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def stacked(frames: Iterable[Frame], *, pictures: bool = False) -> tuple[list[Stack], list[Problem]]:
    """Sort the frames of one series into volumes and pictures.

    Args:
        frames: all of one series.
        pictures: take frames without geometry as pictures, also of modalities that need it.

    Returns:
        the stacks, the largest first, and what is wrong with the series.
    """
    unique, problems = _unique(frames)
    groups: dict[tuple, list[Frame]] = defaultdict(list)
    for frame in unique:
        groups[_kind(frame)].append(frame)
    ranked = sorted(groups.values(), key=lambda g: (-len(g), g[0].number, str(g[0].path)))
    if len(ranked) > 1:
        problems.append(_mixed(ranked))
    stacks: list[Stack] = []
    for group in ranked:
        made, more = _of_one_kind(group, pictures)
        stacks += made
        problems += more
    return stacks, problems


def _unique(frames: Iterable[Frame]) -> tuple[list[Frame], list[Problem]]:
    seen: dict[tuple, Frame] = {}
    twice: list[Frame] = []
    for frame in frames:
        if seen.setdefault((frame.sop, frame.index), frame) is not frame:
            twice.append(frame)
    if not twice:
        return list(seen.values()), []
    more = "" if len(twice) == 1 else f", and so do {len(twice) - 1} more"
    text = f"repeats the SOP instance UID of another file{more}: the first of each is used, remove the others"
    return list(seen.values()), [Problem("duplicate UID", twice[0].path, text, lost=False)]


def _kind(frame: Frame) -> tuple:
    turned = None if frame.orientation is None else tuple(round(v, 3) + 0.0 for v in frame.orientation)
    spacing = None if frame.spacing is None else tuple(round(v, 4) for v in frame.spacing)
    return frame.size, frame.samples, turned, spacing, frame.placed, frame.sop_class


def _mixed(groups: Sequence[Sequence[Frame]]) -> Problem:
    sizes = {g[0].size for g in groups}
    differ = "size" if len(sizes) == len(groups) else "orientation, size or spacing"
    counts = " + ".join(str(len(g)) for g in groups)
    text = f"the series is mixed, {counts} images differ in {differ}: each group becomes an image of its own"
    return Problem("mixed series", groups[0][0].path.parent, text, lost=False)


def _of_one_kind(group: list[Frame], pictures: bool) -> tuple[list[Stack], list[Problem]]:
    first = group[0]
    needs = first.modality in VOLUMES and first.samples == 1
    if not first.placed:
        if needs and not pictures:
            return [], [_placeless(first, len(group))]
        return [_pictures(group)], []
    if not needs and len({f.position for f in group}) == 1:
        return [_pictures(group)], []  # a cine or one radiograph
    stacks, problems = [], []
    for part in _parts(group):
        stack, more = _ordered(part)
        stacks.append(stack)
        problems += more
    return stacks, problems


def _placeless(first: Frame, count: int) -> Problem:
    missing = [
        name
        for name, value in (
            ("ImagePositionPatient", first.position),
            ("ImageOrientationPatient", first.orientation),
            ("PixelSpacing", first.spacing),
        )
        if value is None
    ]
    text = f"{count} image{'s' if count > 1 else ''} without geometry ({', '.join(missing)} missing): export the series"
    return Problem("missing geometry", first.path, f"{text} with it, or take it as pictures with --dims 2")


def _pictures(group: list[Frame]) -> Stack:
    return Stack(tuple(sorted(group, key=lambda f: (f.number, str(f.path), f.index or 0))))


def _along(frame: Frame) -> float:
    assert frame.orientation is not None
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    return float(np.dot(normal, frame.position))  # type: ignore[arg-type]


def _parts(group: list[Frame]) -> list[list[Frame]]:
    """Volumes of the same place at other times, echoes, b-values: told apart by the first thing that does."""
    at = [round(_along(f), 2) for f in group]
    if len(set(at)) == len(at) or len(set(at)) == 1:
        return [group]
    for i in range(len(group[0].tellers)):
        parts: dict[str, list[Frame]] = defaultdict(list)
        for frame in group:
            parts[frame.tellers[i] if i < len(frame.tellers) else ""].append(frame)
        clean = all(len({round(_along(f), 2) for f in p}) == len(p) for p in parts.values())
        if len(parts) > 1 and clean and min(map(len, parts.values())) * 2 >= max(map(len, parts.values())):
            return list(parts.values())
    return [group]


def _ordered(group: list[Frame]) -> tuple[Stack, list[Problem]]:
    """One volume: no position twice, no slice missing in between."""
    problems = []
    where: dict[float, Frame] = {}
    for frame in sorted(group, key=lambda f: (f.number, str(f.path))):
        where.setdefault(round(_along(frame), 2), frame)
    frames = [where[at] for at in sorted(where)]
    if len(frames) < len(group):
        kept = {id(f) for f in frames}
        extra = [f for f in group if id(f) not in kept]
        text = f"lies at the position of another image of its series ({len(extra)} such): the first at each is used"
        problems.append(Problem("duplicate position", extra[0].path, text, lost=False))
    if len(frames) > 2:
        frames, more = _unbroken(frames)
        problems += more
    return Stack(tuple(frames), affine_of(frames)), problems


def _unbroken(frames: list[Frame]) -> tuple[list[Frame], list[Problem]]:
    """The longest run of slices with none missing."""
    at = np.array([_along(f) for f in frames])
    steps = np.diff(at)
    usual = float(np.median(steps))
    breaks = np.flatnonzero(steps > GAP * usual)
    folder = frames[0].path.parent
    if len(breaks):
        missing = int(sum(round(s / usual) - 1 for s in steps[breaks]))
        edges = [0, *(int(b) + 1 for b in breaks), len(frames)]
        begin, end = max(zip(edges, edges[1:]), key=lambda run: run[1] - run[0])
        text = (
            f"about {missing} of {len(frames) + missing} slices are missing, in {len(breaks)} "
            f"place{'s' if len(breaks) > 1 else ''}: the longest unbroken run, {end - begin} slices, is used; "
            "export the series again to have it whole"
        )
        return frames[begin:end], [Problem("missing slices", folder, text, lost=False)]
    if float(np.abs(steps - usual).max()) > UNEVEN * usual:
        text = f"slices lie {steps.min():.2f} to {steps.max():.2f} mm apart: {np.mean(steps):.2f} mm is taken for all"
        return frames, [Problem("uneven slices", folder, text, lost=False)]
    return frames, []
