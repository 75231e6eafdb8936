"""`diffaug evaluate`: is it real?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monai_diffaug.cli.main import app, as_json, note

if TYPE_CHECKING:
    from rich.table import Table

    from monai_diffaug.evaluation.groups import GroupScore


@app.command("evaluate")
def evaluate(
    real: Annotated[str, typer.Argument(help="Datalist or folder of real images that the generator never saw.")],
    synthetic: Annotated[str, typer.Argument(help="Datalist or folder of synthetic images.")],
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            help="Backbone with a judge, TorchScript file, or folder of timm or transformers; may be repeated."
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Side that images are fitted to.")] = 96,
    dims: Annotated[int | None, typer.Option(help="2 or 3; that of the first image unless given.")] = None,
    region: Annotated[
        str, typer.Option(help="Whose anatomy is measured too: chest, brain, none; auto looks at the real images.")
    ] = "auto",
    most: Annotated[int, typer.Option(help="Images of each set at most.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the random halves.")] = 0,
    by: Annotated[
        list[str] | None, typer.Option(help="Field whose groups are scored too (sex, age, sex+age); may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the scores here as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score synthetic images, every score beside that of real against real images.

    Examples:
      diffaug evaluate test/datalist.json synthetic/datalist.json
      diffaug evaluate test/ synthetic/ --extractor brain_mri --extractor dinov2/ --out scores.json
      diffaug evaluate test/datalist.json synthetic/datalist.json --by sex --by age
    """
    from rich.console import Console
    from rich.table import Table

    from monai_diffaug.backbones.extractors import DEFAULT
    from monai_diffaug.evaluation import evaluate as score
    from monai_diffaug.io.atomic import write_json

    found = score(
        real,
        synthetic,
        extractors=extractor or (DEFAULT,),
        size=size,
        dims=dims,
        most=most,
        seed=seed,
        by=by or (),
        region=region,
    )
    for line in found.skipped:
        note("skipped", line, "33")
    if out is not None:
        write_json(out, found.to_dict())
    if json:
        as_json(found.to_dict())
        return
    console = Console(width=max(Console().width, 120))
    console.print(f"{found.n_synthetic} synthetic against {found.n_real} real images, {found.dims}D", style="bold")
    for name in dict.fromkeys(s.extractor for s in found.scores):
        table = Table(title=f"by {name}" if name else "by the pixels themselves", title_justify="left")
        for column in ("score", "value", "95 % interval", "real against real", "its interval", "n"):
            table.add_column(column, justify="left" if column == "score" else "right", no_wrap=True)
        for s in (s for s in found.scores if s.extractor == name):
            ends = [f"{a:.4g} to {b:.4g}" for a, b in (s.interval, s.floor_interval)]
            style = "" if s.within_floor else "yellow"
            table.add_row(s.name, f"{s.value:.4g}", ends[0], f"{s.floor:.4g}", ends[1], str(s.n), style=style)
        console.print(table)
    for name in dict.fromkeys(g.attribute for g in found.groups):
        console.print(_grouped(name, [g for g in found.groups if g.attribute == name]))
    for line in found.notes:
        typer.echo(f"{line[0].upper()}{line[1:]}.")
    typer.echo("Colored: not as real images score against each other.")


def _grouped(attribute: str, rows: Sequence[GroupScore]) -> Table:
    from rich.table import Table

    table = Table(title=f"by {attribute}", title_justify="left")
    for column in ("score", "group", "value", "95 % interval", "real against real", "its interval", "n"):
        table.add_column(column, justify="left" if column in ("score", "group") else "right", no_wrap=True)
    for s in sorted(rows, key=lambda s: s.score):
        ends = [f"{a:.4g} to {b:.4g}" for a, b in (s.interval, s.floor_interval)]
        table.add_row(s.score, s.group, f"{s.value:.4g}", ends[0], f"{s.floor:.4g}", ends[1], str(s.n))
    return table
