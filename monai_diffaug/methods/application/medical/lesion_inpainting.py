"""Lesion inpainting: a lesion put into a region of a scan, or taken out of it; the region is the new label.

Paper: Rouzrokh, Khosravi, Faghani, Moassefi, Vahdati, Erickson. Multitask Brain Tumor Inpainting with Diffusion Models:
A Methodological Report. 2022. arXiv:2210.12113
Idea: a network that sees the scan with a hole in it, and a map of what is wanted where, restores the hole.
Changes: what the network is told (masked image, one region map a class, the classes); guidance; what lies outside the
hole at the end.
Departs: works on latents; two classes, lesion-free tissue and lesion, where the paper has five; the network sees the
hole and the regions apart, so that the hole's rim is lesion-free and the region alone becomes the label; a pixel
farther from the region than `dilation` is returned as it was, and the rim between is blended.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....primitives import guidance, masks, plans
from ....primitives.regions import cut_out
from ....primitives.sampler import sample
from ....registry import method, nearest
from ....types import Backbone, DiffAugError, NoiseSource, Sample


@method(
    labels="replaced",
    aliases=["mbti", "multitask_inpainting"],
    needs=["regions_condition"],
    neutral={"strength": 0.0, "dilation": 0},
)
def lesion_inpainting(
    backbone: Backbone,
    image: Tensor,
    *,
    mask: Tensor,
    prompt: str | list[str] = "tumor",
    erase: Tensor | None = None,
    strength: float = 1.0,
    scale: float = 2.0,
    dilation: int = 4,
    steps: int = 25,
    solver: str = "ddim",
    generator: NoiseSource,
) -> Sample:
    """Paint ``prompt`` into ``mask`` of ``image`` (B, C, *S).

    Args:
        backbone: trained to restore regions; see ``primitives.regions``.
        image: in the contract's value range; what it holds in the hole plays no part, unless by ``strength``.
        mask: (B, 1, *S), 1 in the region.
        prompt: what the region shall be, one of the contract's classes (the first is lesion-free), one or one an image.
        erase: (B, 1, *S), a second region, to be made lesion-free in the same run.
        strength: 1 fills from pure noise, 0 leaves the image as it is (up to the autoencoder).
        scale: classifier-free guidance weight of the classes; 1 is none.
        dilation: voxels by which the hole is larger than the regions; in them the result is blended with
            the image, below 2 there is a hard seam.
        steps: of a full chain.
        solver: a plan of ``primitives.plans``.
        generator: one seed per image.

    Returns:
        ``image``, equal to the input outside the hole; ``mask`` (B, 1, *S), the label that belongs to it: the region if
        a lesion was asked for, else zeros; ``label``: the class of the last kind asked for.

    Raises:
        DiffAugError: a prompt is no class of the backbone, a mask does not fit, or ``dilation`` is negative.
    """
    if dilation < 0:
        raise DiffAugError(f"dilation is {dilation}: give 0 or more voxels")
    area = masks.check(mask, image)
    words = [prompt] * image.shape[0] if isinstance(prompt, str) else list(prompt)
    maps = _maps(backbone, words, area, None if erase is None else masks.check(erase, image))
    hole = masks.grow(maps.amax(1, keepdim=True), dilation)
    known = backbone.encode(cut_out(image, hole, backbone.contract.value_range[0]))
    told = backbone.condition(len(words), regions=torch.cat([maps, hole], 1), known=known)
    untold = backbone.condition(len(words), regions=torch.cat([0 * maps, hole], 1), known=known)
    denoise = guidance.classifier_free(backbone, told, scale, negative=untold)
    plan = plans.make(backbone.schedule, steps, solver, strength=strength)
    z = backbone.encode(image)
    if plan:
        first, noise = plan[0].level, generator.normal(z)
        z = sample(denoise, first.alpha * (strength < 1) * z + first.sigma * noise, plan, noise=generator)
    width = dilation // 2  # of the blend, which begins where the regions end and ends where the hole does
    rim = masks.soften(masks.grow(maps.amax(1, keepdim=True), dilation - width), width)
    lesion = maps[:, 1:].amax(1, keepdim=True)
    return Sample(masks.blend(backbone.decode(z), image, rim), label=words, mask=lesion, prompt=prompt)


def _maps(backbone: Backbone, words: list[str], area: Tensor, erase: Tensor | None) -> Tensor:
    """One map a class (B, n, *S); where the two regions overlap, the first counts."""
    labels = backbone.contract.labels
    unknown = [w for w in words if w not in labels]
    if unknown:
        hint = nearest(unknown[0], labels)
        raise DiffAugError(f"the backbone paints no {unknown[0]!r}: {hint}give one of {', '.join(labels)} as prompt")
    maps = torch.zeros(len(area), len(labels), *area.shape[2:]).to(area)
    if erase is not None:
        maps[:, 0] = (erase * (1 - area))[:, 0]
    for i, word in enumerate(words):
        maps[i, labels.index(word)] = torch.maximum(maps[i, labels.index(word)], area[i, 0])
    return maps
