"""`diffaug import`: hospital files in, nameless images and a datalist out."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monai_diffaug.cli.main import app, as_json, note

if TYPE_CHECKING:
    from monai_diffaug.io.importing import Imported
    from monai_diffaug.io.problems import Problem

__all__: list[str] = []

SHOWN = 3  # lines of one kind of remark, before the rest is only counted


@app.command("import")
def import_images(
    source: Annotated[str, typer.Argument(help="A folder (DICOM, NIfTI, BIDS, nnU-Net raw), or a DICOMweb address.")],
    out: Annotated[Path, typer.Option(help="A new folder, or that of an import that was stopped: it goes on.")],
    modality: Annotated[
        list[str] | None, typer.Option(help="DICOM: only this modality; again for more. NIfTI: what it is.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="hash, fractions (0.7,0.1,0.2), CSV or JSON file; the source's own or hash unless given."),
    ] = "",
    seed: Annotated[int, typer.Option(help="For fractions: another choice of patients.")] = 0,
    dims: Annotated[int, typer.Option(min=0, max=3, help="2: each slice by itself; 3: volumes only; 0: as it is.")] = 0,
    spacing: Annotated[str, typer.Option(help="Bring volumes to this voxel size in mm: 1, or 1,1,3.")] = "",
    keep_dicom: Annotated[bool, typer.Option("--keep-dicom", help="Copy the DICOM too, de-identified.")] = False,
    keep_secret: Annotated[
        Path | None, typer.Option(help="File with the key of the pseudonyms, outside of OUT; made if it is not there.")
    ] = None,
    dates: Annotated[
        str, typer.Option(help="In DICOM copies: drop, or shift by days that are the patient's.")
    ] = "drop",
    characteristics: Annotated[
        bool, typer.Option("--keep-characteristics", help="Keep age (90 at most) and sex.")
    ] = False,
    allow_burned_in: Annotated[
        bool, typer.Option("--allow-burned-in", help="Take images that have writing in them.")
    ] = False,
    patient_pattern: Annotated[
        str, typer.Option(help="NIfTI: regular expression whose first group finds the patient in a file's path.")
    ] = "",
    patient: Annotated[
        list[str] | None, typer.Option(help="DICOMweb: only this patient ID (* and ? match); again for more.")
    ] = None,
    compress: Annotated[bool, typer.Option(help="Write .nii.gz rather than .nii.")] = True,
    workers: Annotated[int, typer.Option(min=0, help="Processes; as many as there are processors unless given.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad input.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Bring images out of the hospital's files: de-identified, divided by patient, with a datalist for MONAI.

    It may be stopped at any moment; run again, it goes on. An access token for DICOMweb is read from the variable
    DIFFAUG_DICOMWEB_TOKEN.

    Examples:
      diffaug import /mnt/export --out brains --modality MR
      diffaug import /mnt/export --out scans --split 0.7,0.1,0.2 --keep-dicom --dates shift
      diffaug import nnUNet_raw/Dataset001_Liver --out liver --modality CT
      diffaug import https://pacs/dicom-web --out chest --patient "12*" --modality CR
    """
    from monai_diffaug.domains import part_of
    from monai_diffaug.io.intake import intake

    lines = _Lines()
    with _bar(json) as advance:
        done = intake(
            source,
            out,
            usual=part_of,
            secret=keep_secret,
            modality=tuple(modality or ()),
            split=split,
            seed=seed,
            dims=dims,
            spacing=spacing,
            keep_dicom=keep_dicom,
            dates=dates,
            characteristics=characteristics,
            allow_burned_in=allow_burned_in,
            patient_pattern=patient_pattern,
            patients=tuple(patient or ()),
            compress=compress,
            workers=workers,
            strict=strict,
            progress=advance,
            say=lines.say,
        )
    lines.rest()
    if json:
        as_json({"folder": str(done.folder), "datalist": str(done.datalist), **done.report})
    else:
        _table(done)


class _Lines:
    """Problems as lines on stderr; of mere remarks only the first few of a kind."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def say(self, problem: Problem) -> None:
        self.seen[problem.kind] += 1
        if problem.note and self.seen[problem.kind] > SHOWN:
            return
        note("skipped" if problem.lost else "note", problem.line, "33" if problem.lost else "36")

    def rest(self) -> None:
        from monai_diffaug.io.problems import NOTES

        for kind, count in self.seen.items():
            if kind in NOTES and count > SHOWN:
                note("note", f"{kind}: {count - SHOWN} more", "36")


def _bar(quiet: bool):  # type: ignore[no-untyped-def]  # a context manager of rich, imported late
    from contextlib import contextmanager

    @contextmanager
    def shown():  # type: ignore[no-untyped-def]
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(file=sys.stderr), disable=quiet or not sys.stderr.isatty()) as bar:
            task = bar.add_task("looking at files", total=None)

            def advance(done: int, total: int, last: str) -> None:
                words = "series" if total else "looking at files"
                bar.update(task, completed=done, total=total or None, description=words)

            yield advance

    return shown()


def _table(done: Imported) -> None:
    from rich.console import Console
    from rich.table import Table

    report = done.report
    table = Table("", "patients", "images", box=None, pad_edge=False)
    for part in ("train", "validation", "test"):
        table.add_row(part, str(report["patients_by_split"][part]), str(report["images_by_split"][part]))
    kinds = ", ".join(f"{n} {k}" for k, n in report["modalities"].items())
    print(f"{report['images']} images ({kinds}) from {report['files']} files in {report['seconds']:.0f} s")
    Console().print(table)
    for kind, count in report["passed_over"].items():
        print(f"  {count} files passed over: {kind}")
    for kind, count in report["problem_counts"].items():
        print(f"  {count} x {kind}")
    for name, path in (("folder", done.folder), ("datalist", done.datalist), ("report", done.folder / "import.json")):
        print(f"  {name:<9} {path}")
