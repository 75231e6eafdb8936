"""`diffaug report`: everything that is known of a run, in one file that can be filed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_diffaug.cli.main import app


@app.command("report")
def report(
    run: Annotated[Path, typer.Argument(help="Folder that `diffaug expand` or `generate` wrote.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; report.html in the folder unless given.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Leave out pictures of patients.")] = False,
    with_paths: Annotated[bool, typer.Option("--with-paths", help="Name patients and files.")] = False,
) -> None:
    """Write a report of a run: what was made, and whether it is real, helps and leaks. One file, no network.

    It takes in what lies in the folder: scores.json (diffaug evaluate --out), utility.json (diffaug utility --out),
    audit.json (diffaug audit --out) and readers.json (diffaug review --analyze --json). What is missing is named.

    Examples:
      diffaug report more
      diffaug report more --share --out for_partners.html
    """
    from monai_diffaug.report.html import report as write

    written = write(run, out, share=share, with_paths=with_paths)
    typer.echo(f"{written}  {written.stat().st_size / 1e6:.1f} MB; open it in a browser, print it to PDF")
