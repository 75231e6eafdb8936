"""`diffaug audit`: does it leak?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monai_diffaug.cli.main import app, as_json, note

if TYPE_CHECKING:
    from monai_diffaug.audit.audit import Audit

Progress = Callable[[str, int], Callable[[int], None]]


@app.command("audit")
def audit(
    train: Annotated[str, typer.Argument(help="Datalist or folder of the images that the generator was trained on.")],
    synthetic: Annotated[str, typer.Argument(help="Datalist or folder of synthetic images.")],
    unseen: Annotated[str, typer.Option(help="Real images of other patients, by which nearness is judged.")],
    model: Annotated[
        str | None, typer.Option(help="The generator (name, folder): membership inference and extraction.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="A model that was not trained on TRAIN: the likelihood-ratio attack.")
    ] = None,
    verifier: Annotated[
        str | None, typer.Option(help="Bundle or folder with a verifier of patients: re-identification.")
    ] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Field to infer and to compare groups by (sex, age); may be repeated.")
    ] = None,
    extract: Annotated[float, typer.Option(help="Samples to draw of the model, over training images.")] = 10,
    samples: Annotated[int, typer.Option(help="Samples to draw at most.")] = 500,
    attacked: Annotated[int, typer.Option(help="Images of either side in the membership attack, at most.")] = 300,
    extractor: Annotated[str, typer.Option(help="Backbone with a judge, TorchScript file, or folder.")] = "mednist",
    rate: Annotated[float, typer.Option(help="Share of unseen images that may pass for copies.")] = 0.02,
    size: Annotated[int | None, typer.Option(help="Side that images are fitted to; the model's, else 64.")] = None,
    seed: Annotated[int, typer.Option(help="Of noises and samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the audit here, as JSON for `diffaug report`.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Folder for pictures of the closest pairs.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Can patients of the training data be found in synthetic images, or in the model? Exits with 1 if so.

    Copies are found mirrored, moved, turned, cropped and brightened too. What needs the model, a verifier or a field of
    the datalists and does not get it is not judged, and says so.

    Examples:
      diffaug audit train/datalist.json synthetic/datalist.json --unseen test/datalist.json
      diffaug audit train/ synthetic/ --unseen test/ --rate 0.05 --out audit.json --pairs pairs
      diffaug audit train.json made.json --unseen test.json --model tuned --reference brain_mri
      diffaug audit train.json made.json --unseen test.json --attribute sex --attribute age
    """
    from monai_diffaug.audit.run import Options
    from monai_diffaug.audit.run import audit as judged
    from monai_diffaug.io.atomic import write_json
    from monai_diffaug.report.beside import draw_pairs

    names = tuple(attribute or ())
    ask = Options(
        model, reference, verifier, names, extract, samples, attacked, extractor, rate, size=size, seed=seed
    )  # fmt: skip
    with _progress(json) as progress:
        found, read = judged(train, synthetic, unseen, ask, progress, lambda line: note("skipped", line, "33"))
    if out is not None:
        write_json(out, found.to_dict())
    if pairs is not None:
        draw_pairs(found.pairs, read.images(), pairs)
    if json:
        as_json(found.to_dict())
    else:
        _tell(found)
    if found.verdict == "fail":
        raise typer.Exit(1)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """Bars on the error stream, one a piece of work."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bars:

        def begin(what: str, total: int) -> Callable[[int], None]:
            task = bars.add_task(what, total=total)
            return lambda n: bars.advance(task, n)

        yield begin


def _tell(found: Audit) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    colors = {"pass": "green", "fail": "red", "not judged": "yellow"}
    for name, section in found.sections.items():
        head = Text(f"{name:<17}", style="bold")
        console.print(head.append(f"{section.verdict:<11}", style=colors[section.verdict]).append(section.says))
        for key, f in section.figures.items():
            if f.bar is None:
                continue
            ends = "" if f.interval is None else f" ({f.interval[0]:.3g} to {f.interval[1]:.3g})"
            chance = "" if f.control is None else f", by chance {f.control:.3g}"
            console.print(f"    {key.replace('_', ' ')}: {f.value:.3g}{ends}, bar {f.bar:.3g}{chance}", style="dim")
    for pair in found.pairs:
        if pair["copy"]:
            typer.echo(f"{pair['image']}  repeats  {pair['nearest']}  by its {pair['space']}")
    for line in found.limitations:
        console.print(f"Mind: {line}", style="dim")
    console.print(f"Verdict: {found.verdict}", style=f"bold {colors[found.verdict]}")
