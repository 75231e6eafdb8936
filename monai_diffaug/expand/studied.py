"""Synthetic images for a study of their use: an order is filled by the same functions that the commands call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import registry
from ..backbones import hub
from ..evaluation.utility.synthetic import Order
from ..types import Backbone, DiffAugError
from .arguments import phrase
from .generate import generate
from .learning import learn
from .loop import Progress
from .run import expand

__all__ = ["produce"]

_MANY = 10**6  # a word is learned from all images of its class, not from the first few


def produce(order: Order, progress: Progress | None = None) -> Path:
    """Make an arm's images, or those of them that an earlier run did not make.

    Args:
        order: what, and where.
        progress: called with pieces done, pieces in all and the name of the last.

    Returns:
        the datalist.

    Raises:
        DiffAugError: as of :func:`expand` and :func:`generate`; nothing passed the filters.
    """
    arm, model = order.arm, hub.load(order.backbone)
    concepts = _learned(order, model) if arm.learn else []
    shared: dict[str, Any] = {"keep": arm.keep, "seed": order.seed, "concepts": concepts, "progress": progress}
    if order.count:
        count = {phrase(kind, model): n for kind, n in order.count.items()}
        method = None if arm.method == "generate" else arm.method
        done = generate(model, order.out, count=count, method=method, parameters=arm.parameters, **shared)
    else:
        recipe = (arm.method, arm.parameters)
        done = expand(order.source, order.out, [recipe], model, copies=order.copies, **shared)
    if done.made < 4:
        raise DiffAugError(f"arm {arm.name!r} came to {done.made} images: loosen its filters or choose another method")
    return done.datalist


def _learned(order: Order, model: Backbone) -> list[Path]:
    """Concepts of the labeled patients' images: one a class for a method that names what it learns."""
    name, parameters = str(order.arm.learn["method"]), dict(order.arm.learn.get("parameters", {}))
    named = "word" in registry.get(name).signature.parameters
    found = []
    for kind in order.classes if named else (None,):
        file = order.out.with_name(f"{order.out.name}-{kind or name}.safetensors")
        if not file.is_file():
            own = parameters if kind is None else {**parameters, "word": kind}
            learn(order.source, file, name, model, parameters=own, only=kind, count=_MANY, seed=order.seed)
        found.append(file)
    return found
