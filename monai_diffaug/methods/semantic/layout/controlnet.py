"""ControlNet: a frozen network learns to follow a drawing.

Paper: Zhang, Rao, Agrawala.
  Adding Conditional Control to Text-to-Image Diffusion Models. ICCV 2023. arXiv:2302.05543
Idea: a trainable copy of the encoder sees the drawing and adds to the frozen network through layers at first zero.
Changes: residuals of the down features and the middle; no weight of the network.
Departs: the drawing is read off the images by name (`hint`) unless `hints` brings it; 1000 steps at 5e-4 where the
paper takes many thousands at 1e-5, for small latents; the network's decoder stays locked. What it learns is a concept:
`concepts.applied(backbone, concept, image=...)` follows the outlines of `image` in whatever method runs on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....primitives import control, finetuning
from ....primitives import hints as drawings
from ....registry import method
from ....types import Backbone, Concept, Condition, DiffAugError, NoiseSource


@method(labels="moved", needs=["control_branch"], neutral={"steps": 0})
def controlnet(
    backbone: Backbone,
    images: Tensor,
    *,
    hint: str = "edges",
    hints: Tensor | None = None,
    prompt: str | list[str] | None = None,
    dropout: float = 0.5,
    rate: float = 5e-4,
    batch_size: int = 8,
    flip: bool = False,
    steps: int = 1000,
    generator: NoiseSource,
) -> Concept:
    """Learn to show what a hint outlines, from ``images`` (N, C, *S).

    Args:
        backbone: nothing of it is changed.
        images: in the contract's value range.
        hint: what is read off the images, by its name in ``primitives.hints``; with ``hints``, what these are called.
        hints: (N, c, *S) drawings, masks or maps of the images.
        prompt: what the images show, one text or one an image; ``None`` is the null condition.
        dropout: share of the images whose prompt is left out, so that the hint must carry the meaning.
        rate: learning rate.
        batch_size: images per step.
        flip: learn from the mirror images as well.
        steps: of training.
        generator: its first seed draws everything.

    Returns:
        a concept of kind ``controlnet``; untrained, it changes nothing.
    """
    finetuning.check_settings(steps, rate, batch_size)
    seed, n = generator.seeds[0], len(images)
    seen = drawings.hint_of(hint, images) if hints is None else hints
    if seen.shape[0] != n:
        raise DiffAugError(f"{n} images were given {seen.shape[0]} hints: give one per image")
    seen = control.check_hint(backbone, seen)
    branch = control.branch(backbone, seen.shape[1], seed=seed)
    frozen = backbone.with_precision(torch.float32)
    told, null = backbone.condition(n, prompt=prompt), backbone.condition(n)
    latents = finetuning.latents_of(backbone, images, flip)
    seen = torch.cat([seen, seen.flip(-1)]) if flip else seen
    draw = torch.Generator().manual_seed(seed + 1)

    def output(x: Tensor, t: Tensor, picks: Tensor) -> Tensor:
        condition = _mixed(told, null, picks % n, torch.rand(len(picks), generator=draw) < dropout)
        return control.controlled(frozen, branch, seen[picks]).output(x, t, condition)

    losses = finetuning.finetune(
        backbone.schedule,
        [finetuning.Lesson(latents, output)],
        branch.module.parameters(),
        steps=steps,
        rate=rate,
        batch=batch_size,
        seed=seed,
    )
    tensors = {k: v.detach().clone() for k, v in branch.module.state_dict().items()}
    info = {"method": "controlnet", "hint": hint, "hint_channels": seen.shape[1], "images": n}
    return Concept("controlnet", tensors, backbone.digest, "", {**info, "losses": finetuning.curve(losses)})


def _mixed(told: Condition, null: Condition, picks: Tensor, dropped: Tensor) -> Condition:
    """Rows of ``told`` at ``picks``, those of ``null`` where ``dropped``."""
    if told.batch is None:
        return told
    both = Condition.cat([told, null])
    return both[picks + dropped.long() * int(told.batch)]
