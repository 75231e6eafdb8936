"""What is wrong with an input: one line for the user, and the same without a name for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..types import DiffAugError

__all__ = ["NOTES", "UNREACHABLE", "BadInput", "Problem"]

UNREACHABLE = "unreachable"
"""The kind of problem that may be gone when the job is run again."""


NOTES = {"anisotropic", "one slice", "no patient id", "wrong modality", "each file a patient", "no mask"}


@dataclass(frozen=True)
class Problem:
    """Something that the user should know about one input.

    Attributes:
        kind: in a few words, to count by.
        file: the file or folder, by its real name; may itself name a patient, so it goes to the screen only.
        text: what is wrong and what mends it; never holds anything that was read from the file's identity.
        lost: whether something was left out because of it.
    """

    kind: str
    file: Path
    text: str
    lost: bool = True

    @property
    def note(self) -> bool:
        """Whether it is only worth knowing, and no reason to stop a strict job."""
        return self.kind in NOTES

    @property
    def line(self) -> str:
        """For the screen."""
        return f"{self.file}: {self.text}"

    def told(self, token: str) -> Mapping[str, Any]:
        """For the report: ``token`` stands for the file."""
        return {"kind": self.kind, "file": token, "text": self.text, "lost": self.lost}


class BadInput(DiffAugError):  # noqa: N818 - a problem on its way up
    """An input cannot be used."""

    def __init__(self, problem: Problem):
        super().__init__(problem.line)
        self.problem = problem

    def __reduce__(self) -> tuple[type[BadInput], tuple[Problem]]:
        return BadInput, (self.problem,)
