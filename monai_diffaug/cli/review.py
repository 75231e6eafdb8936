"""`diffaug review`: a blinded reader study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from monai_diffaug.cli.main import app, as_json


@app.command("review")
def review(
    real: Annotated[str, typer.Argument(help="Datalist or folder of real images; or a study that exists.")],
    synthetic: Annotated[str, typer.Argument(help="Datalist or folder of synthetic images.")] = "",
    study: Annotated[Path, typer.Option(help="File of the new study.")] = Path("study.sqlite"),
    n: Annotated[int, typer.Option(help="Images of each kind at most.")] = 40,
    repeats: Annotated[float, typer.Option(help="Share that is shown twice.")] = 0.1,
    mark: Annotated[list[str] | None, typer.Option(help="A further question, of the task; may be repeated.")] = None,
    title: Annotated[str, typer.Option(help="Shown on the page.")] = "Reader study",
    size: Annotated[int, typer.Option(help="Side that images are fitted to.")] = 96,
    seed: Annotated[int, typer.Option(help="Of choice and order.")] = 0,
    captions: Annotated[bool, typer.Option("--captions", help="Say what each picture is to show: its class.")] = False,
    planted: Annotated[float, typer.Option(help="With --captions: share of real pictures with a wrong one.")] = 0.1,
    port: Annotated[int, typer.Option(help="Of the page, on this machine only.")] = 8765,
    analyze: Annotated[bool, typer.Option("--analyze", help="Say what the answers of a study say.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --analyze: as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="With --analyze: write it here, such as RUN/readers.json.")] = None,
) -> None:
    """Serve a blinded reader study on this machine, or analyze its answers.

    Examples:
      diffaug review test/datalist.json synthetic/datalist.json --study study.sqlite
      diffaug review study.sqlite
      diffaug review study.sqlite --analyze --out synthetic/readers.json
    """
    from monai_diffaug.evaluation import pictures
    from monai_diffaug.io.atomic import write_json
    from monai_diffaug.report import reading

    if analyze:
        found = reading.analyze(reading.open_study(real))
        if out is not None:
            write_json(out, found)
        as_json(found) if json else _told(found)
        return
    opened = (
        reading.create(
            study, pictures(real, size), pictures(synthetic, size), n=n, repeats=repeats, marks=mark or (), title=title,
            seed=seed, captions=captions, planted=planted,
        )
        if synthetic
        else reading.open_study(real)
    )  # fmt: skip
    typer.echo(
        f"study {opened.path}\nopen  http://127.0.0.1:{port}/  (Ctrl+C ends; answers are kept as they are given)"
    )
    reading.serve(opened, port)


def _told(found: dict[str, Any]) -> None:
    def line(name: str, d: dict[str, Any]) -> str:
        if "auroc" not in d:
            return f"{name}: {d['n']} pictures, too few"
        low, high = d["auroc"]["interval"]
        shares = ", ".join(f"{k} {d[k]['value']:.0%}" for k in ("sensitivity", "specificity", "accuracy"))
        return f"{name}: AUROC {d['auroc']['value']:.2f} ({low:.2f} to {high:.2f}), {shares}, n = {d['n']}"

    for name, d in found["readers"].items():
        typer.echo(line(name, d))
    pooled = found["pooled"]
    typer.echo(line("all", pooled))
    if "not_told_apart" in pooled:
        told = "not told apart from real" if pooled["not_told_apart"] else "not shown to be as real"
        typer.echo(f"synthetic images are {told} (accuracy within 10 points of a half, two one-sided tests at 5 %)")
    if found["captions"]:
        caught = {k: v["value"] for k, v in found["captions"].items() if v["value"] is not None}
        typer.echo("wrong captions: " + ", ".join(f"{k} {v:.0%}" for k, v in caught.items()))
    for key, kinds in found["marks"].items():
        means = ", ".join(f"{kind} {v['mean']:.1f}" for kind, v in kinds.items())
        typer.echo(f"{key}: {means}")
    for key, a in found["agreement"].items():
        own, all_ = a["intra_reader"]["kappa"], a.get("fleiss", {}).get("kappa")
        parts = [f"with oneself {own:.2f}" if own is not None else "", f"Fleiss {all_:.2f}" if all_ is not None else ""]
        if any(parts):
            typer.echo(f"agreement on {key}: {', '.join(p for p in parts if p)}")
