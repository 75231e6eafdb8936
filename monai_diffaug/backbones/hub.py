"""Backbones by name, folder or hub id.

Three layouts are read, all with their contract beside the weights: MONAI's (``network.json``, ``autoencoder.json`` and
safetensors; described at :func:`save`), a diffusers pipeline, and a MONAI bundle (``configs/``, ``models/``).
"""

from __future__ import annotations

import copy
import difflib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from monai_diffaug.backbones import weights as files
from monai_diffaug.backbones.diffusers_unet import DiffusersAutoencoder, DiffusersUNet
from monai_diffaug.backbones.judge import Judge
from monai_diffaug.backbones.monai_unet import IdentityAutoencoder, MonaiAutoencoder, MonaiUNet, load_weights
from monai_diffaug.backbones.schedules import schedule_from_config
from monai_diffaug.backbones.scorer import Scorer
from monai_diffaug.backbones.text import ClassConditioner, NoConditioner, TextConditioner, VectorConditioner
from monai_diffaug.types import Backbone, Conditioner, Contract, DiffAugError, Network, Schedule

__all__ = ["WEIGHTS", "conditioner_from_config", "fingerprint", "load", "locate", "save", "seal", "shipped"]

WEIGHTS = Path(__file__).parent / "weights"
"""Where the shipped backbones are."""

_LOADED: dict[tuple[str, str, str], Backbone] = {}


def shipped() -> list[str]:
    """Names of the backbones that come with the package."""
    return sorted(p.parent.name for p in WEIGHTS.glob("*/contract.json"))


