"""One batch: real images in, a method's results out, at the size and in the values of the files they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..io import images
from ..io.datalist import Item
from ..io.images import Scan
from ..primitives import concepts
from ..primitives.fitting import Fitted, fit
from ..primitives.told import with_mask
from ..types import Backbone, Concept, Contract, DiffAugError, NoiseSource, Sample, iterate
from .arguments import TEXTS, Recipe, offers_mask, wants_mask

__all__ = ["Product", "Source", "batched", "finish", "make", "numbers_of", "open_source", "seed_of", "tells_mask"]


@dataclass(frozen=True)
class Source:
    """A real image as its file has it and as the network wants it, and its mask."""

    item: Item
    scan: Scan
    fitted: Fitted
    mask: Scan | None = None
    mask_fitted: Fitted | None = None
    planes: int = 1  # equal channels of a gray picture that was saved in color


@dataclass(frozen=True)
class Product:
    """What a method made of one image.

    ``small`` (1, C, *contract.size) is what the network returned, in its value range; ``image`` and ``mask`` are on the
    file's grid, in the file's values. ``kept`` says that the source's mask is this image's too.
    """

    small: Tensor
    image: Tensor
    mask: Tensor | None = None
    mask_like: Scan | None = None
    kind: Any = None
    kept: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)  # names training images: not for who gets the image


def seed_of(seed: int, *what: object) -> int:
    """A seed for one piece of work that depends on what it is, and not on when or beside what it is done."""
    text = "\x1f".join(str(w) for w in (seed, *what))
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)  # 48 bits: what JSON readers keep exactly


def open_source(item: Item, contract: Contract) -> Source:
    """Read an image and its mask, and fit them to the network.

    Raises:
        DiffAugError: either cannot be used; the message begins with the file.
    """
    dims = contract.spatial_dims
    axes = "yx" if dims == 2 else "xy"  # `images.read` gives slices rows first
    scan = images.read(item.image, dims=dims, orientation=contract.orientation)
    picture, planes = scan.image, scan.image.shape[0]
    if contract.channels == 1 and planes == 3 and bool((picture == picture[:1]).all()):
        picture = picture[:1]
    else:
        planes = 1
    fitted = _named(item.image, lambda: fit(picture, contract, axes=axes))
    if item.mask is None:
        return Source(item, scan, fitted, planes=planes)
    mask = images.read(item.mask, dims=dims, orientation=contract.orientation, mask=True, like=scan)
    if mask.image.shape[1:] != scan.image.shape[1:]:
        sizes = (" x ".join(map(str, s.image.shape[1:])) for s in (mask, scan))
        raise DiffAugError(f"{item.mask} is {' and its image '.join(sizes)}: resample one of them, or leave it out")
    mask_fitted = _named(item.mask, lambda: fit(mask.image[:1], contract, mask=True, like=fitted, axes=axes))
    return Source(item, scan, fitted, mask, mask_fitted, planes)


def _named(path: Any, call: Any) -> Any:
    try:
        return call()
    except DiffAugError as error:
        raise DiffAugError(f"{path}: {error}") from None


def make(
    backbone: Backbone,
    recipe: Recipe,
    sources: Sequence[Source],
    given: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    controls: Sequence[Concept] = (),
) -> list[Product]:
    """Run an ``edit`` method on a batch.

    A method that keeps labels, on a backbone that takes masks, is told the images' own.

    Args:
        backbone: the model.
        recipe: the method.
        sources: one or more.
        given: for each of them what the method is told; the same keys for all.
        seeds: one for each.
        controls: concepts that look at the image.

    Returns:
        one product for each source.
    """
    tensors = [s.fitted.tensor for s in sources]
    image = torch.stack(tensors).to(backbone.device)
    arguments = batched(recipe, given)
    regions = None
    if all(s.mask_fitted is not None for s in sources):
        regions = torch.stack([_region(s) for s in sources]).to(backbone.device)
    if regions is not None and (wants_mask(recipe) or offers_mask(recipe)):
        arguments["mask"] = regions
    with torch.no_grad(), concepts.applied(backbone, *controls, image=image, mask=regions) as model:
        if regions is not None and tells_mask(recipe, backbone):
            model = with_mask(model, regions)
        result: Sample = registry.call(recipe.method, model, image, **arguments, generator=NoiseSource(seeds))
        kept = recipe.method.labels in ("kept", "replaced")
        reference = backbone.decode(backbone.encode(image)).cpu() if kept else None
    products = []
    for i, (source, single) in enumerate(zip(sources, iterate(result), strict=True)):
        numbers = numbers_of(result.info, i, len(sources))
        products.append(finish(recipe, source, single, None if reference is None else reference[i], numbers))
    return products


def batched(recipe: Recipe, given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Texts as one per image, everything else once."""
    out: dict[str, Any] = {}
    for key, first in given[0].items():
        values = [g[key] for g in given]
        one_each = key in TEXTS and isinstance(first, str)
        out[key] = values if one_each else first
    return out


