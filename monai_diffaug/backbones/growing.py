"""A backbone that can be told more than before: further classes, further words. What it knew, it says as before."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from monai_diffaug.backbones.monai_unet import MonaiUNet
from monai_diffaug.backbones.text import WORD, ClassConditioner, NoConditioner, TextConditioner, plain_words
from monai_diffaug.types import Backbone, DiffAugError

__all__ = ["with_classes", "with_prompts"]


def with_classes(backbone: Backbone, names: Sequence[str]) -> Backbone:
    """The backbone with the classes in ``names`` that it lacks, after those that it has.

    A network gets one more row in its table of classes for each, a copy of the row for "not told": until it is
    trained, a new class says nothing. A network without classes gets a table of zeros, and does as before. A text
    backbone gets the names as labels, and the words in them (see :func:`with_prompts`).

    Args:
        backbone: stays as it is; the result shares no tensor that grew.
        names: classes; those that differ from a known one in case or underscores alone are that one.

    Raises:
        DiffAugError: the backbone's kind of network or conditioner has no classes.
    """
    conditioner: Any = backbone.conditioner
    known = {plain_words(n) for n in getattr(conditioner, "labels", ())}
    fresh = tuple(dict.fromkeys(n for n in names if plain_words(n) not in known))
    if not fresh:
        return backbone
    if isinstance(conditioner, TextConditioner):
        grown = with_prompts(backbone, [conditioner.template.format(n.replace("_", " ")) for n in fresh])
        told: Any = grown.conditioner
        labels = (*told.labels, *fresh)
        template = told.template
        conditioner = TextConditioner(told.module, told.tokenizer, told.vocabulary, labels, template, told.learned)
        return replace(grown, conditioner=conditioner, contract=replace(grown.contract, labels=labels))
    network: Any = backbone.network
    if not isinstance(conditioner, ClassConditioner | NoConditioner) or not isinstance(network, MonaiUNet):
        raise DiffAugError(
            f"backbone {backbone.name!r} is told {', '.join(sorted(conditioner.accepts)) or 'nothing'} and cannot "
            "learn classes: leave them out of the datalist, or start from a backbone of classes"
        )
    labels = (*getattr(conditioner, "labels", ()), *fresh)
    mask = bool(getattr(conditioner, "mask", False))
    return replace(
        backbone,
        network=_with_rows(network, len(labels) + 1),
        conditioner=ClassConditioner(labels, mask, backbone.contract.latent_size),
        contract=replace(backbone.contract, labels=labels, vocabulary=labels),
        judge=backbone.judge if known else None,
    )


def _with_rows(network: MonaiUNet, rows: int) -> MonaiUNet:
    """A copy of the network whose table of classes has ``rows`` rows."""
    module: Any = copy.deepcopy(network.module)
    old = getattr(module, "class_embedding", None)
    width = int(module.time_embed[-1].out_features)
    table = nn.Embedding(rows, width)
    with torch.no_grad():
        table.weight.zero_()
        if old is not None:
            table.weight.copy_(old.weight[:1].expand(rows, -1))
            table.weight[: old.num_embeddings] = old.weight
    module.class_embedding = table.requires_grad_(False).to(next(module.parameters()).device)
    module.num_class_embeds = rows
    config = None if network.config is None else {**network.config, "num_class_embeds": rows}
    return MonaiUNet(module, config)


def with_prompts(backbone: Backbone, prompts: Iterable[str]) -> Backbone:
    """A text backbone that understands every word of ``prompts``; the same one if it does already.

    A word that the tokenizer does not know gets a token of its own, whose row is the mean of all others until it is
    trained. A tokenizer of word pieces (CLIP's, say) knows every word.

    Raises:
        DiffAugError: the backbone is told no prompts.
    """
    told: Any = backbone.conditioner
    if not isinstance(told, TextConditioner):
        raise DiffAugError(
            f"backbone {backbone.name!r} is told no prompts: give classes, or start from a text backbone"
        )
    words = list(dict.fromkeys(w.lower() for p in prompts for w in WORD.findall(p)))
    listed = {w.lower() for entry in told.vocabulary for w in WORD.findall(entry)}
    unlisted = [w for w in words if told.vocabulary and w not in listed]
    unknown = told.tokenizer.unk_token_id
    strange = [w for w in words if unknown in told.tokenizer(w, add_special_tokens=False).input_ids]
    if told.tokenizer.unk_token == told.tokenizer.eos_token:  # CLIP's: a mark for the end, not for what is unknown
        strange = []
    if not unlisted and not strange:
        return backbone
    encoder, tokenizer = told.module, told.tokenizer
    if strange:
        encoder, tokenizer = copy.deepcopy(encoder), copy.deepcopy(tokenizer)
        before = len(tokenizer)
        tokenizer.add_tokens(strange)
        _resize(encoder, before, len(tokenizer))
    vocabulary = (*told.vocabulary, *unlisted) if told.vocabulary else ()
    conditioner = TextConditioner(encoder, tokenizer, vocabulary, told.labels, told.template, told.learned)
    contract = replace(backbone.contract, vocabulary=vocabulary or backbone.contract.vocabulary)
    return replace(backbone, conditioner=conditioner, contract=contract)


def _resize(encoder: Any, before: int, after: int) -> None:
    with torch.random.fork_rng():
        encoder.resize_token_embeddings(after, mean_resizing=False)
    table = encoder.get_input_embeddings()
    with torch.no_grad():
        table.weight[before:] = table.weight[:before].mean(0)
    encoder.requires_grad_(False).eval()
