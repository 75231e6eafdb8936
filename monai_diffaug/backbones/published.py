"""Published feature networks in the form in which they are handed out, built without the libraries they came from.

``transformers`` folders (DINOv2, ViT, ResNet, CLIP) are loaded by transformers. Folders of timm and of open_clip
(BiomedCLIP) and state dicts in torchvision's names (RadImageNet) hold vision transformers and residual networks whose
sizes can be read off their weights; those two are built here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.backbones import weights as files
from monai_diffaug.types import DiffAugError

__all__ = ["Found", "Prepared", "of_folder", "of_state", "pooled"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RADIMAGENET = ((0.485, 0.456, 0.406), (1.0, 1.0, 1.0))  # Mei et al. 2022: blue first, the mean taken off, no scaling
Module = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Prepared:
    """[-1, 1] gray or color images to three channels as a network was fed in training."""

    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    blue_first: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 3, H, W)."""
        rgb = images.expand(-1, 3, *images.shape[2:]) if images.shape[1] == 1 else images[:, :3]
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        seen = ((rgb + 1) / 2 - mean) / std
        return seen.flip(1) if self.blue_first else seen


@dataclass(frozen=True)
class Found:
    """A network from prepared images to features, and the side that it wants them in."""

    module: Module
    prepared: Prepared
    size: int
    weights: Path


def pooled(out: Any) -> Tensor:
    """One vector an image, of whatever a network returns."""
    for key in ("pooler_output", "image_embeds", "last_hidden_state"):
        value = getattr(out, key, None)
        if value is not None:
            # tokens (B, L, D) have their channels last, maps (B, D, H, W) and pooled maps (B, D, 1, 1) first
            return value if value.ndim == 2 else value.mean(1) if value.ndim == 3 else value.flatten(2).mean(2)
    out = out[0] if isinstance(out, tuple | list) else out
    return out.flatten(2).mean(2) if out.ndim > 2 else out


