"""Arguments by name: since a parameter name means the same in every method, one table serves them all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..backbones.tiny import ideal_backbone, tiny
from ..registry import Entry
from ..types import Backbone, DiffAugError, NoiseSource, Sample

__all__ = ["BACKBONES", "SMALL", "VOCABULARY", "Case", "case_for", "runs_on", "variants"]


@dataclass(frozen=True)
class Case:
    """One method on one backbone, with data for ``batch`` images whose seeds count up from ``seed``.

    ``given`` overrides what the vocabulary would supply; ``variant`` names optional parameters that it shall supply as
    well.
    """

    method: Entry
    backbone: Backbone
    batch: int = 2
    seed: int = 11
    given: Mapping[str, Any] = field(default_factory=dict)
    variant: tuple[str, ...] = ()

    def but(self, **changes: Any) -> Case:
        """The same case with some fields changed."""
        return replace(self, **changes)

    def arguments(self) -> dict[str, Any]:
        """Everything that the method is called with, by name.

        Raises:
            DiffAugError: a parameter is neither in the vocabulary nor given.
        """
        found: dict[str, Any] = {}
        for name, parameter in self.method.signature.parameters.items():
            if name == "backbone" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if name in self.given:
                found[name] = self.given[name]
            elif name in SMALL and isinstance(parameter.default, int | float):
                found[name] = min(SMALL[name], parameter.default)
            elif self._wants(name, parameter):
                found[name] = self._supply(name)
        return found

    def _wants(self, name: str, parameter: inspect.Parameter) -> bool:
        if parameter.default is inspect.Parameter.empty or name in self.variant or name == "generator":
            return True
        told = name.removeprefix("source_") in self.backbone.conditioner.accepts
        return name in ("prompt", "source_prompt") and told and parameter.default is None

    def _supply(self, name: str) -> Any:
        if name not in VOCABULARY:
            raise DiffAugError(
                f"{self.method.name} has parameter {name!r}, which the laws' vocabulary lacks: give it a default, use "
                f"a name that other methods use ({', '.join(VOCABULARY)}), or call check_method(..., {name}=value)"
            )
        return VOCABULARY[name](self)

    def run(self, **changed: Any) -> Any:
        """Call the method, through the registry's checks."""
        arguments = {**self.arguments(), **changed}
        if self.method.shape == "expand":
            return [*registry.call(self.method, self.backbone, **arguments)]
        return registry.call(self.method, self.backbone, **arguments)

    def images(self, n: int | None = None) -> Tensor:
        """(n, C, *S) in the value range; image i is the same whatever n."""
        contract = self.backbone.contract
        heads = _heads(contract.spatial_dims, contract.size[0])
        count = self.batch if n is None else n
        picked = torch.stack([heads[i % len(heads)] for i in range(count)])
        scale = torch.linspace(1.0, 0.8, contract.channels).reshape(1, -1, *[1] * contract.spatial_dims)
        return picked * scale


@cache
def _heads(dims: int, size: int) -> Tensor:
    network: Any = ideal_backbone(dims, size=size).network
    points: Tensor = network.module.points
    return points


