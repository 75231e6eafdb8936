"""Anonymous generation: samples in which a verifier recognizes a training patient are thrown away and drawn again.

Paper: Packhäuser, Folle, Thamm, Maier. Generation of Anonymous Chest Radiographs Using Latent Diffusion Models for
  Training Thoracic Abnormality Classification Systems. ISBI 2023. arXiv:2211.01323
Idea: the training image nearest to a sample is retrieved, and the sample is kept only if a network that tells patients
apart does not take the two for one patient.
Changes: nothing in the sampler; which samples are kept.
Departs: the generator is the backbone's, under whatever condition it takes, and not a class-conditional one; the five
nearest training images are compared instead of one; retrieval and verification are two heads of one network; a
certificate is given only if the verifier is good enough on patients that were seen twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ....primitives import guidance, plans
from ....primitives.sampler import sample
from ....registry import method
from ....types import Backbone, DiffAugError, NoiseSource, Sample


@method(labels="generated", aliases=["privacy_enhancing_sampling"], needs=["verifier"])
def anonymous_generation(
    backbone: Backbone,
    *,
    prompt: str | list[str] | None = None,
    threshold: float | None = None,
    neighbors: int = 5,
    draws: int = 20,
    scale: float = 3.0,
    steps: int = 20,
    solver: str = "dpmpp_2m",
    generator: NoiseSource,
) -> Sample:
    """Generate images of no training patient; every condition gets as many images as were asked for.

    Args:
        backbone: with a verifier that remembers the training images.
        prompt: what the images show, once or one for each; ``None`` is the null condition.
        threshold: tau, the probability of one patient from which on a sample is rejected; the verifier's own unless
            given.
        neighbors: k, nearest training images that are compared.
        draws: how often an image is drawn at most.
        scale: classifier-free guidance weight.
        steps: of the chain.
        solver: a plan of ``primitives.plans``.
        generator: one seed per image; their number is the number of images.

    Returns:
        ``image``; ``label`` and ``prompt`` as asked for; ``info``: ``p_same``, ``distance`` (cosine) and ``rejected``
        (how many draws were), one number an image; ``audit``, one entry an image with the id of the nearest training
        image besides and what was rejected before; ``certificate``, empty or the reason why it is withheld.

    Raises:
        DiffAugError: the verifier remembers no training images, or every draw of an image was rejected.
    """
    verifier = backbone.verifier
    limit = verifier.threshold if threshold is None else threshold
    if verifier.index is None:
        raise DiffAugError(f"the verifier of {backbone.name!r} remembers no training images: save it with an index")
    batch = len(generator)
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt] * batch
    if len(prompts) != batch:
        raise DiffAugError(f"{batch} images were given {len(prompts)} prompts: give one, or one for each")
    seeds = [generator.seeds, *_again(generator, draws - 1)]
    images: list[Tensor | None] = [None] * batch
    tried: list[list[dict[str, Any]]] = [[] for _ in range(batch)]
    waiting = list(range(batch))
    for row in seeds:
        told = None if prompt is None else [prompts[i] for i in waiting]
        drawn = _drawn(backbone, told, NoiseSource(row[i] for i in waiting), scale, steps, solver)
        low, high = backbone.contract.value_range
        for i, image, match in zip(waiting, drawn, verifier.nearest(drawn.clamp(low, high), neighbors), strict=True):
            tried[i].append(asdict(match))
            if match.probability < limit:
                images[i] = image
        waiting = [i for i in waiting if images[i] is None]
        if not waiting:
            break
    else:
        raise DiffAugError(
            f"a training patient was recognized in all {draws} draws of {len(waiting)} of {batch} images: give more "
            f"draws, or a threshold above {limit:.3g}"
        )
    audit = [{**t[-1], "threshold": limit, "rejected": t[:-1]} for t in tried]
    info = {
        "p_same": [a["probability"] for a in audit],
        "distance": [a["distance"] for a in audit],
        "rejected": [len(a["rejected"]) for a in audit],
        "audit": audit,
        "certificate": verifier.withheld(),
    }
    return Sample(torch.stack([i for i in images if i is not None]), label=prompt, prompt=prompt, info=info)


def _again(generator: NoiseSource, more: int) -> list[Sequence[int]]:
    """Seeds of the draws after the first, for each of them one an image."""
    seeds, n = generator.spawn(max(more, 0)).seeds, len(generator)
    return [seeds[i * n : (i + 1) * n] for i in range(max(more, 0))]


def _drawn(
    backbone: Backbone, prompt: list[str | None] | None, noise: NoiseSource, scale: float, steps: int, solver: str
) -> Tensor:
    """Plain samples, one for each seed."""
    n, contract = len(noise), backbone.contract
    plan = plans.make(backbone.schedule, steps, solver)
    told = backbone.condition(n, prompt=prompt)
    denoise = guidance.classifier_free(backbone, told, scale if told.batch is not None else 1.0, batch=n)
    like = torch.empty(n, contract.latent_channels, *contract.latent_size, device=backbone.device)
    with torch.no_grad():
        return backbone.decode(sample(denoise, plan[0].level.sigma * noise.normal(like), plan, noise=noise))
