"""Adapters for the networks of diffusers, as its pipelines store them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn

from monai_diffaug.types import Condition, DiffAugError

__all__ = ["DiffusersAutoencoder", "DiffusersUNet"]


def fuse(module: nn.Module) -> None:
    """Route plain, sliced and xformers attention through PyTorch's fused attention; other processors stay."""
    for m in module.modules():
        if isinstance(m, Attention) and isinstance(
            m.processor, AttnProcessor | SlicedAttnProcessor | XFormersAttnProcessor
        ):
            m.set_processor(AttnProcessor2_0())


def _layer(name: str) -> tuple[int, bool]:
    """Place of an attention in its block: layer by layer, and in 3D that over time after that over the plane."""
    found = re.search(r"\.(temp_)?attentions\.(\d+)\.", name)
    return (int(found[2]), bool(found[1])) if found else (0, False)


class DiffusersUNet:
    """A ``UNet2DConditionModel``, ``UNet2DModel`` or ``UNet3DConditionModel`` as a network.

    ``Condition`` goes in as: tokens -> ``encoder_hidden_states``, labels or vector -> ``class_labels``, concat ->
    further input channels, residuals -> ControlNet residuals (one per down feature, then the middle).

    Args:
        module: the network.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        fuse(module)
        self._net: Any = module
        self.spatial_dims = 3 if self._net.conv_in.weight.ndim == 5 or "3D" in type(module).__name__ else 2
        kinds = [kind for _, kind in self.attention_sites().values()]
        self._takes_tokens = "cross" in kinds or "ConditionModel" in type(module).__name__
        embedding = self._net.config.get("class_embed_type")
        self._takes_vector = embedding in ("projection", "simple_projection")
        counted = self._net.config.get("num_class_embeds") is not None and self._net.class_embedding is not None
        self._takes_labels = counted or embedding in ("timestep", "identity")
        self._down_features = 1 + sum(
            len(b.resnets) + len(getattr(b, "downsamplers", None) or []) for b in self._net.down_blocks
        )

    def _check(self, x: Tensor, condition: Condition) -> None:
        what = type(self.module).__name__
        if x.ndim != self.spatial_dims + 2:
            raise DiffAugError(
                f"{what} is {self.spatial_dims}D and was given {x.ndim - 2}D latents: use a backbone of matching dims"
            )
        for name, given, taken in (
            ("tokens", condition.tokens, self._takes_tokens),
            ("labels", condition.labels, self._takes_labels),
            ("vector", condition.vector, self._takes_vector),
        ):
            if given is not None and not taken:
                raise DiffAugError(f"{what} takes no {name}: use a network trained with them, or drop the condition")
            if given is None and taken:
                raise DiffAugError(f"{what} needs {name} on every call: condition it with the backbone's conditioner")
        channels = int(self._net.config.in_channels)
        have = x.shape[1] + (0 if condition.concat is None else condition.concat.shape[1])
        if have != channels:
            raise DiffAugError(
                f"{what} takes {channels} input channels and was given {have} "
                f"({x.shape[1]} of the latent, the rest of condition.concat): use the backbone's own conditioner"
            )
        if condition.residuals is not None and not hasattr(self.module, "encoder_hid_proj"):
            raise DiffAugError(f"{what} takes no residuals: use a UNet2DConditionModel with its ControlNet")
        if condition.residuals is not None and len(condition.residuals) != self._down_features + 1:
            raise DiffAugError(
                f"{what} takes {self._down_features + 1} residuals (down features, then the middle) and was given "
                f"{len(condition.residuals)}: use a ControlNet of the same channels"
            )

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Raw output (B, c, *S) for noisy latents ``x`` (B, c, *S) at times ``t`` (B,).

        Raises:
            DiffAugError: a condition is given that the network cannot take, or one is missing that it needs.
        """
        self._check(x, condition)
        if condition.concat is not None:
            x = torch.cat([x, condition.concat.to(x.dtype)], dim=1)
        more: dict[str, Any] = {"return_dict": False}
        if self._takes_tokens:
            more["encoder_hidden_states"] = condition.tokens
        if self._takes_labels or self._takes_vector:
            more["class_labels"] = condition.labels if self._takes_labels else condition.vector
        if condition.residuals is not None:
            more["down_block_additional_residuals"] = condition.residuals[:-1]
            more["mid_block_additional_residual"] = condition.residuals[-1]
        return self.module(x, t, **more)[0]

    def _blocks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from ((f"down_blocks.{i}", b) for i, b in enumerate(self._net.down_blocks))
        if self._net.mid_block is not None:
            yield "mid_block", self._net.mid_block
        yield from ((f"up_blocks.{i}", b) for i, b in enumerate(self._net.up_blocks))

    def attention_sites(self) -> Mapping[str, tuple[nn.Module, str]]:
        """Name -> (attention module, ``self`` or ``cross``), in call order."""
        sites: dict[str, tuple[nn.Module, str]] = {}
        for prefix, block in [("transformer_in", getattr(self._net, "transformer_in", None)), *self._blocks()]:
            inside = {} if block is None else dict(block.named_modules(prefix=prefix))
            found = {n: m for n, m in inside.items() if isinstance(m, Attention)}
            for name in sorted(found, key=_layer):  # stable: within a layer as they are named
                sites[name] = (found[name], "cross" if found[name].is_cross_attention else "self")
        return sites

    def feature_sites(self) -> Mapping[str, nn.Module]:
        """Name -> module: ``down.i`` (what goes on and what is skipped over), ``bottleneck``, ``up.i``."""
        sites: dict[str, nn.Module] = {}
        for i, b in enumerate(self._net.down_blocks):
            layers = [*b.resnets, *getattr(b, "attentions", []), *(getattr(b, "downsamplers", None) or [])]
            sites[f"down.{i}"] = layers[-1]
        if self._net.mid_block is not None:
            sites["bottleneck"] = self._net.mid_block
        sites.update((f"up.{i}", b) for i, b in enumerate(self._net.up_blocks))
        return sites

    def control_branch(self, hint_channels: int, factor: int) -> DiffusersControlBranch:
        """A trainable copy of the encoder that sees a hint; at the start it adds nothing. See ``primitives.control``.

        Args:
            hint_channels: channels of the hint.
            factor: image size over latent size, a power of two.
        """
        return DiffusersControlBranch(self.module, hint_channels, factor)


