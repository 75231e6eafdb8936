"""Blended Latent Diffusion: draw what a prompt says inside a mask, and nothing outside it.

Paper: Avrahami, Fried, Lischinski. Blended Latent Diffusion. ACM Transactions on Graphics (SIGGRAPH) 2023.
arXiv:2206.02779
Idea: after every guided step the latent outside the mask is replaced by the noised source, and the autoencoder's loss
outside is made good afterwards.
Changes: the sampler's starting point; what lies outside the mask at every step; the decoder's weights or the latent,
image by image, in a copy.
Departs: starts from the noised source where the published script starts from pure noise; a latent voxel that the mask
touches may change; the grown mask of thin regions shrinks evenly over the steps.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from ....primitives import guidance, masks, plans
from ....primitives.sampler import noised, sample
from ....registry import method
from ....types import Autoencoder, Backbone, DiffAugError, NoiseSource, Row, Sample

_BACKGROUNDS = ("decoder", "latent", "paste", "none")
_ITERATIONS = 75


@method(labels="replaced", aliases=["bld"], needs=["prompt_condition"], neutral={"strength": 0.0, "background": "none"})
def blended_latent_diffusion(
    backbone: Backbone,
    image: Tensor,
    *,
    prompt: str | list[str],
    mask: Tensor,
    strength: float = 0.75,
    scale: float = 7.5,
    background: str = "decoder",
    dilation: int = 0,
    candidates: int = 1,
    steps: int = 50,
    solver: str = "ddim",
    generator: NoiseSource,
) -> Sample:
    """Make ``image`` (B, C, *S) show ``prompt`` inside ``mask``.

    Args:
        backbone: the model.
        image: in the contract's value range.
        prompt: what the region should show.
        mask: (B, 1, *S), 1 where the image may change.
        strength: how far the image is noised; 0.75 skips the first quarter of the steps, as in the paper.
        scale: classifier-free guidance weight.
        background: how the source is restored outside the mask: ``decoder`` fine-tunes a copy of the decoder for each
            image, ``latent`` its latent, ``paste`` copies the pixels, which leaves a seam, ``none`` leaves the
            autoencoder's loss.
        dilation: latent voxels by which the mask is grown at first, for regions so thin that they would be lost; it has
            shrunk to the true one by the last step.
        candidates: images drawn for each, of which the one is returned that the backbone's scorer likes best.
        steps: steps of a full chain; ``strength`` of them are walked.
        solver: a plan of ``primitives.plans``.
        generator: one seed per image.

    Returns:
        ``image``; ``label`` the prompt; ``info["background"]``: mean absolute difference to the source outside the mask
        before and after restoring it, one pair an image.
    """
    if background not in _BACKGROUNDS:
        raise DiffAugError(f"background {background!r} is unknown: use one of {', '.join(_BACKGROUNDS)}")
    if candidates < 1 or dilation < 0 or (candidates > 1 and backbone.scorer is None):
        raise DiffAugError("candidates must be 1, or more with a backbone that has a scorer, and dilation at least 0")
    area = masks.check(mask, image)
    words = [prompt] * image.shape[0] if isinstance(prompt, str) else list(prompt)
    told = backbone.condition(len(words), prompt=words).repeat(candidates)
    plan = plans.make(backbone.schedule, steps, solver, strength=strength)
    streams = generator if candidates == 1 else generator.spawn(candidates)
    source = backbone.encode(image).repeat(candidates, *[1] * (image.ndim - 1))
    inside = masks.to_latent(area, source, cover=True).repeat(candidates, *[1] * (image.ndim - 1))

    def shrinking(row: Row) -> Tensor:
        left = 1.0 - (row.level.index + 1) / row.level.total
        return masks.grow(inside, math.ceil(left * dilation))

    keep = masks.keep_outside(source, shrinking, streams)
    denoise = guidance.classifier_free(backbone, told, scale)
    z = sample(denoise, noised(source, plan, streams), plan, noise=streams, callback=keep)
    z = _best(backbone, z, words, candidates)
    plain = backbone.decode(z).detach()
    pairs = zip(plain, z, image, area, strict=True)
    out = torch.cat([_restored(backbone.autoencoder, background, *(t[None] for t in pair)) for pair in pairs])
    info = {"background": [list(p) for p in zip(*(_miss(x, image, area) for x in (plain, out)), strict=True)]}
    return Sample(out, label=words, prompt=prompt, info=info)


def _miss(x: Tensor, image: Tensor, area: Tensor) -> list[float]:
    outside = (1 - area).expand_as(image)
    return (((x - image).abs() * outside).flatten(1).sum(1) / outside.flatten(1).sum(1).clamp(min=1)).tolist()


def _best(backbone: Backbone, z: Tensor, words: list[str], candidates: int) -> Tensor:
    """Of each image's candidates (copies-major), the one that fits its words best."""
    if candidates == 1:
        return z
    scores = backbone.scorer(backbone.decode(z), words * candidates).reshape(candidates, -1)
    return z.unflatten(0, (candidates, -1))[scores.argmax(0), torch.arange(len(words))]


def _restored(
    autoencoder: Autoencoder, background: str, plain: Tensor, z: Tensor, image: Tensor, area: Tensor
) -> Tensor:
    """One decoded image with the source outside: eq. 4 of the paper, ``|inside|^2 + 100 |outside|^2``."""
    if background == "paste":
        return masks.blend(plain, image, area)
    if background == "decoder":
        autoencoder, rate = copy.deepcopy(autoencoder), 1e-4
        knobs: list[Tensor] = [p.requires_grad_() for p in autoencoder.module.parameters() if p.is_floating_point()]
    else:
        z, rate = z.detach().clone().requires_grad_(), 0.1
        knobs = [z]
    if background == "none" or not list(autoencoder.module.parameters()):  # pixels lose nothing
        return plain
    optimizer = torch.optim.Adam(knobs, rate)
    with torch.enable_grad():
        for _ in range(_ITERATIONS):
            out = autoencoder.decode(z)
            loss = ((out - plain) * area).square().mean() + 100 * ((out - image) * (1 - area)).square().mean()
            for knob, gradient in zip(knobs, torch.autograd.grad(loss, knobs, allow_unused=True), strict=True):
                knob.grad = gradient
            optimizer.step()
    return autoencoder.decode(z).detach()
