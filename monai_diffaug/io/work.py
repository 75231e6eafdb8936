"""One piece of an import: something that is read, made nameless, and written; and what all pieces are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .deidentify import Policy
from .problems import Problem
from .pseudonyms import Pseudonyms

__all__ = ["Result", "Rules", "Work"]


@dataclass(frozen=True)
class Rules:
    """How inputs become images.

    Attributes:
        out: the output folder.
        names: give the pseudonyms.
        policy: what of the patient may stay.
        dims: 2 for each slice as an image of its own, 3 for volumes only, 0 for what there is.
        spacing: voxel size in mm to which volumes are brought; empty to leave them.
        keep_dicom: copy the DICOM files too, de-identified.
        allow_burned_in: take images with writing in them.
        compress: NIfTI with gzip.
        modality: of inputs that do not say it themselves.
    """

    out: Path
    names: Pseudonyms
    policy: Policy = field(default_factory=Policy)
    dims: int = 0
    spacing: tuple[float, ...] = ()
    keep_dicom: bool = False
    allow_burned_in: bool = False
    compress: bool = True
    modality: str = ""

    @property
    def ending(self) -> str:
        """Of volumes."""
        return ".nii.gz" if self.compress else ".nii"


@dataclass
class Result:
    """What became of a piece: entries of the datalist (paths relative to the output folder), and what was wrong."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: int = 0


class Work(Protocol):
    """A piece of an import. It can be pickled, so that another process may do it."""

    @property
    def patient(self) -> str:
        """The hospital's identifier."""

    @property
    def split(self) -> str:
        """``train``, ``validation``, ``test`` or ``splits.REST`` if the input says so, else nothing."""

    @property
    def place(self) -> Path:
        """A file or folder to name it by, on the screen."""

    def name(self, names: Pseudonyms) -> str:
        """A file name for it that names nobody."""

    def content(self, names: Pseudonyms) -> str:
        """A hash of what there is to do: with other files the piece is done again."""

    def run(self, rules: Rules) -> Result:
        """Do it."""
