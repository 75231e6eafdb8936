"""Words that a text conditioner did not know: rows for them, first guesses, and neutral sentences to put them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..types import Backbone, DiffAugError

__all__ = ["TEMPLATES", "prompt_bank", "random_rows", "rows_of", "sentence", "with_words"]

TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "an image of a {}",
    "a scan of a {}",
    "a slice of a {}",
)
"""Sentences that say nothing of the subject, after the bank of Gal et al. 2022, appendix, in the words of scans.

Theirs also has close-up, cropped, bright and dark photos. Where such words are in the captions that a backbone was
trained on they are not neutral: learned with them, a word of `mednist` showed its subject in 2 of 24 samples, without
them in 18.
"""


def _conditioner(backbone: Backbone) -> Any:
    if not hasattr(backbone.conditioner, "token_embedding") or not hasattr(backbone.conditioner, "extended"):
        raise DiffAugError(
            f"backbone {backbone.name!r} has no text encoder to teach a word: use a text-conditioned one"
        )
    return backbone.conditioner


def with_words(backbone: Backbone, rows: Mapping[str, Tensor]) -> Backbone:
    """The same backbone with more words; weights and tokenizer are shared with it and stay as they are.

    Args:
        backbone: text-conditioned.
        rows: for each word its tensor (n, D), which take the place of the word's token embeddings. A tensor that
            requires gradients may be trained through the conditioner.
    """
    return replace(backbone, conditioner=_conditioner(backbone).extended(rows))


def rows_of(backbone: Backbone, word: str, vectors: int = 1) -> Tensor:
    """The token embedding of a known word (the mean, if it is several tokens), ``vectors`` times: (vectors, D).

    Raises:
        DiffAugError: the backbone does not know the word, or has no text encoder.
    """
    if vectors < 1:
        raise DiffAugError(f"vectors is {vectors}: give at least 1")
    conditioner = _conditioner(backbone)
    ids = conditioner.tokenize([word])[0]
    places = [i for _, positions in conditioner.words(word) for i in positions]
    if not places:
        raise DiffAugError(f"{word!r} holds no word: give one that the backbone knows")
    found = conditioner.token_embedding.weight.detach()[ids[places]].mean(0, keepdim=True)
    return found.repeat(vectors, 1).clone()


def random_rows(backbone: Backbone, vectors: int = 1, seed: int = 0) -> Tensor:
    """Rows (vectors, D) that mean nothing yet, drawn with the mean and the spread of the table."""
    table = _conditioner(backbone).token_embedding.weight.detach()
    z = torch.randn(vectors, table.shape[1], generator=torch.Generator().manual_seed(seed))
    return table.mean(0) + table.std(0) * z.to(table)


def prompt_bank(backbone: Backbone, words: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """``words`` in every neutral sentence that the backbone's vocabulary allows, ``words`` alone at the least."""
    conditioner = _conditioner(backbone)
    known = []
    for template in dict.fromkeys((*templates, getattr(conditioner, "template", "{}"))):
        try:
            conditioner.tokenize([template.format(words)])
        except DiffAugError:
            continue
        known.append(template.format(words))
    if not known:
        conditioner.tokenize([words])  # says why
    return known or [words]


def sentence(backbone: Backbone, words: str) -> str:
    """``words`` in the sentence that the backbone was trained with (its template), such as ``a {}``."""
    return str(getattr(_conditioner(backbone), "template", "{}")).format(words)
