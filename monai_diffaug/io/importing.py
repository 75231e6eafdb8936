"""The import job: hospital files in, images, a datalist and a report out. It may be killed and run again.

job.json           the settings; a run with others is refused
images/ masks/ dicom/
records/NAME.json  one for each series or case, written last: where it is, the piece is done
datalist.json      at the end, from the records
import.json        what was found, what was left out and why; names no file and no patient
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..types import DiffAugError
from . import atomic, datalist
from .problems import UNREACHABLE, BadInput, Problem
from .splits import PARTS, REST, SECTIONS, Split
from .work import Result, Rules, Work

__all__ = ["Found", "Imported", "import_all"]

LIST, REPORT = "datalist.json", "import.json"
FOLDERS = ("images", "masks", "dicom")
MANY = 300  # files, from which on several processes are worth their start
Progress = Callable[[int, int, str], None]
Say = Callable[[Problem], None]


@dataclass
class Found:
    """What a source holds.

    Attributes:
        works: the pieces; an iterator where they come one by one over the network.
        total: how many there are.
        files: files looked at, ``passed_over`` those of them that are no images (of what kind, how many).
        problems: files that cannot be read.
        head: for the datalist, such as its license and the names of its labels.
        divided: whether the parts that the source itself tells are to be kept.
    """

    works: Iterable[Work]
    total: int
    files: int = 0
    passed_over: Mapping[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    head: Mapping[str, Any] = field(default_factory=dict)
    divided: bool = True


@dataclass(frozen=True)
class Imported:
    """What an import came to; ``report`` is what ``import.json`` says."""

    folder: Path
    datalist: Path
    report: Mapping[str, Any]


def import_all(
    found: Found,
    rules: Rules,
    split: Split,
    settings: Mapping[str, Any],
    *,
    strict: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Imported:
    """Do the pieces that are not done yet, then write datalist and report.

    Args:
        found: the pieces.
        rules: how they become images.
        split: which patient is for what.
        settings: all that the result depends on, for a run that goes on later. Nothing in it may identify anybody.
        strict: stop at the first input that is not as it should be.
        workers: processes; as many as there are processors unless given.
        progress: called with pieces done, pieces in all and the name of the last.
        say: called with every problem.

    Raises:
        DiffAugError: the folder holds something else or cannot be written, nothing could be imported, a patient is in
            two parts, or, with ``strict``, an input is bad.
    """
    begin = time.monotonic()
    with atomic.claimed(rules.out):
        atomic.clear(rules.out)
        _settled(rules.out, {**settings, "secret": rules.names.fingerprint})
        job = _Job(rules, strict, say, progress, found.total, found.files)
        for problem in found.problems:
            job.tell(problem)
        job.walk(found.works, workers)
        _forget(rules.out, job.names)
        records = [
            json.loads(job.record(name).read_text(encoding="utf-8"))
            for name in sorted(job.names)
            if job.record(name).is_file()
        ]
        entries = [{**e, "split": r["split"] if found.divided else ""} for r in records for e in r["entries"]]
        if not entries:
            raise DiffAugError(f"nothing was imported: {job.first_problem or 'the source holds no image'}")
        _divide(entries, split)
        by_part = {part: [e for e in entries if e["split"] == part] for part in PARTS}
        rest = {SECTIONS[p]: by_part[p] for p in PARTS[1:]}
        about = {"licence": "unknown", **{k: v for k, v in found.head.items() if v}}
        head = {"description": "imported by monai-diffaug, de-identified", **about, **rest}
        datalist.write(rules.out / LIST, by_part["train"], head)
        report = _report(found, records, entries, [*map(job.told, found.problems), *job.passing], rules)
        report["seconds"] = round(time.monotonic() - begin, 2)
        atomic.write_json(rules.out / REPORT, report)
    return Imported(rules.out, rules.out / LIST, report)


def _settled(out: Path, settings: Mapping[str, Any]) -> None:
    """Begin a job, or make sure that this one was begun with the same settings."""
    file = out / "job.json"
    wanted = json.loads(json.dumps(settings))
    if not file.is_file():
        others = sorted(p.name for p in out.iterdir())
        if others:
            raise DiffAugError(f"{out} holds other files ({', '.join(others[:3])}): give a new or an empty folder")
        atomic.write_json(file, wanted)
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise DiffAugError(f"{file} cannot be read: give a new output folder") from None
    changed = [k for k in {**wanted, **before} if wanted.get(k) != before.get(k)]
    if changed:
        what = "; ".join(f"{k}: {before.get(k)} there, {wanted.get(k)} here" for k in changed[:4])
        raise DiffAugError(
            f"{out} holds an import with other settings ({what}): repeat those, or give a new output folder"
        )


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Job:
    def __init__(self, rules: Rules, strict: bool, say: Say | None, progress: Progress | None, total: int, files: int):
        self.rules, self.strict, self.say, self.progress, self.total = rules, strict, say, progress, total
        self.names: dict[str, Work] = {}
        self.first_problem = ""
        self.passing: list[Mapping[str, Any]] = []
        self.done, self.files = 0, files

    def record(self, name: str) -> Path:
        return self.rules.out / "records" / f"{name}.json"

    def told(self, problem: Problem) -> Mapping[str, Any]:
        return problem.told("file-" + self.rules.names.token(str(problem.file)))

    def tell(self, problem: Problem) -> None:
        self.first_problem = self.first_problem or problem.line
        if self.strict and not problem.note:
            raise BadInput(problem)
        if self.say is not None:
            self.say(problem)

    def walk(self, works: Iterable[Work], workers: int) -> None:
        """Do what is not done, here or in processes of their own."""
        count = workers or (_processors() if self.files >= MANY else 1)  # a process takes seconds to start
        if count <= 1 or self.total <= 1:
            for work, content in self._missing(works):
                self.keep(work, content, work.run(self.rules))
            return
        # The children must not inherit locks that a thread of the parent holds.
        from multiprocessing import get_context

        with ProcessPoolExecutor(min(count, self.total), mp_context=get_context("spawn")) as pool:
            waiting: list[tuple[Work, str, Future[Result]]] = []
            try:
                for work, content in self._missing(works):
                    waiting.append((work, content, pool.submit(work.run, self.rules)))
                    while len(waiting) > 4 * count:
                        self._next(waiting)
                while waiting:
                    self._next(waiting)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _next(self, waiting: list[tuple[Work, str, Future[Result]]]) -> None:
        work, content, future = waiting.pop(0)
        self.keep(work, content, future.result())

    def _missing(self, works: Iterable[Work]) -> Iterator[tuple[Work, str]]:
        for work in works:
            name, content = work.name(self.rules.names), work.content(self.rules.names)
            self.names[name] = work
            try:
                before = json.loads(self.record(name).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                before = {}
            if before.get("content") == content:
                self._past(name)
            else:
                yield work, content

    def keep(self, work: Work, content: str, result: Result) -> None:
        """Write the record of a piece that was done."""
        name = work.name(self.rules.names)
        for problem in result.problems:
            self.tell(problem)
        if any(problem.kind == UNREACHABLE for problem in result.problems):  # another run may be luckier
            self.passing += map(self.told, result.problems)
            self._past(name)
            return
        record = {
            "content": content,
            "files": result.files,
            "split": work.split,
            "entries": result.entries,
            "problems": [*map(self.told, result.problems)],
        }
        atomic.write_json(self.record(name), record)
        self._past(name)

    def _past(self, name: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, max(self.total, self.done), name)


def _forget(out: Path, names: Iterable[str]) -> None:
    """Take away files that no record names any more: of a piece that was done anew, or is no longer in the source."""
    known = set(names)
    for record in (out / "records").glob("*.json"):
        if record.stem not in known:
            record.unlink()
    kept: set[Path] = set()
    for record in (out / "records").glob("*.json"):
        for entry in json.loads(record.read_text(encoding="utf-8"))["entries"]:
            paths = [*entry.values(), *entry.get("dicom", ())]
            kept |= {out / p for p in paths if isinstance(p, str) and p.startswith(FOLDERS)}
    for folder in FOLDERS:
        for path in (out / folder).rglob("*") if (out / folder).is_dir() else ():
            if path.is_file() and path not in kept:
                path.unlink()


def _divide(entries: Sequence[dict[str, Any]], split: Split) -> None:
    """Give every entry its part: the source's own where it has one, for all images of the patient."""
    own: dict[str, set[str]] = {}
    for entry in entries:
        if entry["split"]:
            own.setdefault(entry["patient"], set()).add(entry["split"])
    torn = {patient: sorted(told) for patient, told in own.items() if len(told) > 1}
    if torn:
        patient, names = next(iter(torn.items()))
        raise DiffAugError(
            f"the source has {len(torn)} of its patients in two parts, {patient} in {' and '.join(names)}: "
            "give --split hash to divide anew by patient, or correct the source"
        )
    parts = split(sorted({e["patient"] for e in entries}))
    for patient, told in own.items():
        (part,) = told
        # Where the source has a test part, what is not in it is not for the test.
        parts[patient] = part if part != REST else "train" if parts[patient] == "test" else parts[patient]
    for entry in entries:
        entry["split"] = parts[entry["patient"]]


def _report(
    found: Found,
    records: Sequence[Mapping[str, Any]],
    entries: Sequence[Mapping[str, Any]],
    first: list[Any],
    rules: Rules,
) -> dict[str, Any]:
    problems = [*first, *(p for r in records for p in r["problems"])]
    patients = {part: len({e["patient"] for e in entries if e["split"] == part}) for part in PARTS}
    return {
        "files": found.files or sum(r["files"] for r in records),
        "passed_over": dict(found.passed_over),
        "series": len(records),
        "images": len(entries),
        "patients": sum(patients.values()),
        "modalities": dict(Counter(str(e.get("modality") or "?") for e in entries).most_common()),
        "patients_by_split": patients,
        "images_by_split": {part: sum(e["split"] == part for e in entries) for part in PARTS},
        "problem_counts": dict(Counter(p["kind"] for p in problems).most_common()),
        "left_out": sum(bool(p["lost"]) for p in problems),
        "deidentification": {
            "profile": "DICOM PS3.15 Basic Application Confidentiality Profile",
            "dates": rules.policy.dates,
            "characteristics": rules.policy.characteristics,
            "burned_in_allowed": rules.allow_burned_in,
        },
        "problems": problems,
    }
