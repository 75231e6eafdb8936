"""Adapters for the networks of MONAI and of monai-generative, 2D and 3D.

Every attention of an adapted network goes through ``torch.nn.functional.scaled_dot_product_attention``: that is what
``primitives.attention`` listens to, and it is also the fast path.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn

from monai_diffaug.types import Condition, DiffAugError

__all__ = ["IdentityAutoencoder", "MonaiAutoencoder", "MonaiUNet", "load_weights", "modern_keys"]


def _is_generative(module: nn.Module, name: str) -> bool:
    return type(module).__module__.startswith("generative.") and type(module).__name__ == name


def _fused(heads: int, scale: float, upcast: bool, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """monai-generative's ``_attention`` (heads folded into the batch) through the fused kernel."""
    dtype = query.dtype
    q, k, v = (x.unflatten(0, (-1, heads)) for x in (query, key, value))
    if upcast:
        q, k, v = q.float(), k.float(), v.float()
    return F.scaled_dot_product_attention(q, k, v, scale=scale).flatten(0, 1).to(dtype)


def fuse(module: nn.Module) -> None:
    """Route every attention of a MONAI or monai-generative module through fused attention, where it computes the same.

    Left alone are blocks with relative position embeddings, which the fused path would drop in silence. Dropout on
    attention weights is turned off, since MONAI's fused path applies it in evaluation mode as well.
    """
    for m in module.modules():
        if isinstance(m, SABlock | CrossAttentionBlock):
            if m.rel_positional_embedding is None:
                m.use_flash_attention, m.save_attn = True, False
                m.attention_dtype = None  # fused kernels accumulate in float32 as it is, and want q, k, v of one type
                m.dropout_rate = 0.0
        elif _is_generative(m, "CrossAttention") or _is_generative(m, "AttentionBlock"):
            block: Any = m
            block.use_flash_attention = False  # theirs is xformers
            block._attention = partial(_fused, block.num_heads, block.scale, getattr(m, "upcast_attention", False))


def _attentions(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, str]]:
    for name, m in module.named_modules(prefix=prefix):
        if isinstance(m, SABlock | CrossAttentionBlock):
            if m.use_flash_attention:
                yield name, m, "cross" if isinstance(m, CrossAttentionBlock) else "self"
        elif _is_generative(m, "CrossAttention"):
            yield name, m, "cross" if name.endswith("attn2") else "self"
        elif _is_generative(m, "AttentionBlock"):
            yield name, m, "self"


