"""What the transforms share: a method with its backbone, parameters and concepts, run on a user's images."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .. import registry
from ..primitives import concepts as taught_concepts
from ..primitives.fitting import Fitted, fit
from ..primitives.told import with_mask
from ..provenance import Record
from ..registry import Entry
from ..types import Backbone, Concept, DiffAugError, NoiseSource, Sample, iterate

__all__ = ["MethodRunner", "Outcome", "Request"]

_LOCK = threading.RLock()  # so that the threads of a loader load a backbone once

_GIVEN = {"backbone", "image", "images", "dataset", "generator"}


@dataclass(frozen=True)
class Request:
    """One image (C, *S) to augment: its seed, parameters of its own, its class and its label mask (c, *S)."""

    image: Tensor
    seed: int
    given: Mapping[str, Any]
    kind: str | None = None
    mask: Tensor | None = None
    source: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a request: ``image`` like its image, ``sample`` (batch of one) at the backbone's size."""

    image: Tensor
    sample: Sample
    fitted: Fitted
    record: Record


class MethodRunner:
    """A method, ready to run. It pickles without weights: each process loads its backbone at first use.

    Args:
        method: name of a generate, edit or expand method.
        backbone: name, folder or hub id; or a backbone.
        parameters: of the method; ``NAME_key="k"`` takes parameter NAME from key ``k`` of the data.
        concepts: what ``learn`` methods found, or the files that hold it.
        axes: order of a slice's axes, see :func:`~monai_diffaug.primitives.fitting.fit`.
        detail: whether to keep the source's fine detail where an edit changes little
            (:meth:`~monai_diffaug.primitives.fitting.Fitted.restore`); ``None``: for edits that keep the layout.
        precision: to run in.
        device: for the weights; the CPU unless given.

    Raises:
        DiffAugError: whatever would make the first call fail.
    """

    def __init__(
        self,
        method: str | Entry,
        backbone: str | Path | Backbone,
        parameters: Mapping[str, Any],
        concepts: Sequence[Concept | str | Path] | Concept | str | Path = (),
        *,
        axes: str = "auto",
        detail: bool | None = None,
        precision: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
    ):
        self.method = registry.get(method).name
        self.name, self.precision, self.device, self.axes = backbone, precision, device, axes
        one = isinstance(concepts, Concept | str | Path)
        given: Sequence[Any] = (concepts,) if one else concepts  # type: ignore[assignment]
        self.concepts = [c if isinstance(c, Concept) else taught_concepts.load_concept(c) for c in given]
        self.keys = {k.removesuffix("_key"): v for k, v in parameters.items() if k.endswith("_key") and v is not None}
        self.constants = {k: v for k, v in parameters.items() if not k.endswith("_key")}
        layout = self.entry.shape == "edit" and self.entry.labels in ("kept", "replaced")
        self.detail = layout if detail is None else detail
        self._backbone: Backbone | None = None
        self._check()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backbone": None}

    @property
    def entry(self) -> Entry:
        """The method."""
        return registry.get(self.method)

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded in this process, with the concepts that need no image put on."""
        if self._backbone is None:
            with _LOCK:
                self._backbone = self._load()
        return self._backbone

    @property
    def asks_mask(self) -> bool:
        """Whether label masks are told to the backbone along with the prompt, by a method that knows of none."""
        told = "prompt" in self.entry.signature.parameters and not self.offers_mask
        return "mask" in self.backbone.conditioner.accepts and told and self.entry.labels == "kept"

    @property
    def offers_mask(self) -> bool:
        """Whether the method wants the label and its mask where there is one, without insisting."""
        known = self.entry.signature.parameters
        return {"label", "mask"} <= set(known) and known["mask"].default is None and "mask" not in self._own

    @property
    def _own(self) -> set[str]:
        """What the user says himself."""
        return {*self.constants, *self.keys}

    def run(self, requests: Sequence[Request]) -> list[Outcome]:
        """Augment images, in one batch."""
        contract = self.backbone.contract
        fitted = [fit(r.image, contract, axes=self.axes) for r in requests]
        images = torch.stack([f.tensor for f in fitted]).to(self.backbone.device)
        masks = self._label_masks(requests, fitted)
        told = [self._told(r, f) for r, f in zip(requests, fitted, strict=True)]
        if masks is not None and self.offers_mask:
            told = [{"mask": mask, **t} for mask, t in zip(masks, told, strict=True)]
        with self._controlled(images, masks) as backbone:
            if masks is not None and self.asks_mask:
                backbone = with_mask(backbone, masks)
            samples = self._call(backbone, images, [r.seed for r in requests], told, masks)
            references = [None] * len(requests)
            if self.detail:
                with torch.no_grad():
                    references = list(backbone.decode(backbone.encode(images)))
        return [
            self._outcome(*each, backbone.digest)
            for each in zip(requests, fitted, samples, references, told, strict=True)
        ]

    # ------------------------------------------------------------------------------------------------------ before

    def _load(self) -> Backbone:
        if isinstance(self.name, Backbone):
            backbone = self.name
        else:
            from ..backbones import hub  # here, since diffusers takes seconds to import

            _refuse_cuda_in_forks(self.device)
            backbone = hub.load(self.name, precision=self.precision, device=self.device)
        plain = [c for c in self.concepts if c.kind != "controlnet"]
        with taught_concepts.applied(backbone, *plain) as taught:
            return taught

    def _check(self) -> None:
        entry = self.entry
        if entry.shape == "learn":
            raise DiffAugError(
                f"{entry.name} learns from many images and changes none: run it once, save what it finds, and give the "
                "file as `concepts` to an edit method such as sdedit"
            )
        registry.check(entry, self.backbone, [*self.constants, *self.keys])
        for text in ("prompt", "source_prompt"):
            if isinstance(self.constants.get(text), str):
                self.backbone.condition(1, prompt=self.constants[text])  # words that it lacks are refused now

    def require(self) -> None:
        """Refuse to go on without something that the method must be given, here or from a key of the data."""
        entry = self.entry
        missing = [
            k
            for k, p in entry.signature.parameters.items()
            if p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and k not in _GIVEN | self._own
        ]
        if missing:
            name = missing[0]
            raise DiffAugError(
                f"{entry.name} wants {', '.join(missing)}: give {name}=..., or {name}_key='the key of the data with it'"
            )

    # -------------------------------------------------------------------------------------------------------- call

    def _label_masks(self, requests: Sequence[Request], fitted: Sequence[Fitted]) -> Tensor | None:
        """(B, 1, *size), 1 wherever a label is not background; ``None`` unless each has one."""
        found = []
        for r, f in zip(requests, fitted, strict=True):
            if r.mask is None:
                return None
            mask = fit(r.mask, f.contract, mask=True, like=f).tensor
            found.append((mask > 0).any(0, keepdim=True).float())
        return torch.stack(found).to(self.backbone.device)

    def _told(self, request: Request, fitted: Fitted) -> dict[str, Any]:
        """The parameters of one image: its own, and what its label says it shows, for a method that keeps labels."""
        told: dict[str, Any] = {}
        for name, value in request.given.items():
            spatial = isinstance(value, Tensor) and value.ndim == request.image.ndim
            told[name] = fit(value, fitted.contract, mask=True, like=fitted).tensor if spatial else _plain(value)
        kind = request.kind if request.kind is not None else self._shown(request.mask)
        return told if kind is None else {**self._implied(kind, {*told, *self.constants}), **told}

    def _implied(self, kind: str, given: set[str]) -> dict[str, Any]:
        """What follows from the class that an image shows, where the user says nothing else."""
        takes, accepts = self.entry.signature.parameters, self.backbone.conditioner.accepts
        phrase = str(getattr(self.backbone.conditioner, "template", "{}")).format(kind)
        if "source_prompt" in takes and "prompt" in accepts and "source_prompt" not in given:
            return {"source_prompt": phrase}
        if self.entry.labels != "kept" or {"prompt", "label"} & given:
            return {}
        if "label" in takes:
            return {"label": kind}
        return {"prompt": phrase} if "prompt" in takes and "prompt" in accepts else {}

    def _shown(self, mask: Tensor | None) -> str | None:
        """The class that a label mask stands for, with two classes and masks: the second unless it is empty."""
        labels = self.backbone.contract.labels
        if mask is None or len(labels) != 2 or "mask" not in self.backbone.conditioner.accepts:
            return None
        return labels[1] if bool((mask > 0).any()) else labels[0]

    def knows(self, kind: str) -> bool:
        """Whether the backbone can be told a class by its name: it is one of its own, or words were learned."""
        learned = getattr(self.backbone.conditioner, "learned", ()) or self.constants.get("concept")
        return kind in self.backbone.contract.labels or bool(learned)

    @contextmanager
    def _controlled(self, images: Tensor, masks: Tensor | None) -> Iterator[Backbone]:
        controls = [c for c in self.concepts if c.kind == "controlnet"]
        with taught_concepts.applied(self.backbone, *controls, image=images, mask=masks) as backbone:
            yield backbone

    def _call(
        self,
        backbone: Backbone,
        images: Tensor,
        seeds: Sequence[int],
        told: Sequence[dict[str, Any]],
        masks: Tensor | None,
    ) -> list[Sample]:
        entry, shape = self.entry, self.entry.shape
        if shape == "expand" or len({_constant(t) for t in told}) > 1:  # one by one
            return [
                self._one(backbone, images[i : i + 1], seeds[i], told[i], None if masks is None else masks[i])
                for i in range(len(images))
            ]
        arguments: dict[str, Any] = dict(self.constants)
        for name in told[0]:
            values = [t[name] for t in told]
            if isinstance(values[0], Tensor):
                arguments[name] = torch.stack(values).to(backbone.device)
            elif isinstance(values[0], str):
                arguments[name] = values if len(values) > 1 else values[0]
            else:
                arguments[name] = values[0]
        if "generator" in entry.signature.parameters:
            arguments["generator"] = NoiseSource(seeds)
        if shape == "edit":
            arguments["image"] = images
        sample: Sample = registry.call(entry, backbone, **arguments)
        return list(iterate(sample))

    def _one(self, backbone: Backbone, image: Tensor, seed: int, told: dict[str, Any], mask: Tensor | None) -> Sample:
        if self.entry.shape != "expand":
            return self._call(backbone, image, [seed], [told], mask)[0]
        own = dict(told)
        item = {"image": image[0], "label": own.pop("prompt", None), "mask": mask, "seed": seed}
        arguments = {**self.constants, **own}
        if "generator" in self.entry.signature.parameters:
            arguments["generator"] = NoiseSource([seed])
        made = next(iter(registry.call(self.entry, backbone, dataset=[item], **arguments)), None)
        if made is None:
            raise DiffAugError(f"{self.method} made nothing of the image: loosen its filters")
        return made if made.image.ndim == image.ndim else _batched(made)

    # ------------------------------------------------------------------------------------------------------- after

    def _outcome(
        self,
        request: Request,
        fitted: Fitted,
        sample: Sample,
        reference: Tensor | None,
        told: dict[str, Any],
        digest: str,
    ) -> Outcome:
        home = request.image.device
        image = fitted.restore(sample.image[0].to(home), None if reference is None else reference.to(home))
        known = {**self.constants, **told}
        prompt = known.get("prompt", sample.prompt)
        record = Record(
            method=self.method,
            backbone=self.backbone.name,
            backbone_digest=digest,
            seed=request.seed,
            parameters={k: _jsonable(v) for k, v in known.items() if not isinstance(v, Tensor)},
            source=request.source,
            prompt=prompt if isinstance(prompt, str) else None,
            label=_jsonable(_first(sample.label)),
        )
        return Outcome(image, sample, fitted, record)


def _refuse_cuda_in_forks(device: Any) -> None:
    forked = get_worker_info() is not None and torch.multiprocessing.get_start_method(allow_none=True) in (None, "fork")
    if forked and str(device or "cpu").startswith("cuda"):
        raise DiffAugError(
            "a forked loader worker cannot use CUDA: use BatchDiffusionAugment in the training loop, "
            "multiprocessing_context='spawn', or device='cpu'"
        )


def _plain(value: Any) -> Any:
    """A number or text out of whatever a loader made of it."""
    one = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, np.generic)
    return value.item() if one else value


def _constant(told: Mapping[str, Any]) -> str:
    """What must be equal for images to go into one call."""
    text = {k: "text" if isinstance(v, str) else _jsonable(v) for k, v in told.items() if not isinstance(v, Tensor)}
    return json.dumps([sorted(told), text], sort_keys=True)


def _jsonable(value: Any) -> Any:
    try:
        json.dumps(value)
    except TypeError:
        return repr(value)
    return value


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def _batched(sample: Sample) -> Sample:
    """A single item as a batch of one."""
    more = {k: v[None] if isinstance(v := getattr(sample, k), Tensor) else v for k in ("mask", "map")}
    return Sample(sample.image[None], sample.label, more["mask"], more["map"], sample.boxes, sample.prompt, sample.info)
