"""The parts of a checkpoint that every layout shares: contract, conditioner, judges, pretrained components."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.guide import Guide
from monai_diffaug.backbones.judge import Judge
from monai_diffaug.backbones.monai_unet import load_weights
from monai_diffaug.backbones.paired import ImageConditioner
from monai_diffaug.backbones.regions import RegionConditioner
from monai_diffaug.backbones.scorer import Scorer
from monai_diffaug.backbones.text import ClassConditioner, NoConditioner, TextConditioner, VectorConditioner
from monai_diffaug.backbones.verifier import Index, Verifier
from monai_diffaug.types import Conditioner, Contract, DiffAugError

__all__ = [
    "conditioner_from_config",
    "contract_of",
    "fill",
    "guide_of",
    "judge_of",
    "pretrained",
    "quiet",
    "scorer_of",
    "verifier_of",
]


def contract_of(folder: Path) -> Contract:
    """What ``contract.json`` says; a checkpoint without one is refused."""
    path = folder / "contract.json"
    data = files.read_json(
        path, "write there name, modality, spatial_dims, channels, size, latent_channels, latent_scale, factor"
    )
    try:
        return Contract.from_dict(data)
    except DiffAugError as e:
        raise DiffAugError(f"{path}: {e}") from None


def conditioner_from_config(config: Mapping[str, Any], contract: Contract, folder: Path | None = None) -> Conditioner:
    """Build a conditioner.

    Args:
        config: ``kind`` (``none``, ``class``, ``class_mask``, ``vector``, ``regions``, ``image``, ``text``) and its
            arguments.
        contract: supplies labels, vocabulary and latent size where the config does not.
        folder: checkpoint with ``text_encoder/`` and ``tokenizer/``, for ``text``.
    """
    kind = str(config.get("kind", "none"))
    labels = tuple(config.get("labels") or contract.labels)
    if kind == "none":
        return NoConditioner()
    if kind in ("class", "class_mask"):
        mask = bool(config.get("mask", kind == "class_mask"))
        return ClassConditioner(labels, mask, contract.latent_size)
    if kind == "vector":
        taken = {k: config[k] for k in ("size", "names", "ranges", "null", "concat", "units") if k in config}
        return VectorConditioner(**taken, latent_size=contract.latent_size)
    if kind == "image":
        return ImageConditioner(contract.latent_size, contract.channels, contract.factor)
    if kind == "regions":
        return RegionConditioner(labels, contract.latent_size, contract.latent_channels)
    if kind == "text" and folder is not None:
        return _text(folder, contract, labels, str(config.get("template", contract.extra.get("template", "{}"))))
    raise DiffAugError(
        f"conditioner kind {kind!r} is unknown: use none, class, class_mask, vector, regions, image or text"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and load reports of transformers and diffusers."""
    shown, level = transformers.utils.logging.is_progress_bar_enabled(), transformers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)
        if shown:
            transformers.utils.logging.enable_progress_bar()


def pretrained(library: Any, kind: str, folder: Path) -> Any:
    """Load one component of a pipeline by its class name, from disk only."""
    if not folder.is_dir():
        raise DiffAugError(f"{folder} is missing: copy it there or download the checkpoint again")
    target = getattr(library, kind, None)
    if target is None:
        raise DiffAugError(f"{folder}: {library.__name__} {library.__version__} has no {kind}; install a later version")
    try:
        with quiet():
            loaded = target.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as e:
        raise DiffAugError(
            f"{folder} cannot be loaded ({str(e).splitlines()[0]}): download the checkpoint again"
        ) from e
    return loaded.float() if isinstance(loaded, nn.Module) else loaded


def _text(folder: Path, contract: Contract, labels: tuple[str, ...], template: str) -> TextConditioner:
    config = files.read_json(folder / "text_encoder" / "config.json", "copy the text encoder there")
    kind = (config.get("architectures") or ["CLIPTextModel"])[0]
    encoder = pretrained(transformers, kind, folder / "text_encoder")
    tokenizer = pretrained(transformers, "AutoTokenizer", folder / "tokenizer")
    return TextConditioner(encoder, tokenizer, contract.vocabulary, labels, template)


def scorer_of(folder: Path, contract: Contract) -> Scorer:
    """The dual encoder in ``scorer/``, with its own tokenizer or the checkpoint's."""
    place = folder / "scorer"
    own = (place / "tokenizer_config.json").is_file()
    more: dict[str, Any] = {}
    if (place / "preprocessor_config.json").is_file():
        settings = files.read_json(place / "preprocessor_config.json")
        more = {k: settings[f"image_{k}"] for k in ("mean", "std") if f"image_{k}" in settings}
    return Scorer(
        pretrained(transformers, "CLIPModel", place),
        pretrained(transformers, "AutoTokenizer", place if own else folder / "tokenizer"),
        (contract.value_range[0], contract.value_range[1]),
        **more,
    )


def judge_of(place: Path) -> Judge:
    """The classifier in ``judge/``."""
    config, said = files.read_json(place / "network.json"), files.read_json(place / "judge.json")
    module = files.instantiate(config, str(place / "network.json"))
    fill(module, files.weights_of(place, "network"))
    return Judge(module, said["labels"], said["head"], config)


def guide_of(place: Path) -> Guide:
    """The classifier of noisy latents in ``guide/``."""
    config, said = files.read_json(place / "network.json"), files.read_json(place / "guide.json")
    module = files.instantiate(config, str(place / "network.json"))
    fill(module, files.weights_of(place, "network"))
    return Guide(module, said["labels"], config)


def verifier_of(place: Path) -> Verifier:
    """The siamese network in ``verifier/`` and what it remembers."""
    config, said = files.read_json(place / "network.json"), files.read_json(place / "verifier.json")
    module = files.instantiate(config, str(place / "network.json"))
    fill(module, files.weights_of(place, "network"))
    index = None
    if (place / "index.json").is_file():
        ids = files.read_json(place / "index.json")["ids"]
        signatures = files.read_weights(files.weights_of(place, "index"))["signatures"]
        if len(ids) != len(signatures):
            raise DiffAugError(
                f"{place / 'index.json'} names {len(ids)} images and index holds {len(signatures)}: save them again"
            )
        index = Index(tuple(ids), signatures)
    return Verifier(module, said["threshold"], said.get("figures"), index, config)


def fill(module: nn.Module, path: Path) -> bool:
    """Fill a network from a weight file; whether the file had the old key names. Errors name the file."""
    try:
        return load_weights(module, files.read_weights(path))
    except DiffAugError as e:
        raise e if str(path) in str(e) else DiffAugError(f"{path}: {e}") from None