class MonaiUNet:
    """A ``DiffusionModelUNet`` of MONAI or monai-generative as a network.

    ``Condition`` goes in as: tokens -> ``context``, labels -> ``class_labels``, concat -> further input channels,
    residuals -> ControlNet residuals (one per down feature, then the middle).

    Args:
        module: the network. Its attention is switched to the fused kernels, nothing else is touched.
        config: ``_target_`` and arguments that rebuild it; wanted by ``hub.save``.
    """

    def __init__(self, module: nn.Module, config: Mapping[str, Any] | None = None):
        self.module = module
        self.config = dict(config) if config else None
        fuse(module)
        self._net: Any = module
        weight = next(iter(self._net.conv_in.parameters()))
        self.spatial_dims = weight.ndim - 2
        self._in_channels = int(weight.shape[1])
        self._down_features = 1 + sum(len(b.resnets) + (b.downsampler is not None) for b in self._net.down_blocks)

    def _check(self, x: Tensor, condition: Condition) -> None:
        what = type(self.module).__name__
        if x.ndim != self.spatial_dims + 2:
            raise DiffAugError(
                f"{what} is {self.spatial_dims}D and was given {x.ndim - 2}D latents: use a backbone of matching dims"
            )
        if condition.vector is not None:
            raise DiffAugError(f"{what} takes no vector: use VectorConditioner, which makes tokens of it")
        for name, given, taken, remedy in (
            (
                "tokens",
                condition.tokens,
                bool(self._net.with_conditioning),
                "with_conditioning and cross_attention_dim",
            ),
            ("labels", condition.labels, self._net.num_class_embeds is not None, "num_class_embeds"),
        ):
            if given is not None and not taken:
                raise DiffAugError(f"{what} takes no {name}: build and train it with {remedy}, or drop the condition")
            if given is None and taken:
                raise DiffAugError(f"{what} needs {name} on every call: condition it with the backbone's conditioner")
        have = x.shape[1] + (0 if condition.concat is None else condition.concat.shape[1])
        if have != self._in_channels:
            raise DiffAugError(
                f"{what} takes {self._in_channels} input channels and was given {have} "
                f"({x.shape[1]} of the latent, the rest of condition.concat): use the backbone's own conditioner"
            )
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
        more: dict[str, Any] = {}
        if condition.residuals is not None:
            more["down_block_additional_residuals"] = condition.residuals[:-1]
            more["mid_block_additional_residual"] = condition.residuals[-1]
        return self.module(x, timesteps=t, context=condition.tokens, class_labels=condition.labels, **more)

    def _blocks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from ((f"down_blocks.{i}", b) for i, b in enumerate(self._net.down_blocks))
        yield "middle_block", self._net.middle_block
        yield from ((f"up_blocks.{i}", b) for i, b in enumerate(self._net.up_blocks))

    def attention_sites(self) -> Mapping[str, tuple[nn.Module, str]]:
        """Name -> (attention module, ``self`` or ``cross``), in call order."""
        return {name: (m, kind) for prefix, block in self._blocks() for name, m, kind in _attentions(block, prefix)}

    def feature_sites(self) -> Mapping[str, nn.Module]:
        """Name -> module: ``down.i`` (what goes on and what is skipped over), ``bottleneck``, ``up.i``."""
        sites: dict[str, nn.Module] = {}
        for i, b in enumerate(self._net.down_blocks):
            last = b.downsampler if b.downsampler is not None else [*b.resnets, *getattr(b, "attentions", [])][-1]
            sites[f"down.{i}"] = last
        sites["bottleneck"] = self._net.middle_block
        sites.update((f"up.{i}", b) for i, b in enumerate(self._net.up_blocks))
        return sites

    def control_branch(self, hint_channels: int, factor: int) -> MonaiControlBranch:
        """A trainable copy of the encoder that sees a hint; at the start it adds nothing. See ``primitives.control``.

        Args:
            hint_channels: channels of the hint.
            factor: image size over latent size, a power of two.
        """
        return MonaiControlBranch(self._net, hint_channels, factor, self.spatial_dims)


