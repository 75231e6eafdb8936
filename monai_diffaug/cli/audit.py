"""`diffaug audit`: does it leak?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_diffaug.cli.main import app, as_json, note


@app.command("audit")
def audit(
    train: Annotated[str, typer.Argument(help="Datalist or folder of the images that the generator was trained on.")],
    synthetic: Annotated[str, typer.Argument(help="Datalist or folder of synthetic images.")],
    unseen: Annotated[str, typer.Option(help="Real images of other patients, by which nearness is judged.")],
    extractor: Annotated[str, typer.Option(help="Backbone with a judge, TorchScript file, or folder.")] = "mednist",
    rate: Annotated[float, typer.Option(help="Share of unseen images that may pass for copies.")] = 0.02,
    size: Annotated[int, typer.Option(help="Side that images are fitted to.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Write what every image is nearest to here, as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Look for copies of training images: mirrored, shifted, brightened ones too. Exits with 1 if there are any.

    Examples:
      diffaug audit train/datalist.json synthetic/datalist.json --unseen test/datalist.json
      diffaug audit train/ synthetic/ --unseen test/ --rate 0.05 --out audit.json
    """
    from monai_diffaug.audit.copies import CopyFinder
    from monai_diffaug.backbones.extractors import extractor as named
    from monai_diffaug.evaluation import pictures
    from monai_diffaug.io.atomic import write_json
    from monai_diffaug.types import DiffAugError

    known, made, others = (pictures(source, size) for source in (train, synthetic, unseen))
    for line in (*known.skipped, *made.skipped, *others.skipped):
        note("skipped", line, "33")
    sides = [{str(f.get("patient", path.resolve())) for f, path in zip(p.fields, p.paths)} for p in (known, others)]
    shared = sorted(sides[0] & sides[1])
    if shared:
        raise DiffAugError(
            f"{len(shared)} patients or images are on both sides (first: {shared[0]}): give images of other "
            "patients as --unseen"
        )
    embed = named(extractor)
    finder = CopyFinder(known.images, others.images, embed, [str(p) for p in known.paths], rate)
    found = finder(made.images)
    rows = [{"image": str(p), **vars(f)} for p, f in zip(made.paths, found, strict=True)]
    copies = [r for r in rows if r["copy"]]
    said = {"rate": rate, "extractor": embed.name, "images": len(rows), "copies": len(copies), "found": rows}
    if out is not None:
        write_json(out, said)
    if json:
        as_json(said)
    else:
        for r in sorted(copies, key=lambda r: r["rare"]):
            typer.echo(f"{r['image']}  is nearest to  {r['nearest']}  by its {r['space']}")
        typer.echo(
            f"{len(copies)} of {len(rows)} images are nearer to a training image than {1 - rate:.0%} of unseen ones"
        )
    if len(copies) > rate * len(rows):
        raise typer.Exit(1)
