"""Networks that turn images into features for scores: shipped, from a file, from a folder of timm or transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.judge import Judge
from monai_diffaug.backbones.loading import load_backbone, locate, shipped
from monai_diffaug.types import DiffAugError

__all__ = ["DEFAULT", "Extractor", "extractor"]

DEFAULT = "mednist"
"""Whose judge is asked where nobody says otherwise: it knows six kinds of medical image."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Extractor:
    """Images (B, C, *S) in [-1, 1] to features (B, D), and what must stand beside every score made of them.

    ``size`` is the side that images are resized to, or ``None`` for as they are; ``classify``, where there is one,
    gives class probabilities (B, K); ``layers`` feature maps, a list of (B, C, *S), for perceptual distances.
    """

    name: str
    digest: str
    dims: int
    features: Callable[[Tensor], Tensor]
    size: tuple[int, ...] | None = None
    classify: Callable[[Tensor], Tensor] | None = None
    layers: Callable[[Tensor], list[Tensor]] | None = None

    def __call__(self, images: Tensor, batch: int = 32) -> Tensor:
        """Features of all images, ``batch`` at a time."""
        return self._over(self.features, images, batch)

    def probabilities(self, images: Tensor, batch: int = 32) -> Tensor | None:
        """Class probabilities of all images; ``None`` where the network is no classifier."""
        return None if self.classify is None else self._over(self.classify, images, batch)

    def fitted(self, images: Tensor) -> Tensor:
        """At the size that the network wants."""
        if self.size is None or tuple(images.shape[2:]) == self.size:
            return images
        mode = "bilinear" if images.ndim == 4 else "trilinear"
        antialias = images.ndim == 4
        return F.interpolate(images.float(), self.size, mode=mode, align_corners=False, antialias=antialias)

    def _over(self, what: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
        with torch.no_grad():
            return torch.cat([what(self.fitted(x)).flatten(1).float() for x in images.split(batch)])


def _hooked(module: nn.Module, names: Sequence[str]) -> Callable[[Tensor], list[Tensor]]:
    def layers(images: Tensor) -> list[Tensor]:
        seen: list[Tensor] = []
        hooks = [
            module.get_submodule(n).register_forward_hook(lambda _m, _a, out: seen.append(out.detach())) for n in names
        ]
        try:
            with torch.no_grad():
                module(images)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    return layers


def _of_judge(name: str) -> Extractor:
    backbone = load_backbone(name)
    judge = backbone.judge
    if not isinstance(judge, Judge):
        raise DiffAugError(f"backbone {name!r} has no judge: give an extractor file or folder as --extractor")
    stages = [n for n, _ in judge.module.named_children() if n.startswith("layer")]
    dims = backbone.contract.spatial_dims
    return Extractor(
        name=f"judge of {backbone.contract.name} ({len(judge.labels)} classes)",
        digest=files.sha256(files.weights_of(locate(name) / "judge", "network")),
        dims=dims,
        features=judge.features,
        size=backbone.contract.size,
        classify=judge.classify,
        layers=_hooked(judge.module, stages) if stages else None,
    )


def _three_channels(images: Tensor) -> Tensor:
    """[-1, 1] gray or color to three channels as ImageNet's networks are fed."""
    rgb = images.expand(-1, 3, *images.shape[2:]) if images.shape[1] == 1 else images[:, :3]
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in IMAGENET)
    return ((rgb + 1) / 2 - mean) / std


def _pooled(out: Any) -> Tensor:
    """One vector an image, of whatever a network returns."""
    for key in ("pooler_output", "image_embeds", "last_hidden_state"):
        value = getattr(out, key, None)
        if value is not None:
            return value if value.ndim == 2 else value.mean(1)
    out = out[0] if isinstance(out, tuple | list) else out
    return out.flatten(2).mean(2) if out.ndim > 2 else out


def _of_file(path: Path) -> Extractor:
    """TorchScript: images (B, 3, H, W), normalized as ImageNet's are, to features."""
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as e:
        raise DiffAugError(
            f"{path} is no TorchScript file ({str(e).splitlines()[0]}): export the network with torch.jit, or pass the "
            "module itself to monai_diffaug.backbones.extractors.extractor"
        ) from None
    return Extractor(path.name, files.sha256(path), 2, lambda x: _pooled(module(_three_channels(x))))


def _of_folder(folder: Path) -> Extractor:
    config = files.read_json(folder / "config.json", "give a folder saved by transformers or timm")
    weights = next(iter(files.weight_files(folder).values()), None)
    if weights is None:
        raise DiffAugError(f"{folder} holds no weights: copy model.safetensors there")
    if "architecture" in config:
        module, size = _timm(folder, config, weights)
    else:
        module, size = _transformers(folder, config)
    return Extractor(folder.name, files.sha256(weights), 2, lambda x: _pooled(module(_three_channels(x))), (size, size))


def _timm(folder: Path, config: dict[str, Any], weights: Path) -> tuple[Any, int]:
    try:
        import timm
    except ModuleNotFoundError:
        raise DiffAugError(f"{folder} is a model of timm: pip install timm") from None
    module = timm.create_model(config["architecture"], pretrained=False, num_classes=0)
    state = {k: v for k, v in files.read_weights(weights).items() if k in module.state_dict()}
    missing = sorted(set(module.state_dict()) - set(state))
    if missing:
        raise DiffAugError(f"{weights} lacks {len(missing)} weights of {config['architecture']} (first: {missing[0]})")
    module.load_state_dict(state)
    size = config.get("pretrained_cfg", {}).get("input_size", [3, 224, 224])[-1]
    return module.eval(), int(size)


def _transformers(folder: Path, config: dict[str, Any]) -> tuple[Any, int]:
    import transformers

    from monai_diffaug.backbones.parts import pretrained

    module = pretrained(transformers, "AutoModel", folder).eval()
    module = getattr(module, "vision_model", module)  # the image half of a dual encoder
    vision = config.get("vision_config", config)
    return (lambda x: module(pixel_values=x)), int(vision.get("image_size", 224))


def extractor(what: str | Path | nn.Module = DEFAULT, *, dims: int = 2, size: int | None = None) -> Extractor:
    """A feature extractor.

    Args:
        what: the name or folder of a backbone with a judge; a TorchScript file; a folder of timm or transformers (such
            as DINOv2's); or a module from images (B, C, *S) in [-1, 1] to features.
        dims: of the images that a module takes.
        size: side that a module wants its images in.

    Raises:
        DiffAugError: there is no such thing, or it cannot be loaded.
    """
    if isinstance(what, nn.Module):
        module = what.eval()
        return Extractor(
            type(module).__name__, "", dims, lambda x: _pooled(module(x)), None if size is None else (size,) * dims
        )
    path = Path(what).expanduser()
    if str(what) in shipped() or (path / "contract.json").is_file() or (path / "models" / "contract.json").is_file():
        return _of_judge(str(what))
    if path.is_file():
        return _of_file(path)
    if path.is_dir():
        return _of_folder(path)
    raise DiffAugError(
        f"extractor {str(what)!r} is unknown: give a shipped backbone ({', '.join(shipped())}), a TorchScript file, or "
        "a folder saved by transformers or timm"
    )
