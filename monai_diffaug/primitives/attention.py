"""See and replace attention inside a network, in any library, with nothing left behind.

Adapted networks call ``torch.nn.functional.scaled_dot_product_attention`` once per attention module. A hook on each
module says which site is active, and a torch function mode asks the rule when the call comes. Sites without a rule, and
rules that answer ``None``, run the fused kernel and build no maps.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from monai_diffaug.types import Backbone, DiffAugError, NoiseLevel, current_level

__all__ = ["AttentionRule", "Site", "apply", "attention", "probabilities"]


@dataclass(frozen=True)
class Site:
    """Where in a network an attention is: ``kind`` is ``self`` or ``cross``, ``tokens`` the number of queries.

    ``index`` is its place in call order among all the network's sites.
    """

    name: str
    kind: str
    tokens: int
    index: int


AttentionRule = Callable[[Site, Tensor, Tensor, Tensor, "NoiseLevel | None"], "Tensor | None"]


def probabilities(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Attention maps (B, heads, N, M) of queries (B, heads, N, d) and keys (B, heads, M, d)."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    return ((q * factor) @ k.transpose(-1, -2)).softmax(dim=-1)


def apply(maps: Tensor, v: Tensor) -> Tensor:
    """Output (B, heads, N, d) of maps (B, heads, N, M) on values (B, heads, M, d)."""
    return maps.to(v.dtype) @ v


class _Tap(TorchFunctionMode):
    """Asks the rule at every fused attention that a ruled site makes in the thread that opened the context."""

    def __init__(self, rule: AttentionRule):
        super().__init__()
        self.rule = rule
        self.active: list[tuple[str, str, int]] = []
        self.asked = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not self.active:
            return func(*args, **kwargs)
        self.asked += 1
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False), **kwargs)
        name, kind, index = self.active[-1]
        q, k, v = given["query"], given["key"], given["value"]
        out = self.rule(Site(name, kind, int(q.shape[-2]), index), q, k, v, current_level())
        return func(*args, **kwargs) if out is None else out.to(v.dtype)


def _known(names: Iterable[str], among: Mapping[str, Any], what: str) -> list[str]:
    """``names`` as a list; an unknown one is refused, with the nearest known."""
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in among:
            near = difflib.get_close_matches(name, among, 1, 0.0)
            remedy = f"use {near[0]!r}" if near else "it has none"
            raise DiffAugError(f"the network has no {what} {name!r}: {remedy}")
    return chosen


@contextmanager
def attention(
    backbone: Backbone,
    rule: AttentionRule,
    sites: Iterable[str] | None = None,
    kind: str | None = None,
) -> Iterator[None]:
    """Within the block, ``rule`` decides what attention returns.

    Contexts nest: the inner rule is asked first, and one that answers ``None``, or that itself calls
    ``scaled_dot_product_attention`` on changed q, k, v, passes on to the outer one. Only calls in the thread that
    opened the block are ruled. Backward passes through activation checkpointing must be made inside the block.

    Args:
        backbone: whose network to look into.
        rule: ``rule(site, q, k, v, level)`` with q, k, v (B, heads, N, d); returns (B, heads, N, d), or ``None`` to
            leave the fused attention. ``level`` is that of the call in progress.
        sites: names of sites, from ``network.attention_sites()``; all unless given.
        kind: only ``self`` or only ``cross`` sites.

    Raises:
        DiffAugError: no such site; or, on leaving, the network ran and the rule was never asked.
    """
    known = backbone.network.attention_sites()
    wanted = None if sites is None else set(_known(sites, known, "attention site"))
    ruled = [
        (name, module, found, i)
        for i, (name, (module, found)) in enumerate(known.items())
        if (wanted is None or name in wanted) and kind in (None, found)
    ]
    if not ruled:
        raise DiffAugError(
            f"backbone {backbone.name!r} has no {kind + ' ' if kind else ''}attention to look into: use another "
            "backbone"
        )
    tap = _Tap(rule)
    runs = _Runs(backbone.network.module)
    with ExitStack() as stack:
        stack.enter_context(runs)
        for name, module, found, i in ruled:
            stack.enter_context(_marked(tap, module, (name, found, i)))
        with tap:
            yield
    if runs.count and not tap.asked:
        raise DiffAugError(
            f"attention of backbone {backbone.name!r} bypassed its rule: its modules must call "
            "torch.nn.functional.scaled_dot_product_attention (use_flash_attention=True in MONAI, AttnProcessor2_0 in "
            "diffusers)"
        )


class _Runs:
    """Counts the forward passes of a module in this thread."""

    def __init__(self, module: nn.Module):
        self.count = 0
        self._module, self._owner = module, threading.get_ident()

    def _seen(self, *_: Any) -> None:
        self.count += threading.get_ident() == self._owner

    def __enter__(self) -> None:
        self._hook = self._module.register_forward_hook(self._seen)

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()


@contextmanager
def _marked(tap: _Tap, module: nn.Module, mark: tuple[str, str, int]) -> Iterator[None]:
    """While ``module`` runs in this thread, ``mark`` is on top of the tap's stack."""
    owner = threading.get_ident()

    def enter(*_: Any) -> None:
        if threading.get_ident() == owner:
            tap.active.append(mark)

    def leave(*_: Any) -> None:
        if threading.get_ident() == owner:
            tap.active.pop()

    before = module.register_forward_pre_hook(enter)
    after = module.register_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()
