"""Copies of a network that share its tensors, and low-rank adapters on them (LoRA, through peft).

Nothing here touches the network it is given: an adapter is put on a copy whose modules are its own and whose tensors
are the original's, so that there is nothing to take off again, also after an exception or in another thread.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..types import DiffAugError, Network

__all__ = ["copied", "lora_state", "merged", "replaced", "with_lora"]

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def copied(network: Network, own: Iterable[str] | None = ()) -> Network:
    """A network with modules of its own on the tensors of ``network``.

    Args:
        network: stays as it is.
        own: names of parameters (of ``network.module``) that the copy shall not share, so that they may be trained;
            ``None`` is all of them. These, and only these, require gradients in the copy.

    Raises:
        DiffAugError: a name is not a parameter of the network.
    """
    named = dict(network.module.named_parameters())
    wanted = set(named) if own is None else set(own)
    if wanted - set(named):
        raise DiffAugError(f"the network has no parameter {min(wanted - set(named))!r}: choose among its own")
    memo: dict[int, Any] = {}
    for name, p in named.items():
        values = p.detach().clone() if name in wanted else p.detach()
        memo[id(p)] = nn.Parameter(values, requires_grad=name in wanted and p.is_floating_point())
    for b in network.module.buffers():
        memo[id(b)] = b.detach().clone() if own is None else b
    return copy.deepcopy(network, memo)


def replaced(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """A copy of ``network`` with some of its parameters or buffers replaced, by name.

    Raises:
        DiffAugError: a name or a shape is not the network's.
    """
    state = network.module.state_dict()
    for name, value in tensors.items():
        if name not in state or state[name].shape != value.shape:
            raise DiffAugError(
                f"the network has no tensor {name!r} of shape {tuple(value.shape)}: use its own backbone"
            )
    out = copied(network)
    for name, value in tensors.items():
        _put(out.module, name, value.detach().to(state[name]))
    return out


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    """Exchange one parameter or buffer, without writing into the old one."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
    else:
        owner.register_buffer(leaf, value)


def targets(network: Network, pattern: str | None = None) -> list[str]:
    """Names of the layers that an adapter goes on: linear ones and convolutions.

    Args:
        network: the network.
        pattern: regular expression that a layer's whole name must match; unless given, the projections of the attention
            sites, or every layer where there is no attention.
    """
    layers = [n for n, m in network.module.named_modules() if isinstance(m, _KINDS)]
    if pattern is not None:
        found = [n for n in layers if re.fullmatch(pattern, n)]
    else:
        inside = {id(m) for site, _ in network.attention_sites().values() for m in site.modules()}
        found = [n for n in layers if id(network.module.get_submodule(n)) in inside] or layers
    if not found:
        raise DiffAugError(f"no layer of the network matches {pattern!r}: try '.*' for all, or leave it out")
    return found


def with_lora(
    network: Network, rank: int, *, alpha: float | None = None, pattern: str | None = None, seed: int = 0
) -> Network:
    """A copy of ``network`` with a trainable low-rank adapter (Hu et al. 2021, arXiv:2106.09685, eq. 3).

    ``W + (alpha / rank) B A`` with A random and B zero, so that it starts as the network that it was made from. Only
    the adapter requires gradients. Convolutions, 2D and 3D, are adapted as well as linear layers.

    Args:
        network: stays as it is.
        rank: of every adapter.
        alpha: numerator of the scale; ``rank`` unless given.
        pattern: see :func:`targets`.
        seed: of A.
    """
    if rank < 1:
        raise DiffAugError(f"rank is {rank}: give at least 1, or leave it out to train the weights themselves")
    return _injected(network, targets(network, pattern), rank, rank if alpha is None else alpha, seed)


def _injected(network: Network, names: Iterable[str], rank: int, alpha: float, seed: int) -> Network:
    from peft import LoraConfig, inject_adapter_in_model

    out = copied(network)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="|".join(map(re.escape, names)), lora_dropout=0.0)
    training = out.module.training
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, out.module)
    out.module.train(training)
    return out


def lora_state(network: Network) -> dict[str, Tensor]:
    """The adapter's tensors by name, detached copies: ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``."""
    from peft import get_peft_model_state_dict

    return {k: v.detach().clone() for k, v in get_peft_model_state_dict(network.module).items()}


def merged(network: Network, tensors: Mapping[str, Tensor], alpha: float | None = None) -> Network:
    """A copy of ``network`` with an adapter added into its weights: as fast as without it.

    Args:
        network: stays as it is.
        tensors: what :func:`lora_state` returned.
        alpha: what the adapter was made with.

    Raises:
        DiffAugError: the tensors are not an adapter for this network.
    """
    from peft import set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    names = sorted({k.rsplit(".lora_", 1)[0] for k in tensors})
    layers = dict(network.module.named_modules())
    if not names or any(n not in layers or f"{n}.lora_A.weight" not in tensors for n in names):
        raise DiffAugError("these tensors are no adapter for this network: use the backbone that they were trained on")
    rank = int(tensors[f"{names[0]}.lora_A.weight"].shape[0])
    out = _injected(network, names, rank, rank if alpha is None else alpha, 0)
    set_peft_model_state_dict(out.module, {k: v.clone() for k, v in tensors.items()})
    for name in names:
        wrapped: Any = out.module.get_submodule(name)
        assert isinstance(wrapped, LoraLayer)
        base: Any = wrapped.get_base_layer()
        with torch.no_grad():  # B A as matrices; peft's own product fails for 3D kernels of one voxel
            down, up = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight
            delta = wrapped.scaling["default"] * (up.flatten(1) @ down.flatten(1)).reshape(base.weight.shape)
            weight = base.weight + delta.to(base.weight)
        base.weight = nn.Parameter(weight, requires_grad=False)
        path, _, leaf = name.rpartition(".")
        setattr(out.module.get_submodule(path), leaf, base)
    out.module.__dict__.pop("peft_config", None)
    return out
