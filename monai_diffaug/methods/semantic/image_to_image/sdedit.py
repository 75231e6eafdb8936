"""SDEdit: noise an image part of the way and denoise it again.

Paper: Meng, He, Song, Song, Wu, Zhu, Ermon. SDEdit: Guided Image Synthesis and Editing with Stochastic Differential
Equations. ICLR 2022. arXiv:2108.01073
Idea: a start from the noised source keeps its layout, and the denoiser makes the rest realistic.
Changes: the sampler's starting point; with a mask, what lies outside it at every step.
Departs: any solver may finish the walk (the paper integrates the reverse SDE, `solver="sde_dpmpp_2m"`).
"""

from __future__ import annotations

from torch import Tensor

from ....primitives import guidance, masks, plans
from ....primitives.sampler import sample
from ....registry import method
from ....types import Backbone, NoiseSource, Sample


@method(labels="kept", aliases=["img2img"], neutral={"strength": 0.0})
def sdedit(
    backbone: Backbone,
    image: Tensor,
    *,
    prompt: str | list[str] | None = None,
    mask: Tensor | None = None,
    strength: float = 0.5,
    scale: float = 3.0,
    rounds: int = 1,
    steps: int = 20,
    solver: str = "dpmpp_2m",
    generator: NoiseSource,
) -> Sample:
    """Vary ``image`` (B, C, *S) by noising it to ``strength`` and sampling back.

    Args:
        backbone: the model.
        image: in the contract's value range.
        prompt: what the result should show; ``None`` is the null condition.
        mask: (B, 1, *S), 1 where the image may change; outside, the source is put back at every step and at the end.
        strength: 0 leaves the image (up to the autoencoder), 1 starts from pure noise. The paper finds 0.3 to 0.6 good.
        scale: classifier-free guidance weight.
        rounds: how many times the output is fed back (K in the paper, 1 to 3).
        steps: steps of a full chain; ``strength`` of them are walked.
        solver: a plan of ``primitives.plans``.
        generator: one seed per image.

    Returns:
        ``image`` like the input.
    """
    batch = image.shape[0]
    denoise = guidance.classifier_free(
        backbone, backbone.condition(batch, prompt=prompt), scale if prompt is not None else 1.0
    )
    source = z = backbone.encode(image)
    plan = plans.make(backbone.schedule, steps, solver, strength=strength)
    inside = None if mask is None else masks.to_latent(masks.check(mask, image), z, cover=True)
    for _ in range(rounds if plan else 0):
        e = generator.normal(z)  # the draw that splices the image in is also the one that keeps its outside
        keep = None if inside is None else masks.keep_outside(source, inside, e)
        start = plan[0].level
        z = sample(denoise, start.alpha * z + start.sigma * e, plan, noise=generator, callback=keep)
    out = backbone.decode(z)
    return Sample(out if mask is None else masks.blend(out, image, masks.check(mask, image)), prompt=prompt)
