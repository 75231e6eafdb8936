"""`diffaug utility`: does it help?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monai_diffaug.cli.main import app, as_json, note

if TYPE_CHECKING:
    from rich.table import Table

    from monai_diffaug.evaluation.utility import Study, Utility
    from monai_diffaug.evaluation.utility.cells import Done


@app.command("utility")
def utility(
    study: Annotated[Path, typer.Argument(help="The study, a JSON file (`docs/howto/does_it_help.md`).")],
    out: Annotated[Path, typer.Option(help="A new folder, or that of a study that was stopped: it goes on.")],
    data: Annotated[Path | None, typer.Option(help="The folder that the study's data lie in.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much there is to do, and end.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print utility.json, or with --dry-run what there is to do.")
    ] = False,
) -> None:
    """Train a network with and without synthetic images, and say on real patients which helps.

    It may be stopped at any moment; run again, it goes on. OUT gets utility.json, table.csv and curves.png.

    Examples:
      diffaug utility studies/brain_tumor_classification.json --data DATA --out utility --dry-run
      diffaug utility studies/brain_tumor_segmentation.json --data DATA --out utility
    """
    from monai_diffaug.evaluation.utility import forecast, opened
    from monai_diffaug.evaluation.utility import utility as run
    from monai_diffaug.evaluation.utility.shown import draw, write_table
    from monai_diffaug.expand.studied import produce

    asked = opened(study)
    if dry_run:
        _tell_forecast(forecast(asked, out, produce, data), json)
        return
    with _filling(asked, quiet=json) as watch:
        found = run(asked, out, produce, data, watch=watch)
    said = found.to_dict()
    write_table(said, out / "table.csv")
    draw(said, out / "curves.png")
    if json:
        as_json(said)
    else:
        _tell(found, out)


def _tell_forecast(found: Any, json: bool) -> None:
    if json:
        as_json({**vars(found), "seconds": found.seconds})
        return
    minutes = found.seconds / 60
    print(
        f"{found.trainings} trainings, {found.done} of them done; about {found.seconds_each:.1f} s each, "
        f"{minutes:.0f} min for those that are left"
    )
    for arm, n in found.images.items():
        print(f"  {n} synthetic images for {arm}, made once")


@contextmanager
def _filling(study: Study, quiet: bool) -> Iterator[Callable[[Done, int, int], None]]:
    """A table on stderr that fills in as trainings end."""
    from rich.console import Console
    from rich.live import Live

    from monai_diffaug.evaluation.utility.shown import Filling

    console, filling = Console(stderr=True), Filling(study)
    if not console.is_terminal:
        yield lambda done, n, total: None if quiet else print(f"{n} of {total}: {done.cell.name}", flush=True)
        return
    with Live(_table(filling), console=console, auto_refresh=False) as live:

        def watch(done: Done, n: int, total: int) -> None:
            filling.add(done)
            live.update(_table(filling, f"{n} of {total} trainings"), refresh=True)

        yield watch


def _table(filling: Any, title: str = "loading") -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("arm", no_wrap=True)
    for column in filling.columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in filling.rows():
        table.add_row(*row)
    return table


def _tell(found: Utility, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    study, metric = found.study, found.study.metrics[0]
    control = next(a.name for a in study.arms if a.kind == "classical")
    console = Console(width=max(Console().width, 110))
    table = Table(title=f"{metric}: difference to {control} on test patients", title_justify="left")
    for column in ("arm", "patients", "ratio", "difference", "95 % interval", "p", "p, Holm"):
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for c in found.comparisons:
        if c.metric == metric and c.control == control:
            low, high = c.interval
            style = "" if low <= 0 <= high else "green" if c.p_corrected < 0.05 else "yellow"
            ends = f"{low:+.3f} to {high:+.3f}"
            row = (c.arm, str(c.patients), f"{c.ratio:g}", f"{c.difference:+.3f}", ends, f"{c.p:.3f}")
            table.add_row(*row, f"{c.p_corrected:.3f}", style=style)
    console.print(table)
    typer.echo("Green: beyond chance after Holm's correction; yellow: only before it.")
    for line in found.limitations:
        note("limitation", line, "33")
    for name in ("utility.json", "table.csv", "curves.png"):
        print(f"  {out / name}")
