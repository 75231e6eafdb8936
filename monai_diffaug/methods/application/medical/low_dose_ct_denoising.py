"""Low-dose CT denoising: what a scan at the normal dose would have shown, and how sure one can be of it.

Paper: Xia, Lyu, Wang. Low-Dose CT Using Denoising Diffusion Probabilistic Model for 20x Speedup. 2022.
arXiv:2209.15136
Idea: a network that sees the low-dose image beside the noise samples the normal-dose image, and a fast solver of the
probability-flow ODE needs a twentieth of the steps.
Changes: the sampler (DPM-Solver on a log-SNR grid in place of 1000 ancestral steps); the network's input.
Departs: the solver is DPM-Solver++(2M), one network call a step; several draws are averaged on request, and their
spread says where the scan does not tell; below `strength` 1 the walk starts from the noised low-dose image instead of
from noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....primitives import plans
from ....primitives.sampler import sample
from ....registry import method
from ....types import Backbone, DiffAugError, NoiseSource, Sample


@method(labels="kept", aliases=["xia_ldct"], needs=["image_condition"], neutral={"strength": 0.0})
def low_dose_ct_denoising(
    backbone: Backbone,
    image: Tensor,
    *,
    draws: int = 1,
    strength: float = 1.0,
    steps: int = 50,
    solver: str = "dpmpp_2m",
    generator: NoiseSource,
) -> Sample:
    """Denoise ``image`` (B, C, *S).

    Args:
        backbone: trained on pairs of images; told the worse one, it samples the better one.
        image: the low-dose image, in the contract's value range. A convolutional backbone takes any size.
        draws: samples an image, of which the mean is returned. One looks most like a scan, the mean is nearest to it.
        strength: noise to start from; 1 starts from noise alone as in the paper, 0 leaves the image as it is.
        steps: network calls of a draw that starts from noise.
        solver: a plan of ``primitives.plans``; ``ddpm`` with 1000 steps is the paper's reference.
        generator: one seed per image.

    Returns:
        ``image``, the mean of the draws; ``map`` (B, 1, *S), their standard deviation (zeros for one draw), the mean
        over channels, in units of the value range; ``info``: ``calls`` of the network an image.

    Raises:
        DiffAugError: ``draws`` is below 1.
    """
    if draws < 1:
        raise DiffAugError(f"draws is {draws}: give at least 1")
    generator.expect(len(image))
    plan = plans.make(backbone.schedule, steps, solver, strength=strength)
    denoise = backbone.denoiser(backbone.condition(image.shape[0], image=image))
    start = backbone.encode(image)
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    first: Tensor | None = None
    for c in range(draws):
        # One draw after the other: a batch of all would take as much memory again for each.
        noise = NoiseSource(generator.spawn(draws).seeds[c * len(image) : (c + 1) * len(image)])
        z = start
        if plan:
            top = plan[0].level
            z = top.alpha * (start if strength < 1.0 else torch.zeros_like(start)) + top.sigma * noise.normal(start)
        out = backbone.decode(sample(denoise, z, plan, noise=noise))
        first = out if first is None else first
        # Sums of the distances to the first draw keep their digits where the draws are close to each other.
        total, squares = total + (out - first), squares + (out - first) ** 2
    assert first is not None
    mean = total / draws
    spread = ((squares / draws - mean**2).clamp(min=0) * draws / max(draws - 1, 1)).sqrt()
    return Sample(first + mean, map=spread.mean(1, keepdim=True), info={"calls": draws * len(plan)})
