"""A DICOM series to NIfTI volumes or PNG pictures, and to DICOM files without the patient."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..atomic import write_bytes
from ..burned_in import STRICT, writing_in
from ..deidentify import age_of, deidentified
from ..problems import BadInput, Problem
from ..pseudonyms import Pseudonyms
from ..volumes import codes_of, nifti_bytes, resampled
from ..work import Result, Rules
from .headers import Frame
from .pixels import decoder_missing, picture, volume
from .series import Stack, affine_of, stacked

__all__ = ["Series"]

LONG = 3.0  # a voxel this much longer than wide is told


@dataclass(frozen=True)
class Series:
    """All frames of one series: one piece of an import."""

    frames: tuple[Frame, ...]
    split: str = ""

    @property
    def patient(self) -> str:
        """The hospital's identifier."""
        return self.frames[0].patient

    @property
    def place(self) -> Path:
        """A file or folder to name it by."""
        first = self.frames[0].path
        return first if all(f.path == first for f in self.frames) else first.parent

    def name(self, names: Pseudonyms) -> str:
        """Patient and series, as pseudonyms."""
        first = self.frames[0]
        return f"{names.patient(first.patient)}_{names.token(f'{first.study} {first.series}')}"

    def content(self, names: Pseudonyms) -> str:
        """Hash over the instances."""
        text = " ".join(sorted(f"{f.sop}:{f.index}" for f in self.frames))
        return hashlib.sha256((names.token(text)).encode()).hexdigest()[:16]

    def run(self, rules: Rules) -> Result:
        """Write what the series holds."""
        result = Result(files=len({f.path for f in self.frames}))
        frames = [f for f in self.frames if not f.cut]
        for cut in {f.path: f for f in self.frames if f.cut}.values():
            result.problems.append(Problem("truncated", cut.path, "the file ends before its pixels do: copy it again"))
        while frames:
            made = _Conversion(self.name(rules.names), rules)
            try:
                stacks, problems = stacked(frames, pictures=rules.dims == 2)
                for stack in stacks:
                    made.take(stack)
            except BadInput as error:  # one file is bad: the rest of the series is looked at again, without it
                made.undo()
                result.problems.append(error.problem)
                frames = _spared(frames, error.problem)
                continue
            except BaseException:
                made.undo()
                raise
            result.entries, result.problems = made.entries, [*result.problems, *problems, *made.problems]
            break
        return result


def _spared(frames: Sequence[Frame], problem: Problem) -> list[Frame]:
    """What of a series is left when one of its files is bad."""
    bad = next(f for f in frames if f.path == problem.file)
    if problem.kind == "no decoder":
        return [f for f in frames if f.syntax != bad.syntax]
    if problem.kind == "burned-in text" and bad.placed:  # the other slices of a volume are no better
        return []
    return [f for f in frames if f.path != bad.path]


