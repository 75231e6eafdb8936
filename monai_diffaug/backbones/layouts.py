"""What a state dict tells of itself: whose key names it has, in what it is wrapped, and which network fits it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["architecture", "key_layout", "numbers", "unwrapped"]

_WRAPPERS = ("state_dict", "model_state_dict", "unet_state_dict", "autoencoder_state_dict", "network", "model", "ema")
_ADAPTER = re.compile(r"lora_(A|B|up|down)\b|oft_R|\.alpha$")
_OLD = re.compile(
    r"(transformer_blocks\.\d+\.attn[12]\.to_out\.0|attention(s\.\d+)?\.(to_[qkv]|proj_attn)|blocks\.\d+\.(to_[qkv]|proj_attn)"
    r"|upsampler\.conv\.conv|decoder\.blocks\.\d+\.conv\.conv)\.(weight|bias)$"
)
_NEW = re.compile(r"(\.out_proj|attn\.to_[qkv]|\.postconv\.conv)\.(weight|bias)$")


def unwrapped(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by their names in the network, and what they were wrapped in, outermost first."""
    for key in _WRAPPERS:
        inner = state.get(key)
        if isinstance(inner, Mapping) and inner:
            tensors, around = unwrapped(inner)
            return tensors, [key, *around]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    around = []
    for prefix in ("module.", "_orig_mod.", "module."):
        if tensors and all(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
            around.append(prefix + "*")
    return tensors, around


def key_layout(tensors: Mapping[str, Tensor]) -> str:
    """Whose names these are.

    Returns:
        ``diffusers``, ``transformers``, ``adapter``, ``monai-generative`` (the names before MONAI 1.4), ``MONAI``,
        ``MONAI or monai-generative`` (without attention and upsampling the names are the same) or ``unknown``.
    """
    names = list(tensors)
    if any(_ADAPTER.search(n) for n in names):
        return "adapter"
    if any(n.startswith(("mid_block.", "encoder.down_blocks.", "decoder.up_blocks.")) for n in names):
        return "diffusers"
    if any(n.startswith(("text_model.", "vision_model.")) for n in names):
        return "transformers"
    if not any(n.startswith(("middle_block.", "conv_in.conv.", "encoder.blocks.", "quantizer.")) for n in names):
        return "unknown"
    if any(_NEW.search(n) for n in names):
        return "MONAI"
    return "monai-generative" if any(_OLD.search(n) for n in names) else "MONAI or monai-generative"


def architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The ``_target_`` and arguments that the shapes tell, of MONAI's U-Net or autoencoder; empty where it is neither.

    What no shape tells (``num_head_channels``, ``norm_num_groups``) is left out.
    """
    if "conv_in.conv.weight" in tensors and "out.2.conv.weight" in tensors:
        return _unet(tensors)
    if "encoder.blocks.0.conv.weight" in tensors and "quant_conv_mu.conv.weight" in tensors:
        return _autoencoder(tensors)
    return {}


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({m.group(1) for n in tensors if (m := re.match(pattern, n))})


def _unet(t: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = range(_count(t, r"down_blocks\.(\d+)\."))
    found: dict[str, Any] = {
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        "spatial_dims": t["conv_in.conv.weight"].ndim - 2,
        "in_channels": t["conv_in.conv.weight"].shape[1],
        "out_channels": t["out.2.conv.weight"].shape[0],
        "channels": [t[f"down_blocks.{i}.resnets.0.conv1.conv.weight"].shape[0] for i in levels],
        "num_res_blocks": [_count(t, rf"down_blocks\.{i}\.resnets\.(\d+)\.") for i in levels],
        "attention_levels": [any(n.startswith(f"down_blocks.{i}.attentions.") for n in t) for i in levels],
    }
    cross = next((v for n, v in t.items() if n.endswith("attn2.to_k.weight")), None)
    if cross is not None:
        found |= {"with_conditioning": True, "cross_attention_dim": cross.shape[1]}
    if "class_embedding.weight" in t:
        found["num_class_embeds"] = t["class_embedding.weight"].shape[0]
    return found


def _autoencoder(t: Mapping[str, Tensor]) -> dict[str, Any]:
    halvings = _count(t, r"encoder\.blocks\.(\d+)\.conv\.conv\.weight")
    widths: list[int] = [t["encoder.blocks.1.conv1.conv.weight"].shape[0]]
    down = sorted(int(m.group(1)) for n in t if (m := re.match(r"encoder\.blocks\.(\d+)\.conv\.conv\.weight", n)))
    for block in down:  # the residual block after a halving has the next level's width
        after = t.get(f"encoder.blocks.{block + 1}.conv1.conv.weight")
        widths.append(int(after.shape[0]) if after is not None else widths[-1])
    last = max(int(m.group(1)) for n in t if (m := re.match(r"decoder\.blocks\.(\d+)\.", n)))
    return {
        "_target_": "monai.networks.nets.AutoencoderKL",
        "spatial_dims": t["encoder.blocks.0.conv.weight"].ndim - 2,
        "in_channels": t["encoder.blocks.0.conv.weight"].shape[1],
        "out_channels": t[f"decoder.blocks.{last}.conv.weight"].shape[0],
        "latent_channels": t["quant_conv_mu.conv.weight"].shape[0],
        "channels": widths,
        "factor": 2**halvings,
    }


def numbers(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Counts, and the names of tensors that hold NaN or infinity."""
    floats = {k: v for k, v in tensors.items() if v.is_floating_point()}
    return {
        "tensors": len(tensors),
        "parameters": sum(v.numel() for v in tensors.values()),
        "not_finite": [k for k, v in floats.items() if not bool(torch.isfinite(v).all())],
        "all_zero": bool(floats) and all(not bool(v.any()) for v in floats.values()),
    }
