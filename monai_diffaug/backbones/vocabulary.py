"""More words, and longer prompts, for a text encoder that has one token a word."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import models
from torch import Tensor

from monai_diffaug.backbones.dual import word_tokenizer
from monai_diffaug.backbones.text import TextConditioner
from monai_diffaug.types import DiffAugError

__all__ = ["enlarged"]


def enlarged(
    conditioner: TextConditioner, words: Sequence[str], length: int, labels: Sequence[str] = (), seed: int = 0
) -> TextConditioner:
    """A conditioner that knows ``words`` besides its own and takes prompts of ``length`` tokens.

    Every old row of the tables of words and of positions is what it was. A new word's row is drawn with the mean and
    the spread of the table; a new position's row is the last one known.

    Args:
        conditioner: with a word-level tokenizer (see :func:`~.dual.word_tokenizer`); not touched.
        words: that a prompt shall be able to use.
        length: tokens of a prompt, start and end included; at least what it was.
        labels: class names, each made of known words.
        seed: of the new rows.

    Raises:
        DiffAugError: the tokenizer cuts words into pieces (and so knows every word), or the length is below the old.
    """
    old: Any = conditioner.tokenizer
    if not isinstance(getattr(getattr(old, "backend_tokenizer", None), "model", None), models.WordLevel):
        raise DiffAugError("this text encoder cuts words into pieces and knows them all: fine-tune it as it is")
    if length < conditioner.length:
        raise DiffAugError(f"length is {length}: give at least {conditioner.length}, what the encoder takes now")
    table = sorted(old.get_vocab(), key=old.get_vocab().get)
    new = word_tokenizer([*table[4:], *words], length)  # the first four are padding, end, start and unknown
    encoder: Any = conditioner.module
    config = copy.deepcopy(encoder.config)
    config.vocab_size, config.max_position_embeddings = len(new), length
    torch.manual_seed(seed)
    module = type(encoder)(config).float()
    generator = torch.Generator().manual_seed(seed)
    state = {k: _grown(k, v, module.state_dict()[k].shape, generator) for k, v in encoder.state_dict().items()}
    module.load_state_dict(state)
    vocabulary = tuple(dict.fromkeys((*conditioner.vocabulary, *words)))
    return TextConditioner(module, new, vocabulary, labels or conditioner.labels, conditioner.template)


def _grown(name: str, value: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """``value`` with the rows that it lacks: random ones in the table of words, the last one again for positions."""
    missing = shape[0] - value.shape[0] if value.ndim else 0
    if not missing:
        return value.float()
    if "position" in name:
        return torch.cat([value, value[-1:].expand(missing, *value.shape[1:])]).float()
    z = torch.randn(missing, value.shape[1], generator=generator)
    return torch.cat([value.float(), value.float().mean(0) + value.float().std(0) * z])
