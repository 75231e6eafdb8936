"""Small text encoders and image-text dual encoders in the formats of ``transformers``, to be trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

__all__ = ["dual_encoder", "text_encoder", "word_tokenizer"]


def word_tokenizer(words: Sequence[str], length: int) -> Any:
    """A tokenizer with one token per word, a start and an end, for prompts of ``length`` tokens."""
    special = ("<pad>", "<end>", "<start>", "<unknown>")
    table = {word: i for i, word in enumerate((*special, *dict.fromkeys(words)))}
    inner = Tokenizer(models.WordLevel(table, unk_token="<unknown>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", table["<start>"]), ("<end>", table["<end>"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        bos_token="<start>",
        unk_token="<unknown>",
        model_max_length=length,
    )


def _text_config(tokenizer: Any, width: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(2, width // 32),
        "max_position_embeddings": int(tokenizer.model_max_length),
        "projection_dim": width,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def text_encoder(tokenizer: Any, width: int, layers: int = 2) -> nn.Module:
    """A ``CLIPTextModel`` for this tokenizer, with random weights."""
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**_text_config(tokenizer, width, layers)))


def dual_encoder(
    tokenizer: Any, *, width: int, layers: int, image_size: int, patch: int, channels: int
) -> transformers.CLIPModel:
    """A ``CLIPModel`` for square images of ``image_size`` pixels, with random weights."""
    vision = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(2, width // 32),
        "image_size": image_size,
        "patch_size": patch,
        "num_channels": channels,
        "projection_dim": width,
    }
    text = _text_config(tokenizer, width, layers)
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
