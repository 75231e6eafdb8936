"""What a run's folder holds: the datalist, the job's settings, and whichever judgments have been made of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...io import sidecar
from ...types import DiffAugError

__all__ = ["COMMANDS", "LIST", "Run", "faults_of", "opened"]

LIST = "datalist.json"

COMMANDS = {
    "scores": "diffaug evaluate REAL RUN --out RUN/scores.json",
    "utility": "diffaug utility STUDY.json --out RUN/utility",
    "audit": "diffaug audit TRAIN RUN --unseen REAL --out RUN/audit.json",
    "readers": "diffaug review STUDY.sqlite --analyze --out RUN/readers.json",
}
"""The judgments that a report can hold, and the commands that write them: RUN/NAME.json, or RUN/NAME/NAME.json."""

LEAST_NAME = 4  # letters: shorter names would be struck out of ordinary words
_PATH = re.compile(
    r"(?<![\w:/.-])(?:[A-Za-z]:\\|~?/|\.{1,2}/)[^\s,;:'\"<>()]*[^\s,;:'\"<>().]"
    r"|[^\s,;:'\"<>()]+\.(?:nii\.gz|nii|png|jpe?g|dcm|json|sqlite|safetensors|csv)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Run:
    """A run's folder as it was read.

    ``head`` is the datalist without its entries; ``parts`` the judgments by name; ``share`` and ``with_paths`` what
    the report may show.
    """

    folder: Path
    head: Mapping[str, Any]
    entries: tuple[Mapping[str, Any], ...]
    job: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]
    share: bool = False
    with_paths: bool = False
    missing: list[str] = field(default_factory=list)

    def file(self, name: str) -> Path:
        """A file that the datalist names."""
        return self.folder / name

    @cached_property
    def positions(self) -> dict[str, int]:
        """File of a synthetic image -> its number in the datalist, from 1: what the report calls it."""
        return {str(self.file(str(e["image"])).resolve()): i for i, e in enumerate(self.entries, 1)}

    def number(self, path: str) -> int | None:
        """The number of a synthetic image by the path that a judgment gives."""
        for base in (Path(), self.folder, self.folder.parent):
            found = self.positions.get(str((base / path).resolve()))
            if found is not None:
                return found
        named = [n for p, n in self.positions.items() if Path(p).name == Path(path).name]
        return named[0] if len(named) == 1 else None

    @cached_property
    def _private(self) -> list[str]:
        """Whatever the datalist calls a patient or a file, the longest first."""
        names: set[str] = set()
        for entry in self.entries:
            said = [entry.get("patient"), entry.get("provenance", {}).get("source")]
            said += [entry.get(k) for k in ("source", "source_mask", "image", "mask")]
            for text in map(str, (s for s in said if s)):
                names |= {text, Path(text).name, _stem(text)}
        return sorted((n for n in names if len(n) >= LEAST_NAME), key=len, reverse=True)

    def scrubbed(self, text: Any) -> str:
        """Text of a file without names of patients and files, unless these are wanted."""
        said = str(text)
        if self.with_paths:
            return said
        said = _PATH.sub("(file)", said)
        for name in (n for n in self._private if n in said):
            said = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "(name)", said)
        return said

    @cached_property
    def provenances(self) -> list[Mapping[str, Any]]:
        """How each image was made: its record in the datalist, else the sidecar beside it."""
        found = []
        for entry in self.entries:
            said = entry.get("provenance")
            if not isinstance(said, Mapping):
                beside = sidecar.place(self.file(str(entry["image"])))
                said = _object(beside) if beside.is_file() else {}
            found.append(said)
        return found

    @cached_property
    def versions(self) -> dict[str, str]:
        """Software that made the images, by their sidecars; several versions of one are all named."""
        found: dict[str, set[str]] = {}
        for entry in self.entries:
            beside = sidecar.place(self.file(str(entry["image"])))
            said = _object(beside).get("versions", {}) if beside.is_file() else {}
            for name, version in dict(said).items():
                found.setdefault(str(name), set()).add(str(version))
        return {name: ", ".join(sorted(v)) for name, v in sorted(found.items())}

    def files(self) -> list[tuple[Path, str]]:
        """The files that the report rests on, and their SHA-256."""
        there = [self.folder / LIST, self.folder / "job.json", *(place_of(self.folder, p) for p in self.parts)]
        return [(p, digest(p)) for p in there if p.is_file()]


def place_of(folder: Path, part: str) -> Path:
    """Where a judgment lies: beside the datalist, or in a folder of its own."""
    own = folder / part / f"{part}.json"
    return own if own.is_file() else folder / f"{part}.json"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stem(text: str) -> str:
    name = Path(text).name
    return name[: -len(".nii.gz")] if name.endswith(".nii.gz") else Path(name).stem


def _object(path: Path, remedy: str = "make it anew") -> dict[str, Any]:
    """A JSON object.

    Raises:
        DiffAugError: there is none in the file; the line names the remedy.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DiffAugError(f"{path} cannot be read ({error.strerror}): change its permissions") from None
    except (ValueError, RecursionError) as error:
        raise DiffAugError(f"{path} is not JSON ({error}): {remedy}") from None
    if not isinstance(data, dict):
        raise DiffAugError(f"{path} holds a {type(data).__name__} where an object should be: {remedy}")
    return data


def opened(folder: str | Path, *, share: bool = False, with_paths: bool = False) -> Run:
    """Read a run's folder.

    Args:
        folder: what ``diffaug expand`` or ``generate`` wrote, with any of the judgments in it.
        share: the report leaves pictures of patients out.
        with_paths: the report names patients and files.

    Raises:
        DiffAugError: there is no datalist of synthetic images, a file is broken, or both ``share`` and ``with_paths``.
    """
    if share and with_paths:
        raise DiffAugError("a report for sharing names no patient: leave out --with-paths, or --share")
    folder = Path(folder).expanduser()
    folder = folder.parent if folder.name == LIST else folder
    if not (folder / LIST).is_file():
        raise DiffAugError(f"{folder} has no {LIST}: give the folder that `diffaug expand` or `diffaug generate` wrote")
    data = _object(folder / LIST, "run `diffaug expand` again, it goes on where it was")
    entries = data.pop("training", None)
    if not isinstance(entries, list) or not entries:
        raise DiffAugError(f"{folder / LIST} lists no image under 'training': there is nothing to report")
    for i, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise DiffAugError(f"{folder / LIST}, entry {i} has no 'image': run `diffaug expand` again")
    job = _object(folder / "job.json") if (folder / "job.json").is_file() else {}
    there = {name: path for name in COMMANDS if (path := place_of(folder, name)).is_file()}
    parts = {name: _object(path, f"make it anew with `{COMMANDS[name]}`") for name, path in there.items()}
    return Run(folder, data, tuple(entries), job, parts, share, with_paths)


@contextmanager
def faults_of(run: Run, part: str) -> Iterator[None]:
    """What is wrong with a judgment's file becomes one line that names it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DiffAugError(
            f"{place_of(run.folder, part)} is not what its command writes ({why}): make it anew with `{COMMANDS[part]}`"
        ) from None
