"""Directions in h-space: what to add to the bottleneck to turn one thing into another.

Paper: Kwon, Jeong, Uh. Diffusion Models Already Have a Semantic Latent Space. ICLR 2023. arXiv:2210.10960
Idea: a small block learns the shift that moves images as two texts differ, or the mean difference of two groups is
taken.
Changes: features (the bottleneck).
Departs: the embedding of time is the block's own, since networks do not share theirs; the weight of the L1 term is at
least 0; where the edit ends is a fraction of the chain. `asyrp` edits with the direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ....primitives import bottleneck, plans
from ....primitives.inversion import invert
from ....primitives.sampler import step
from ....registry import method
from ....types import Backbone, Concept, DiffAugError, NoiseSource, Plan, Prediction


@method(labels="kept", needs=["features"])
def h_space(
    backbone: Backbone,
    images: Tensor,
    *,
    prompt: str,
    source_prompt: str,
    labels: Sequence[str] | None = None,
    until: float = 0.5,
    rate: float = 0.5,
    weights: tuple[float, float] = (1.0, 3.0),
    rounds: int = 5,
    batch: int = 4,
    steps: int = 50,
    generator: NoiseSource,
) -> Concept:
    """Learn the direction from ``source_prompt`` to ``prompt`` on ``images`` (N, C, *S).

    Args:
        backbone: with a scorer, unless ``labels`` are given; nothing of it is changed.
        images: in the contract's value range; the paper takes 100.
        prompt: where the direction leads, in the scorer's words, or a label.
        source_prompt: where it starts.
        labels: one per image. If given, nothing is trained: the direction is the mean bottleneck of the images labeled
            ``prompt`` less that of the images labeled ``source_prompt``, step by step.
        until: the direction is learned from the noisiest step down to this fraction of the chain.
        rate: learning rate of SGD.
        weights: of the directional loss and of the L1 distance.
        rounds: how often all images are gone through.
        batch: images in a step.
        steps: of a full chain.
        generator: its first seed draws the block's first weights and the order of images.

    Returns:
        a concept of kind ``direction``.
    """
    if labels is None and backbone.scorer is None:
        raise DiffAugError(f"backbone {backbone.name!r} has no scorer to learn from: give `labels`, one per image")
    if labels is None and "prompt" in backbone.conditioner.accepts:
        backbone.condition(2, prompt=[source_prompt, prompt])  # unknown words are refused before the first step
    plan = plans.ddim(backbone.schedule, steps, spacing="linspace")
    rows = tuple(r for r in plan if r.level.t >= until * backbone.schedule.times[-1])
    if labels is not None:
        chosen = [torch.tensor([x == name for x in labels]) for name in (prompt, source_prompt)]
        if len(labels) != len(images) or not all(bool(c.any()) for c in chosen):
            raise DiffAugError(f"labels must be one per image, some {prompt!r} and some {source_prompt!r}")
    pairs = images.split(batch)
    paths = [invert(backbone.denoiser(backbone.condition(len(x))), backbone.encode(x), plan).trajectory for x in pairs]
    if labels is not None:
        maps = [
            torch.cat([bottleneck.read(backbone, p[i], row.level, backbone.condition(len(p[i]))) for p in paths])
            for i, row in enumerate(rows)
        ]
        shift = torch.stack([m[chosen[0]].mean(0) - m[chosen[1]].mean(0) for m in maps])
        tensors = {"times": torch.tensor([r.level.t for r in rows]), "shift": shift.float()}
    else:
        tensors = _trained(backbone, paths, rows, (source_prompt, prompt), rate, weights, rounds, generator.seeds[0])
    info = {"method": "h_space", "prompt": prompt, "source_prompt": source_prompt, "steps": steps, "until": until}
    return Concept("direction", tensors, backbone.digest, "", {**info, "images": len(images)})


def _trained(
    backbone: Backbone,
    paths: Sequence[tuple[Tensor, ...]],
    rows: Plan,
    texts: tuple[str, str],
    rate: float,
    weights: tuple[float, float],
    rounds: int,
    seed: int,
) -> dict[str, Tensor]:
    """A block that moves the clean estimate of every step as the texts differ (eq. 6)."""
    first = backbone.condition(len(paths[0][0]))
    channels = bottleneck.read(backbone, paths[0][0], rows[0].level, first).shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = bottleneck.Block(channels, backbone.contract.spatial_dims).to(backbone.device)
    with torch.no_grad():
        start, goal = backbone.scorer.embed_prompts(texts)
    near = F.cosine_similarity(start, goal, dim=0).clamp(min=0.0)
    knobs, order = list(block.parameters()), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(knobs, rate)
    for _ in range(rounds):
        for i in torch.randperm(len(paths), generator=order).tolist():
            told = backbone.condition(len(paths[i][0]))
            plain, edited = backbone.denoiser(told), bottleneck.asymmetric(backbone, told, block)
            x = paths[i][0]
            for row, source in zip(rows, paths[i]):
                with torch.no_grad():
                    before = backbone.decode(plain(source, row.level).x0)
                with torch.enable_grad():
                    found = edited(x, row.level)
                    after = backbone.decode(found.x0)
                    moved = backbone.scorer.embed_images(after) - backbone.scorer.embed_images(before)
                    along = (1 + F.cosine_similarity(moved, (goal - start)[None])) / 2
                    loss = -weights[0] * along.clamp(min=1e-4).log().mean()
                    loss = loss + weights[1] * near * (after - before).abs().mean()
                for knob, gradient in zip(knobs, torch.autograd.grad(loss, knobs), strict=True):
                    knob.grad = gradient
                optimizer.step()
                x = step(row, Prediction(*(p.detach() for p in found)), None, None)  # no gradient between steps
    return {k: v.detach().clone() for k, v in block.state_dict().items()}
