"""`diffaug finetune`: a backbone and one's own images in, a bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_diffaug.cli.main import app, as_json, note

__all__: list[str] = []


@app.command("finetune")
def finetune_backbone(
    backbone: Annotated[str, typer.Argument(help="A shipped name, a bundle or checkpoint, a diffusers pipeline.")],
    data: Annotated[Path, typer.Option(help="Datalist JSON or folder of your images (see `diffaug import`).")],
    out: Annotated[Path, typer.Option(help="The bundle's folder; a run that was stopped goes on from OUT.run.")],
    mode: Annotated[str, typer.Option(help="full, lora (a small adapter) or private (DP-SGD, by patient).")] = "full",
    license: Annotated[str, typer.Option(help="License of your data; the datalist's own unless given.")] = "",  # noqa: A002
    steps: Annotated[int | None, typer.Option(help="Of training, at most; 1200, in mode private 300.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step; in mode private patients, on average.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate; 2e-4 for full, 1e-3 for adapters.")] = None,
    rank: Annotated[int, typer.Option(help="Of the adapter; in mode private 0 trains the weights themselves.")] = 8,
    autoencoder: Annotated[str, typer.Option(help="auto, keep, or train (its decoder, in mode full).")] = "auto",
    epsilon: Annotated[float | None, typer.Option(help="Privacy wanted; 8 unless this or --noise is given.")] = None,
    noise: Annotated[float | None, typer.Option(help="Noise over clipping length, in place of --epsilon.")] = None,
    delta: Annotated[float | None, typer.Option(help="Chance that epsilon fails; 0.1 / patients.")] = None,
    clip: Annotated[float, typer.Option(help="Length that a patient's gradient is cut to.")] = 1.0,
    old: Annotated[Path | None, typer.Option(help="Datalist of the old kind of image, to measure forgetting.")] = None,
    patience: Annotated[int, typer.Option(help="Checks without improvement before it stops; 0: never.")] = 4,
    memorized: Annotated[float, typer.Option(help="Nearness to training patients that stops it; 0: never.")] = 1.15,
    samples: Annotated[int, typer.Option(help="Images made for every figure.")] = 96,
    name: Annotated[str, typer.Option(help="Of the new backbone; the folder's unless given.")] = "",
    base: Annotated[Path | None, typer.Option(help="Folder that the datalist's paths start from.")] = None,
    seed: Annotated[int, typer.Option(help="Of draws.")] = 0,
    precision: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    device: Annotated[str | None, typer.Option(help="Such as cuda.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Fine-tune a backbone on your images; the bundle's folder is a backbone's name everywhere else.

    Patients are kept apart: some are held out to say when to stop, others to measure the gain.

    Examples:
      diffaug finetune brain_mri --data scans/datalist.json --out ours --license "CC BY 4.0"
      diffaug finetune brain_mri --data scans/datalist.json --out ours --mode lora --rank 4
      diffaug finetune brain_mri --data scans/datalist.json --out ours --mode private --epsilon 8
      diffaug generate ours --out synthetic
    """
    from monai_diffaug.finetune import Ask, finetune

    ask = Ask(
        mode=mode,
        steps=steps,
        batch=batch,
        rate=rate,
        rank=rank,
        autoencoder=autoencoder,
        epsilon=epsilon,
        noise=noise,
        delta=delta,
        clip=clip,
        patience=patience,
        memorized=memorized,
        samples=samples,
        seed=seed,
        precision=precision,
    )
    outcome = finetune(
        backbone,
        data,
        out,
        ask,
        license=license,
        name=name,
        old=old,
        base=base,
        device=device,
        say=lambda line: note("note", line, "36"),
    )
    if json:
        as_json({"bundle": str(outcome.folder), **outcome.figures})
        return
    gain = outcome.figures["new"]["kid_gain"]
    typer.echo(f"bundle  {outcome.folder}\ncard    {outcome.folder / 'docs' / 'README.md'}")
    typer.echo(
        f"KID fell by {gain['gain']:.4g} on test patients (95 % interval {gain['low']:.4g} to {gain['high']:.4g})"
    )
    if "privacy" in outcome.figures:
        terms = outcome.figures["privacy"]
        typer.echo(f"privacy epsilon {terms['epsilon']:.3g} at delta {terms['delta']:.2g}, for each patient")