def locate(name: str | Path) -> Path:
    """The folder of a shipped name, a path or a hub id (``owner/name``, fetched or from the local cache).

    Raises:
        DiffAugError: there is none; the message names the nearest shipped name.
    """
    if str(name) in shipped():
        return WEIGHTS / str(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    parts = str(name).split("/")
    if len(parts) == 2 and all(parts) and not str(name).startswith((".", "~")):
        return _fetch(str(name))
    near = difflib.get_close_matches(str(name), shipped(), 1, 0.0)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DiffAugError(
        f"backbone {str(name)!r} is unknown: {hint}give a shipped name ({', '.join(shipped()) or 'none'}), a folder or a "
        "hub id owner/name"
    )


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as online:
        try:
            return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
        except Exception:
            raise DiffAugError(
                f"{hub_id!r} is no folder here and the hub cannot be reached ({type(online).__name__}): copy the "
                "checkpoint to this machine and give its folder"
            ) from None


def load(
    name: str | Path,
    *,
    precision: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Backbone:
    """Load a backbone, frozen and in evaluation mode; the same call twice gives the same object.

    Args:
        name: a shipped name, a folder or a hub id.
        precision: run in ``float32`` (default), ``bfloat16`` or ``float16``; weights stay float32.
        device: where to put the weights; the CPU unless given.

    Returns:
        the backbone, with ``digest`` over its weight files.

    Raises:
        DiffAugError: unknown name; missing file, contract or latent scale; a hash that differs; weights that do not fit.
    """
    folder = locate(name)
    files.verify(folder)
    key = (str(folder.resolve()), files.digest(folder), str(device or "cpu"))
    if key not in _LOADED:
        backbone = replace(_load(folder), digest=key[1])
        extra = [part.module for part in (backbone.scorer, backbone.judge) if part is not None]
        for module in [*backbone.modules().values(), *extra]:
            module.eval().requires_grad_(False).to(device or "cpu")
        _LOADED[key] = backbone
    backbone = _LOADED[key]
    if precision is None or _dtype(precision) == backbone.precision:
        return backbone
    again = (*key[:2], f"{key[2]} {_dtype(precision)}")
    return _LOADED.setdefault(again, backbone.with_precision(_dtype(precision)))


def _dtype(precision: str | torch.dtype) -> torch.dtype:
    if isinstance(precision, torch.dtype):
        return precision
    known = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
    known |= {"float16": torch.float16, "fp16": torch.float16}
    if precision not in known:
        raise DiffAugError(f"precision {precision!r} is unknown: use float32, bfloat16 or float16")
    return known[precision]


def _load(folder: Path) -> Backbone:
    if (folder / "model_index.json").is_file():
        backbone = _load_diffusers(folder)
    elif (folder / "network.json").is_file():
        backbone = _load_monai(folder)
    elif (folder / "configs").is_dir():
        backbone = _load_bundle(folder)
    else:
        raise DiffAugError(
            f"{folder} is no checkpoint: it needs model_index.json (diffusers), network.json (MONAI) or configs/ (bundle)"
        )
    if (folder / "scorer").is_dir():
        backbone = replace(backbone, scorer=_scorer(folder, backbone.contract))
    if (folder / "judge").is_dir():
        backbone = replace(backbone, judge=_judge(folder / "judge"))
    return backbone


def _contract(folder: Path) -> Contract:
    path = folder / "contract.json"
    data = files.read_json(path, "write there name, modality, spatial_dims, channels, size, latent_channels, latent_scale, factor")
    try:
        return Contract.from_dict(data)
    except DiffAugError as e:
        raise DiffAugError(f"{path}: {e}") from None


def conditioner_from_config(config: Mapping[str, Any], contract: Contract, folder: Path | None = None) -> Conditioner:
    """Build a conditioner.

    Args:
        config: ``kind`` (``none``, ``class``, ``class_mask``, ``vector``, ``text``) and its arguments.
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
        taken = {k: config[k] for k in ("size", "names", "ranges", "null", "concat") if k in config}
        return VectorConditioner(**taken, latent_size=contract.latent_size)
    if kind == "text" and folder is not None:
        return _text(folder, contract, labels, str(config.get("template", contract.extra.get("template", "{}"))))
    raise DiffAugError(f"conditioner kind {kind!r} is unknown: use none, class, class_mask, vector or text")


@contextmanager
def _quiet() -> Iterator[None]:
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


def _pretrained(library: Any, kind: str, folder: Path) -> Any:
    """Load one component of a pipeline by its class name, from disk only."""
    if not folder.is_dir():
        raise DiffAugError(f"{folder} is missing: copy it there or download the checkpoint again")
    target = getattr(library, kind, None)
    if target is None:
        raise DiffAugError(f"{folder}: {library.__name__} {library.__version__} has no {kind}; install a later version")
    try:
        with _quiet():
            loaded = target.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as e:
        raise DiffAugError(f"{folder} cannot be loaded ({str(e).splitlines()[0]}): download the checkpoint again") from e
    return loaded.float() if isinstance(loaded, nn.Module) else loaded


def _text(folder: Path, contract: Contract, labels: tuple[str, ...], template: str) -> TextConditioner:
    config = files.read_json(folder / "text_encoder" / "config.json", "copy the text encoder there")
    kind = (config.get("architectures") or ["CLIPTextModel"])[0]
    encoder = _pretrained(transformers, kind, folder / "text_encoder")
    tokenizer = _pretrained(transformers, "AutoTokenizer", folder / "tokenizer")
    return TextConditioner(encoder, tokenizer, contract.vocabulary, labels, template)


def _scorer(folder: Path, contract: Contract) -> Scorer:
    place = folder / "scorer"
    own = (place / "tokenizer_config.json").is_file()
    more: dict[str, Any] = {}
    if (place / "preprocessor_config.json").is_file():
        settings = files.read_json(place / "preprocessor_config.json")
        more = {k: settings[f"image_{k}"] for k in ("mean", "std") if f"image_{k}" in settings}
    return Scorer(
        _pretrained(transformers, "CLIPModel", place),
        _pretrained(transformers, "AutoTokenizer", place if own else folder / "tokenizer"),
        (contract.value_range[0], contract.value_range[1]),
        **more,
    )


def _judge(place: Path) -> Judge:
    config, said = files.read_json(place / "network.json"), files.read_json(place / "judge.json")
    module = files.instantiate(config, str(place / "network.json"))
    _fill(module, place / "network.safetensors")
    return Judge(module, said["labels"], said["head"], config)


# ----------------------------------------------------------------------------------------------------- MONAI's layout


def _load_monai(folder: Path) -> Backbone:
    contract = _contract(folder)
    config = files.read_json(folder / "network.json")
    module = files.instantiate(config, str(folder / "network.json"))
    old = _fill(module, _weights_of(folder, "network"))
    autoencoder: IdentityAutoencoder | MonaiAutoencoder = IdentityAutoencoder()
    if (folder / "autoencoder.json").is_file():
        recipe = files.read_json(folder / "autoencoder.json")
        inner = files.instantiate(recipe, str(folder / "autoencoder.json"))
        old = _fill(inner, _weights_of(folder, "autoencoder")) or old
        autoencoder = MonaiAutoencoder(inner, contract.latent_scale, recipe)
    elif contract.factor != 1:
        raise DiffAugError(f"{folder / 'autoencoder.json'} is missing: add it, or set factor to 1 for a pixel model")
    conditioner = conditioner_from_config(files.read_json(folder / "conditioner.json"), contract, folder)
    backbone = Backbone(
        name=contract.name,
        autoencoder=autoencoder,
        network=MonaiUNet(module.eval(), config),
        conditioner=conditioner,
        schedule=schedule_from_config(files.read_json(folder / "scheduler.json")),
        contract=contract,
    )
    if old:
        _check_fingerprint(folder, backbone)
    return backbone


def _weights_of(folder: Path, part: str) -> Path:
    found = [folder / f"{part}{ending}" for ending in files.WEIGHT_ENDINGS]
    return next((p for p in found if p.is_file()), found[0])


def _fill(module: nn.Module, path: Path) -> bool:
    try:
        return load_weights(module, files.read_weights(path))
    except DiffAugError as e:
        raise e if str(path) in str(e) else DiffAugError(f"{path}: {e}") from None


def _load_bundle(folder: Path) -> Backbone:
    """A MONAI bundle with a ``contract.json``: networks and scheduler from its configs, weights from ``models/``."""
    from monai_diffaug.backbones.bundles import bundle_parts

    contract = _contract(folder)
    parts = bundle_parts(folder)
    if "network" not in parts or "scheduler" not in parts:
        raise DiffAugError(f"{folder / 'configs'} defines no diffusion network with a scheduler: add them to inference.json")
    conditioner_config = dict(contract.extra.get("conditioner", {"kind": "none"}))
    network = files.instantiate(parts["network"], str(folder / "configs"))
    old = _fill_from_any(network, folder)
    autoencoder: IdentityAutoencoder | MonaiAutoencoder = IdentityAutoencoder()
    if "autoencoder" in parts:
        inner = files.instantiate(parts["autoencoder"], str(folder / "configs"))
        old = _fill_from_any(inner, folder) or old
        autoencoder = MonaiAutoencoder(inner, contract.latent_scale, parts["autoencoder"])
    backbone = Backbone(
        name=contract.name,
        autoencoder=autoencoder,
        network=MonaiUNet(network.eval(), parts["network"]),
        conditioner=conditioner_from_config(conditioner_config, contract, folder),
        schedule=schedule_from_config(parts["scheduler"]),
        contract=contract,
    )
    if old:
        _check_fingerprint(folder, backbone)
    return backbone


def _fill_from_any(module: nn.Module, folder: Path) -> bool:
    """Fill a bundle's network from the weight file that fits it."""
    reasons = []
    for path in files.weight_files(folder).values():
        try:
            return load_weights(module, files.read_weights(path))
        except DiffAugError as e:
            reasons.append(f"{path.name}: {e}")
    if not reasons:
        raise DiffAugError(f"{folder / 'models'} holds no weights: download the bundle again")
    raise DiffAugError(f"no weight file in {folder} fits {type(module).__name__}: {min(reasons, key=len)}")


# ------------------------------------------------------------------------------------------------- diffusers' layout


def _load_diffusers(folder: Path) -> Backbone:
    index = files.read_json(folder / "model_index.json")
    part = "unet" if "unet" in index else "transformer"
    if part not in index or part == "transformer":
        raise DiffAugError(f"{folder / 'model_index.json'} names no unet: use a pipeline with a U-Net")
    module = _pretrained(diffusers, index[part][1], folder / part)
    scheduler = schedule_from_config(
        files.read_json(folder / "scheduler" / "scheduler_config.json", "copy the scheduler's config there")
    )
    vae, scale = None, 1.0
    if index.get("vae", [None, None])[1] is not None:
        vae = _pretrained(diffusers, index["vae"][1], folder / "vae")
        scale = _latent_scale(folder)
    given = (folder / "contract.json").is_file()
    contract = _contract(folder) if given else _derived_contract(folder, module, vae, scale)
    if given and abs(contract.latent_scale - scale) > 1e-4 * abs(scale):
        raise DiffAugError(
            f"{folder / 'contract.json'} says latent_scale {contract.latent_scale:g} and vae/config.json says "
            f"scaling_factor {scale:g}: make them agree"
        )
    return Backbone(
        name=contract.name,
        autoencoder=DiffusersAutoencoder(vae, scale) if vae is not None else IdentityAutoencoder(),
        network=DiffusersUNet(module),
        conditioner=_diffusers_conditioner(folder, index, module, contract),
        schedule=scheduler,
        contract=contract,
    )


def _latent_scale(folder: Path) -> float:
    """From the autoencoder's own config or the contract; diffusers would fall back to 0.18215 in silence."""
    config = files.read_json(folder / "vae" / "config.json")
    if "scaling_factor" in config:
        return float(config["scaling_factor"])
    if (folder / "contract.json").is_file():
        return _contract(folder).latent_scale
    raise DiffAugError(f"{folder / 'vae' / 'config.json'} lacks scaling_factor: write the latent scale there")


def _derived_contract(folder: Path, unet: Any, vae: Any, scale: float) -> Contract:
    """What a pipeline without a contract tells of itself."""
    side = unet.config.sample_size
    if side is None:
        raise DiffAugError(f"{folder / 'unet' / 'config.json'} lacks sample_size: write it there, or add contract.json")
    factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
    sides = (side, side) if isinstance(side, int) else tuple(side)
    return Contract(
        name=folder.resolve().name,
        modality="unknown",
        spatial_dims=len(sides),
        channels=int(unet.config.out_channels if vae is None else vae.config.in_channels),
        size=tuple(int(s) * factor for s in sides),
        latent_channels=int(unet.config.out_channels if vae is None else vae.config.latent_channels),
        latent_scale=scale,
        factor=factor,
        extra={"derived": "from the pipeline's configs"},
    )


def _diffusers_conditioner(folder: Path, index: Mapping[str, Any], unet: Any, contract: Contract) -> Conditioner:
    if (folder / "conditioner.json").is_file():
        return conditioner_from_config(files.read_json(folder / "conditioner.json"), contract, folder)
    if index.get("text_encoder", [None, None])[1] is not None:
        return conditioner_from_config({"kind": "text"}, contract, folder)
    classes = unet.config.get("num_class_embeds")
    if classes is not None:
        if not contract.labels:
            raise DiffAugError(f"{folder} is conditioned on {classes} classes: name them as labels in contract.json")
        return ClassConditioner(contract.labels)
    return NoConditioner()


# ------------------------------------------------------------------------------------------------------------ saving


def fingerprint(backbone: Backbone) -> list[float]:
    """A few numbers of one forward pass on fixed noise, by which a wrong conversion of weights shows."""
    c = backbone.contract
    shape = (1, c.latent_channels, *c.latent_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(backbone.device)
    with torch.no_grad():
        middle = backbone.schedule.times[len(backbone.schedule.times) // 2]
        out = replace(backbone, precision=torch.float32).output(x, middle, backbone.condition(1)).double().flatten()
    picks = torch.linspace(0, out.numel() - 1, 6).long()
    return [float(out.mean()), float(out.std()), *out[picks].tolist()]


def _check_fingerprint(folder: Path, backbone: Backbone) -> None:
    if not (folder / "fingerprint.json").is_file():
        return
    expected = files.read_json(folder / "fingerprint.json")["output"]
    found = fingerprint(backbone)
    worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    if worst > 1e-2 * max(abs(expected[1]), 1e-6):
        raise DiffAugError(
            f"{folder}: converted weights give another output than fingerprint.json (off by {worst:.2g}): load them with "
            "the library that they were trained with and save them anew"
        )


def seal(folder: str | Path) -> str:
    """Write ``digests.json`` and ``fingerprint.json`` of a checkpoint as it is now; returns its digest."""
    place = Path(folder)
    (place / "digests.json").unlink(missing_ok=True)
    (place / "fingerprint.json").unlink(missing_ok=True)
    numbers = fingerprint(_load(place))
    sums = {name: files.sha256(path) for name, path in files.weight_files(place).items()}
    (place / "digests.json").write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    (place / "fingerprint.json").write_text(json.dumps({"output": numbers}) + "\n", encoding="utf-8")
    return files.digest(place)


def save(backbone: Backbone, folder: str | Path, precision: torch.dtype = torch.float16) -> Path:
    """Write a checkpoint that :func:`load` reads.

    A MONAI network becomes ``contract.json``, ``network.json`` with ``network.safetensors``, ``autoencoder.json`` with
    ``autoencoder.safetensors`` (not for pixel models), ``conditioner.json`` and ``scheduler.json``; a diffusers network
    becomes a pipeline folder with ``contract.json`` and ``conditioner.json``. Both are sealed. The folder appears whole
    or not at all.

    Args:
        backbone: what to write.
        folder: where; an earlier checkpoint there is replaced.
        precision: of the stored weights.

    Raises:
        DiffAugError: the folder holds something else, the network's config is unknown, or weights overflow.
    """
    target = Path(folder)
    if target.exists() and any(target.iterdir()) and not (target / "contract.json").is_file():
        raise DiffAugError(f"{target} holds something that is no checkpoint: give an empty or a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        place = Path(scratch) / target.name
        place.mkdir()
        _write(place / "contract.json", json.loads(backbone.contract.to_json()))
        conditioner: Any = backbone.conditioner
        _write(place / "conditioner.json", conditioner.config)
        if isinstance(backbone.network, DiffusersUNet):
            _save_diffusers(backbone, place, precision)
        else:
            _save_monai(backbone, place, precision)
        if isinstance(conditioner, TextConditioner):
            _cast(conditioner.module, precision).save_pretrained(place / "text_encoder")
            conditioner.tokenizer.save_pretrained(place / "tokenizer")
        if isinstance(backbone.scorer, Scorer):
            _cast(backbone.scorer.module, precision).save_pretrained(place / "scorer")
            backbone.scorer.tokenizer.save_pretrained(place / "scorer")
            means = {"image_mean": list(backbone.scorer.mean), "image_std": list(backbone.scorer.std)}
            _write(place / "scorer" / "preprocessor_config.json", means)
        if isinstance(backbone.judge, Judge):
            _save_judge(backbone.judge, place / "judge", precision)
        seal(place)
        if target.exists():
            shutil.rmtree(target)
        place.rename(target)
    return target


def _save_judge(judge: Judge, place: Path, precision: torch.dtype) -> None:
    place.mkdir()
    _write(place / "network.json", judge.config)
    _write(place / "judge.json", {"labels": list(judge.labels), "head": judge.head})
    tensors = {k: v.contiguous() for k, v in _cast(judge.module, precision).state_dict().items()}
    save_file(tensors, place / "network.safetensors")


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _cast(module: nn.Module, precision: torch.dtype) -> Any:
    """A copy in another precision; numbers that it cannot hold are refused."""
    cast = copy.deepcopy(module).to(precision)
    for name, p in cast.named_parameters():
        if not bool(torch.isfinite(p).all()):
            raise DiffAugError(f"weight {name} is not finite in {precision}: save with precision=torch.float32")
    return cast


def _save_monai(backbone: Backbone, place: Path, precision: torch.dtype) -> None:
    network: Network | MonaiUNet = backbone.network
    parts: list[tuple[str, Any]] = [("network", network)]
    if not isinstance(backbone.autoencoder, IdentityAutoencoder):
        parts.append(("autoencoder", backbone.autoencoder))
    for name, part in parts:
        if getattr(part, "config", None) is None:
            raise DiffAugError(
                f"the {name} does not say how it was built: give its adapter config={{'_target_': ..., ...}}"
            )
        _write(place / f"{name}.json", part.config)
        tensors: dict[str, Tensor] = {k: v.contiguous() for k, v in _cast(part.module, precision).state_dict().items()}
        save_file(tensors, place / f"{name}.safetensors")
    _write(place / "scheduler.json", _schedule_config(backbone.schedule))


def _schedule_config(schedule: Schedule) -> dict[str, Any]:
    if not schedule.config:
        raise DiffAugError("the schedule does not say how it was made: make it with schedule_from_config")
    return dict(schedule.config)


def _save_diffusers(backbone: Backbone, place: Path, precision: torch.dtype) -> None:
    index: dict[str, Any] = {"_class_name": "DiffusionPipeline", "_diffusers_version": diffusers.__version__}
    _cast(backbone.network.module, precision).save_pretrained(place / "unet")
    index["unet"] = ["diffusers", type(backbone.network.module).__name__]
    if isinstance(backbone.autoencoder, DiffusersAutoencoder):
        vae = _cast(backbone.autoencoder.module, precision)
        vae.register_to_config(scaling_factor=backbone.autoencoder.scale)
        vae.save_pretrained(place / "vae")
        index["vae"] = ["diffusers", type(backbone.autoencoder.module).__name__]
    if isinstance(backbone.conditioner, TextConditioner):
        index["text_encoder"] = ["transformers", type(backbone.conditioner.module).__name__]
        index["tokenizer"] = ["transformers", type(backbone.conditioner.tokenizer).__name__]
    config = _schedule_config(backbone.schedule)
    kind = str(config.get("_class_name", "DDIMScheduler"))
    index["scheduler"] = ["diffusers", kind]
    (place / "scheduler").mkdir()
    _write(place / "scheduler" / "scheduler_config.json", {"_class_name": kind, **config})
    _write(place / "model_index.json", index)
