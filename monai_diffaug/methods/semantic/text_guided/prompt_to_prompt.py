"""Prompt-to-Prompt: edit an image by editing its prompt, with the attention of the source.

Paper: Hertz, Mokady, Tenenbaum, Aberman, Pritch, Cohen-Or. Prompt-to-Prompt Image Editing with Cross Attention
Control. ICLR 2023. arXiv:2208.01626
Idea: where each word is looked at from fixes the layout, so the source's attention maps are given to the edited prompt
for the first part of the steps.
Changes: attention (cross maps replaced, refined or reweighted, self maps copied); the sampler's starting point
(inversion).
Departs: edits a given image, whose inversion is the source branch and is held to its exact path at any guidance; words
are aligned by longest common runs; the edited maps are never built, since mixing a map's columns is mixing the values'
rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ....primitives import guidance, masks, plans, words
from ....primitives.attention import AttentionRule, Site, attention
from ....primitives.inversion import arrivals, invert
from ....primitives.sampler import sample
from ....registry import method
from ....types import Backbone, DiffAugError, NoiseLevel, NoiseSource, Prediction, Row, Sample


@method(labels="replaced", aliases=["p2p"], needs=["text_encoder", "cross_attention"], neutral={"strength": 0.0})
def prompt_to_prompt(
    backbone: Backbone,
    image: Tensor,
    *,
    prompt: str | list[str],
    source_prompt: str | list[str],
    mode: str = "replace",
    weights: Mapping[str, float] | None = None,
    cross_replace: float | Mapping[str, float] = 0.8,
    self_replace: float = 0.4,
    blend: str | Sequence[str] = (),
    threshold: float = 0.3,
    strength: float = 1.0,
    scale: float = 7.5,
    steps: int = 50,
    generator: NoiseSource | None = None,
) -> Sample:
    """Make ``image`` (B, C, *S), which shows ``source_prompt``, show ``prompt`` in the same layout.

    Args:
        backbone: text-conditioned, with cross-attention.
        image: in the contract's value range.
        prompt: what the result should show.
        source_prompt: what the image shows.
        mode: what becomes of words that take the place of others: ``replace`` gives them those words' attention,
            ``refine`` leaves them their own. Words of both prompts have the source's, added words their own, in either.
        weights: factor of the attention to a word of ``prompt``, 1 unless given (-2 to 4 in the paper).
        cross_replace: fraction of the steps, from the noisiest, in which cross-attention is edited; or a fraction for
            each of some words of ``prompt``, with 0.8 for the rest.
        self_replace: fraction of the steps in which self-attention maps of at most 16 voxels a side are copied.
        blend: words outside whose attention, in either prompt, the source is put back.
        threshold: of that attention, as a fraction of its maximum.
        strength: how far the image is inverted; 0 leaves it (up to the autoencoder).
        scale: classifier-free guidance weight.
        steps: steps of a full chain; ``strength`` of them are walked down and up.
        generator: not drawn from, since both ways are deterministic.

    Returns:
        ``image``; ``label`` the prompt; ``info["residual"]`` of the inversion, one number an image.
    """
    if mode not in ("replace", "refine"):
        raise DiffAugError(f"mode {mode!r} is unknown: use 'replace' or 'refine'")
    batch = image.shape[0]
    before, after = ([p] * batch if isinstance(p, str) else list(p) for p in (source_prompt, prompt))
    both = backbone.condition(2 * batch, prompt=[*before, *after])
    matrix = torch.stack(
        [words.alignment(backbone, a, b, substitutes=mode == "replace") for a, b in zip(before, after, strict=True)]
    )
    until = cross_replace if isinstance(cross_replace, Mapping) else {"": cross_replace}
    fraction = _by_word(backbone, after, until, until.get("", 0.8))
    weight = _by_word(backbone, after, weights or {}, 1.0)
    named = [blend] if isinstance(blend, str) else list(blend)
    z = backbone.encode(image)
    gaze = words.Gaze(words.marked(backbone, [*before, *after], named), z.shape[2:]) if named else None
    inverted = invert(backbone.denoiser(both[:batch]), z, plans.ddim(backbone.schedule, steps, strength=strength))
    path = arrivals(inverted, z)

    def couple(x: Tensor, row: Row, _: Prediction | None) -> Tensor:
        source, edited = next(path), x[batch:]
        if gaze is not None and (seen := gaze.map()) is not None:
            inside = (words.resized(masks.grow(seen, 1), x.shape[2:]) > threshold).to(x)
            edited = masks.blend(edited, source, torch.maximum(inside[:batch], inside[batch:]))
        return torch.cat([source, edited])

    rule = _edit(matrix, fraction, weight, self_replace, words.SIDE ** (image.ndim - 2), gaze)
    start = inverted.latent.repeat(2, *[1] * (z.ndim - 1))
    with attention(backbone, rule):
        z = sample(guidance.classifier_free(backbone, both, scale), start, inverted.plan, callback=couple)[-batch:]
    info = {"residual": list(inverted.residuals)}
    return Sample(backbone.decode(z), label=after, prompt=prompt, info=info)


def _by_word(backbone: Backbone, prompts: Sequence[str], values: Mapping[str, float], otherwise: float) -> Tensor:
    """A number for every token, (B, L): that of its word, or ``otherwise``."""
    out = torch.full_like(words.marked(backbone, prompts, ()), otherwise)
    for word, value in values.items():
        at = words.marked(backbone, prompts, [word]).bool()
        if word and not bool(at.any()):
            raise DiffAugError(f"no prompt holds the word {word!r}: choose one of {prompts[0]!r}")
        out[at] = value
    return out


def _edit(
    matrix: Tensor, fraction: Tensor, weight: Tensor, self_replace: float, most: int, gaze: words.Gaze | None
) -> AttentionRule:
    """The rule. Rows of a call are branches of (sources, edited ones); only the conditional branch is edited.

    With P the alignment, w the weights and i in {0, 1} saying for which tokens the edit still lasts, the edited map is
    ``A* = i w (A_source P + own A) + (1 - i) A``, and ``A* V = A_source P (i w V) + A ((1 - i) + i w own) V``.
    """
    own = (matrix.sum(1) == 0).to(matrix)

    def rule(site: Site, q: Tensor, k: Tensor, v: Tensor, level: NoiseLevel | None) -> Tensor | None:
        assert level is not None
        half = matrix.shape[0]
        first = 2 * half * level.branches.index("condition")
        source, edited = slice(first, first + half), slice(first + half, first + 2 * half)
        if site.kind == "self":
            if level.progress >= self_replace or site.tokens > most:
                return None
            out = F.scaled_dot_product_attention(q, k, v)
            out[edited] = F.scaled_dot_product_attention(q[source], k[source], v[edited])
            return out
        if gaze is not None:
            gaze.see(q[first : first + 2 * half], k[first : first + 2 * half])
        if level.progress >= float(fraction.max()):
            return None
        lasts = (level.progress < fraction).to(v)
        w, mine, p = weight.to(v), own.to(v), matrix.to(v)[:, None]
        borrowed = p @ ((lasts * w)[:, None, :, None] * v[edited])
        kept = (1 - lasts + lasts * w * mine)[:, None, :, None] * v[edited]
        out = F.scaled_dot_product_attention(q, k, v)
        out[edited] = F.scaled_dot_product_attention(q[source], k[source], borrowed)
        out[edited] += F.scaled_dot_product_attention(q[edited], k[edited], kept)
        return out

    return rule