class MonaiControlBranch:
    """A ControlNet beside a ``DiffusionModelUNet``, 2D or 3D (Zhang et al. 2023, arXiv:2302.05543, section 3.2).

    MONAI's ``ControlNet`` builds its own encoder from arguments; this one copies the encoder that is there, so that it
    fits networks of MONAI and of monai-generative alike, concatenated channels and classes included.

    Args:
        network: the network; copied, not touched.
        hint_channels: channels of the hint.
        factor: image size over latent size.
        dims: spatial dimensions.
    """

    WIDTHS = (16, 32, 96, 256)
    """Channels of the hint's layers, one for every halving and one to begin with."""

    def __init__(self, network: Any, hint_channels: int, factor: int, dims: int):
        conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        halvings = factor.bit_length() - 1
        if factor < 1 or factor != 1 << halvings or halvings >= len(self.WIDTHS):
            raise DiffAugError(
                f"a control branch cannot bring a hint to 1/{factor}: use a backbone of factor 1, 2, 4 or 8"
            )
        first = int(next(iter(network.conv_in.parameters())).shape[0])
        layers: list[nn.Module] = [conv(hint_channels, self.WIDTHS[0], 3, padding=1), nn.SiLU()]
        for a, b in zip(self.WIDTHS, self.WIDTHS[1 : halvings + 1]):
            layers += [conv(a, a, 3, padding=1), nn.SiLU(), conv(a, b, 3, padding=1, stride=2), nn.SiLU()]
        layers.append(_zero(conv(self.WIDTHS[halvings], first, 3, padding=1)))
        widths = [first]  # of every feature that the network skips over, then of its middle
        for block in network.down_blocks:
            widths += [int(r.out_channels) for r in block.resnets]
            widths += widths[-1:] if block.downsampler is not None else []
        zeros = [_zero(conv(width, width, 1)) for width in (*widths, widths[-1])]
        names = ("time_embed", "class_embedding", "conv_in", "down_blocks", "middle_block")
        parts = {n: copy.deepcopy(getattr(network, n)) for n in names if getattr(network, n, None) is not None}
        self.module: nn.Module = nn.ModuleDict({**parts, "hint": nn.Sequential(*layers), "zeros": nn.ModuleList(zeros)})
        self.module.requires_grad_(True)
        self._width = int(network.block_out_channels[0])
        self._part: Any = self.module

    def __call__(self, x: Tensor, t: Tensor, condition: Condition, hint: Tensor) -> tuple[Tensor, ...]:
        """Residuals for the network's down features and its middle, for a hint (B, C, *image size)."""
        if condition.concat is not None:
            x = torch.cat([x, condition.concat.to(x.dtype)], dim=1)
        emb = self._part["time_embed"](get_timestep_embedding(t, self._width).to(x.dtype))
        if "class_embedding" in self._part:
            emb = emb + self._part["class_embedding"](condition.labels).to(x.dtype)
        h = self._part["conv_in"](x) + self._part["hint"](hint)
        features = [h]
        for block in self._part["down_blocks"]:
            h, more = block(hidden_states=h, temb=emb, context=condition.tokens)
            features += more
        h = self._part["middle_block"](hidden_states=h, temb=emb, context=condition.tokens)
        return tuple(zero(f) for zero, f in zip(self._part["zeros"], [*features, h], strict=True))


def _zero(layer: nn.Module) -> nn.Module:
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class MonaiAutoencoder:
    """An ``AutoencoderKL`` or ``VQVAE`` of MONAI or monai-generative.

    Args:
        module: the autoencoder; put in evaluation mode, since a VQVAE in training mode changes its codebook.
        scale: factor that gives latents unit spread; from the checkpoint, never guessed.
        config: ``_target_`` and arguments that rebuild it.
    """

    def __init__(self, module: nn.Module, scale: float, config: Mapping[str, Any] | None = None):
        self.module = module.eval()
        self.scale = float(scale)
        self.config = dict(config) if config else None
        self._net: Any = module
        fuse(module)

    def encode(self, image: Tensor) -> Tensor:
        """Scaled posterior mean, or scaled quantized latent, (B, c, *S / factor)."""
        out = self._net.encode(image)
        latent = out[0] if isinstance(out, tuple) else self._net.quantize(out)[0]
        return latent * self.scale

    def standardize(self, images: Tensor, batch: int = 32) -> None:
        """Give every latent channel of an ``AutoencoderKL`` mean 0 and spread 1 over ``images`` (N, C, *S), in place.

        Shift and scale go into the two 1x1 convolutions on either side of the latent, so that what is decoded stays the
        same and one number, ``scale``, still says all there is to say of the latent's size.
        """
        with torch.no_grad():
            latents = torch.cat([self.encode(x) for x in images.split(batch)]) / self.scale
            dims = [d for d in range(latents.ndim) if d != 1]
            mean, spread = latents.mean(dims), latents.std(dims).clamp(min=1e-6) * self.scale
            inward, outward = self._net.quant_conv_mu.conv, self._net.post_quant_conv.conv
            column = (-1, *[1] * (inward.weight.ndim - 1))
            inward.bias.copy_((inward.bias - mean) / spread)
            inward.weight.div_(spread.reshape(column))
            row = (1, *column)[: outward.weight.ndim]
            outward.bias.add_((outward.weight * mean.reshape(row)).flatten(1).sum(1))
            outward.weight.mul_(spread.reshape(row))
            self._net.quant_conv_log_sigma.conv.bias.sub_(spread.log())

    def decode(self, latent: Tensor) -> Tensor:
        """Image (B, C, *S); a VQVAE first moves the latent to its codebook."""
        return self._net.decode_stage_2_outputs(latent / self.scale)

    def within(self, budget: int, exact: bool = False) -> Any:
        """The same, decoding within ``budget`` bytes; see :class:`.budget.Within`."""
        from monai_diffaug.backbones.budget import Within

        return Within(self, budget, exact)


