"""DA-Fusion: vary a labeled image by noising it to a random depth and denoising it under its own class.

Paper: Trabucco, Doherty, Gurinas, Salakhutdinov.
  Effective Data Augmentation With Diffusion Models. ICLR 2024. arXiv:2302.07944
Idea: a word learned for each class keeps the label, and a strength drawn for every image balances faithful and new.
Changes: the sampler's starting point; the condition (learned words); with a mask, what the edit may reach.
Departs: `textual_inversion` learns the words beforehand (`concept`); a class that the backbone knows takes the place
of a learned word, also where there is no text encoder; a label mask is told to a backbone that takes one and held fixed
on any other, so that it stays true; guidance 3 (the paper's 7.5 is Stable Diffusion's). Replacing a real image with
probability 0.5 is the transform's `prob`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ....primitives import concepts, embeddings, guidance, masks, plans
from ....primitives.sampler import noised, sample
from ....registry import method
from ....types import Backbone, Concept, DiffAugError, NoiseSource, Sample

Given = str | Path | Concept
REGIONS = ("all", "object", "background")


@method(labels="kept", aliases=["dafusion"], neutral={"strength": 0.0})
def da_fusion(
    backbone: Backbone,
    image: Tensor,
    *,
    label: str | Sequence[str | int] | None = None,
    prompt: str | list[str] | None = None,
    mask: Tensor | None = None,
    concept: Given | Sequence[Given] = (),
    strength: float | Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    region: str | None = None,
    grow: int = 3,
    scale: float = 3.0,
    steps: int = 20,
    generator: NoiseSource,
) -> Sample:
    """Make another image of the same class from each of ``image`` (B, C, *S).

    Args:
        backbone: the model.
        image: in the contract's value range.
        label: class of the images, one or one per image; a class that the backbone does not know goes by the word that
            ``concept`` brings for it.
        prompt: in place of a label; with neither, the word of ``concept`` if that is one, else the null condition.
        mask: (B, 1, *S), 1 on the object that the label mask outlines.
        concept: learned words or adapters, or their files.
        strength: how deep the image is noised, drawn for each image from these with equal chance.
        region: ``all``; ``object`` changes only the mask, grown; ``background`` all but that. Unless given, ``all``, or
            ``background`` where a mask is given to a backbone that takes none.
        grow: voxels by which the mask is grown for ``object`` and ``background``.
        scale: classifier-free guidance weight.
        steps: steps of a full chain; ``strength`` of them are walked.
        generator: one seed per image.

    Returns:
        ``image``; ``label`` and ``mask`` as given; ``info["strength"]``, one an image.
    """
    batch = image.shape[0]
    depths = [float(strength)] if isinstance(strength, int | float) else [float(s) for s in strength]
    table = {s: plans.make(backbone.schedule, steps, strength=s) for s in sorted(set(depths))}
    drawn = [depths[int(u * len(depths))] for u in generator.uniform(batch).tolist()]
    streams = generator.spawn(1).seeds
    given = [concept] if isinstance(concept, Given) else list(concept)
    inside = None if mask is None else _reach(backbone, masks.check(mask, image), region, grow)
    with concepts.applied(backbone, *given, image=image, mask=mask) as taught:
        what = _what(taught, batch, label, prompt, mask)
        told = taught.condition(batch, **what)
        z = taught.encode(image)
        new = z.clone()
        for depth, plan in table.items():
            rows = [i for i, d in enumerate(drawn) if d == depth]
            if not rows:
                continue
            noise = NoiseSource(streams[i] for i in rows)
            denoise = guidance.classifier_free(taught, told[rows], scale if what else 1.0)
            small = None if inside is None else masks.to_latent(inside[rows], z, cover=True)
            keep = None if small is None else masks.keep_outside(z[rows], small, noise.normal(z[rows]))
            new[rows] = sample(denoise, noised(z[rows], plan, noise), plan, noise=noise, callback=keep)
        out = taught.decode(new)
    out = out if inside is None else masks.blend(out, image, inside)
    return Sample(out, label=label, mask=mask, prompt=prompt, info={"strength": drawn})


def _reach(backbone: Backbone, mask: Tensor, region: str | None, grow: int) -> Tensor | None:
    """Where the edit may change things, (B, 1, *S), or ``None`` for everywhere."""
    if region is None:
        region = "all" if "mask" in backbone.conditioner.accepts else "background"
    if region not in REGIONS:
        raise DiffAugError(f"region {region!r} is unknown: use one of {', '.join(REGIONS)}")
    grown = masks.grow(mask, grow)
    return {"all": None, "object": grown, "background": 1 - grown}[region]


def _what(
    backbone: Backbone,
    batch: int,
    label: str | Sequence[str | int] | None,
    prompt: str | list[str] | None,
    mask: Tensor | None,
) -> dict[str, Any]:
    """What the conditioner is told: the prompt, or the labels by their learned words, and the mask."""
    accepts = backbone.conditioner.accepts
    what: dict[str, Any] = {"mask": mask} if mask is not None and "mask" in accepts else {}
    words: dict[str, Tensor] = getattr(backbone.conditioner, "learned", {})
    if prompt is not None:
        what["prompt"] = prompt
    elif label is not None and words:
        names = [label] * batch if isinstance(label, str) else [str(x) for x in label]
        what["prompt"] = [embeddings.sentence(backbone, x) for x in names]
    elif label is not None:
        what["label"] = [label] if isinstance(label, str) else label
    elif len(words) == 1:
        what["prompt"] = embeddings.sentence(backbone, next(iter(words)))
    return what
