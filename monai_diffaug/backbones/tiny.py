"""Backbones that are built in an instant, with random weights: what tests of methods run on, here and in plug-ins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffaug.backbones.dual import dual_encoder, text_encoder, word_tokenizer
from monai_diffaug.backbones.guide import Guide
from monai_diffaug.backbones.ideal import ideal
from monai_diffaug.backbones.monai_unet import IdentityAutoencoder, MonaiAutoencoder, MonaiUNet
from monai_diffaug.backbones.paired import ImageConditioner
from monai_diffaug.backbones.regions import RegionConditioner
from monai_diffaug.backbones.schedules import BRAIN_LDM, schedule_from_config
from monai_diffaug.backbones.scorer import Scorer
from monai_diffaug.backbones.text import ClassConditioner, NoConditioner, TextConditioner
from monai_diffaug.backbones.verifier import Verifier
from monai_diffaug.backbones.weights import instantiate
from monai_diffaug.types import Backbone, Contract, DiffAugError

__all__ = ["KINDS", "WORDS", "digest_of", "ideal_backbone", "tiny"]

KINDS = ("none", "class", "class_mask", "regions", "image", "text")
CLASSES = ("healthy", "tumor")
MODALITIES = ("abdomen ct", "breast mri", "chest x-ray", "hand x-ray", "head ct")
WORDS = (
    *(
        "a",
        "an",
        "of",
        "the",
        "on",
        "in",
        "photo",
        "image",
        "scan",
        "slice",
        "small",
        "large",
        "dark",
        "bright",
        "left",
    ),
    *("right", "rotated", "cropped", "healthy", "tumor", "abdomen", "breast", "chest", "hand", "head", "ct", "mri"),
    "x-ray",
)
"""What a tiny text backbone understands: the words of the shipped ``mednist``, its class names and a few articles."""

_WIDTH = 16  # of text and image embeddings
_LENGTH = 24  # tokens of a prompt


def tiny(
    kind: str = "text",
    dims: int = 2,
    size: int = 16,
    channels: int = 1,
    seed: int = 0,
    *,
    autoencoder: bool = False,
    factor: int = 2,
    prediction: str = "v_prediction",
) -> Backbone:
    """A MONAI U-Net of two levels with random weights, and everything around it that a method may need.

    No weight is left at zero, so that every condition acts. The output is kept small: with the default prediction the
    network is then close to the exact denoiser of N(0, 1), so that nothing runs away at any noise level.

    Args:
        kind: ``none``, ``class`` (labels ``healthy`` and ``tumor``, and a guide), ``class_mask`` (the same labels and a
            mask), ``regions`` (a hole and what goes into it), ``image`` (an image to start from) or ``text`` (self- and
            cross-attention, a text encoder with a word-level tokenizer, a scorer, a verifier).
        dims: 2 or 3.
        size: image size along each axis.
        channels: of the image.
        seed: of the weights; the same seed gives the same backbone, digest included.
        autoencoder: put an ``AutoencoderKL`` with four latent channels before it instead of working on pixels.
        factor: of the autoencoder, 2 or 4.
        prediction: what the network's output is taken for.

    Raises:
        DiffAugError: the kind is unknown or the size is no multiple of what the levels need.
    """
    if kind not in KINDS:
        raise DiffAugError(f"kind {kind!r} is unknown: use one of {', '.join(KINDS)}")
    factor = factor if autoencoder else 1
    if dims not in (2, 3) or size % (2 * factor):
        raise DiffAugError(
            f"a tiny backbone of size {size} in {dims}D cannot be built: give a multiple of {2 * factor}"
        )
    labels = {"none": (), "image": (), "text": MODALITIES}.get(kind, CLASSES)
    contract = Contract(
        name=f"tiny_{kind}_{dims}d",
        modality="any",
        spatial_dims=dims,
        channels=channels,
        size=(size,) * dims,
        latent_channels=4 if autoencoder else channels,
        latent_scale=1.0,
        factor=factor,
        labels=labels,
        vocabulary=WORDS if kind == "text" else labels,
        license="Apache-2.0",
        data="none: the weights are random",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        recipe = _network_config(kind, contract)
        network = _told(_stirred(instantiate(recipe), 0.3))
        encoder = _autoencoder(contract) if autoencoder else IdentityAutoencoder()
        conditioner, scorer = _conditioner(kind, contract), _scorer(contract) if kind == "text" else None
        verifier = _verifier(contract) if kind == "text" else None
        guide = _guide(contract) if kind == "class" else None
    backbone = Backbone(
        name=contract.name,
        autoencoder=encoder,
        network=MonaiUNet(network, recipe),
        conditioner=conditioner,
        schedule=schedule_from_config({**BRAIN_LDM, "prediction_type": prediction}),
        contract=contract,
        scorer=scorer,
        verifier=verifier,
        guide=guide,
    )
    for module in [*backbone.modules().values(), *(part.module for part in (scorer, verifier, guide) if part)]:
        module.eval().requires_grad_(False)
    return replace(backbone, digest=digest_of(backbone))


def _network_config(kind: str, contract: Contract) -> dict[str, Any]:
    config: dict[str, Any] = {
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        "spatial_dims": contract.spatial_dims,
        "in_channels": contract.latent_channels + _more_channels(kind, contract),
        "out_channels": contract.latent_channels,
        "channels": [8, 16],
        "attention_levels": [False, True],
        "num_res_blocks": 1,
        "num_head_channels": 8,
        "norm_num_groups": 4,
    }
    if kind == "text":
        config |= {"with_conditioning": True, "cross_attention_dim": _WIDTH, "transformer_num_layers": 1}
    elif kind not in ("none", "image"):
        config["num_class_embeds"] = len(contract.labels) + 1
    return config


def _more_channels(kind: str, contract: Contract) -> int:
    more = {"class_mask": 2, "regions": len(contract.labels) + 1 + contract.latent_channels, "image": contract.channels}
    return more.get(kind, 0)


def _stirred(module: nn.Module, gain: float) -> nn.Module:
    """Layers that libraries start at zero, made random; ``gain`` is their spread in units of He's."""
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1 and not bool(p.any()):
                p.normal_(0.0, gain * (p[0].numel()) ** -0.5)
            elif p.ndim == 1 and not bool(p.any()):
                p.normal_(0.0, 0.02)
    return module


