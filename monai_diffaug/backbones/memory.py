"""How much memory a computation takes, found out without doing it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["MIB", "peak_of", "skeleton"]

MIB = 2**20


class _Ledger(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most there ever were.

    A convolution on the CPU copies its input and its output into the blocked layout of oneDNN while it runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known = weakref.WeakSet[Any]()

    def _freed(self, size: int) -> None:
        self.now -= size

    def _enter(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        if storage in self._known or x.device.type != "meta":
            return
        self._known.add(storage)
        size = int(storage.nbytes())
        self.now += size
        weakref.finalize(storage, self._freed, size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_iter((args, kwargs)):  # what comes from outside was there before: a view of it is nothing new
            if isinstance(x, Tensor) and x.device.type == "meta":
                self._known.add(x.untyped_storage())
        out = func(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, Tensor):
                self._enter(x)
        aside = 0
        if func.overloadpacket is torch.ops.aten.convolution:
            aside = sum(x.nbytes for x in (args[0], out))
        self.peak = max(self.peak, self.now + aside)
        return out


class _Fused(TorchFunctionMode):
    """Attention as the fused kernels do it, which build no map; on ``meta`` it would be counted as if they did."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args)) | (kwargs or {})
            query, value = given["query"], given["value"]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def skeleton(part: Any) -> Any:
    """A copy of a network, or of an adapter with its ``module``, without weights: on ``meta`` they take nothing."""
    module: nn.Module = part if isinstance(part, nn.Module) else part.module
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    for b in module.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(part, memo)


def peak_of(what: Callable[[], Any]) -> int:
    """The most bytes that tensors made by ``what`` take at any one time; its tensors must be on ``meta``.

    Nothing is computed, so that this takes milliseconds. What was there before is not counted.
    """
    ledger = _Ledger()
    with torch.no_grad(), _Fused(), ledger:
        kept = what()
    del kept
    return ledger.peak
