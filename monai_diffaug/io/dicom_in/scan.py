"""The DICOM series in a folder tree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from ..importing import Found
from ..problems import BadInput, Problem
from .convert import Series
from .headers import Frame, files_in, frames_of, is_dicom

__all__ = ["grouped", "scan"]

Progress = Callable[[int, int, str], None]


def scan(folder: Path, modalities: Sequence[str] = (), progress: Progress | None = None) -> Found:
    """Look at every file of a folder tree, whatever its name.

    Args:
        folder: the tree; with or without a DICOMDIR, which is not needed.
        modalities: those wanted, such as ``CT``; all unless given.
        progress: called with the number of files seen, 0 and a file's name.
    """
    frames: list[Frame] = []
    problems: list[Problem] = []
    passed: Counter[str] = Counter()
    count = 0
    for count, path in enumerate(files_in(folder), 1):
        try:
            if not is_dicom(path):
                passed["not DICOM"] += 1
                continue
            there = frames_of(path)
        except BadInput as error:
            problems.append(error.problem)
            continue
        except OSError as error:
            why = error.strerror or type(error).__name__
            problems.append(Problem("unreadable", path, f"cannot be read ({why}): change its permissions"))
            continue
        passed["no image"] += not there
        frames += there
        if progress is not None and count % 20 == 0:
            progress(count, 0, path.name)
    works, more = grouped(frames, modalities)
    passed = +passed
    return Found(works, len(works), count, passed, [*problems, *more])


def grouped(frames: Sequence[Frame], modalities: Sequence[str] = ()) -> tuple[list[Series], list[Problem]]:
    """Frames by patient, study and series, in a fixed order; and what is odd about them."""
    groups: dict[tuple[str, str, str], list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[frame.patient, frame.study, frame.series].append(frame)
    problems = []
    wanted = {m.upper() for m in modalities}
    works = []
    nameless: set[str] = set()
    for key in sorted(groups):
        first = groups[key][0]
        if wanted and first.modality not in wanted:
            kinds = ", ".join(sorted(wanted))
            text = f"the series is {first.modality}, not {kinds}: left out because of --modality"
            problems.append(Problem("wrong modality", first.path, text))
            continue
        if not first.named and first.study not in nameless:
            nameless.add(first.study)
            text = "has no patient ID: its study counts as a patient of its own"
            problems.append(Problem("no patient id", first.path, text, lost=False))
        works.append(Series(tuple(groups[key])))
    return works, problems
