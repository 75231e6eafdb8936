"""`diffaug edit`, `diffaug expand`, `diffaug generate`: images out."""

from __future__ import annotations

import json as reader
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monai_diffaug.cli.main import app, as_json, note

if TYPE_CHECKING:
    from monai_diffaug.expand import Outcome

__all__ = ["limits_of", "methods_of", "parameters_of"]

Names = Annotated[
    list[str],
    typer.Option("--method", "-m", help="A method; again for more. NAME:key=value,... for its own parameters."),
]
Model = Annotated[
    str, typer.Option("--backbone", "-b", help="A shipped backbone (`diffaug doctor`), folder or hub id.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", help="key=value, or METHOD.key=value; again for more. {class} is the image's class."),
]
Concepts = Annotated[list[Path] | None, typer.Option("--concept", help="What a `learn` method saved; again for more.")]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        help="Keep only what passes: label, novelty, quality, reidentification, or e.g. label=0.8; again for more.",
    ),
]
Attempts = Annotated[int, typer.Option(help="How often an image is made before --keep gives it up.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same images.")]
Precision = Annotated[str | None, typer.Option(help="float32 (default), bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="Such as cuda; the processor unless given.")]
Batch = Annotated[int | None, typer.Option("--batch-size", help="Images at once; chosen by their size unless given.")]
Memory = Annotated[
    float | None, typer.Option(help="GB for decoding: in slabs or tiles if need be, see `diffaug plan`.")
]
Sheet = Annotated[bool, typer.Option("--sheet/--no-sheet", help="Draw overview.png.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command("edit")
def edit_image(
    image: Annotated[Path, typer.Argument(help="A NIfTI, PNG, JPEG or DICOM file, or a DICOM series' folder.")],
    method: Annotated[str, typer.Option("--method", "-m", help="A method of shape edit (`diffaug list`).")],
    backbone: Model,
    out: Annotated[Path | None, typer.Option(help="The result; IMAGE_METHOD in this folder unless given.")] = None,
    param: Parameters = None,
    mask: Annotated[Path | None, typer.Option(help="The image's label mask.")] = None,
    kind: Annotated[str | None, typer.Option("--class", help="The image's class.")] = None,
    concept: Concepts = None,
    seed: Seed = 0,
    precision: Precision = None,
    device: Device = None,
    memory: Memory = None,
    sheet: Sheet = True,
    json: JSON = False,
) -> None:
    """Edit one image; its record, and a sheet to look at, are written beside the result.

    Examples:
      diffaug edit scan.png -m sdedit -b brain_mri --class tumor --mask mask.png
      diffaug edit scan.png -m healthy_counterfactual -b brain_mri --class tumor
      diffaug edit scan.nii.gz -m sdedit -b CHECKPOINT -p prompt=tumor
    """
    from monai_diffaug.expand import edit
    from monai_diffaug.report.sheet import draw

    made = edit(
        image,
        out,
        method,
        _within(backbone, memory, precision, device),
        parameters=parameters_of(param),
        mask=mask,
        kind=kind,
        seed=seed,
        concepts=concept or (),
        precision=precision,
        device=device,
    )
    overview = draw(made.record, made.record.with_name(made.record.stem + "_overview.png")) if sheet else None
    files = {"image": made.image, "mask": made.mask, "record": made.record, "overview": overview}
    if json:
        as_json({**{k: None if v is None else str(v) for k, v in files.items()}, **made.entry["provenance"]})
    else:
        _print_files(files)


@app.command("expand")
def expand_images(
    source: Annotated[str, typer.Argument(help="A datalist JSON, a folder, or a sample set (brain_mri, mednist).")],
    method: Names,
    backbone: Model,
    out: Annotated[Path, typer.Option(help="A new folder, or that of a run that was stopped: it goes on.")],
    copies: Annotated[int, typer.Option(help="Synthetic images per method and real image.")] = 1,
    param: Parameters = None,
    keep: Keep = None,
    attempts: Attempts = 4,
    gate: Annotated[str | None, typer.Option(help="audit: write no copy of a training image; --gate-unseen.")] = None,
    gate_train: Annotated[str | None, typer.Option(help="Datalist of training images; SOURCE unless given.")] = None,
    gate_unseen: Annotated[str | None, typer.Option(help="Datalist of real images of other patients.")] = None,
    concept: Concepts = None,
    section: Annotated[str, typer.Option(help="Of the datalist JSON.")] = "training",
    base: Annotated[Path | None, typer.Option(help="Folder that its paths start from; its own unless given.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad image instead of skipping it.")
    ] = False,
    seed: Seed = 0,
    precision: Precision = None,
    device: Device = None,
    batch_size: Batch = None,
    memory: Memory = None,
    layout: Annotated[
        str, typer.Option("--format", help="Real and synthetic together as nnunet (nnunet:12) or bids, too.")
    ] = "datalist",
    sheet: Sheet = True,
    json: JSON = False,
) -> None:
    """Make more images from real ones: the same kind of files, a datalist for MONAI, and a sheet to look at.

    It may be stopped at any moment; run again, it goes on, and the result is the same.

    Examples:
      diffaug expand brain_mri -m da_fusion -b brain_mri --out more
      diffaug expand scans.json -m da_fusion -m edict -b CKPT --out more --copies 3
      diffaug expand scans/ -m sdedit:strength=0.3,scale=2 -b CKPT --out more
      diffaug expand scans/ -m sdedit -b CKPT --out more --keep label --keep novelty
      diffaug expand scans/ -m sdedit -b CKPT --out more --format nnunet:12
      diffaug expand scans/ -m sdedit -b CKPT --out more --gate audit --gate-unseen others/
    """
    from monai_diffaug.expand import expand
    from monai_diffaug.expand.gate import gate_of

    with _progress(json) as (advance, say):
        outcome = expand(
            source,
            out,
            methods_of(method),
            _within(backbone, memory, precision, device),
            parameters=parameters_of(param),
            copies=copies,
            seed=seed,
            keep=limits_of(keep),
            attempts=attempts,
            gate=gate_of(gate, gate_train, gate_unseen),
            concepts=concept or (),
            section=section,
            base=base,
            strict=strict,
            precision=precision,
            device=device,
            batch_size=batch_size,
            layout=layout,
            progress=advance,
            say=say,
        )
    _tell(outcome, sheet, json)


@app.command("generate")
def generate_images(
    backbone: Annotated[str, typer.Argument(help="A shipped backbone, folder or hub id.")],
    out: Annotated[Path, typer.Option(help="A new folder, or that of a run that was stopped: it goes on.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="What to show; again for more. All classes unless given.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Images of each prompt.")] = 4,
    method: Annotated[str | None, typer.Option("--method", "-m", help="A method of shape generate.")] = None,
    param: Parameters = None,
    mask: Annotated[
        Path | None, typer.Option(help="Where the lesion shall be, for a backbone that takes masks.")
    ] = None,
    keep: Keep = None,
    attempts: Attempts = 4,
    concept: Concepts = None,
    seed: Seed = 0,
    precision: Precision = None,
    device: Device = None,
    batch_size: Batch = None,
    memory: Memory = None,
    sheet: Sheet = True,
    json: JSON = False,
) -> None:
    """Make images from no image, of what the prompts say.

    Examples:
      diffaug generate brain_mri --out new --count 8
      diffaug generate mednist --prompt "a small hand x-ray" --out new
      diffaug generate brain_mri --prompt tumor --mask lesion.png --out new
    """
    from monai_diffaug.expand import generate

    with _progress(json) as (advance, say):
        outcome = generate(
            _within(backbone, memory, precision, device),
            out,
            prompt or (),
            count=count,
            method=method,
            parameters=parameters_of(param),
            mask=mask,
            seed=seed,
            keep=limits_of(keep),
            attempts=attempts,
            concepts=concept or (),
            precision=precision,
            device=device,
            batch_size=batch_size,
            progress=advance,
            say=say,
        )
    _tell(outcome, sheet, json)


# ------------------------------------------------------------------------------------------------- what was typed


def _within(backbone: str, memory: float | None, precision: str | None, device: str | None) -> Any:
    """The backbone's name, or the backbone itself where it is told a memory to decode in."""
    if memory is None:
        return backbone
    from monai_diffaug.backbones import hub

    return hub.load(backbone, precision=precision, device=device).with_memory(memory)


def parameters_of(pairs: list[str] | None) -> dict[str, Any]:
    """``key=value`` pairs; values are JSON where they can be, else text.

    Raises:
        DiffAugError: a pair has no ``=``.
    """
    from monai_diffaug.types import DiffAugError

    out: dict[str, Any] = {}
    for pair in pairs or ():
        key, sign, value = pair.partition("=")
        if not sign or not key.strip():
            raise DiffAugError(f"--param {pair!r} is no pair: write key=value")
        out[key.strip()] = _value(value)
    return out


def _value(text: str) -> Any:
    try:
        return reader.loads(text)
    except ValueError:
        return {"true": True, "false": False, "none": None}.get(text.strip().lower(), text)


def methods_of(names: list[str]) -> list[str | tuple[str, dict[str, Any]]]:
    """Method names, with parameters of their own behind a colon."""
    out: list[str | tuple[str, dict[str, Any]]] = []
    for text in names:
        name, sign, rest = text.partition(":")
        out.append((name, parameters_of(_split(rest))) if sign else name)
    return out


def _split(text: str) -> list[str]:
    """At commas outside brackets and quotes."""
    parts, depth, quoted = [""], 0, False
    for c in text:
        quoted ^= c == '"'
        depth += (c in "[{") - (c in "]}")
        if c == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += c
    return [p for p in parts if p]


def limits_of(filters: list[str] | None) -> dict[str, float]:
    """Filters with their limits, the usual ones unless given.

    Raises:
        DiffAugError: a limit is no number, or a filter does not exist.
    """
    from monai_diffaug import registry
    from monai_diffaug.primitives.filters import LIMITS
    from monai_diffaug.types import DiffAugError

    out: dict[str, float] = {}
    for text in filters or ():
        name, sign, value = text.partition("=")
        if name not in LIMITS:
            raise DiffAugError(f"there is no filter {name!r}: {registry.nearest(name, LIMITS)}use {', '.join(LIMITS)}")
        try:
            out[name] = float(value) if sign else LIMITS[name]
        except ValueError:
            raise DiffAugError(f"the limit in --keep {text!r} is no number: write {name}={LIMITS[name]}") from None
    return out


# ------------------------------------------------------------------------------------------------- what is shown


@contextmanager
def _progress(quiet: bool) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[str], None]]]:
    """A bar on stderr, and a way to say a line above it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[last]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr), disable=quiet and not sys.stderr.isatty()) as bar:
        task = bar.add_task("images", total=None, last="loading the backbone")

        def advance(done: int, total: int, last: str) -> None:
            bar.update(task, completed=done, total=total, last=last)

        yield advance, lambda line: note("skipped", line, "33")
        bar.update(task, last="")


def _tell(outcome: Outcome, sheet: bool, json: bool) -> None:
    from monai_diffaug.report.sheet import draw

    overview = draw(outcome.datalist) if sheet else None
    if json:
        as_json(
            {
                "folder": str(outcome.folder),
                "datalist": str(outcome.datalist),
                "overview": None if overview is None else str(overview),
                "laid_out": None if outcome.laid_out is None else str(outcome.laid_out),
                "made": outcome.made,
                "before": outcome.before,
                "rejected": list(outcome.rejected),
                "skipped": list(outcome.skipped),
                "unchanged": list(outcome.unchanged),
                "seconds": round(outcome.seconds, 2),
            }
        )
        return
    before = f", {outcome.before} of them by an earlier run" if outcome.before else ""
    print(f"{outcome.made} synthetic image{'s' if outcome.made != 1 else ''}{before}, in {outcome.seconds:.0f} s")
    for which, one, more in (
        (outcome.rejected, "did not pass the filters", "did not pass the filters"),
        (outcome.skipped, "bad input was skipped", "bad inputs were skipped"),
        (
            outcome.unchanged,
            "was left as it is (the datalist says why)",
            "were left as they are (the datalist says why)",
        ),
    ):
        if which:
            print(f"  {len(which)} {one if len(which) == 1 else more}")
    _print_files(
        {
            "folder": outcome.folder,
            "datalist": outcome.datalist,
            "overview": overview,
            "laid out": outcome.laid_out,
        }
    )


def _print_files(files: dict[str, Path | None]) -> None:
    for name, path in files.items():
        if path is not None:
            print(f"  {name:<9} {path}")