# ----------------------------------------------------------------------------------------------------------- networks


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021 (arXiv:2010.11929) with timm's names of the weights; the class token comes out.

    Args:
        state: the weights, from which all sizes are read; heads are of 64 channels, as in every published size.
        projection: (E, D) that the class token goes through (CLIP's), if any.
    """

    def __init__(self, state: Mapping[str, Tensor], projection: Tensor | None = None):
        super().__init__()
        self.state = dict(state)
        self.depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
        self.patch = int(state["patch_embed.proj.weight"].shape[-1])
        self.width = int(state["cls_token"].shape[-1])
        self.heads = max(self.width // 64, 1)
        self.projection = projection
        tokens = state["pos_embed"].shape[1] - 1
        self.side = round(tokens**0.5) * self.patch

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (self.width,), self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D)."""
        s = self.state
        patches = F.conv2d(images, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=self.patch)
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x], 1) + s["pos_embed"]
        for i in range(self.depth):
            block = f"blocks.{i}"
            qkv = self._linear(self._norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
            q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self._linear(seen, f"{block}.attn.proj") * s.get(f"{block}.ls1.gamma", 1.0)
            wide = F.gelu(self._linear(self._norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
            x = x + self._linear(wide, f"{block}.mlp.fc2") * s.get(f"{block}.ls2.gamma", 1.0)
        token = self._norm(x, "norm")[:, 0]
        return token if self.projection is None else F.linear(token, self.projection)


def residual(state: Mapping[str, Tensor], name: str) -> nn.Module:
    """A residual network in torchvision's names, its last layer left off; depth and widths are read off the weights."""
    from monai.networks.nets import ResNet

    deep = "layer1.0.conv3.weight" in state
    layers = [len({k.split(".")[1] for k in state if k.startswith(f"layer{i}.")}) for i in range(1, 5)]
    if not all(layers):
        raise DiffAugError(f"{name} holds no residual network (no layer1 to layer4): export it as TorchScript instead")
    planes = [int(state[f"layer{i}.0.conv1.weight"].shape[0]) for i in range(1, 5)]
    module = ResNet(
        "bottleneck" if deep else "basic", layers, planes, spatial_dims=2, n_input_channels=3, conv1_t_size=7,
        conv1_t_stride=2, feed_forward=False, bias_downsample=False,
    )  # fmt: skip
    kept = {k: v for k, v in state.items() if k in module.state_dict()}
    missing = sorted(set(module.state_dict()) - set(kept) - {k for k in module.state_dict() if "num_batches" in k})
    if missing:
        raise DiffAugError(f"{name} lacks {len(missing)} weights of its network (first: {missing[0]}): copy it again")
    module.load_state_dict(kept, strict=False)
    return module.eval()


_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
"""What the numbers in RadImageNet's names stand for: it lists torchvision's parts in a Sequential."""


def _plain(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights in torchvision's or timm's names, whatever they are wrapped in."""
    inner = next(
        (state[k] for k in ("state_dict", "model", "model_state_dict") if isinstance(state.get(k), Mapping)), state
    )
    out = {}
    for key, value in inner.items():
        key = key.removeprefix("module.").removeprefix("model.")
        parts = key.removeprefix("backbone.").split(".")
        if key.startswith("backbone.") and parts[0].isdigit() and int(parts[0]) < len(_CHILDREN):
            parts[0] = _CHILDREN[int(parts[0])]
        out[".".join(parts)] = value
    return out


# ---------------------------------------------------------------------------------------------------- files, folders


def of_state(path: Path, name: str = "") -> Found:
    """A state dict of a residual network or a vision transformer; one named after RadImageNet is fed as that was.

    Args:
        path: of the weights.
        name: under which they are known; the file's own unless given.

    Raises:
        DiffAugError: it holds neither.
    """
    state = _plain(files.read_weights(path))
    rad = "radimagenet" in (name or path.name).lower()
    prepared = Prepared(*RADIMAGENET, blue_first=True) if rad else Prepared()
    if "patch_embed.proj.weight" in state:
        network = VisionTransformer(state)
        return Found(network, prepared, network.side, path)
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return Found(residual(state, str(path)), prepared, 224, path)
    raise DiffAugError(
        f"{path} is no TorchScript file and holds no residual network or vision transformer: export it with torch.jit, "
        "or pass the module itself to monai_diffaug.backbones.extractors.extractor"
    )


def of_folder(folder: Path) -> Found:
    """A folder saved by transformers, timm or open_clip, or one with a single weight file as :func:`of_state` takes it.

    Raises:
        DiffAugError: there are no weights, or the network is of another kind.
    """
    found = files.weight_files(folder)
    if not found:
        raise DiffAugError(f"{folder} holds no weights: copy model.safetensors there")
    weights = next(iter(found.values()))
    if (folder / "open_clip_config.json").is_file():
        return _open_clip(folder, weights)
    if not (folder / "config.json").is_file():
        return of_state(weights, f"{folder.name}/{weights.name}")
    config = files.read_json(folder / "config.json")
    if "architecture" in config:
        return _timm(config, weights)
    return _transformers(folder, config, weights)


def _timm(config: Mapping[str, Any], weights: Path) -> Found:
    said = {**config.get("pretrained_cfg", {})}
    found = of_state(weights)
    prepared = Prepared(tuple(said.get("mean", IMAGENET[0])), tuple(said.get("std", IMAGENET[1])))
    fixed = isinstance(found.module, VisionTransformer)  # its places are counted
    size = found.size if fixed else int(said.get("input_size", (3, 224, 224))[-1])
    return Found(found.module, prepared, size, weights)


def _open_clip(folder: Path, weights: Path) -> Found:
    """The image half of a dual encoder such as BiomedCLIP (Zhang et al. 2023, arXiv:2303.00915)."""
    config = files.read_json(folder / "open_clip_config.json")
    state = files.read_weights(weights)
    trunk = {k.removeprefix("visual.trunk."): v for k, v in state.items() if k.startswith("visual.trunk.")}
    if "patch_embed.proj.weight" not in trunk:
        raise DiffAugError(f"{weights} has no vision transformer of timm under visual.trunk: export it as TorchScript")
    said = config.get("preprocess_cfg", {})
    network = VisionTransformer(trunk, state.get("visual.head.proj.weight"))
    return Found(
        network, Prepared(tuple(said["mean"]), tuple(said["std"])) if said else Prepared(), network.side, weights
    )


def _transformers(folder: Path, config: Mapping[str, Any], weights: Path) -> Found:
    import transformers

    from monai_diffaug.backbones.parts import pretrained

    module = pretrained(transformers, "AutoModel", folder).eval()
    projection = getattr(module, "visual_projection", None)
    vision = config.get("vision_config", config)
    module = getattr(module, "vision_model", module)  # the image half of a dual encoder
    prepared, place = Prepared(), folder / "preprocessor_config.json"
    if place.is_file():
        said = files.read_json(place)
        prepared = Prepared(tuple(said.get("image_mean", IMAGENET[0])), tuple(said.get("image_std", IMAGENET[1])))

    def features(x: Tensor) -> Tensor:
        out = pooled(module(pixel_values=x))
        return out if projection is None else projection(out)

    return Found(features, prepared, int(vision.get("image_size", 224)), weights)