def tells_mask(recipe: Recipe, backbone: Backbone) -> bool:
    """Whether the images' masks are told to the backbone along with the prompt, by a method that knows of none."""
    told = recipe.takes("prompt") and not offers_mask(recipe)
    return "mask" in backbone.conditioner.accepts and told and recipe.method.labels == "kept"


def _region(source: Source) -> Tensor:
    assert source.mask_fitted is not None
    return (source.mask_fitted.tensor > 0).float()


def numbers_of(info: Mapping[str, Any], i: int, n: int) -> dict[str, float]:
    """Of a sample's remarks those that are one number an image."""
    found = {}
    for key, value in info.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == n:
            number = value[i]
            if isinstance(number, int | float):
                found[key] = float(number)
    return found


def finish(
    recipe: Recipe, source: Source, sample: Sample, reference: Tensor | None, scores: Mapping[str, float]
) -> Product:
    """Bring one result (batch axis 1) back to the file's grid, with the label that belongs to it."""
    small = sample.image.detach().float().cpu()
    image = source.fitted.restore(small[0], reference)
    image = image.expand(source.planes, *image.shape[1:]) if source.planes > 1 else image
    policy = recipe.method.labels
    product = Product(small, image, kind=source.item.kind, kept=policy == "kept", scores=scores)
    if product.kept:
        return _rewritten(product, source)
    if sample.label is not None and policy in ("replaced", "generated"):
        product = replace(product, kind=_single(sample.label))
    if sample.mask is None or (policy == "replaced" and source.mask is None):
        return product
    return _with_mask(product, source, sample.mask[0].detach().float().cpu())


def _rewritten(product: Product, source: Source) -> Product:
    """A kept mask is copied as it is, but a DICOM one names its patient: that is written anew."""
    if source.mask is None or source.mask.kind != "seg":
        return product
    return replace(product, mask=source.mask.image, mask_like=source.mask)


def _single(label: Any) -> Any:
    if isinstance(label, Tensor):
        return label.flatten()[0].item()
    return label[0] if isinstance(label, list | tuple) and label else label


def _with_mask(product: Product, source: Source, mask: Tensor) -> Product:
    like = source.mask or images.mask_like(source.scan)
    if source.mask_fitted is not None and bool(source.mask.image.any()) and not _is_binary(source.mask.image):  # type: ignore[union-attr]
        restored = source.mask_fitted.restore(mask)  # several labels
    else:
        top = float(like.image.max()) or (255.0 if like.kind in ("png", "jpeg") and like.dtype != "bool" else 1.0)
        restored = source.fitted.restore_mask((mask > 0.5).float()).float() * top
    return replace(product, mask=restored.expand(like.image.shape), mask_like=like)


def _is_binary(mask: Tensor) -> bool:
    return int(mask.unique().numel()) <= 2
