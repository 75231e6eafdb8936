"""Loopback: noise an image part of the way and give the model's best guess of what it was.

Paper: Ho, Jain, Abbeel. Denoising Diffusion Probabilistic Models. NeurIPS 2020. arXiv:2006.11239
Idea: one call of the denoiser at one noise level already shows what the model thinks of an image.
Changes: nothing but the number of steps, which is one.
Departs: nothing; it is the estimate of x0 in equation 15.
"""

from __future__ import annotations

from torch import Tensor

from monai_diffaug.primitives import plans
from monai_diffaug.primitives.sampler import noised, sample
from monai_diffaug.registry import method
from monai_diffaug.types import Backbone, NoiseSource, Sample


@method(labels="kept", aliases=["there_and_back"], neutral={"strength": 0.0})
def loopback(
    backbone: Backbone,
    image: Tensor,
    *,
    prompt: str | list[str] | None = None,
    strength: float = 0.3,
    generator: NoiseSource,
) -> Sample:
    """What one look at the noised ``image`` (B, C, *S) tells.

    Args:
        backbone: the model.
        image: in the contract's value range.
        prompt: what it shows; ``None`` is the null condition.
        strength: 0 leaves the image (up to the autoencoder), 1 is a guess from pure noise.
        generator: one seed per image.

    Returns:
        ``image`` like the input.
    """
    z = backbone.encode(image)
    plan = plans.ddim(backbone.schedule, 1, strength=strength)
    denoise = backbone.denoiser(backbone.condition(image.shape[0], prompt=prompt))
    return Sample(backbone.decode(sample(denoise, noised(z, plan, generator), plan)), prompt=prompt)
