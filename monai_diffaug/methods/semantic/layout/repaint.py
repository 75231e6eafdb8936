"""RePaint: fill a region with a model that has never seen a mask.

Paper: Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool. RePaint: Inpainting using Denoising Diffusion Probabilistic
Models. CVPR 2022. arXiv:2201.09865
Idea: the known part is put in, suitably noised, at every step, and steps are walked over again after jumping back in
noise, so that the filling comes to agree with it.
Changes: the plan (jumps back up in noise); what lies outside the mask at every step and at the end.
Departs: works on latents, where a voxel that the mask touches is filled, and the known pixels are put back after
decoding; a jump of several levels is made in one draw, which has the same distribution; a prompt may steer the
filling; `strength` below 1 starts from the noised image.
"""

from __future__ import annotations

from torch import Tensor

from ....primitives import guidance, masks, plans
from ....primitives.sampler import noised, sample
from ....registry import method
from ....types import Backbone, NoiseSource, Sample


@method(labels="kept", neutral={"strength": 0.0})
def repaint(
    backbone: Backbone,
    image: Tensor,
    *,
    mask: Tensor,
    prompt: str | list[str] | None = None,
    strength: float = 1.0,
    scale: float = 1.0,
    jump_length: int = 10,
    rounds: int = 10,
    steps: int = 250,
    generator: NoiseSource,
) -> Sample:
    """Fill ``mask`` in ``image`` (B, C, *S) so that it fits its surroundings.

    The defaults are the paper's and make about 2400 network calls; ``steps=50, jump_length=5, rounds=4`` makes 185.

    Args:
        backbone: the model; it need not know of masks.
        image: in the contract's value range; what it holds inside the mask plays no part, unless by ``strength``.
        mask: (B, 1, *S), 1 where the image is to be filled. Every other pixel is returned as it was.
        prompt: what the filling should show; ``None`` is the null condition.
        strength: 1 fills from pure noise, 0 leaves the image as it is (up to the autoencoder).
        scale: classifier-free guidance weight; 1 is the prompt alone.
        jump_length: j, after how many steps the state is noised back up, and by how many.
        rounds: r, how many times these steps are walked; 1 is plain replacement without jumps.
        steps: T, ancestral steps of a full chain.
        generator: one seed per image.

    Returns:
        ``image``, equal to the input outside the mask.
    """
    batch = image.shape[0]
    area = masks.check(mask, image)
    told = backbone.condition(batch, prompt=prompt)
    denoise = guidance.classifier_free(backbone, told, scale if prompt is not None else 1.0)
    z = backbone.encode(image)
    inside = masks.to_latent(area, z, cover=True)
    plan = plans.with_jumps(plans.ddpm(backbone.schedule, steps, strength=strength), jump_length, rounds)
    start = noised(z, plan, generator)
    if strength == 1.0 and plan:
        start = masks.blend(generator.normal(z), start, inside)
    out = sample(denoise, start, plan, noise=generator, callback=masks.keep_outside(z, inside, generator))
    return Sample(masks.blend(backbone.decode(out), image, area), prompt=prompt)