class _Conversion:
    """The files that are written for a series, so that they can be taken back if it fails half-way."""

    def __init__(self, name: str, rules: Rules):
        self.name, self.rules = name, rules
        self.entries: list[dict[str, Any]] = []
        self.problems: list[Problem] = []
        self.written: list[Path] = []
        self.stacks = 0

    def undo(self) -> None:
        for path in self.written:
            path.unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> str:
        path = self.rules.out / name
        self.written.append(path)
        write_bytes(path, data)
        return name

    def take(self, stack: Stack) -> None:
        """Write one stack."""
        self.stacks += 1
        missing = decoder_missing(stack.frames[0])
        if missing is not None:
            raise BadInput(missing)
        tagged = next((f for f in stack.frames if f.burned), None)
        if tagged is not None:
            self._writing(tagged, "says that it has writing burned in")
        stem = self.name if self.stacks == 1 else f"{self.name}-{self.stacks}"
        if stack.affine is None:
            self._pictures(stack, stem)
        else:
            self._volume(stack, stack.affine, stem)

    def _writing(self, frame: Frame, what: str) -> None:
        remedy = "it is taken because of --allow-burned-in" if self.rules.allow_burned_in else ""
        text = f"{what}: {remedy or 'look at it, and give --allow-burned-in if it names nobody'}"
        problem = Problem("burned-in text", frame.path, text, lost=not self.rules.allow_burned_in)
        if not self.rules.allow_burned_in:
            raise BadInput(problem)
        self.problems.append(problem)

    # ------------------------------------------------------------------------------------------------- volumes

    def _volume(self, stack: Stack, affine: np.ndarray, stem: str) -> None:
        rules, first = self.rules, stack.frames[0]
        count = len(stack.frames)
        if count == 1 and rules.dims != 2:
            text = "the series has one slice: " + (
                "left out because of --dims 3" if rules.dims == 3 else "it becomes a slice of its own, not a volume"
            )
            self.problems.append(Problem("one slice", first.path, text, lost=rules.dims == 3))
            if rules.dims == 3:
                return
        voxels = volume(stack)
        self._look(stack, voxels)
        step = stack.step
        if not rules.spacing and count > 1 and rules.dims != 2 and max(step) > LONG * min(step):
            size = " x ".join(f"{s:.3g}" for s in step)
            text = f"its voxels are {size} mm: --spacing {min(step):.2g} makes them cubes, if the method needs that"
            self.problems.append(Problem("anisotropic", first.path.parent, text, lost=False))
        if rules.dims == 2:
            for i, frame in enumerate(stack.frames):
                self._nifti(voxels[:, :, i : i + 1], affine_of([frame]), f"{stem}_{i + 1:04d}", [frame])
        else:
            self._nifti(voxels, affine, stem, stack.frames)

    def _nifti(self, voxels: np.ndarray, affine: np.ndarray, stem: str, frames: Sequence[Frame]) -> None:
        rules = self.rules
        if rules.spacing:
            voxels, affine = resampled(voxels, affine, rules.spacing)
        image = self._write(f"images/{stem}{rules.ending}", nifti_bytes(voxels, affine, rules.compress))
        spacing = [round(float(v), 4) for v in np.sqrt((affine[:3, :3] ** 2).sum(0))]
        units = {"units": "HU"} if frames[0].modality == "CT" else {}
        self._entry(image, frames, {"spacing": spacing, "orientation": codes_of(affine), **units})

    def _look(self, stack: Stack, voxels: np.ndarray) -> None:
        """Writing in the first, the middle or the last slice, as on a screen."""
        count = voxels.shape[2]
        for i in sorted({0, count // 2, count - 1}):
            plane = voxels[:, :, i].T.astype(np.float32)
            low, high = (-1000, 1000) if stack.frames[0].modality == "CT" else np.percentile(plane, (0.5, 99.9))
            if writing_in(np.clip(plane, low, high), STRICT):
                self._writing(stack.frames[i], "seems to have writing burned in")
                return

    # ------------------------------------------------------------------------------------------------ pictures

    def _pictures(self, stack: Stack, stem: str) -> None:
        by_file: dict[Path, list[Frame]] = {}
        for frame in stack.frames:
            by_file.setdefault(frame.path, []).append(frame)
        number = 0
        for frames in by_file.values():
            images = picture(frames)
            looked_at = sorted({0, len(images) - 1})
            if any(writing_in(images[i]) for i in looked_at):
                self._writing(frames[0], "seems to have writing burned in")
            for frame, image in zip(frames, images):
                number += 1
                name = stem if len(stack.frames) == 1 else f"{stem}_{number:04d}"
                more: dict[str, Any] = {}
                if frame.spacing is not None:
                    more["spacing"] = [round(frame.spacing[1], 4), round(frame.spacing[0], 4)]
                if len(frames) > 1:
                    more["frame"] = number
                self._entry(self._write(f"images/{name}.png", _png(image)), [frame], more)

    # -------------------------------------------------------------------------------------------------- entries

    def _entry(self, image: str, frames: Sequence[Frame], more: dict[str, Any]) -> None:
        names, first = self.rules.names, frames[0]
        entry: dict[str, Any] = {"image": image, "patient": names.patient(first.patient), "modality": first.modality}
        entry |= more
        entry |= {"study": names.token(first.study), "series": names.token(f"{first.study} {first.series}")}
        if self.rules.policy.characteristics:
            years = age_of(first.age)
            entry |= {} if years is None else {"age": years}
            entry |= {"sex": first.sex} if first.sex in ("F", "M", "O") else {}
        if self.rules.keep_dicom:
            entry["dicom"] = self._copies(frames)
        self.entries.append(entry)

    def _copies(self, frames: Sequence[Frame]) -> list[str]:
        """De-identified files of the frames; one that is there already for another frame is not written again."""
        from pydicom import dcmread

        out = []
        for path in dict.fromkeys(f.path for f in frames):
            frame = next(f for f in frames if f.path == path)
            name = f"dicom/{self.name}/{self.rules.names.token(frame.sop)}.dcm"
            if self.rules.out / name not in self.written:
                data = dcmread(path, force=True)
                if not data.get("SOPClassUID") or not data.get("SOPInstanceUID"):
                    text = "has no SOP class or instance UID and cannot be copied as DICOM: leave --keep-dicom out"
                    raise BadInput(Problem("unreadable", path, text))
                if "TransferSyntaxUID" not in data.file_meta:
                    from pydicom.uid import UID

                    data.file_meta.TransferSyntaxUID = UID(frame.syntax)
                self._write(name, deidentified(data, self.rules.names, frame.patient, self.rules.policy, path))
            out.append(name)
        return out


def _png(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
