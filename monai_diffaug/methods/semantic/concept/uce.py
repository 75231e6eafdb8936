"""Unified Concept Editing: cross-attention forgets, renames or balances concepts in closed form.

Paper: Gandikota, Orgad, Belinkov, Materzynska, Bau.
  Unified Concept Editing in Diffusion Models. WACV 2024. arXiv:2308.14761
Idea: a ridge regression finds the key and value matrices that send a concept's features to another's and no others.
Changes: the key and value weights of cross-attention.
Departs: features are taken in every neutral sentence that the vocabulary allows and, with `reach` "rest", also after
the concept's last token, as in the authors' first release, since a small text encoder sums a sentence up at its end;
what is preserved is the rest of the backbone's labels unless told; shares are measured by the backbone's scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....primitives import adapters, embeddings, finetuning
from ....registry import method
from ....types import Backbone, Concept, DiffAugError, NoiseSource


@method(labels="kept", needs=["text_encoder", "cross_attention", "weights"], neutral={"concepts": []})
def uce(
    backbone: Backbone,
    *,
    concepts: str | list[str],
    target: str | list[str] = "",
    preserve: list[str] | None = None,
    attributes: list[str] | None = None,
    ridge: float = 0.5,
    reach: str = "rest",
    rounds: int = 30,
    steps: int = 20,
    generator: NoiseSource | None = None,
) -> Concept:
    """Edit what words mean to the network: ``W' = (r W + sum v c^T)(r I + sum c c^T)^-1``, ``v = W c_target`` (eq. 7).

    Args:
        backbone: text-conditioned; nothing of it is changed.
        concepts: what to erase or, with ``attributes``, the one to balance.
        target: what they shall show instead, one or one per concept; "" is nothing in particular.
        preserve: what must stay as it is, the empty prompt besides; ``None`` is every label of the backbone that is
            neither concept nor target.
        attributes: phrases between which the concept's samples shall be even, such as "small head ct", "large head ct";
            wants a scorer and ``generator``.
        ridge: r, the pull to the old weights.
        reach: ``last`` edits the feature of a concept's last token, ``rest`` those of the tokens after it as well.
        rounds: with ``attributes``, edits at most; each measures ten images and moves the shares by a tenth.
        steps: of sampling, with ``attributes``.
        generator: its first seed draws the images that are measured.

    Returns:
        a concept of kind ``weights``; with ``attributes``, ``info["shares"]`` are the last that were measured.
    """
    finetuning.check_settings(steps, 1.0, 1)
    names = [concepts] if isinstance(concepts, str) else list(concepts)
    targets = [target] * len(names) if isinstance(target, str) else list(target)
    if len(targets) != len(names) or reach not in ("last", "rest") or (attributes and len(names) != 1):
        raise DiffAugError('give one target, or one per concept; reach "last" or "rest"; one concept with attributes')
    others = [x.replace("_", " ") for x in backbone.contract.labels] if preserve is None else preserve
    others = [x for x in others if x not in (*names, *targets, *(attributes or ()))]
    held = [_pair(backbone, name, name, reach) for name in (*others, "")]
    info = {"method": "uce", "concepts": names, "target": targets, "preserve": others}
    if not attributes:
        told = [_pair(backbone, n, t, reach) for n, t in zip(names, targets, strict=True)]
        return Concept("weights", _solved(backbone, [*told, *held], ridge), backbone.digest, "", info)
    seed = _seed(backbone, generator)
    towards = [_pair(backbone, names[0], a, reach) for a in attributes]
    shift, shares = torch.zeros(len(attributes)), torch.zeros(len(attributes))
    edited = _solved(backbone, [], ridge)
    for i in range(rounds):
        learner = replace(backbone, network=adapters.replaced(backbone.network, edited))
        shares = _shares(learner, names[0], attributes, seed + 1000 * i, steps)
        gap = 1 / len(attributes) - shares
        if float(gap.abs().max()) <= 0.05 or i == rounds - 1:
            break
        shift = shift + 0.1 * gap.sign()
        old = towards[0][0]
        new = old + torch.stack([d * t for d, (_, t) in zip(shift.tolist(), towards, strict=True)]).sum(0)
        edited = _solved(backbone, [(old, new), *held], ridge)
    info |= {"attributes": attributes, "shares": shares.tolist(), "shift": shift.tolist()}
    return Concept("weights", edited, backbone.digest, "", info)


def _pair(backbone: Backbone, words: str, target: str, reach: str) -> tuple[Tensor, Tensor]:
    """Features (n, D) of ``words`` in neutral sentences, and of ``target`` at the same distance from its last token."""
    old, new = [], []
    places = embeddings.prompt_bank(backbone, words) if words else [""]
    others = embeddings.prompt_bank(backbone, target) if target else [""] * len(places)
    for c, t in zip(_features(backbone, places), _features(backbone, others), strict=True):
        n = 1 if reach == "last" else min(len(c), len(t))
        old.append(c[:n])
        new.append(t[:n])
    return torch.cat(old), torch.cat(new)


def _features(backbone: Backbone, prompts: list[str]) -> list[Tensor]:
    """Text features (n, D) of each prompt from its last word's last token on; of an empty one, from its start on."""
    with torch.no_grad():
        tokens = backbone.condition(len(prompts), prompt=prompts).tokens
    assert tokens is not None
    conditioner: Any = backbone.conditioner
    last = [max((p for _, places in conditioner.words(x) for p in places), default=0) for x in prompts]
    return [row[i:].double() for row, i in zip(tokens, last, strict=True)]


def _solved(backbone: Backbone, pairs: Sequence[tuple[Tensor, Tensor]], ridge: float) -> dict[str, Tensor]:
    """The edited matrices by name. Since ``v = W c_target``, all of them are multiplied by the same matrix."""
    named = {id(p): name for name, p in backbone.network.module.named_parameters()}
    sites = [m for m, kind in backbone.network.attention_sites().values() if kind == "cross"]
    layers = [getattr(m, part).weight for m in sites for part in ("to_k", "to_v")]
    width = layers[0].shape[1]
    top = bottom = ridge * torch.eye(width, dtype=torch.float64, device=backbone.device)
    for c, t in pairs:
        top, bottom = top + t.T @ c, bottom + c.T @ c
    factor = torch.linalg.solve(bottom, top.T).T  # top bottom^-1, bottom being symmetric
    return {named[id(w)]: (w.detach().double() @ factor).to(w) for w in layers}


def _seed(backbone: Backbone, generator: NoiseSource | None) -> int:
    if generator is None or backbone.scorer is None:
        raise DiffAugError("balancing attributes measures samples: give `generator`, and a backbone with a scorer")
    return generator.seeds[0]


def _shares(backbone: Backbone, words: str, attributes: Sequence[str], seed: int, steps: int) -> Tensor:
    """Which share of ten samples of ``words`` the scorer gives to each attribute."""
    made = finetuning.drawn(backbone, 10, seed, steps=steps, prompt=embeddings.sentence(backbone, words))
    with torch.no_grad():
        likely = backbone.scorer.classify(backbone.decode(made), [embeddings.sentence(backbone, a) for a in attributes])
    return torch.bincount(likely.argmax(1).cpu(), minlength=len(attributes)) / len(likely)
