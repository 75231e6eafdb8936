"""Textual inversion: a few images become a new word.

Paper: Gal, Alaluf, Atzmon, Patashnik, Bermano, Chechik, Cohen-Or.
  An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion.
  ICLR 2023. arXiv:2208.01618
Idea: the rows of a new word in the token table are all that is trained, on neutral sentences that hold the word.
Changes: embeddings.
Departs: 400 steps of batch 4 where the paper takes 5000 of batch 2 (small latents, small table), the rate scaled by the
batch as there; images are not mirrored unless `flip` asks for it, since sides mean something in scans; sentences are
those of the bank that the vocabulary allows and that say nothing of size, light or crop; gradients are clipped at 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....primitives import concepts, embeddings, finetuning
from ....registry import method
from ....types import Backbone, Concept, NoiseSource


@method(labels="kept", needs=["text_encoder"], neutral={"steps": 0})
def textual_inversion(
    backbone: Backbone,
    images: Tensor,
    *,
    word: str = "<new>",
    initial: str | None = None,
    vectors: int = 1,
    rate: float = 5e-3,
    pull: float = 0.0,
    batch_size: int = 4,
    flip: bool = False,
    steps: int = 400,
    generator: NoiseSource,
) -> Concept:
    """Learn what ``images`` (N, C, *S) have in common as ``word``.

    Args:
        backbone: text-conditioned; nothing of it is changed.
        images: three to five of the subject, in the contract's value range.
        word: what prompts will call it; choose one that is not in the vocabulary.
        initial: known word or words that come near, to start from; unless given, a meaningless row.
        vectors: rows that the word stands for.
        rate: learning rate for one image; it is multiplied by ``batch_size``.
        pull: weight of the squared distance to the first rows.
        batch_size: images per step.
        flip: learn from the mirror images as well.
        steps: of training.
        generator: its first seed draws everything.

    Returns:
        a concept of kind ``tokens``.
    """
    finetuning.check_settings(steps, rate, batch_size)
    seed = generator.seeds[0]
    if initial is None:
        first = embeddings.random_rows(backbone, vectors, seed)
    else:
        first = embeddings.rows_of(backbone, initial, vectors)
    rows = first.clone().requires_grad_(True)
    taught = embeddings.with_words(backbone, {word: rows}).with_precision(torch.float32)
    sentences = embeddings.prompt_bank(taught, word)
    draw = torch.Generator().manual_seed(seed + 1)

    def output(x: Tensor, t: Tensor, picks: Tensor) -> Tensor:
        chosen = torch.randint(len(sentences), (len(picks),), generator=draw).tolist()
        return taught.output(x, t, taught.condition(len(picks), prompt=[sentences[i] for i in chosen]))

    losses = finetuning.finetune(
        backbone.schedule,
        [finetuning.Lesson(finetuning.latents_of(backbone, images, flip), output)],
        [rows],
        steps=steps,
        rate=rate * batch_size,
        batch=batch_size,
        seed=seed,
        after=(lambda: pull * (rows - first).square().sum()) if pull else None,
    )
    info = {
        "method": "textual_inversion",
        "initial": initial or "",
        "images": len(images),
        "losses": finetuning.curve(losses),
    }
    return Concept("tokens", {concepts.TOKENS: rows.detach().clone()}, backbone.digest, word, info)
