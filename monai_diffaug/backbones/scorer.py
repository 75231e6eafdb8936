"""Does an image show what the words say: a CLIP model of transformers as a backbone's scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.types import DiffAugError

__all__ = ["Scorer"]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Scorer:
    """Cosine similarity of images and prompts, differentiable with respect to the images.

    Volumes are scored by the mean over slices along their last axis.

    Args:
        model: a ``CLIPModel``.
        tokenizer: its tokenizer.
        value_range: of the images it will be given.
        mean: per channel, of images in [0, 1].
        std: per channel.
        slices: number of slices of a volume.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        value_range: tuple[float, float] = (-1.0, 1.0),
        mean: Sequence[float] = _CLIP_MEAN,
        std: Sequence[float] = _CLIP_STD,
        slices: int = 8,
    ):
        self.module = model.eval()
        self.tokenizer = tokenizer
        self.value_range = value_range
        self.mean, self.std, self.slices = tuple(mean), tuple(std), slices
        self._model: Any = model

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D) of images (B, C, *S) in the value range."""
        if images.ndim == 5:
            n = min(self.slices, images.shape[-1])
            at = torch.linspace(0, images.shape[-1] - 1, n + 2)[1:-1].round().long().to(images.device)
            planes = images.index_select(-1, at).movedim(-1, 1).flatten(0, 1)
            return F.normalize(self.embed_images(planes).unflatten(0, (-1, n)).mean(1), dim=-1)
        vision = self._model.config.vision_config
        low, high = self.value_range
        x = ((images.float() - low) / (high - low)).clamp(0, 1)
        if x.shape[1] == 1:
            x = x.expand(-1, vision.num_channels, -1, -1)
        if x.shape[1] != vision.num_channels:
            raise DiffAugError(
                f"the scorer takes {vision.num_channels} channels and was given {x.shape[1]}: pick one of them"
            )
        x = F.interpolate(x, (vision.image_size, vision.image_size), mode="bilinear", antialias=True)
        mean = torch.tensor(self.mean[: x.shape[1]], device=x.device).reshape(1, -1, 1, 1)
        std = torch.tensor(self.std[: x.shape[1]], device=x.device).reshape(1, -1, 1, 1)
        out = self._model.get_image_features(pixel_values=(x - mean) / std)
        return F.normalize(getattr(out, "pooler_output", out), dim=-1)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Ids (n, L) of prompts, padded."""
        most = int(self._model.config.text_config.max_position_embeddings)
        ids: Tensor = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=min(most, int(self.tokenizer.model_max_length)),
            return_tensors="pt",
        ).input_ids
        return ids

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Unit vectors (n, D) of token ids (n, L)."""
        ids = ids.to(next(self.module.parameters()).device)
        padding = self.tokenizer.pad_token_id
        # Where the end is also the padding (as in CLIP), causal attention keeps it out of sight without a mask.
        mask = None if padding is None or padding == self.tokenizer.eos_token_id else (ids != padding).long()
        out = self._model.get_text_features(input_ids=ids, attention_mask=mask)
        return F.normalize(getattr(out, "pooler_output", out), dim=-1)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (n, D) of prompts."""
        return self.embed_ids(self.tokenize(prompts))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine similarity (B,) of each image (B, C, *S) with its prompt."""
        texts = [prompts] * images.shape[0] if isinstance(prompts, str) else list(prompts)
        if len(texts) != images.shape[0]:
            raise DiffAugError(f"{images.shape[0]} images were given {len(texts)} prompts: give one per image")
        return (self.embed_images(images) * self.embed_prompts(texts)).sum(-1)

    def classify(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Probability (B, n) of each of n prompts for each image."""
        similar = self.embed_images(images) @ self.embed_prompts(prompts).T
        return (similar * self._model.logit_scale.exp()).softmax(-1)
