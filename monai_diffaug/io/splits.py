"""Which patients are for training, for validation and for the test: always whole patients."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..types import DiffAugError

__all__ = ["PARTS", "REST", "SECTIONS", "Split", "parse"]

PARTS = ("train", "validation", "test")
SECTIONS = {"train": "training", "validation": "validation", "test": "test"}
"""What MONAI calls the parts in a datalist."""
REST = "not test"
"""What a source says of images outside of its test part, when it does not divide them further."""
_WORDS = {
    "training": "train",
    "tr": "train",
    "val": "validation",
    "valid": "validation",
    "ts": "test",
    "testing": "test",
}

Split = Callable[[Iterable[str]], dict[str, str]]
"""Pseudonyms of all patients -> part of each."""


def parse(text: str, seed: int, usual: Callable[[str], str], pseudonym: Callable[[str], str]) -> Split:
    """A split from what the user typed.

    Args:
        text: ``hash``; three fractions, as ``0.7,0.1,0.2``; or a CSV file with columns ``patient`` and ``split`` or a
            JSON file with a list of patients under each part, by the hospital's identifiers.
        seed: for fractions, another shuffle of the patients.
        usual: part of a patient by hash.
        pseudonym: of a hospital's identifier.

    Raises:
        DiffAugError: it is none of these, or a file puts a patient into two parts.
    """
    if text == "hash":
        return lambda patients: {p: usual(p) for p in patients}
    pieces = text.split(",")
    try:
        fractions = [float(p) for p in pieces]
    except ValueError:
        return _listed(_read(Path(text).expanduser()), pseudonym, text)
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DiffAugError(f"--split {text} are not three fractions that add up to 1: write for example 0.7,0.1,0.2")
    return lambda patients: _shares(patients, fractions, seed)


def _shares(patients: Iterable[str], fractions: list[float], seed: int) -> dict[str, str]:
    ranked = sorted(set(patients), key=lambda p: hashlib.sha256(f"{seed} {p}".encode()).digest())
    ends = [round(sum(fractions[: i + 1]) * len(ranked)) for i in range(3)]
    return {p: PARTS[next(k for k in range(3) if i < ends[k])] for i, p in enumerate(ranked)}


def _read(path: Path) -> list[tuple[str, str]]:
    """Pairs of patient and part, as the file has them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise DiffAugError(
            f"--split {path} is no file that can be read: give hash, three fractions, CSV or JSON"
        ) from None
    if path.suffix.lower() == ".json":
        try:
            data = json.loads(text)
        except ValueError:
            raise DiffAugError(f"{path} is not JSON: repair it") from None
        if not isinstance(data, Mapping) or not all(isinstance(v, list) for v in data.values()):
            raise DiffAugError(f"{path} has no lists of patients: write {{'train': [...], 'test': [...]}}")
        return [(str(p), str(part)) for part, some in data.items() for p in some]
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    if not rows or not {"patient", "split"} <= set(rows[0]):
        raise DiffAugError(f"{path} has no columns 'patient' and 'split': add that header")
    return [(str(r["patient"] or ""), str(r["split"] or "")) for r in rows]


def _listed(pairs: list[tuple[str, str]], pseudonym: Callable[[str], str], path: str) -> Split:
    where: dict[str, str] = {}
    for patient, word in pairs:
        part = word.strip().lower()
        part = _WORDS.get(part, part)
        if part not in PARTS:
            raise DiffAugError(f"{path} has a part {word!r}: use train, validation and test")
        if where.setdefault(pseudonym(patient), part) != part:
            raise DiffAugError(f"{path} has patient {patient} in two parts: keep one of them")

    def split(patients: Iterable[str]) -> dict[str, str]:
        missing = sorted(set(patients) - set(where))
        if missing:
            raise DiffAugError(f"{len(missing)} of the patients found are not in {path}: add them to it")
        return {p: where[p] for p in patients}

    return split
