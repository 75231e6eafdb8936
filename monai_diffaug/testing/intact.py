"""What a backbone is at one moment, down to hooks and flags; and a stop at its n-th call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..backbones.tiny import digest_of
from ..types import Backbone

__all__ = ["Counter", "imprint"]


def _parts(backbone: Backbone) -> dict[str, nn.Module]:
    parts = dict(backbone.modules())
    for name in ("scorer", "judge", "guide", "verifier"):
        module = getattr(getattr(backbone, name), "module", None)
        if isinstance(module, nn.Module):
            parts[name] = module
    return parts


def imprint(backbone: Backbone) -> dict[str, Any]:
    """All that a method could have left behind: weights, gradients, flags, hooks, exchanged layers and functions."""
    found: dict[str, Any] = {"weights": digest_of(backbone)}
    for part, root in _parts(backbone).items():
        for name, module in root.named_modules():
            place = f"{part}.{name}"
            found[place] = (
                id(module),
                module.training,
                tuple(len(v) for k, v in sorted(vars(module).items()) if k.endswith("_hooks") and v is not None),
                tuple((k, id(v)) for k, v in sorted(vars(module).items()) if callable(v)),
                tuple(sorted(vars(module))),
            )
        for name, p in root.named_parameters():
            found[f"{part}.{name} (parameter)"] = (id(p), p.requires_grad, p.grad is None)
    return found


class Counter:
    """While open, counts the calls of a backbone's parts, and throws at call number ``stop``.

    Copies that a method makes of the network meanwhile count as well, since hooks are copied with it.

    Args:
        backbone: whose parts.
        stop: the call that throws; never unless given.
        error: what it throws.
        parts: which parts count.
    """

    def __init__(
        self,
        backbone: Backbone,
        stop: int | None = None,
        error: Callable[[str], Exception] = RuntimeError,
        parts: Sequence[str] = ("network", "conditioner", "scorer", "judge"),
    ):
        self._modules = [m for name, m in _parts(backbone).items() if name in parts]
        self._count = [0]
        count = self._count

        def seen(module: nn.Module, args: Any) -> None:  # a function and no method: copies of it count in one place
            count[0] += 1
            if count[0] == stop:
                raise error(f"call {stop}")

        self._seen = seen

    @property
    def calls(self) -> int:
        """Calls so far."""
        return self._count[0]

    def __enter__(self) -> Counter:
        self._handles = [m.register_forward_pre_hook(self._seen) for m in self._modules]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
