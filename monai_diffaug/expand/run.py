"""The main job: real images in, more images and a datalist out. It may be killed at any moment and run again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones import hub
from ..io import atomic, datalist
from ..io.datalist import Item
from ..io.layouts import check_format
from ..primitives import concepts as taught_by
from ..primitives.filters import Sieve, check_limits
from ..types import Backbone, Concept, Contract, DiffAugError
from .arguments import recipes
from .gate import Gate, Watch, gate_digest, guarded_by
from .job import LIST, Job
from .loop import Judge, Loop, Progress, Say
from .making import open_source
from .planning import Planned, planned

__all__ = ["Outcome", "expand", "usual_batch"]

REFERENCES = 1000
"""Most real images that the filters compare with."""


@dataclass(frozen=True)
class Outcome:
    """What a job came to.

    ``made`` are images now in the folder, ``before`` those of them that an earlier run had made; ``rejected`` names
    what did not pass the filters, ``skipped`` holds a line for each bad input, ``unchanged`` one for each image
    that a method has nothing to do to. ``laid_out`` is the folder in another program's form, if one was asked for.
    """

    folder: Path
    datalist: Path
    made: int
    before: int = 0
    rejected: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    seconds: float = 0.0
    laid_out: Path | None = None


def usual_batch(contract: Contract) -> int:
    """Images at once: as many as fill the processor without more memory than a volume takes."""
    voxels = 1
    for n in contract.latent_size:
        voxels *= n
    return max(1, min(16, 8192 // max(voxels, 1)))


def expand(
    source: str | Path,
    out: str | Path,
    methods: str | Sequence[str | tuple[str, Mapping[str, Any]]],
    backbone: str | Path | Backbone,
    *,
    parameters: Mapping[str, Any] | None = None,
    copies: int = 1,
    seed: int = 0,
    keep: Mapping[str, float] | None = None,
    attempts: int = 4,
    gate: Gate | None = None,
    concepts: Sequence[str | Path | Concept] = (),
    section: str = "training",
    base: str | Path | None = None,
    strict: bool = False,
    precision: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    layout: str = "datalist",
    progress: Progress | None = None,
    say: Say | None = None,
) -> Outcome:
    """Make synthetic images from the real ones of a datalist or folder.

    The result depends on the settings alone: not on when the job was interrupted, nor in which order or beside what an
    image was made.

    Args:
        source: see :func:`monai_diffaug.io.datalist.read`.
        out: a new folder, or that of the same job begun before.
        methods: of shape ``edit`` or ``expand``: names, or pairs of name and parameters.
        backbone: a name or folder for the hub, or a loaded backbone.
        parameters: ``key``, for all methods that have it, or ``method.key``. Texts may hold ``{class}`` and other
            keys of the datalist.
        copies: synthetic images per method and real image.
        seed: of the job.
        keep: filters with their limits (see :class:`monai_diffaug.primitives.filters.Sieve`).
        attempts: how often an image is made before it is given up, when filters or the gate reject it.
        gate: refuses copies of training images; what it refused is logged in ``audit/`` of the folder.
        concepts: files or concepts put on the backbone.
        section: of a datalist JSON.
        base: folder that its relative paths start from.
        strict: stop at the first bad input instead of passing it over.
        precision: see :func:`monai_diffaug.backbones.hub.load`.
        device: likewise.
        batch_size: images at once; from the backbone's size unless given.
        layout: also write real and synthetic images together as ``nnunet`` or ``bids`` want them.
        progress: called with pieces done, pieces in all and the name of the last.
        say: called with one line for each bad input.

    Returns:
        what was made, and what was not.

    Raises:
        DiffAugError: the settings cannot work, the folder cannot be written, nothing could be made, or, with
            ``strict``, an input is bad.
    """
    begin = time.monotonic()
    if copies < 1 or attempts < 1 or (batch_size is not None and batch_size < 1):
        raise DiffAugError("copies, attempts and batch size are counts: give 1 or more")
    check_format(layout)
    if gate is not None:
        gate.check()
    model = backbone if isinstance(backbone, Backbone) else hub.load(backbone, precision=precision, device=device)
    items = datalist.read(source, section=section, base=base, dims=model.contract.spatial_dims)
    with ExitStack() as stack:
        known = opened_concepts(concepts)
        controls = [c for c in known if c.kind == "controlnet"]  # they look at the image
        model = stack.enter_context(taught_by.applied(model, *[c for c in known if c.kind != "controlnet"]))
        named = recipes([methods] if isinstance(methods, str) else methods, model, parameters)
        check_limits(keep or {}, model)
        size = batch_size or usual_batch(model.contract)
        settings = {
            "format": 1,
            "images": f"{len(items)}, {datalist.digest(items)[:16]}",
            "methods": [{"name": r.method.name, "parameters": dict(r.parameters)} for r in named],
            "backbone": model.name,
            "backbone_digest": model.digest,
            "controls": [taught_by.digest(c)[:16] for c in controls],
            "copies": copies,
            "seed": seed,
            "keep": dict(keep or {}),
            "attempts": attempts,
            "precision": str(model.precision).removeprefix("torch."),
            "batch_size": size,
        } | ({} if gate is None else {"gate": gate_digest(gate, source)})
        plan = planned(items, named, model, copies, size, strict)
        stack.enter_context(atomic.claimed(out))
        job = Job(out, settings)
        filters = _sieve(model, items, keep or {}, plan)
        sieve: Judge | None = filters if gate is None else guarded_by(gate, model, items, filters)
        loop = Loop(
            job,
            model,
            plan,
            seed=seed,
            sieve=sieve,
            controls=controls,
            attempts=attempts,
            strict=strict,
            progress=progress,
            say=say,
        )
        loop.run()
        from .layout import laid_out

        return laid_out(ended(loop, begin, datalist.license_of(source)), items, layout, source, say)


def opened_concepts(concepts: Iterable[str | Path | Concept]) -> list[Concept]:
    """Concepts, read where a file is given."""
    return [c if isinstance(c, Concept) else taught_by.load_concept(c) for c in concepts]


def _sieve(model: Backbone, items: Sequence[Item], keep: Mapping[str, float], plan: Planned) -> Sieve | None:
    """The filters, told what the real images look like."""
    if not keep:
        return None
    real: list[Tensor] = []
    if {"novelty", "quality", "reidentification"} & set(keep):
        for item in items[:: max(1, len(items) // REFERENCES)]:
            try:
                real.append(open_source(item, model.contract).fitted.tensor)
            except DiffAugError:
                continue  # the loop will tell
    return Sieve(model, torch.stack(real) if real else None, keep, plan.classes)


def ended(loop: Loop, begin: float, license_of_source: str) -> Outcome:
    """Write the datalist; a job that made nothing has failed."""
    plan, model, job = loop.plan, loop.model, loop.job
    skipped, unchanged = tuple(plan.skipped.values()), tuple(dict.fromkeys(plan.unchanged))
    remarks: dict[str, Any] = {"backbone": model.name, "backbone_digest": model.digest}
    licenses = {"images": license_of_source, "backbone": model.contract.license}
    remarks["licence"] = "; ".join(f"{k}: {v}" for k, v in licenses.items() if v) or "unknown"
    remarks |= {k: list(v) for k, v in (("skipped", skipped), ("unchanged", unchanged)) if v}
    made, rejected = job.finish(plan.tasks, remarks)
    if not made:
        gated = isinstance(loop.sieve, Watch)
        hint = "no image passed the gate: make images that differ more, such as with more strength"
        none_passed = [hint if gated else "no image passed the filters: lower their limits"] if rejected else []
        raise DiffAugError(f"nothing was made: {[*skipped, *none_passed, *unchanged, 'there was nothing to do'][0]}")
    before = sum(task.name in loop.before for task in plan.tasks) - sum(name in loop.before for name in rejected)
    seconds = time.monotonic() - begin
    return Outcome(job.folder, job.folder / LIST, len(made), before, tuple(rejected), skipped, unchanged, seconds)