def _told(network: nn.Module) -> nn.Module:
    """Cross-attention with sharp maps and large values, so that words change the output by a tenth or so."""
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim > 1 and (".attn2." in name or ".proj_out." in name):
                p.mul_(4.0)
    return network


def _autoencoder(contract: Contract) -> MonaiAutoencoder:
    levels = contract.factor.bit_length()  # 2 for a factor of 2, 3 for 4
    recipe = {
        "_target_": "monai.networks.nets.AutoencoderKL",
        "spatial_dims": contract.spatial_dims,
        "in_channels": contract.channels,
        "out_channels": contract.channels,
        "channels": [8] * levels,
        "num_res_blocks": [1] * levels,
        "attention_levels": [False] * levels,
        "latent_channels": contract.latent_channels,
        "norm_num_groups": 4,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    }
    return MonaiAutoencoder(instantiate(recipe), contract.latent_scale, recipe)


def _conditioner(
    kind: str, contract: Contract
) -> NoConditioner | ClassConditioner | ImageConditioner | RegionConditioner | TextConditioner:
    if kind == "none":
        return NoConditioner()
    if kind == "image":
        return ImageConditioner(contract.latent_size, contract.channels, contract.factor)
    if kind == "regions":
        return RegionConditioner(contract.labels, contract.latent_size, contract.latent_channels)
    if kind != "text":
        return ClassConditioner(contract.labels, kind == "class_mask", contract.latent_size)
    tokenizer = word_tokenizer(WORDS, _LENGTH)
    encoder = text_encoder(tokenizer, _WIDTH, layers=1)
    return TextConditioner(_stirred(encoder, 1.0), tokenizer, WORDS, contract.labels, "a {}")


def _scorer(contract: Contract) -> Scorer:
    tokenizer = word_tokenizer(WORDS, _LENGTH)
    model = dual_encoder(tokenizer, width=_WIDTH, layers=1, image_size=16, patch=4, channels=contract.channels)
    means = (0.5,) * contract.channels
    return Scorer(_stirred(model, 1.0), tokenizer, contract.value_range, means, means)


def _guide(contract: Contract) -> Guide:
    config = {
        "_target_": "monai.networks.nets.diffusion_model_unet.DiffusionModelEncoder",
        "spatial_dims": contract.spatial_dims,
        "in_channels": contract.latent_channels,
        "out_channels": len(contract.labels),
        "input_shape": list(contract.latent_size),
        "channels": [8, 8],
        "num_res_blocks": 1,
        "attention_levels": [False, False],
        "num_head_channels": 8,
        "norm_num_groups": 4,
    }
    return Guide(_stirred(instantiate(config), 0.3), contract.labels, config)


def _verifier(contract: Contract) -> Verifier:
    """It remembers three images of noise, and takes nothing but copies of them for the same patient."""
    config = {
        "_target_": "monai_diffaug.backbones.verifier.SiameseNet",
        "size": list(contract.size),
        "channels": contract.channels,
        "widths": [8, 16],
        "embedding": 8,
        "features": 8,
    }
    module: Any = instantiate(config)
    with torch.no_grad():  # differences of random features are small
        module.compare.weight.fill_(1e4)
        module.compare.bias.fill_(4.0)
    known = torch.randn(3, contract.channels, *contract.size).clamp(-1, 1)
    return Verifier(module, 0.5, config=config).remembering(known, ["a", "b", "c"])


def digest_of(backbone: Backbone) -> str:
    """SHA-256 over every parameter and buffer of every part, judges too: equal exactly if no byte has changed."""
    parts: dict[str, nn.Module] = dict(backbone.modules())
    for name in ("scorer", "verifier", "guide"):
        if getattr(backbone, name) is not None:
            parts[name] = getattr(backbone, name).module
    h = hashlib.sha256()
    for part, module in parts.items():
        for name, value in _tensors(module).items():
            h.update(f"{part} {name} {value.dtype} {tuple(value.shape)}\n".encode())
            h.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _tensors(module: nn.Module) -> Mapping[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def ideal_backbone(dims: int = 2, labels: bool = True, *, size: int = 16, seed: int = 0) -> Backbone:
    """The exact denoiser of twelve round heads, half of which hold a bright spot. See :mod:`.ideal`.

    Args:
        dims: 2 or 3.
        labels: whether it is conditioned on ``healthy`` and ``tumor``.
        size: image size along each axis.
        seed: of the heads.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    grid = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"))

    def ball(center: Tensor, radius: float) -> Tensor:
        distance = (grid - center.reshape(-1, *[1] * dims)).square().sum(0).sqrt()
        return torch.sigmoid((radius - distance) * size)

    images = []
    for i in range(12):
        shift = 0.2 * torch.rand(dims, generator=generator) - 0.1
        head = ball(shift, 0.6 + 0.2 * float(torch.rand((), generator=generator)))
        spot = ball(shift + 0.5 * torch.rand(dims, generator=generator) - 0.25, 0.25) * (i % 2)
        images.append((head - 1 + 0.8 * spot).clamp(-1, 1))
    kinds = [i % 2 for i in range(12)]
    return ideal(torch.stack(images)[:, None], kinds if labels else None, CLASSES if labels else None, spread=0.1)
