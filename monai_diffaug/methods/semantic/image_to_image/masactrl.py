"""MasaCtrl: change pose and shape, and take the texture from the source.

Paper: Cao, Wang, Qi, Shan, Qie, Zheng. MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image
Synthesis and Editing. ICCV 2023. arXiv:2304.08465
Idea: the edited image asks with its own queries and is answered with the source's keys and values, once its layout has
formed.
Changes: attention (self, keys and values); the sampler's starting point (inversion).
Departs: the source branch is the inversion's exact path; which layers and steps take part is said in fractions (10 of
16 layers and 4 of 50 steps in the paper); steps follow log-SNR.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ....primitives import guidance, plans, words
from ....primitives.attention import AttentionRule, Site, attention
from ....primitives.inversion import arrivals, invert
from ....primitives.sampler import sample
from ....registry import method
from ....types import Backbone, DiffAugError, NoiseLevel, NoiseSource, Prediction, Row, Sample


@method(labels="replaced", needs=["prompt_condition", "self_attention"], neutral={"strength": 0.0})
def masactrl(
    backbone: Backbone,
    image: Tensor,
    *,
    prompt: str | list[str],
    source_prompt: str | list[str] | None = None,
    begin: float = 0.08,
    layer: float = 0.625,
    word: str | None = None,
    threshold: float = 0.1,
    strength: float = 1.0,
    scale: float = 7.5,
    steps: int = 50,
    generator: NoiseSource | None = None,
) -> Sample:
    """Make ``image`` (B, C, *S) take the layout of ``prompt`` and keep its own contents.

    Args:
        backbone: the model.
        image: in the contract's value range.
        prompt: what the result should show.
        source_prompt: what the image shows; ``None`` is the null condition, as in the paper for real images.
        begin: fraction of the steps that form the new layout before the source answers (S of the paper); 0 freezes the
            source's layout, 1 never asks it.
        layer: fraction of the self-attention layers, in the order of their calls, that are left alone (L of the paper):
            the encoder's and the first of the decoder's.
        word: the object, a word of both prompts. With it, objects ask objects and backgrounds backgrounds.
        threshold: of the word's attention, between its least (0) and greatest (1), above which the object lies.
        strength: how far the image is inverted; 0 leaves it (up to the autoencoder).
        scale: classifier-free guidance weight.
        steps: steps of a full chain; ``strength`` of them are walked down and up.
        generator: not drawn from, since both ways are deterministic.

    Returns:
        ``image``; ``label`` the prompt; ``info["residual"]`` of the inversion, one number an image.
    """
    batch = image.shape[0]
    after = [prompt] * batch if isinstance(prompt, str) else list(prompt)
    before = [source_prompt or ""] * batch if not isinstance(source_prompt, list) else source_prompt
    both = backbone.condition(2 * batch, prompt=[*before, *after])
    z = backbone.encode(image)
    gaze = None
    if word is not None:
        tokens = words.marked(backbone, [*before, *after], [word])
        if not bool(tokens.any(1).all()):
            raise DiffAugError(f"the word {word!r} must be in both prompts: name it in `prompt` and `source_prompt`")
        gaze = words.Gaze(tokens, z.shape[2:])
    inverted = invert(backbone.denoiser(both[:batch]), z, plans.ddim(backbone.schedule, steps, strength=strength))
    path = arrivals(inverted, z)

    def hold(x: Tensor, row: Row, _: Prediction | None) -> Tensor:
        return torch.cat([next(path), x[batch:]])

    sites = [name for name, (_, kind) in backbone.network.attention_sites().items() if kind == "self"]
    asked = set(sites[int(layer * len(sites)) :])
    start = inverted.latent.repeat(2, *[1] * (z.ndim - 1))
    with attention(backbone, _mutual(asked, begin, gaze, threshold), kind=None if gaze else "self"):
        z = sample(guidance.classifier_free(backbone, both, scale), start, inverted.plan, callback=hold)[-batch:]
    info = {"residual": list(inverted.residuals)}
    return Sample(backbone.decode(z), label=after, prompt=prompt, info=info)


def _mutual(asked: set[str], begin: float, gaze: words.Gaze | None, threshold: float) -> AttentionRule:
    """The rule. Rows of a call are branches of (sources, edited); in each, the edited rows ask the source rows."""

    def rule(site: Site, q: Tensor, k: Tensor, v: Tensor, level: NoiseLevel | None) -> Tensor | None:
        assert level is not None
        branches = len(level.branches)
        if site.kind == "cross":
            if gaze is not None:
                i = level.branches.index("condition")
                gaze.see(q.chunk(branches)[i], k.chunk(branches)[i])
            return None
        if level.progress < begin or site.name not in asked:
            return None
        k, v = (x.unflatten(0, (branches, 2, -1))[:, :1].expand(-1, 2, -1, -1, -1, -1).flatten(0, 2) for x in (k, v))
        seen = None if gaze is None else gaze.map()
        if gaze is None or seen is None:
            return F.scaled_dot_product_attention(q, k, v)
        least = seen.amin(tuple(range(2, seen.ndim)), keepdim=True)
        object_ = words.resized((seen - least) / (1 - least).clamp(min=1e-6), words.grid(site.tokens, gaze.size))
        inside = (object_ > threshold).flatten(1).unflatten(0, (2, -1))  # (2, B, N)
        source, edited = (m.repeat(branches * 2, 1)[:, None] for m in inside)
        among = [F.scaled_dot_product_attention(q, k, v, attn_mask=_only(m[:, :, None], q)) for m in (source, ~source)]
        masked = torch.where(edited[..., None], *among).unflatten(0, (branches, 2, -1))
        plain = F.scaled_dot_product_attention(q, k, v).unflatten(0, (branches, 2, -1))
        return torch.cat([plain[:, :1], masked[:, 1:]], 1).flatten(0, 2)

    return rule


def _only(keys: Tensor, like: Tensor) -> Tensor:
    """Logits (.., 1, N) to add so that only ``keys`` are looked at; if there are none, all alike."""
    return torch.zeros_like(keys, dtype=like.dtype).masked_fill(~keys, -1e4)
