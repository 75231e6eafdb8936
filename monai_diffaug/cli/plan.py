"""`diffaug plan`: what fits into a given memory, before a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monai_diffaug.cli.main import app, as_json

if TYPE_CHECKING:
    from monai_diffaug.backbones.budget import Need
    from monai_diffaug.types import Backbone

__all__ = ["planned"]

GIB = 2**30
BATCHES = (16, 8, 4, 2, 1)


@app.command("plan")
def plan_run(
    backbone: Annotated[str, typer.Argument(help="A shipped backbone, folder or hub id.")],
    memory: Annotated[float, typer.Option(help="GB that the whole process may take.")] = 4.0,
    size: Annotated[str | None, typer.Option(help="Of the image, such as 128x128x128; the backbone's own.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images at once; the most that fit.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; float32 if it fits.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="No tiles, which come close but are not the same.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say before a run what fits: tile, precision, batch, and how much memory it will take.

    Nothing is run: the network is walked through without its numbers.

    Examples:
      diffaug plan brain_mri
      diffaug plan CHECKPOINT --memory 4 --size 128x128x128
    """
    from monai_diffaug.backbones import hub

    model = hub.load(backbone)
    need, base = planned(model, memory, _size(size), batch_size, precision, exact)
    report = _report(need, base, memory)
    if json:
        as_json({"backbone": model.name, **report})
        return
    spare = max(memory - report["peak_gb"], 0.0)
    print(f"{model.name} at {'x'.join(map(str, need.size))} within {memory:g} GB:")
    print(f"  precision  {need.precision}")
    print(f"  batch      {need.batch}")
    print(f"  decoding   {need.way}{'' if need.way.exact else ' - comes close, is not the same'}")
    print(f"  peak       {report['peak_gb']:.2f} GB, {spare:.2f} GB to spare")
    for name in ("process", "weights", "network", "encoding", "decoding"):
        print(f"    {name:<9}{report['gb'][name]:.2f}")
    print(f"  say        --precision {need.precision} --batch-size {need.batch} --memory {report['decode_memory']:.2f}")


def _report(need: Need, base: int, memory: float) -> dict[str, Any]:
    parts = {"process": base, "weights": need.weights, "network": need.network, "encoding": need.encode}
    parts["decoding"] = need.way.peak
    return {
        "memory_gb": memory,
        "size": list(need.size),
        "precision": need.precision,
        "batch": need.batch,
        "decode": {"way": need.way.name, "exact": need.way.exact, **need.way.settings},
        "decode_memory": max(memory - (base + need.weights) / GIB, 0.01),
        "peak_gb": round((base + need.peak) / GIB, 3),
        "gb": {k: round(v / GIB, 3) for k, v in parts.items()},
    }


def planned(
    model: Backbone, memory: float, size: tuple[int, ...] | None, batch: int | None, precision: str | None, exact: bool
) -> tuple[Need, int]:
    """The largest batch that fits, in single precision if any does; and what the process takes without the model.

    Raises:
        DiffAugError: a size that the backbone cannot have, or nothing fits.
    """
    import torch

    from monai_diffaug.backbones.budget import need_of
    from monai_diffaug.types import DiffAugError

    sides = size or model.contract.size
    _check(model, sides)
    weights = sum(p.nbytes for m in model.modules().values() for p in [*m.parameters(), *m.buffers()])
    base = max(_resident() - weights, 0)
    budget = int(memory * GIB) - base
    kinds = [precision] if precision else ["float32", "bfloat16"]
    for kind in kinds:
        dtype = getattr(torch, kind, None)
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise DiffAugError(f"precision {kind!r} is unknown: use float32, bfloat16 or float16")
        for n in [batch] if batch else BATCHES:
            need = need_of(model, sides, n, dtype, budget, exact=exact)
            if need is not None and need.peak <= budget:
                return need, base
    raise DiffAugError(
        f"{model.name} at {'x'.join(map(str, sides))} does not fit into {memory:g} GB, of which the process itself "
        f"takes {base / GIB:.2f}: give more memory, a smaller --size{', or leave out --exact' if exact else ''}"
    )


def _size(text: str | None) -> tuple[int, ...] | None:
    from monai_diffaug.types import DiffAugError

    if text is None:
        return None
    if not re.fullmatch(r"\d+(x\d+){1,2}", text):
        raise DiffAugError(f"--size {text!r} is no size: write it like 128x128x128")
    return tuple(int(n) for n in text.split("x"))


def _check(model: Backbone, size: tuple[int, ...]) -> None:
    from monai_diffaug.types import DiffAugError

    contract = model.contract
    if len(size) != contract.spatial_dims:
        raise DiffAugError(f"{model.name} makes {contract.spatial_dims}D images: give --size with as many numbers")
    step = contract.factor * 2 ** max(sum(s.startswith("down.") for s in model.network.feature_sites()) - 1, 0)
    wrong = [n for n in size if n == 0 or n % step]
    if wrong:
        near = max(step, round(wrong[0] / step) * step)
        raise DiffAugError(
            f"{wrong[0]} is no side that {model.name} can have: give multiples of {step}, such as {near}"
        )


def _resident() -> int:
    """Bytes of this process in memory: Python, the libraries and what is loaded."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 700 * 2**20  # of what these libraries take on Linux
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
