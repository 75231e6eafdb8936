"""Read and replace feature maps inside a network, with nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from monai_diffaug.primitives.attention import _known, _Runs
from monai_diffaug.types import Backbone, DiffAugError, NoiseLevel, current_level

__all__ = ["FeatureRule", "features"]

FeatureRule = Callable[[str, Tensor, "NoiseLevel | None"], "Tensor | None"]


@contextmanager
def features(backbone: Backbone, rule: FeatureRule, sites: Iterable[str] = ("bottleneck",)) -> Iterator[None]:
    """Within the block, ``rule`` sees each named feature map and may replace it.

    Contexts nest: the inner rule is asked first and the outer one sees what it returned. Only calls in the thread
    that opened the block are ruled.

    Args:
        backbone: whose network to look into.
        rule: ``rule(site, map, level)`` with ``map`` (B, C, *S); returns the map that goes on, or ``None`` to leave it.
        sites: names from ``network.feature_sites()``: ``down.i``, ``bottleneck``, ``up.i``.

    Raises:
        DiffAugError: no such site; or, on leaving, the network ran and the rule was never asked.
    """
    known = backbone.network.feature_sites()
    names = _known(sites, known, "feature site")
    runs = _Runs(backbone.network.module)
    asked: list[str] = []
    owner = threading.get_ident()

    def hook(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            if threading.get_ident() != owner:
                return None
            asked.append(name)
            whole = isinstance(output, Tensor)
            new = rule(name, output if whole else output[0], current_level())
            if new is None:
                return None
            return new if whole else (new, *output[1:])

        return replace

    with ExitStack() as stack:
        stack.enter_context(runs)
        for name in names:
            stack.callback(known[name].register_forward_hook(hook(name), prepend=True).remove)
        yield
    if runs.count and not asked:
        raise DiffAugError(f"none of the feature sites {', '.join(names)} ran: use sites of the network's own forward")
