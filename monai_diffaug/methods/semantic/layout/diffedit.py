"""DiffEdit: find by oneself where a prompt wants a change, and change it there only.

Paper: Couairon, Verbeek, Schwenk, Cord. DiffEdit: Diffusion-based Semantic Image Editing with Mask Guidance. ICLR
2023. arXiv:2210.11427
Idea: where two prompts disagree about the noise lies what must change, and the rest follows the image's own inverted
path.
Changes: the sampler's starting point (inversion); what lies outside the found mask at every step.
Departs: inversion is refined to a residual; the mask is found and kept at latent size; the noises are compared without
guidance, which would multiply their difference by one number that the mask's scaling takes out again; they are
compared at the noise that half of Stable Diffusion's chain has, whatever the backbone's schedule; steps follow
log-SNR.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ....primitives import guidance, masks, plans
from ....primitives.inversion import arrivals, invert
from ....primitives.sampler import sample
from ....registry import method
from ....types import Backbone, NoiseSource, Prediction, Row, Sample

_LOG_SNR = -0.48


@method(labels="replaced", needs=["prompt_condition"], neutral={"strength": 0.0})
def diffedit(
    backbone: Backbone,
    image: Tensor,
    *,
    prompt: str | list[str],
    source_prompt: str | list[str] | None = None,
    mask: Tensor | None = None,
    strength: float = 0.7,
    scale: float = 7.5,
    threshold: float = 0.5,
    draws: int = 10,
    steps: int = 50,
    generator: NoiseSource,
) -> Sample:
    """Make ``image`` (B, C, *S) show ``prompt``, changing only the region that this concerns.

    Args:
        backbone: the model.
        image: in the contract's value range.
        prompt: what the result should show.
        source_prompt: what the image shows; ``None`` is the null condition.
        mask: (B, 1, *S), 1 where the image may change, in place of the mask that is found. All ones leaves plain
            decoding of the inverted image.
        strength: r, how far the image is inverted; 0 leaves it (up to the autoencoder). 0.5 to 0.8 are good (paper).
        scale: classifier-free guidance weight of the decoding.
        threshold: of the difference of noises, scaled to 0 to 1, above which the mask lies.
        draws: n, of noise over which the difference is averaged.
        steps: steps of a full chain; ``strength`` of them are walked down and up.
        generator: one seed per image, for the mask; the rest is deterministic.

    Returns:
        ``image``; ``map`` (B, 1, *S) the mask that was used, in 0 and 1; ``label`` the prompt; ``info["residual"]`` of
        the inversion, one number an image.
    """
    batch = image.shape[0]
    told = backbone.condition(batch, prompt=prompt)
    source = backbone.denoiser(backbone.condition(batch, prompt=source_prompt))
    plan = plans.ddim(backbone.schedule, steps, strength=strength)
    z = backbone.encode(image)
    if mask is None:
        level = backbone.schedule.at_log_snr(_LOG_SNR)
        inside = masks.from_noise_difference(
            backbone, z, backbone.denoiser(told), source, level, generator, draws=draws, threshold=threshold
        )
    else:
        inside = masks.to_latent(masks.check(mask, image), z, cover=True)
    inverted = invert(source, z, plan)
    path = arrivals(inverted, z)

    def keep(x: Tensor, row: Row, _: Prediction | None) -> Tensor:
        return masks.blend(x, next(path), inside)

    z = sample(guidance.classifier_free(backbone, told, scale), inverted.latent, inverted.plan, callback=keep)
    return Sample(
        backbone.decode(z),
        label=[prompt] * batch if isinstance(prompt, str) else list(prompt),
        map=F.interpolate(inside, image.shape[2:], mode="nearest"),
        prompt=prompt,
        info={"residual": list(inverted.residuals)},
    )
