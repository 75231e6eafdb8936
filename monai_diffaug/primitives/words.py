"""Words of a prompt inside a network: which tokens of two prompts belong together, and from where a word is seen."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Backbone, DiffAugError
from .attention import probabilities

__all__ = ["SIDE", "Gaze", "alignment", "grid", "marked"]

SIDE = 16
"""Attention is read and shared on maps of at most this many voxels a side, as in Prompt-to-Prompt and MasaCtrl."""

Words = list[tuple[str, tuple[int, ...]]]


def _words(backbone: Backbone, prompt: str) -> tuple[Words, int]:
    """The words of a prompt with the places of their tokens, and the number of tokens that the encoder returns."""
    conditioner: Any = backbone.conditioner
    if not hasattr(conditioner, "words"):
        raise DiffAugError(f"backbone {backbone.name!r} has no text encoder, so no words to look for: use one that has")
    return conditioner.words(prompt), int(conditioner.length)


def marked(backbone: Backbone, prompts: Sequence[str], words: Sequence[str]) -> Tensor:
    """1 at the tokens of ``words`` in each prompt, else 0: (B, L). A word may be a phrase ("head ct").

    A word that a prompt lacks marks nothing in it.
    """
    rows = []
    for prompt in prompts:
        known, length = _words(backbone, prompt)
        names = [w.lower() for w, _ in known]
        row = torch.zeros(length)
        for phrase in words:
            wanted = [w.lower() for w, _ in _words(backbone, phrase)[0]]
            for i in range(len(names) - len(wanted) + 1):
                if wanted and names[i : i + len(wanted)] == wanted:
                    row[[p for _, places in known[i : i + len(wanted)] for p in places]] = 1.0
        rows.append(row)
    return torch.stack(rows)


def alignment(backbone: Backbone, source: str, target: str, *, substitutes: bool) -> Tensor:
    """A matrix (L, L) that turns attention to the tokens of ``source`` into attention to those of ``target``.

    Words that both share are aligned, and so are the start, the end and the padding; with ``substitutes`` also words
    that stand in the place of others. Where two aligned words have as many tokens, these go one to one; else each
    target token gets the attention over the number of target tokens, so that none is lost. Columns of target words that
    have no counterpart are zero.
    """
    (a, length), (b, _) = _words(backbone, source), _words(backbone, target)
    pairs: list[tuple[list[int], list[int]]] = []
    matcher = SequenceMatcher(None, [w.lower() for w, _ in a], [w.lower() for w, _ in b], autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal" or (tag == "replace" and substitutes and j - i == m - k):
            pairs += [(list(s), list(t)) for (_, s), (_, t) in zip(a[i:j], b[k:m], strict=True)]
        elif tag == "replace" and substitutes:
            pairs.append(([p for _, s in a[i:j] for p in s], [p for _, t in b[k:m] for p in t]))
    (start_a, end_a), (start_b, end_b) = _body(a), _body(b)
    pairs += [(list(range(start_a)), list(range(start_b))), ([end_a], [end_b])]
    pairs.append((list(range(end_a + 1, length)), list(range(end_b + 1, length))))
    out = torch.zeros(length, length)
    for s, t in pairs:
        if len(s) == len(t):
            out[s, t] = 1.0
        elif s and t:
            out[torch.tensor(s)[:, None], torch.tensor(t)[None]] = 1.0 / len(t)
    return out


def _body(words: Words) -> tuple[int, int]:
    """Where the words' tokens begin, and where they have ended."""
    return (words[0][1][0], words[-1][1][-1] + 1) if words else (1, 1)


def grid(tokens: int, size: Sequence[int]) -> tuple[int, ...]:
    """The spatial shape of ``tokens`` attention queries in a network whose latent is ``size``.

    Raises:
        DiffAugError: the latent halved any number of times never has as many voxels.
    """
    for k in range(16):
        shape = tuple(-(-s // 2**k) for s in size)
        if prod(shape) == tokens:
            return shape
    raise DiffAugError(f"{tokens} attention tokens are no halving of a latent of {tuple(size)}: use another backbone")


class Gaze:
    """From where marked tokens are looked at: cross-attention averaged over heads, sites and the steps seen so far.

    Of the sites shown to it, those of the finest maps within ``SIDE`` count.

    Args:
        tokens: (R, L), 1 at the tokens to follow in each of R rows.
        size: the latent's spatial size.
    """

    def __init__(self, tokens: Tensor, size: Sequence[int]):
        self.tokens, self.size = tokens, tuple(size)
        self._sums: dict[int, Tensor] = {}

    def see(self, q: Tensor, k: Tensor) -> None:
        """Take in queries (R, heads, N, d) and keys (R, heads, L, d) of a cross-attention."""
        n = q.shape[-2]
        if n > SIDE ** len(self.size) or n < max(self._sums, default=0):
            return
        looked = (probabilities(q.float(), k.float()) @ self.tokens.to(q.device)[:, None, :, None])[..., 0].mean(1)
        self._sums[n] = self._sums.get(n, 0.0) + looked.detach()

    def map(self) -> Tensor | None:
        """Where they were looked at, (R, 1, *grid) with the largest value 1; ``None`` if nothing was seen yet."""
        if not self._sums:
            return None
        n = max(self._sums)
        total = self._sums[n].reshape(-1, 1, *grid(n, self.size))
        return total / total.amax(tuple(range(1, total.ndim)), keepdim=True).clamp(min=1e-12)


def resized(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (R, 1, *S) on another grid, by the nearest voxel."""
    return mask if mask.shape[2:] == tuple(size) else F.interpolate(mask, tuple(size), mode="nearest")
