"""`diffaug learn`: a few images in, a concept out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from monai_diffaug.cli.images import JSON, Concepts, Device, Model, Seed, parameters_of
from monai_diffaug.cli.main import app, as_json, note

__all__: list[str] = []


@app.command("learn")
def learn_concept(
    method: Annotated[str, typer.Argument(help="A method of shape learn (`diffaug list`).")],
    backbone: Model,
    out: Annotated[Path, typer.Option(help="The concept's file, NAME.safetensors.")],
    source: Annotated[
        str | None, typer.Argument(help="A datalist JSON, a folder, or a sample set; none where no image is needed.")
    ] = None,
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="key=value; again for more.")] = None,
    only: Annotated[str | None, typer.Option("--class", help="Learn from the images of this class.")] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="Learn from the first so many; 5 for a subject, else all.")
    ] = None,
    concept: Concepts = None,
    section: Annotated[str, typer.Option(help="Of the datalist JSON.")] = "training",
    base: Annotated[Path | None, typer.Option(help="Folder that its paths start from; its own unless given.")] = None,
    seed: Seed = 0,
    device: Device = None,
    json: JSON = False,
) -> None:
    """Teach a backbone a word, a subject, a control or a change; `edit`, `expand` and `generate` take it as --concept.

    Examples:
      diffaug learn textual_inversion mednist --class "head ct" -p word="head ct" -b mednist --out head.safetensors
      diffaug learn dreambooth scans/ -p class_prompt="a chest ct" -p word=site-b -b mednist --out site.safetensors
      diffaug learn controlnet mednist -p hint=edges -b mednist --out edges.safetensors
      diffaug learn uce -p concepts="chest x-ray" -b mednist --out no_chest.safetensors
    """
    from monai_diffaug.expand.learning import learn

    with _progress(json) as advance:
        path = learn(
            source,
            out,
            method,
            backbone,
            parameters=parameters_of(param),
            only=only,
            count=count,
            seed=seed,
            concepts=concept or (),
            section=section,
            base=base,
            device=device,
            progress=advance,
            say=lambda line: note("skipped", line, "33"),
        )
    if json:
        as_json({"concept": str(path), "method": method, "backbone": backbone})
    else:
        print(f"  concept   {path}")


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int, float], None]]:
    """A bar on stderr with the loss behind it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("learning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    loss = TextColumn("[dim]loss {task.fields[loss]:.4f}")
    with Progress(*columns, loss, console=Console(file=sys.stderr), disable=quiet and not sys.stderr.isatty()) as bar:
        task = bar.add_task("learning", total=None, loss=0.0)
        yield lambda done, total, value: bar.update(task, completed=done, total=total, loss=value)
