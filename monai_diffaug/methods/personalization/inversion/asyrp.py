"""Asyrp: move an image along a direction of the network's bottleneck, by any amount.

Paper: Kwon, Jeong, Uh. Diffusion Models Already Have a Semantic Latent Space. ICLR 2023. arXiv:2210.10960
Idea: a shift of the bottleneck acts if it enters the predicted image and not the predicted noise.
Changes: features (the bottleneck); the sampler's prediction, x0 and eps of different passes; its starting point
(inversion); its last steps, which draw noise.
Departs: inversion is refined to a residual; where the edit ends and the boosting begins are fractions of the chain,
0.5 and 0.2 (the paper's values for lack of a perceptual distance, which it would otherwise choose them by). `h_space`
learns the direction.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ....primitives import bottleneck, plans
from ....primitives.inversion import invert
from ....primitives.sampler import sample
from ....registry import method
from ....types import Backbone, Concept, NoiseLevel, NoiseSource, Sample


@method(labels="replaced", needs=["features"], neutral={"amount": 0.0, "boost": 0.0}, learned_by="h_space")
def asyrp(
    backbone: Backbone,
    image: Tensor,
    *,
    concept: Concept | str | Path,
    amount: float = 1.0,
    until: float = 0.5,
    boost: float = 0.2,
    strength: float = 1.0,
    steps: int = 50,
    generator: NoiseSource,
) -> Sample:
    """Move ``image`` (B, C, *S) along a direction of the bottleneck.

    Args:
        backbone: the model that the direction was learned on.
        image: in the contract's value range.
        concept: a direction that ``h_space`` learned, or its file.
        amount: how far: 1 is what was learned, -1 the opposite, 0 gives the image back.
        until: the edit acts from the noisiest step down to this fraction of the chain.
        boost: steps that end below this fraction of the chain draw noise, for sharper images; with 0 none does.
        strength: how far the image is inverted; 0 leaves it (up to the autoencoder), and so does ``until`` or less.
        steps: steps of a full chain. The shift is scaled by how many more there were in learning.
        generator: one seed per image, for the last steps.

    Returns:
        ``image``; ``label`` what the direction leads to; ``info["residual"]`` of the inversion, one number an image.
    """
    batch, told = image.shape[0], backbone.condition(image.shape[0])
    generator.expect(batch)
    found, learned = bottleneck.direction(concept, backbone)
    gain = amount * float(found.info["steps"]) / steps
    plan = plans.ddim(backbone.schedule, steps, spacing="linspace", strength=strength)
    noisy = plans.ddim(backbone.schedule, steps, spacing="linspace", strength=strength, eta=1.0)

    def shift(h: Tensor, level: NoiseLevel) -> Tensor:
        return gain * learned(h, level)

    inverted = invert(backbone.denoiser(told), backbone.encode(image), plan)
    quiet = backbone.schedule.at(boost * backbone.schedule.times[-1]).sigma if boost else 0.0
    rows = tuple(b if b.sigma < quiet else a for a, b in zip(inverted.plan, noisy, strict=True))
    denoise = bottleneck.asymmetric(backbone, told, shift, until=until)
    z = sample(denoise, inverted.latent, rows, noise=generator)
    target = str(found.info.get("prompt", ""))
    return Sample(backbone.decode(z), label=[target] * batch, info={"residual": list(inverted.residuals)})
