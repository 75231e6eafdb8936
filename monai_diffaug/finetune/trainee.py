"""What of a backbone is trained, in each mode, and how what was learned goes back into it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..primitives import adapters
from ..types import Backbone, Concept, DiffAugError, Network

__all__ = ["MODES", "Trainee", "adapter_of", "trainee"]

MODES = ("full", "lora", "private")
_TABLE = "class_embedding.weight"


@dataclass(frozen=True)
class Trainee:
    """A backbone whose network (and text encoder) may be trained without touching the one that it was made from.

    ``backbone`` holds the copies, ``parameters`` by name what is trained of them; ``modules`` further modules to be
    trained along (a text encoder); ``kept`` the number of rows of the table of classes that must stay as they are.
    """

    backbone: Backbone
    base: Backbone
    modules: Mapping[str, nn.Module]
    rank: int | None
    kept: int = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        parts = [self.backbone.network.module, *self.modules.values()]
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    def hold(self) -> None:
        """Take per-sample gradients away from classes that the backbone knew before: an adapter leaves them alone."""
        table = getattr(self.backbone.network.module, "class_embedding", None)
        found = getattr(table.weight, "grad_sample", None) if self.kept and table is not None else None
        if found is not None:
            found[:, : self.kept] = 0

    def result(self) -> Backbone:
        """The backbone as it is now, adapters added into the weights, frozen."""
        network = self.backbone.network
        if self.rank is not None:
            network = adapters.merged(self.base.network, adapters.lora_state(network))
            rows = _rows(self.backbone.network)
            if rows is not None and self.kept:
                network = adapters.replaced(network, {_TABLE: rows})
        out = replace(self.backbone, network=network, digest="")
        for module in out.modules().values():
            module.eval().requires_grad_(False)
        return out


def _without(kept: int, gradient: Tensor) -> Tensor:
    """The gradient of new rows alone."""
    gradient = gradient.clone()
    gradient[:kept] = 0
    return gradient


def _rows(network: Network) -> Tensor | None:
    table = getattr(network.module, "class_embedding", None)
    return table.weight.detach().clone() if isinstance(table, nn.Embedding) else None


def trainee(
    backbone: Backbone, mode: str, *, rank: int = 8, fresh: int = 0, text: bool = True, seed: int = 0
) -> Trainee:
    """Make the copies.

    Args:
        backbone: stays as it is.
        mode: ``full``: every weight of the network and of the text encoder. ``lora``: a low-rank adapter on every
            linear layer and convolution, attention and the rest, and the rows of new classes. ``private``: the same as
            ``lora``, or with ``rank`` 0 every weight of the network.
        rank: of the adapter.
        fresh: number of new classes, the last rows of the table.
        text: whether a text encoder is trained too, in mode ``full``.
        seed: of the adapter.

    Raises:
        DiffAugError: the mode is unknown, or the network has no weights.
    """
    if mode not in MODES:
        raise DiffAugError(f"mode {mode!r} is unknown: use {', '.join(MODES)}")
    if "weights" not in backbone.offers():
        raise DiffAugError(f"backbone {backbone.name!r} has no weights to train: choose one with a network")
    modules: dict[str, nn.Module] = {}
    conditioner: Any = backbone.conditioner
    if mode == "lora" or (mode == "private" and rank):
        every = "|".join(re.escape(n) for n, _ in backbone.network.module.named_modules() if n)
        network = adapters.with_lora(backbone.network, rank, pattern=every, seed=seed)
        rows, kept = _rows(network), 0
        if rows is not None and fresh:
            kept = len(rows) - fresh
            table: Any = network.module.get_submodule("class_embedding")
            table.weight = nn.Parameter(rows, requires_grad=True)
            table.weight.register_hook(partial(_without, kept))
        return Trainee(replace(backbone, network=network), backbone, modules, rank, kept)
    network = adapters.copied(backbone.network, None)
    if mode == "full" and text and hasattr(conditioner, "token_embedding"):
        conditioner = copy.copy(conditioner)
        conditioner.module = copy.deepcopy(conditioner.module).requires_grad_(True)
        modules["conditioner"] = conditioner.module
    return Trainee(replace(backbone, network=network, conditioner=conditioner), backbone, modules, None)


def adapter_of(taught: Trainee, origin: Backbone, info: Mapping[str, Any]) -> Concept | None:
    """What an adapter learned, as a concept for the backbone that it was trained on; nothing in mode ``full``.

    Put on by ``--concept``, where no class was added to the backbone; the bundle's own weights hold it already.
    """
    if taught.rank is None:
        return None
    tensors = adapters.lora_state(taught.backbone.network)
    rows = _rows(taught.backbone.network)
    if rows is not None and taught.kept:
        tensors[_TABLE] = rows[taught.kept :]
    return Concept("lora", {k: v.to(torch.float16) for k, v in tensors.items()}, origin.digest, "", dict(info))
