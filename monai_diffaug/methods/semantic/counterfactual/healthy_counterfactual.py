"""Healthy counterfactual: the same patient without the lesion, and a map of what had to change.

Paper: Sanchez, Kascenas, Liu, O'Neil, Tsaftaris. What is Healthy? Generative Counterfactual Diffusion for Lesion
Localization. DGM4MICCAI 2022. arXiv:2207.12268
Idea: deterministic inversion without a label keeps the patient in the noise; decoding that noise as healthy removes
the disease.
Changes: the sampler's starting point (inversion); guidance on the way back; dynamic normalization of x0 on both ways.
Departs: a backbone that takes lesion masks is told an empty mask and no class, since classes also differ in which
slices they hold and guidance towards one then changes the anatomy; works on latents, where the bound of dynamic
normalization is the source's own largest value if that is above 1, and the map compares with the autoencoder's
reconstruction; 50 steps, spaced in log-SNR and each refined to a residual, take the place of 100 plain ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....primitives import guidance, plans
from ....primitives.inversion import invert
from ....primitives.sampler import sample
from ....registry import method
from ....types import Backbone, NoiseSource, Sample


@method(labels="replaced", aliases=["what_is_healthy"], needs=["prompt_condition"], neutral={"strength": 0.0})
def healthy_counterfactual(
    backbone: Backbone,
    image: Tensor,
    *,
    prompt: str | list[str] = "healthy",
    strength: float = 0.75,
    scale: float | None = None,
    tolerance: float = 1e-3,
    steps: int = 50,
    generator: NoiseSource | None = None,
) -> Sample:
    """What ``image`` (B, C, *S) would look like if it were healthy.

    Args:
        backbone: conditioned on a class without lesions, and trained to do without being told. One that takes lesion
            masks is told an empty mask in place of the class.
        image: in the contract's value range.
        prompt: the class without lesions.
        strength: how far the image is inverted; 0 leaves it (up to the autoencoder).
        scale: classifier-free guidance weight towards healthy; 0 is the round trip. Unless given, 3 as in the paper,
            and 8 towards an empty mask.
        tolerance: relative miss that a step of the inversion may leave.
        steps: steps of a full chain; ``strength`` of them are walked down and up.
        generator: not drawn from, since both ways are deterministic.

    Returns:
        ``image``; ``map`` (B, 1, *S), the mean over channels of the absolute change; ``label`` the prompt; ``mask``
        (B, 1, *S) of zeros; ``info``: ``residual`` of the inversion and ``identity``, the correlation with the input
        over the nine tenths of the voxels that changed least, one number an image.
    """
    batch = image.shape[0]
    z = backbone.encode(image)
    limit = z.abs().flatten(2).amax(2).clamp(min=1.0)
    null = backbone.condition(batch)
    told = backbone.condition(batch, prompt=prompt)
    masked = "mask" in backbone.conditioner.accepts
    if masked:
        told = backbone.condition(batch, mask=torch.zeros_like(image[:, :1]))
    scale = (8.0 if masked else 3.0) if scale is None else scale
    plain = guidance.thresholded(backbone.denoiser(null), 0.99, limit)
    guided = guidance.thresholded(guidance.classifier_free(backbone, told, scale, negative=null), 0.99, limit)
    plan = plans.ddim(backbone.schedule, steps, strength=strength)
    abduced = invert(plain, z, plan, tolerance=tolerance)
    out = backbone.decode(sample(guided, abduced.latent, abduced.plan))
    change = (backbone.decode(z) - out).abs().mean(1, keepdim=True)
    return Sample(
        out,
        label=[prompt] * batch if isinstance(prompt, str) else list(prompt),
        mask=torch.zeros_like(change),
        map=change,
        prompt=prompt,
        info={"residual": list(abduced.residuals), "identity": _identity(image, out, change)},
    )


def _identity(image: Tensor, out: Tensor, change: Tensor) -> list[float]:
    found = []
    for a, b, c in zip(image, out, change, strict=True):
        still = (c <= torch.quantile(c.float(), 0.9)).expand_as(a)
        pair = torch.stack([a[still], b[still]]).double()
        found.append(float(torch.corrcoef(pair)[0, 1].nan_to_num(1.0)))
    return found
