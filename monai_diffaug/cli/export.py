"""`diffaug export`, `diffaug send`, `diffaug made`: synthetic images to the hospital, and how they were made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from monai_diffaug.cli.main import app, as_json

__all__: list[str] = []

JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command("export")
def export_images(
    source: Annotated[
        Path, typer.Argument(help="What `expand`, `generate` or `edit` wrote: the folder or its datalist.")
    ],
    out: Annotated[Path, typer.Option(help="A folder for the DICOM series.")],
    modality: Annotated[
        str | None,
        typer.Option(help="CT, MR, CR, DX, ...; OT, a secondary capture, unless given."),
    ] = None,
    burned_in: Annotated[bool, typer.Option("--burned-in", help="Draw the word SYNTHETIC into each image.")] = False,
    flag: Annotated[
        bool, typer.Option("--flag", help="Write Synthetic Data (0008,001C), which validators before 2023 do not know.")
    ] = False,
    json: JSON = False,
) -> None:
    """Write synthetic NIfTI, PNG or JPEG images as derived DICOM series, and their masks as DICOM segmentations.

    DICOM in is DICOM out already; this is for what came in as something else. Run again, it goes on.

    Examples:
      diffaug expand brain_mri -m sdedit -b brain_mri --out more
      diffaug export more --modality MR --out dicom
      diffaug send dicom --to PACS@10.0.0.5:104
    """
    from monai_diffaug.io.exporting import export

    with _progress("images", json) as advance:
        series = export(source, out, modality=modality, burned_in=burned_in, flag=flag, progress=advance)
    if json:
        as_json({"folder": str(out), "series": [str(p) for p in series]})
    else:
        print(f"{len(series)} DICOM series\n  folder    {out}")


@app.command("send")
def send_files(
    source: Annotated[Path, typer.Argument(help="A folder with synthetic DICOM files, or one.")],
    to: Annotated[str, typer.Option(help="TITLE@host:port (C-STORE), or the https:// address of a DICOMweb service.")],
    calling: Annotated[str, typer.Option(help="The title by which the archive knows us.")] = "DIFFAUG",
    json: JSON = False,
) -> None:
    """Store synthetic DICOM files in an archive. It may be stopped at any moment; run again, it goes on.

    What does not say that it is synthetic is not sent. A DICOMweb service's user and password come from ~/.netrc.

    Examples:
      diffaug send dicom --to PACS@10.0.0.5:104
      diffaug send dicom --to https://pacs.example.org/dicom-web
    """
    from monai_diffaug.io.pacs import send

    with _progress("files", json) as advance:
        outcome = send(source, to, calling=calling, progress=advance)
    if json:
        as_json({"sent": outcome.now, "before": outcome.before, "to": outcome.to})
    else:
        before = f", {outcome.before} by an earlier run" if outcome.before else ""
        print(f"{outcome.now} file{'s' if outcome.now != 1 else ''} stored in {outcome.to}{before}")


@app.command("made")
def how_made(
    files: Annotated[list[Path], typer.Argument(help="Synthetic images: DICOM, NIfTI, PNG, JPEG.")],
    json: JSON = False,
) -> None:
    """Say how synthetic images were made, as their sidecars or the files themselves tell.

    Examples:
      diffaug made more/images/*.png
      diffaug made dicom/image0001_sdedit_1 --json
    """
    from monai_diffaug.io import sidecar

    said = {str(file): sidecar.of(file) for file in files}
    if json:
        as_json(said)
        return
    for file, facts in said.items():
        print(file)
        for key, value in facts.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            print(f"  {key:<16} {shown}")


@contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    name = TextColumn("[dim]{task.fields[last]}")
    with Progress(*columns, name, console=Console(file=sys.stderr), disable=quiet and not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None, last="")
        yield lambda done, total, last: bar.update(task, completed=done, total=total, last=last)
