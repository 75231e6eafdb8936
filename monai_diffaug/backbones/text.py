"""Conditioners: from what a user says (words, classes, masks, numbers) to a ``Condition``."""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.types import Condition, DiffAugError

__all__ = ["ClassConditioner", "NoConditioner", "TextConditioner", "VectorConditioner"]

WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


def _spread(value: Any, batch: int, what: str) -> list[Any]:
    """One entry per batch item, of a single value or a sequence of 1 or ``batch``."""
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    values = [value] if isinstance(value, str | int) or value is None else list(value)
    if len(values) == 1:
        return values * batch
    if len(values) != batch:
        raise DiffAugError(f"{batch} images were given {len(values)} {what}: give one, or one per image")
    return values


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word.lower(), {k.lower(): k for k in known}, 1, 0.0)
    return near[0] if near else "nothing"


class NoConditioner:
    """For unconditional networks: there is nothing to say."""

    accepts: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.module: nn.Module = nn.Module()
        self.config: dict[str, Any] = {"kind": "none"}

    def __call__(self, batch: int, **_: Any) -> Condition:
        """The empty condition."""
        return Condition()


class ClassConditioner:
    """Classes by name or number, and optionally a mask as two more input channels.

    A label integer is a position in ``labels``; the network gets position + 1, and 0 when not told. A mask (B, 1, *S)
    is averaged down to the latent grid and goes in as ``[mask, 1]``; ``[0, 0]`` when not told.

    Args:
        labels: class names in the order of their integers.
        mask: whether the network takes a mask.
        latent_size: spatial size of the latent; wanted with ``mask``.
    """

    def __init__(self, labels: Sequence[str], mask: bool = False, latent_size: Sequence[int] = ()):
        if mask and not latent_size:
            raise DiffAugError("a mask conditioner needs the latent size: give latent_size, from contract.latent_size")
        self.module: nn.Module = nn.Module()
        self.labels = tuple(labels)
        self.mask = mask
        self.latent_size = tuple(latent_size)
        self.accepts = frozenset({"prompt", "label"} | ({"mask"} if mask else set()))
        self.config: dict[str, Any] = {
            "kind": "class_mask" if mask else "class",
            "labels": list(self.labels),
            "mask": mask,
        }

    def index(self, label: str | int | None) -> int:
        """The network's class index of a name or position: position + 1, 0 for ``None`` and ``""``."""
        if label is None or label == "":
            return 0
        if isinstance(label, str):
            plain = {plain_words(name): i for i, name in enumerate(self.labels)}
            if plain_words(label) not in plain:
                raise DiffAugError(f"class {label!r} is unknown: did you mean {_nearest(label, self.labels)!r}?")
            return plain[plain_words(label)] + 1
        if not 0 <= int(label) < len(self.labels):
            raise DiffAugError(
                f"class {int(label)} is unknown: give 0 to {len(self.labels) - 1} or a name ({', '.join(self.labels)})"
            )
        return int(label) + 1

    def find(self, prompt: str) -> int:
        """The network's class index of the one class that a text names; 0 for an empty text."""
        text = f" {plain_words(prompt)} "
        if not text.strip():
            return 0
        named: list[str] = []
        for name in sorted(self.labels, key=len, reverse=True):  # the longest first: "no tumor" before "tumor"
            if f" {plain_words(name)} " in text:
                named.append(name)
                text = text.replace(f" {plain_words(name)} ", " | ")
        if len(named) > 1:
            raise DiffAugError(f"prompt {prompt!r} names {len(named)} classes ({', '.join(named)}): name one")
        if not named:
            words = WORD.findall(prompt)
            score = {w: difflib.SequenceMatcher(None, w.lower(), _nearest(w, self.labels)).ratio() for w in words}
            word = max(words, key=lambda w: score[w], default=prompt)
            raise DiffAugError(
                f"prompt {prompt!r} names no class ({', '.join(self.labels)}): "
                f"for {word!r}, did you mean {_nearest(word, self.labels)!r}?"
            )
        return self.index(named[0])

    def __call__(
        self,
        batch: int,
        *,
        prompt: str | Sequence[str] | None = None,
        label: Sequence[Any] | Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> Condition:
        """Encode a class per image, from ``label`` or the class named in ``prompt``, and a mask."""
        told = [self.index(x) for x in _spread(label, batch, "labels")]
        named = [self.find(x or "") for x in _spread(prompt, batch, "prompts")]
        for a, b in zip(told, named, strict=True):
            if a and b and a != b:
                raise DiffAugError(
                    f"label {self.labels[a - 1]!r} contradicts the prompt's {self.labels[b - 1]!r}: give one of them"
                )
        labels = torch.tensor([a or b for a, b in zip(told, named, strict=True)])
        return Condition(labels=labels, concat=self._channels(batch, mask) if self.mask else None)

    def _channels(self, batch: int, mask: Tensor | None) -> Tensor:
        if mask is None:
            return torch.zeros(batch, 2, *self.latent_size)
        if mask.ndim != len(self.latent_size) + 2 or mask.shape[0] not in (1, batch) or mask.shape[1] != 1:
            raise DiffAugError(
                f"the mask has shape {tuple(mask.shape)}: give ({batch}, 1, ...) with {len(self.latent_size)} "
                "spatial axes"
            )
        plain = mask.as_subclass(Tensor).to(torch.float32).clamp(0, 1)
        small = F.interpolate(plain, self.latent_size, mode="area").expand(batch, *[-1] * (plain.ndim - 1))
        return torch.cat([small, torch.ones_like(small)], dim=1)


def plain_words(text: str) -> str:
    """A text's words in lower case, with single spaces: how names are compared."""
    return " ".join(WORD.findall(text.replace("_", " ").lower()))


class VectorConditioner:
    """Numbers or an embedding (B, D) as one token (B, 1, D), like MONAI's brain latent diffusion model.

    Args:
        size: D.
        names: what the numbers are.
        ranges: trained (low, high) of each number; a number outside is refused.
        units: (low, high) of each number in the user's units (years, say), which go onto ``ranges`` and are what is
            asked for; without them the numbers are given as the network sees them.
        null: what stands for "not told"; zeros unless the network was trained with something else. A number that is
            NaN is not told, whatever the others are.
        concat: whether the numbers also go in as constant input channels.
        latent_size: wanted with ``concat``.
    """

    accepts = frozenset({"vector"})

    def __init__(
        self,
        size: int,
        names: Sequence[str] = (),
        ranges: Sequence[Sequence[float]] = (),
        null: Sequence[float] | None = None,
        concat: bool = False,
        latent_size: Sequence[int] = (),
        units: Sequence[Sequence[float]] = (),
    ):
        self.module: nn.Module = nn.Module()
        self.size, self.concat, self.latent_size = size, concat, tuple(latent_size)
        self.names = tuple(names) or tuple(str(i) for i in range(size))
        self.ranges = tuple((float(a), float(b)) for a, b in ranges)
        self.units = tuple((float(a), float(b)) for a, b in units)
        if self.units and len(self.units) != len(self.ranges):
            raise DiffAugError(f"{len(self.units)} units were given for {len(self.ranges)} ranges: give one for each")
        self.null = torch.zeros(size) if null is None else torch.tensor(null, dtype=torch.float32)
        self.config: dict[str, Any] = {
            "kind": "vector",
            "size": size,
            "names": list(names),
            "ranges": [list(r) for r in self.ranges],
            "null": self.null.tolist(),
            "concat": concat,
            **({"units": [list(u) for u in self.units]} if self.units else {}),
        }

    def __call__(self, batch: int, *, vector: Tensor | None = None, **_: Any) -> Condition:
        """Encode ``vector`` (D,), (1, D) or (B, D)."""
        rows = self.null if vector is None else torch.as_tensor(vector, dtype=torch.float32).as_subclass(Tensor)
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != self.size or rows.shape[0] not in (1, batch):
            raise DiffAugError(
                f"the vector has shape {tuple(rows.shape)}: give ({batch}, {self.size}) of {', '.join(self.names)}"
            )
        if vector is not None:
            for i, (low, high) in enumerate(self.units or self.ranges):
                if bool(((rows[:, i] < low) | (rows[:, i] > high)).any()):
                    raise DiffAugError(f"{self.names[i]} lies outside its trained range: give {low:g} to {high:g}")
            if self.units:
                (a, b), (low, high) = (torch.tensor(x).T for x in (self.units, self.ranges))
                rows = low + (rows - a) * ((high - low) / (b - a))
            rows = torch.where(rows.isnan(), self.null.to(rows), rows)
        rows = rows.expand(batch, -1)
        channels = None
        if self.concat:
            channels = rows.reshape(*rows.shape, *[1] * len(self.latent_size)).expand(-1, -1, *self.latent_size)
        return Condition(tokens=rows[:, None], concat=channels)


class TextConditioner:
    """Text through a CLIP-like text encoder of transformers: tokens are its last hidden state.

    Differentiable: nothing here turns gradients off.

    Args:
        text_encoder: returns ``last_hidden_state`` (B, L, D) for ids (B, L).
        tokenizer: a tokenizer of transformers.
        vocabulary: words that a prompt may use; empty for any.
        labels: class names, so that ``label`` may be given in place of a prompt.
        template: prompt for a label, with ``{}`` in place of its name.
        learned: rows (n, D) of words learned later, by word. See :meth:`extended`.
    """

    def __init__(
        self,
        text_encoder: nn.Module,
        tokenizer: Any,
        vocabulary: Sequence[str] = (),
        labels: Sequence[str] = (),
        template: str = "{}",
        learned: Mapping[str, Tensor] | None = None,
    ):
        self.module = text_encoder
        self.tokenizer = tokenizer
        self.vocabulary = tuple(vocabulary)
        self.labels = tuple(labels)
        self.template = template
        self.learned = dict(learned or {})
        self.accepts = frozenset({"prompt"} | ({"label"} if labels else set()))
        self.config: dict[str, Any] = {"kind": "text", "labels": list(labels), "template": template}
        self._words = {w.lower() for entry in vocabulary for w in WORD.findall(entry)}
        ends = list(tokenizer("").input_ids)
        self._start, self._end = (ends[:1], ends[1:2]) if len(ends) > 1 else ([], ends)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The encoder's table of words."""
        encoder: Any = self.module
        return encoder.get_input_embeddings()

    @property
    def length(self) -> int:
        """Number of tokens that the encoder takes."""
        encoder: Any = self.module
        most = int(getattr(encoder.config, "max_position_embeddings", 77))
        return min(most, int(self.tokenizer.model_max_length))

    def extended(self, learned: Mapping[str, Tensor]) -> TextConditioner:
        """The same conditioner with more words, each a tensor (n, D) of rows; weights and tokenizer are untouched."""
        width = self.token_embedding.embedding_dim
        for word, rows in learned.items():
            if rows.ndim != 2 or rows.shape[1] != width:
                raise DiffAugError(f"rows of {word!r} have shape {tuple(rows.shape)}: give (n, {width})")
        return TextConditioner(
            self.module, self.tokenizer, self.vocabulary, self.labels, self.template, {**self.learned, **learned}
        )

    def _learned_ids(self) -> dict[str, list[int]]:
        """Ids past the end of the table, row by row."""
        ids, first = {}, self.token_embedding.num_embeddings
        for word, rows in self.learned.items():
            ids[word] = list(range(first, first + rows.shape[0]))
            first += rows.shape[0]
        return ids

    def _pieces(self, prompt: str) -> list[tuple[str, list[int]]]:
        """A prompt cut into words, learned words and what lies between, each with its ids."""
        learned = self._learned_ids()
        alternatives = [re.escape(w) for w in sorted(learned, key=len, reverse=True)]
        pieces = []
        for part in re.split(f"({'|'.join(alternatives)})", prompt) if alternatives else [prompt]:
            if part in learned:
                pieces.append((part, learned[part]))
                continue
            for word in re.findall(rf"{WORD.pattern}|[^\w\s]+|_+", part):
                self._check(word)
                pieces.append((word, list(self.tokenizer(word, add_special_tokens=False).input_ids)))
        return pieces

    def _check(self, word: str) -> None:
        if self._words and WORD.fullmatch(word) and word.lower() not in self._words:
            raise DiffAugError(
                f"word {word!r} is not in the backbone's vocabulary: did you mean {_nearest(word, self._words)!r}?"
            )

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Ids (B, length) with start, end and padding.

        Raises:
            DiffAugError: a word is not in the vocabulary, or a prompt is too long.
        """
        pad = next(
            (i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None),
            self._end[0] if self._end else 0,
        )
        rows = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            body = [i for _, ids in self._pieces(prompt) for i in ids]
            row = [*self._start, *body, *self._end]
            if len(row) > self.length:
                raise DiffAugError(
                    f"prompt {prompt[:40]!r} has {len(row)} tokens and the encoder takes {self.length}: shorten it"
                )
            rows.append(row + [pad] * (self.length - len(row)))
        return torch.tensor(rows, device=self.token_embedding.weight.device)

    def words(self, prompt: str) -> list[tuple[str, tuple[int, ...]]]:
        """Each word of a prompt with the positions of its tokens among the encoder's outputs."""
        at, found = len(self._start), []
        for word, ids in self._pieces(prompt):
            found.append((word, tuple(range(at, at + len(ids)))))
            at += len(ids)
        return found

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Hidden states (B, L, D) of ids (B, L); ids past the table are rows of learned words."""
        encoder: Any = self.module
        with self._table(ids):
            if getattr(encoder.config, "use_attention_mask", False):
                return encoder(ids, attention_mask=(ids != self.tokenizer.pad_token_id).long()).last_hidden_state
            return encoder(ids).last_hidden_state

    @contextmanager
    def _table(self, ids: Tensor) -> Iterator[None]:
        """While open, the table also holds the learned rows, for this thread."""
        table, owner = self.token_embedding, threading.get_ident()
        beyond = ids >= table.num_embeddings
        if not self.learned or not bool(beyond.any()):
            yield
            return
        rows = torch.cat([r.to(table.weight) for r in self.learned.values()])

        def clamp(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            return (args[0].clamp(max=table.num_embeddings - 1),) if threading.get_ident() == owner else None

        def swap(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if threading.get_ident() != owner:
                return None
            new = rows[(ids - table.num_embeddings).clamp(min=0)]
            return torch.where(beyond[..., None], new.to(out), out)

        before, after = table.register_forward_pre_hook(clamp), table.register_forward_hook(swap)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def __call__(
        self,
        batch: int,
        *,
        prompt: str | Sequence[str] | None = None,
        label: Sequence[Any] | Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> Condition:
        """Encode one prompt, or one per image; the null condition is the empty prompt."""
        prompts = [p or "" for p in _spread(prompt, batch, "prompts")]
        if label is not None:
            names = [self._name(x) for x in _spread(label, batch, "labels")]
            prompts = [p or (self.template.format(n) if n else "") for p, n in zip(prompts, names, strict=True)]
        distinct = list(dict.fromkeys(prompts))
        tokens = self.encode_ids(self.tokenize(distinct))
        return Condition(tokens=tokens[[distinct.index(p) for p in prompts]])

    def _name(self, label: Any) -> str:
        position = ClassConditioner(self.labels).index(label)
        return self.labels[position - 1].replace("_", " ") if position else ""