class DiffusersControlBranch:
    """Diffusers' own ``ControlNetModel`` beside a ``UNet2DConditionModel``.

    Args:
        network: the U-Net; copied, not touched.
        hint_channels: channels of the hint.
        factor: image size over latent size.
    """

    WIDTHS = (16, 32, 96, 256)

    def __init__(self, network: nn.Module, hint_channels: int, factor: int):
        halvings = factor.bit_length() - 1
        if not isinstance(network, UNet2DConditionModel):
            raise DiffAugError(f"{type(network).__name__} carries no control branch: use a UNet2DConditionModel")
        if factor < 1 or factor != 1 << halvings or halvings >= len(self.WIDTHS):
            raise DiffAugError(
                f"a control branch cannot bring a hint to 1/{factor}: use a backbone of factor 1, 2, 4 or 8"
            )
        self.module: nn.Module = ControlNetModel.from_unet(
            network,
            conditioning_embedding_out_channels=self.WIDTHS[: halvings + 1],
            conditioning_channels=hint_channels,
        )
        self.module.requires_grad_(True)
        fuse(self.module)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition, hint: Tensor) -> tuple[Tensor, ...]:
        """Residuals for the network's down features and its middle, for a hint (B, C, *image size)."""
        if condition.concat is not None:
            x = torch.cat([x, condition.concat.to(x.dtype)], dim=1)
        labels = condition.labels if condition.labels is not None else condition.vector
        down, middle = self.module(x, t, condition.tokens, hint, class_labels=labels, return_dict=False)
        return (*down, middle)


class DiffusersAutoencoder:
    """An ``AutoencoderKL``, ``AutoencoderTiny`` or ``VQModel`` of diffusers.

    Args:
        module: the autoencoder.
        scale: factor that gives latents unit spread; the config's ``scaling_factor`` unless given.
        shift: subtracted before scaling; the config's ``shift_factor`` unless given.
    """

    def __init__(self, module: nn.Module, scale: float | None = None, shift: float | None = None):
        self.module = module.eval()
        self._net: Any = module
        config = self._net.config
        self.scale = float(config.scaling_factor if scale is None else scale)
        self.shift = float((config.get("shift_factor") or 0.0) if shift is None else shift)
        fuse(module)

    def encode(self, image: Tensor) -> Tensor:
        """Scaled posterior mean (B, c, *S / factor)."""
        out = self._net.encode(image)
        latent = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
        return (latent - self.shift) * self.scale

    def decode(self, latent: Tensor) -> Tensor:
        """Image (B, C, *S)."""
        return self._net.decode(latent / self.scale + self.shift).sample
