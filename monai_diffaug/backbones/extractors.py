"""Networks that turn images into features for scores: shipped, from a file, or from a folder as published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.judge import Judge
from monai_diffaug.backbones.loading import WEIGHTS, load_backbone, locate, shipped
from monai_diffaug.backbones.parts import judge_of
from monai_diffaug.backbones.published import RADIMAGENET, Found, Prepared, of_folder, of_state, pooled
from monai_diffaug.types import DiffAugError

__all__ = ["DEFAULT", "Extractor", "extractor"]

DEFAULT = "medical"
"""What is asked where nobody says otherwise: it knows the kinds of image of all shipped domains, and no generator."""


@dataclass(frozen=True)
class Extractor:
    """Images (B, C, *S) in [-1, 1] to features (B, D), and what must stand beside every score made of them.

    ``size`` is the side that images are resized to, or ``None`` for as they are; ``classify``, where there is one,
    gives probabilities (B, K) of ``kinds``; ``layers`` feature maps, a list of (B, C, *S), for perceptual distances.
    """

    name: str
    digest: str
    dims: int
    features: Callable[[Tensor], Tensor]
    size: tuple[int, ...] | None = None
    classify: Callable[[Tensor], Tensor] | None = None
    layers: Callable[[Tensor], list[Tensor]] | None = None
    kinds: tuple[str, ...] = ()
    channels: int | None = None

    def __call__(self, images: Tensor, batch: int = 32) -> Tensor:
        """Features of all images, ``batch`` at a time."""
        return self._over(self.features, images, batch)

    def probabilities(self, images: Tensor, batch: int = 32) -> Tensor | None:
        """Class probabilities of all images; ``None`` where the network is no classifier."""
        return None if self.classify is None else self._over(self.classify, images, batch)

    def fitted(self, images: Tensor) -> Tensor:
        """At the size that the network wants, and gray for one that knows gray only.

        Raises:
            DiffAugError: the network wants channels that the images do not have.
        """
        if self.channels == 1:
            images = images.float().mean(1, keepdim=True)
        elif self.channels not in (None, images.shape[1]):
            raise DiffAugError(
                f"{self.name} takes {self.channels} channels and the images have {images.shape[1]}: give another "
                "extractor"
            )
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
        kinds=judge.labels,
        channels=backbone.contract.channels,
        layers=_hooked(judge.module, stages) if stages else None,
    )


def _of_classifier(folder: Path) -> Extractor:
    """A judge on its own, not beside a backbone, which says for what size of image it is."""
    judge = judge_of(folder)
    said = files.read_json(folder / "judge.json")
    config = judge.config or {}
    dims = int(config.get("spatial_dims", 2))
    stages = [n for n, _ in judge.module.named_children() if n.startswith("layer")]
    kinds = int(said.get("kinds", len(judge.labels)))

    def classify(images: Tensor) -> Tensor:
        p = judge.classify(images)
        return p.reshape(len(p), -1, kinds).sum(1)  # classes that stand for one kind in several positions

    return Extractor(
        name=f"{said.get('name', folder.name)} ({kinds} kinds of image)",
        digest=files.sha256(files.weights_of(folder, "network")),
        dims=dims,
        features=judge.features,
        size=tuple(said.get("size") or (64,) * dims),
        classify=classify,
        kinds=judge.labels[:kinds],
        channels=int(config.get("n_input_channels", 1)),
        layers=_hooked(judge.module, stages) if stages else None,
    )


def _of_published(found: Found, name: str) -> Extractor:
    return Extractor(
        name,
        files.sha256(found.weights),
        2,
        lambda x: pooled(found.module(found.prepared(x))),
        (found.size, found.size),
    )


def _of_file(path: Path) -> Extractor:
    """TorchScript: images (B, 3, H, W), normalized as ImageNet's are, to features; or a state dict of a known kind."""
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError:
        return _of_published(of_state(path), path.name)
    rad = "radimagenet" in path.name.lower()
    prepared = Prepared(*RADIMAGENET, blue_first=True) if rad else Prepared()
    return Extractor(path.name, files.sha256(path), 2, lambda x: pooled(module(prepared(x))))


def extractor(what: str | Path | nn.Module = DEFAULT, *, dims: int = 2, size: int | None = None) -> Extractor:
    """A feature extractor.

    Args:
        what: ``medical``; the name or folder of a backbone with a judge; a TorchScript file; a folder of transformers
            (DINOv2), timm or open_clip (BiomedCLIP); a state dict of a residual network or a vision transformer
            (RadImageNet); or a module from images (B, C, *S) in [-1, 1] to features.
        dims: of the images that a module takes.
        size: side that a module wants its images in.

    Raises:
        DiffAugError: there is no such thing, or it cannot be loaded.
    """
    if isinstance(what, nn.Module):
        module = what.eval()
        return Extractor(
            type(module).__name__, "", dims, lambda x: pooled(module(x)), None if size is None else (size,) * dims
        )
    path = WEIGHTS / DEFAULT if str(what) == DEFAULT else Path(what).expanduser()
    if str(what) in shipped() or (path / "contract.json").is_file() or (path / "models" / "contract.json").is_file():
        return _of_judge(str(what))
    if (path / "judge.json").is_file():
        return _of_classifier(path)
    if path.is_file():
        return _of_file(path)
    if path.is_dir():
        return _of_published(of_folder(path), path.name)
    raise DiffAugError(
        f"extractor {str(what)!r} is unknown: give {DEFAULT}, a shipped backbone ({', '.join(shipped())}), a "
        "TorchScript file, or a folder saved by transformers, timm or open_clip"
    )