def _box(case: Case) -> Tensor:
    """A mask (B, 1, *S) of the middle half along each axis."""
    contract = case.backbone.contract
    mask = torch.zeros(case.batch, 1, *contract.size)
    side = [slice(s // 4, s // 4 * 3) for s in contract.size]
    mask[(slice(None), slice(None), *side)] = 1.0
    return mask


def _words(backbone: Backbone) -> tuple[str, str]:
    """A prompt and another that differs from it in one word."""
    if hasattr(backbone.conditioner, "token_embedding"):
        return "a small head ct", "a large head ct"
    labels = backbone.contract.labels or ("healthy", "tumor")
    return labels[-1], labels[0]


def _dataset(case: Case) -> list[dict[str, Any]]:
    images, mask = case.images(), _box(case)
    labels = case.backbone.contract.labels or ("",)
    return [
        {"image": images[i], "label": labels[i % len(labels)], "mask": mask[i], "seed": case.seed + i}
        for i in range(case.batch)
    ]


def _labels(case: Case) -> list[str]:
    known = case.backbone.contract.labels or ("",)
    return [known[i % len(known)] for i in range(case.batch)]


_LEARNED: dict[tuple[str, str], Any] = {}


def _concept(case: Case) -> Any:
    """What the method's ``learned_by`` learns on this backbone, once for all cases."""
    teacher = str(case.method.extra["learned_by"])
    key = (teacher, case.backbone.digest)
    if key not in _LEARNED:
        _LEARNED[key] = Case(registry.get(teacher), case.backbone).run()
    return _LEARNED[key]


VOCABULARY: dict[str, Callable[[Case], Any]] = {
    "image": Case.images,
    "images": Case.images,
    "dataset": _dataset,
    "generator": lambda case: NoiseSource(range(case.seed, case.seed + case.batch)),
    "prompt": lambda case: _words(case.backbone)[1],
    "source_prompt": lambda case: _words(case.backbone)[0],
    "label": _labels,
    "labels": _labels,
    "mask": _box,
    "hint": _box,
    "hints": _box,
    "word": lambda case: "scan-x",
    "class_prompt": lambda case: _words(case.backbone)[0],
    "concepts": lambda case: _words(case.backbone)[0],
    "batch": lambda case: case.batch,
    "concept": _concept,
}
"""What a parameter of this name is given, in every method."""

SMALL: dict[str, float] = {"steps": 4, "iterations": 2, "rounds": 2, "draws": 2, "rank": 2, "copies": 2, "prior": 2}
"""Numbers that only cost time: at most this, if the method's default is larger."""


def _tiny(needs: Sequence[str], dims: int) -> Backbone | None:
    """The richest tiny backbone that offers what is needed; latents have half the image's size."""
    size = 16 if dims == 2 else 8
    for kind in ("text", "class_mask", "class", "regions", "image", "none"):
        backbone = tiny(kind, dims, size, autoencoder=True)
        if set(needs) <= backbone.offers():
            return backbone
    return None


def _ideal(needs: Sequence[str], dims: int) -> Backbone | None:
    backbone = ideal_backbone(dims, size=16 if dims == 2 else 8)
    return backbone if set(needs) <= backbone.offers() else None


BACKBONES: dict[str, tuple[Callable[[Sequence[str], int], Backbone | None], int]] = {
    "ideal": (_ideal, 2),
    "tiny 2D": (_tiny, 2),
    "tiny 3D": (_tiny, 3),
}


def runs_on(method: str | Entry, on: str) -> bool:
    """Whether a method can run on one of ``BACKBONES``, by its own declaration."""
    entry = registry.get(method)
    build, dims = BACKBONES[on]
    return dims in entry.dims and (on != "ideal" or build(entry.needs, dims) is not None)


def case_for(method: str | Entry, on: str = "tiny 2D", **given: Any) -> Case | None:
    """The method on one of ``BACKBONES``; ``None`` where it cannot run.

    Raises:
        DiffAugError: the method has these dimensions, yet no tiny backbone offers what it needs.
    """
    entry = registry.get(method)
    if not runs_on(entry, on):
        return None
    build, dims = BACKBONES[on]
    backbone = build(entry.needs, dims)
    if backbone is None:
        raise DiffAugError(
            f"no tiny backbone offers what {entry.name} needs ({', '.join(entry.needs)}): call check_method(..., "
            "backbone=one that does)"
        )
    case = Case(entry, backbone, given=given)
    if "learned_by" in entry.extra:
        case.arguments()  # learns now, so that no law counts the calls that this takes
    return case


def variants(case: Case) -> list[Case]:
    """The case as it is, and once with each optional tensor that the method takes."""
    optional = [
        name
        for name in ("mask", "hint")
        if name in case.method.signature.parameters
        and case.method.signature.parameters[name].default is None
        and name not in case.given
    ]
    return [case, *(case.but(variant=(name,)) for name in optional)]


def picture(result: Any) -> Tensor:
    """The images of whatever a method of shape generate, edit or expand returned, as one batch."""
    if isinstance(result, Sample):
        return result.image
    samples = list(result)
    return torch.stack([s.image if s.image.ndim == samples[0].image.ndim else s.image[0] for s in samples])