class IdentityAutoencoder:
    """For models that work on pixels: the latent is the image."""

    config: Mapping[str, Any] | None = None

    def __init__(self) -> None:
        self.module: nn.Module = nn.Identity()

    def encode(self, image: Tensor) -> Tensor:
        """The image."""
        return image

    def decode(self, latent: Tensor) -> Tensor:
        """The latent."""
        return latent

    def within(self, budget: int, exact: bool = False) -> IdentityAutoencoder:
        """Itself: there is nothing to decode."""
        return self


_RENAMES = (
    (re.compile(r"\.to_out\.0\."), ".out_proj."),
    (re.compile(r"\.(to_[qkv])\."), r".attn.\1."),
    (re.compile(r"\.conv\.conv\."), ".postconv.conv."),
)


def _bare(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Out of wrappers (``state_dict``, ``module.``): the tensors by their names in the network."""
    for key in ("state_dict", "model_state_dict", "unet_state_dict", "autoencoder_state_dict", "network", "model"):
        if isinstance(state.get(key), Mapping):
            return _bare(state[key])
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    while tensors and all(k.startswith(("module.", "_orig_mod.")) for k in tensors):
        tensors = {k.split(".", 1)[1]: v for k, v in tensors.items()}
    return tensors


def _nothing(like: Tensor) -> Tensor:
    """The weight or the bias of a linear layer that changes nothing."""
    return torch.eye(*like.shape).to(like) if like.ndim == 2 else torch.zeros_like(like)


def modern_keys(state: Mapping[str, Any], module: nn.Module) -> tuple[dict[str, Tensor], bool]:
    """Rename the tensors of a checkpoint to the names that ``module`` has.

    Args:
        state: a state dict, possibly wrapped (``state_dict``, ``module.``), of MONAI's or monai-generative 0.2's names.
        module: the network to be filled.

    Returns:
        the renamed tensors and whether anything in them was of the old layout.

    Raises:
        DiffAugError: a tensor is missing, superfluous or of another shape. (MONAI's ``load_old_state_dict`` keeps
            random weights for what is missing, ignores what is left over, and puts an untrained layer to use.)
    """
    wanted = module.state_dict()
    found: dict[str, Tensor] = {}
    old = False
    for key, value in _bare(state).items():
        name = key
        if name not in wanted and ".proj_attn." in name:
            # monai-generative makes this layer and never calls it (its issue 503), so it holds what it started with
            old, name = True, name.replace(".proj_attn.", ".attn.out_proj.")
            if name in wanted:
                found[name] = _nothing(wanted[name])
            continue
        if name not in wanted:
            name = next((n for n in (p.sub(r, key) for p, r in _RENAMES) if n in wanted), key)
            old = old or name != key
        found[name] = value
    missing, surplus = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    misfits = sorted(k for k in found.keys() & wanted.keys() if found[k].shape != wanted[k].shape)
    if missing or surplus or misfits:
        parts = [
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (("missing", missing), ("unexpected", surplus), ("of another shape", misfits))
            if names
        ]
        raise DiffAugError(
            f"weights do not fit {type(module).__name__}: {', '.join(parts)}; correct the arguments in its config"
        )
    return found, old


def load_weights(module: nn.Module, state: Mapping[str, Any]) -> bool:
    """Fill ``module``, old names or new; returns whether they were old. See :func:`modern_keys`."""
    found, old = modern_keys(state, module)
    module.load_state_dict(found)
    return old
