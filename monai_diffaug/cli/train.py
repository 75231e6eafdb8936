"""`diffaug train`: a backbone from images, by the recipe of a domain or of one's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_diffaug.cli.main import app, as_json

DOMAINS = ("brain_mri", "mednist")


@app.command("train")
def train(
    what: Annotated[str, typer.Argument(help="A domain (brain_mri, mednist), or a datalist or folder of your images.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint; a run that was stopped goes on from OUT.run.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the domain's data sets.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the network, in place of the recipe's.")] = None,
    autoencoder_steps: Annotated[int | None, typer.Option(help="Steps of the autoencoder, likewise.")] = None,
    size: Annotated[int, typer.Option(help="Side of the images, for your own data.")] = 96,
    license: Annotated[str, typer.Option(help="License of your data, which the weights follow.")] = "",  # noqa: A002
    seed: Annotated[int, typer.Option(help="Of weights and draws.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Train a backbone, measure it on patients not used, and write its card.

    Examples:
      diffaug train brain_mri --data DATA --out brain_mri
      diffaug train scans/datalist.json --out mine --size 64 --steps 4000 --license "CC BY 4.0"
    """
    from dataclasses import replace
    from importlib import import_module

    from monai_diffaug.backbones import hub
    from monai_diffaug.report import card
    from monai_diffaug.types import DiffAugError

    run = out.with_name(out.name + ".run")
    if what in DOMAINS:
        if data is None:
            raise DiffAugError(f"{what} is trained from its data sets: give the folder that holds them as --data")
        domain, source = import_module(f"monai_diffaug.domains.{what}"), data
        recipe = domain.RECIPE
    else:
        domain, source = import_module("monai_diffaug.domains.own"), Path(what)
        recipe = domain.recipe(source, size, license, out.name)
    recipe = replace(
        recipe,
        network_settings=replace(recipe.network_settings, steps=steps or recipe.network_settings.steps, seed=seed),
        autoencoder_settings=replace(
            recipe.autoencoder_settings, steps=autoencoder_steps or recipe.autoencoder_settings.steps, seed=seed
        ),
    )
    hub.save(domain.train(source, run, recipe), out)
    figures = card.write(hub.load(out), domain.bench(source, recipe.contract), out, run)
    if json:
        as_json({k: v for k, v in figures.items() if k not in ("images", "nearest", "distance")})
    else:
        typer.echo(f"checkpoint {out}\ncard       {out / 'README.md'}\nsamples    {out / 'samples.png'}")
