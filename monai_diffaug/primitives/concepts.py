"""What a ``learn`` method found: putting it on a backbone, and keeping it in a file.

A concept belongs to the backbone that it was learned on, by digest. Put on, it yields another ``Backbone`` that shares
every tensor with the first; the first is never written to, so there is nothing to take off.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..types import Backbone, Concept, DiffAugError
from . import adapters, control, embeddings, hints

__all__ = ["KINDS", "TOKENS", "applied", "check", "digest", "load_concept", "save"]

FORMAT = "monai-diffaug concept 1"
KINDS = ("tokens", "lora", "weights", "controlnet", "direction")
TOKENS = "tokens"
"""Name of the tensor (n, D) that holds the rows of ``concept.word``; a concept of any kind may carry one."""


def digest(concept: Concept) -> str:
    """SHA-256 over the kind, the word, the remarks and every tensor."""
    h = hashlib.sha256(json.dumps([concept.kind, concept.word, dict(concept.info)], sort_keys=True).encode())
    for name in sorted(concept.tensors):
        t = concept.tensors[name].detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        h.update(t.flatten().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def check(concept: Concept, backbone: Backbone) -> Concept:
    """The concept, if it was made for this backbone, or for the one that this was made of.

    Raises:
        DiffAugError: it was made for another, or is of an unknown kind.
    """
    if concept.kind not in KINDS:
        raise DiffAugError(f"concept kind {concept.kind!r} is unknown: it is one of {', '.join(KINDS)}")
    if not f"{backbone.digest}+".startswith(f"{concept.backbone_digest}+"):
        raise DiffAugError(
            f"the concept {concept.word or concept.kind!r} was made for a backbone with digest "
            f"{concept.backbone_digest[:12]!r}, {backbone.name!r} has {backbone.digest[:12]!r}: "
            "load the backbone that it was learned on, or learn it again on this one"
        )
    return concept


@contextmanager
def applied(
    backbone: Backbone,
    *concepts: Concept | str | Path,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    hint: Tensor | None = None,
    hint_scale: float = 1.0,
    guess: bool = False,
) -> Iterator[Backbone]:
    """Put concepts, in this order, on a backbone: within the block it knows them.

    ``with applied(backbone, "new.safetensors") as taught: sdedit(taught, image, ...)``. Any method runs on ``taught``
    as it does on ``backbone``, which is not changed, inside the block or after it. ``taught.digest`` names the concepts
    as well, and a concept learned on ``taught`` wants them there.

    Args:
        backbone: what they were learned on.
        concepts: or their files. ``tokens`` teaches a word; ``lora`` is added into the weights;
            ``weights`` takes their place; ``controlnet`` joins a branch. Any of them may bring a word as well.
        image: (B or 1, C, *S), from which a ``controlnet`` takes the hint that it was trained with (its outlines, say).
        mask: (B or 1, 1, *S), the hint of a ``controlnet`` that follows masks.
        hint: (B or 1, C, *S), a hint made already, in place of both.
        hint_scale: weight of a ``controlnet``'s residuals.
        guess: see :func:`monai_diffaug.primitives.control.controlled`.

    Raises:
        DiffAugError: a concept is not for this backbone, or a ``controlnet`` has nothing to look at.
    """
    taught = backbone
    for given in concepts:
        concept = check(given if isinstance(given, Concept) else load_concept(given), taught)
        tensors = {k: v.to(backbone.device) for k, v in concept.tensors.items()}
        rows = tensors.pop(TOKENS, None)
        if rows is not None:
            taught = embeddings.with_words(taught, {concept.word: rows})
        if concept.kind == "lora":
            taught = replace(taught, network=adapters.merged(taught.network, tensors, concept.info.get("alpha")))
        elif concept.kind == "weights":
            taught = replace(taught, network=adapters.replaced(taught.network, tensors))
        elif concept.kind == "controlnet":
            seen = _hint(concept, image, mask) if hint is None else hint
            channels = int(concept.info["hint_channels"])
            seen = control.check_hint(backbone, seen, channels)
            branch = control.branch(taught, channels, tensors)
            taught = control.controlled(taught, branch, seen, scale=hint_scale, guess=guess)
        elif concept.kind == "direction":
            raise DiffAugError("a direction acts between two passes of a step: give it to the method that learned it")
        taught = replace(taught, digest=f"{taught.digest}+{digest(concept)[:16]}")
    yield taught


def _hint(concept: Concept, image: Tensor | None, mask: Tensor | None) -> Tensor:
    """What a controlnet is to look at, made of the image as it was in training."""
    name = str(concept.info.get("hint", ""))
    if name == "mask" and mask is not None:
        image = mask if image is None else image
    if image is None or name not in hints.HINTS:
        raise DiffAugError(f"a controlnet wants something to look at: give `hint`, or `image` for its {name or 'hint'}")
    return hints.hint_of(name, image, mask)


def save(concept: Concept, path: str | Path) -> Path:
    """Write a concept as safetensors; the file is there whole or not at all.

    Raises:
        DiffAugError: the remarks are not JSON, or the file cannot be written.
    """
    path = Path(path)
    try:
        info = json.dumps(dict(concept.info), sort_keys=True)
    except TypeError as error:
        raise DiffAugError(f"the concept's info cannot be written ({error}): give numbers, text and lists") from None
    metadata = {
        "format": FORMAT,
        "kind": concept.kind,
        "backbone_digest": concept.backbone_digest,
        "word": concept.word,
        "info": info,
    }
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in concept.tensors.items()}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise DiffAugError(f"{path} cannot be written ({error}): choose a folder with room and permission") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def load_concept(path: str | Path, backbone: Backbone | None = None) -> Concept:
    """Read what :func:`save` wrote.

    Args:
        path: the file.
        backbone: if given, a concept that was made for another is refused.

    Raises:
        DiffAugError: there is no such file, it is no concept, or it was made for another backbone.
    """
    path = Path(path)
    if not path.is_file():
        raise DiffAugError(f"there is no concept file {path}: give the path that `save` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except SafetensorError as error:
        raise DiffAugError(f"{path} is broken or no safetensors file ({error}): copy it again") from None
    if metadata.get("format") != FORMAT:
        raise DiffAugError(
            f"{path} holds tensors but no concept: give a file that a `learn` method's result was saved to"
        )
    info = json.loads(metadata["info"])
    concept = Concept(metadata["kind"], tensors, metadata["backbone_digest"], metadata["word"], info)
    return concept if backbone is None else check(concept, backbone)
