"""One image edited: the image, its label if it has one, and the record beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..backbones import hub
from ..io import atomic, images
from ..io.datalist import Item, stem_of
from ..primitives import concepts as taught_by
from ..provenance import Record
from ..types import Backbone, Concept, DiffAugError
from .arguments import Words, recipes, told
from .loop import guarded
from .making import make, open_source, seed_of
from .run import opened_concepts

__all__ = ["Edited", "edit"]


@dataclass(frozen=True)
class Edited:
    """Where the results of :func:`edit` are."""

    image: Path
    record: Path
    mask: Path | None
    entry: Mapping[str, Any]


def edit(
    image: str | Path,
    out: str | Path | None,
    method: str,
    backbone: str | Path | Backbone,
    *,
    parameters: Mapping[str, Any] | None = None,
    mask: str | Path | None = None,
    kind: str | None = None,
    seed: int = 0,
    concepts: Sequence[str | Path | Concept] = (),
    precision: str | None = None,
    device: str | None = None,
) -> Edited:
    """Edit one image by a method of shape ``edit``.

    Args:
        image: a NIfTI, PNG, JPEG or DICOM file, or the folder of a DICOM series.
        out: of the same kind; beside the current folder's files, named after image and method, unless given.
        method: its name.
        backbone: a name or folder for the hub, or a loaded backbone.
        parameters: of the method.
        mask: the image's label mask.
        kind: the image's class.
        seed: of the noise.
        concepts: files or concepts put on the backbone.
        precision: see :func:`monai_diffaug.backbones.hub.load`.
        device: likewise.

    Raises:
        DiffAugError: the image, the method or its parameters will not do, or the result cannot be written.
    """
    source = Path(image).expanduser()
    item = Item(source.name, source, None if mask is None else Path(mask).expanduser(), kind=kind)
    model = backbone if isinstance(backbone, Backbone) else hub.load(backbone, precision=precision, device=device)
    with ExitStack() as stack:
        known = opened_concepts(concepts)
        controls = [c for c in known if c.kind == "controlnet"]
        model = stack.enter_context(taught_by.applied(model, *[c for c in known if c.kind != "controlnet"]))
        (recipe,) = recipes([method], model, parameters, shapes=("edit",))
        given, unchanged = told(recipe, model, item)
        if unchanged:
            raise DiffAugError(f"{source}: {unchanged}, so {recipe.name} would change nothing: give another prompt")
        Words(model).check(given)
        opened = open_source(item, model.contract)
        number = seed_of(seed, item.id, recipe.name, 1, 0)
        (product,) = guarded(lambda: make(model, recipe, [opened], [given], [number], controls))
        digest = "+".join([model.digest, *(taught_by.digest(c)[:16] for c in controls)])
    end, dicom = opened.scan.ending, opened.scan.kind == "dicom"  # a DICOM file's name may be its patient's
    target = Path(out) if out is not None else Path(f"{'image' if dicom else stem_of(source.name)}_{recipe.name}{end}")
    if images.ending(target) != end:
        wanted = f"end it in {end}" if end else "give a folder's name, without ending"
        raise DiffAugError(f"{target} is of another kind than {source.name}: {wanted}")
    if target.exists() and os.path.samefile(target, source):
        raise DiffAugError(f"{target} is the image itself, which is never overwritten: give another --out")
    prompt = given.get("prompt", recipe.default("prompt"))
    record = Record(recipe.method.name, model.name, digest, number, given, item.id, prompt, scores=product.scores)
    record.to_json()
    entry: dict[str, Any] = {"image": target.name, "synthetic": True, "source": os.path.relpath(source, target.parent)}
    remark = f"synthetic, made by monai-diffaug {recipe.name} seed {number}"
    images.write(target, product.image, opened.scan, remark=remark, record=asdict(record))
    beside = None
    if product.mask is not None and product.mask_like is not None:
        beside = target.with_name(f"{stem_of(target.name)}_mask{product.mask_like.ending}")
        label = "label of a synthetic image"
        images.write(beside, product.mask, product.mask_like, remark=label, record=asdict(record), of=target)
    elif product.kept and item.mask is not None:
        beside = target.with_name(f"{stem_of(target.name)}_mask{images.ending(item.mask)}")
        atomic.write_bytes(beside, item.mask.read_bytes())
    if beside is not None:
        entry["label"] = beside.name
    if item.mask is not None:
        entry["source_mask"] = os.path.relpath(item.mask, target.parent)
    if product.kind is not None:
        entry["class"] = product.kind
    entry["provenance"] = json.loads(json.dumps(asdict(record)))
    place = target.with_name(f"{stem_of(target.name)}.json")
    head = {"description": "One synthetic image, made by monai-diffaug", "synthetic": True, "backbone": model.name}
    atomic.write_json(place, {**head, "backbone_digest": digest, "training": [entry]})
    return Edited(target, place, beside, entry)
