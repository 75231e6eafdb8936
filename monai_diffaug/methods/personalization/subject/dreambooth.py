"""DreamBooth: a network learns one subject from a few images and keeps the subject's class.

Paper: Ruiz, Li, Jampani, Pritch, Rubinstein, Aberman.
  DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation.
  CVPR 2023. arXiv:2208.12242
Idea: train the network to show the subject for "a V class" and, on its own earlier samples, the class for "a class".
Changes: weights (a low-rank adapter, or all of them), data (samples of the class, made beforehand).
Departs: an adapter unless `rank` is None, with a rate that suits one (the paper trains every weight at 5e-6); V is a
new word with a random row, since a closed vocabulary has no rare one; the text encoder is not trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ....primitives import adapters, concepts, embeddings, finetuning
from ....registry import method
from ....types import Backbone, Concept, NoiseSource


@method(labels="kept", needs=["text_encoder", "weights"], neutral={"steps": 0})
def dreambooth(
    backbone: Backbone,
    images: Tensor,
    *,
    class_prompt: str,
    word: str = "<new>",
    rank: int | None = 8,
    rate: float = 1e-3,
    prior: int = 100,
    prior_weight: float = 1.0,
    batch_size: int = 4,
    flip: bool = False,
    steps: int = 400,
    generator: NoiseSource,
) -> Concept:
    """Learn the subject of ``images`` (N, C, *S) as "a ``word`` <class>".

    Args:
        backbone: text-conditioned; nothing of it is changed.
        images: three to five of the subject, in the contract's value range.
        class_prompt: what the subject is, in words that the backbone knows, such as "a head ct".
        word: the identifier that sets the subject apart; choose one that is not in the vocabulary.
        rank: of the adapter; ``None`` trains all weights of the network.
        rate: learning rate.
        prior: samples of the class made with the untouched network.
        prior_weight: weight of the loss on them (lambda); 0 lets the class drift to the subject.
        batch_size: images per step of the subject, and as many of the class.
        flip: learn from the mirror images as well.
        steps: of training.
        generator: its first seed draws everything.

    Returns:
        a concept of kind ``lora`` or ``weights``, with the row of ``word``.
    """
    finetuning.check_settings(steps, rate, batch_size)
    seed = generator.seeds[0]
    prompt = re.sub(r"^(an? )?", rf"\1{re.escape(word)} ", class_prompt)
    row = embeddings.random_rows(backbone, 1, seed)
    named = embeddings.with_words(backbone, {word: row}).with_precision(torch.float32)
    if rank is None:
        network = adapters.copied(backbone.network, own=None)
    else:
        network = adapters.with_lora(backbone.network, rank, seed=seed)
    learner = replace(named, network=network)

    def lesson(latents: Tensor, prompt: str, weight: float) -> finetuning.Lesson:
        told = named.condition(1, prompt=prompt)
        return finetuning.Lesson(latents, lambda x, t, picks: learner.output(x, t, told.repeat(len(picks))), weight)

    lessons = [lesson(finetuning.latents_of(backbone, images, flip), prompt, 1.0)]
    if prior_weight and steps:
        kept = finetuning.drawn(backbone, prior, seed, prompt=class_prompt)
        lessons.append(lesson(kept, class_prompt, prior_weight))
    trained = {k: p for k, p in network.module.named_parameters() if p.requires_grad}
    losses = finetuning.finetune(
        backbone.schedule, lessons, trained.values(), steps=steps, rate=rate, batch=batch_size, seed=seed
    )
    tensors: Mapping[str, Tensor] = (
        {k: p.detach() for k, p in trained.items()} if rank is None else adapters.lora_state(network)
    )
    info = {"method": "dreambooth", "prompt": prompt, "images": len(images), "losses": finetuning.curve(losses)}
    kind = "weights" if rank is None else "lora"
    return Concept(kind, {**tensors, concepts.TOKENS: row}, backbone.digest, word, info)
