"""Real images in, a concept's file out: what `diffaug learn` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from .. import registry
from ..backbones import hub
from ..io import datalist
from ..primitives import concepts as taught_by
from ..primitives import finetuning
from ..registry import Entry
from ..types import Backbone, Concept, DiffAugError, NoiseSource
from .arguments import class_of, phrase
from .making import Source, open_source

__all__ = ["learn"]

FEW = 5
"""How many images a subject is learned from unless told; papers take three to five."""


def learn(
    source: str | Path | None,
    out: str | Path,
    method: str,
    backbone: str | Path | Backbone,
    *,
    parameters: Mapping[str, Any] | None = None,
    only: str | None = None,
    count: int | None = None,
    seed: int = 0,
    concepts: Sequence[str | Path | Concept] = (),
    section: str = "training",
    base: str | Path | None = None,
    device: str | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Run a ``learn`` method on real images and save what it found.

    Args:
        source: a datalist, a folder or a sample set; ``None`` for a method that needs no image.
        out: the concept's file, ``.safetensors``.
        method: its name.
        backbone: a name or folder for the hub, or a loaded backbone.
        parameters: of the method.
        only: learn from the images of this class.
        count: learn from the first so many; five for a method that names what it learns, all for any other.
        seed: of the training.
        concepts: what the backbone is to know already.
        section: of the datalist.
        base: what its paths start from.
        device: see :func:`monai_diffaug.backbones.hub.load`.
        progress: called after every step with its number, their number and the loss.
        say: told of every image that cannot be used.

    Raises:
        DiffAugError: the method learns nothing, there is no image, or the file cannot be written.
    """
    target = Path(out)
    if target.suffix != ".safetensors":
        raise DiffAugError(f"{target} is no concept's name: end it in .safetensors")
    model = backbone if isinstance(backbone, Backbone) else hub.load(backbone, device=device)
    entry = registry.get(method)
    if entry.shape != "learn":
        raise DiffAugError(f"{entry.name} learns nothing: give it to `diffaug {_command(entry)}`")
    with taught_by.applied(model, *concepts) as taught:
        given = {**(parameters or {}), "generator": NoiseSource([seed])}
        registry.check(entry, taught, given)
        if "images" in entry.signature.parameters:
            if source is None:
                raise DiffAugError(f"{entry.name} learns from images: give a datalist, a folder or a sample set")
            found = _found(source, taught, only, section, base)
            most = FEW if count is None and "word" in entry.signature.parameters else count
            given |= _images(found[:most], taught, entry, given, say or (lambda _: None))
        with finetuning.watched(progress) if progress is not None else nullcontext():
            concept: Concept = registry.call(entry, taught, **given)
    return taught_by.save(concept, target)


def _command(entry: Entry) -> str:
    return {"generate": "generate", "edit": "edit"}.get(entry.shape, "expand")


def _found(
    source: str | Path, backbone: Backbone, only: str | None, section: str, base: str | Path | None
) -> list[datalist.Item]:
    items = datalist.read(source, section=section, base=base)
    if only is None:
        return items
    found = [item for item in items if class_of(item, backbone) == only]
    if not found:
        known = sorted({str(kind) for item in items if (kind := class_of(item, backbone)) is not None})
        near = registry.nearest(only, known)
        raise DiffAugError(f"{source} has no image of class {only!r}: {near}it has {', '.join(known) or 'no classes'}")
    return found


def _images(
    items: Sequence[datalist.Item],
    backbone: Backbone,
    entry: Entry,
    given: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """``images``, and what else of them the method takes: prompts of their classes, masks for a hint of masks."""
    opened: list[Source] = []
    for item in items:
        try:
            opened.append(open_source(item, backbone.contract))
        except DiffAugError as error:
            say(str(error))
    if not opened:
        raise DiffAugError("none of the images can be used: mend what is said of them above")
    more: dict[str, Any] = {"images": torch.stack([s.fitted.tensor for s in opened]).to(backbone.device)}
    kinds = [class_of(s.item, backbone) for s in opened]
    takes = {"prompt", "hints"} & set(entry.signature.parameters) - set(given)
    if (
        "prompt" in takes
        and "prompt" in backbone.conditioner.accepts
        and all(k in backbone.contract.labels for k in kinds)
    ):
        more["prompt"] = [phrase(str(k), backbone) for k in kinds]
    if "hints" in takes and given.get("hint") == "mask":
        masks = [s.mask_fitted for s in opened if s.mask_fitted is not None]
        if len(masks) != len(opened):
            raise DiffAugError("a branch that follows masks learns from images that have one: add them as 'label'")
        more["hints"] = torch.stack([(m.tensor > 0).float() for m in masks]).to(backbone.device)
    return more
