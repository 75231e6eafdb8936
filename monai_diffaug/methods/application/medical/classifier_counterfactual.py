"""Classifier counterfactual: a diseased scan encoded into noise, and decoded towards what a classifier calls healthy.

Paper: Wolleb, Bieder, Sandkuehler, Cattin. Diffusion Models for Medical Anomaly Detection. MICCAI 2022.
arXiv:2203.04306
Idea: deterministic encoding keeps the patient, and the gradient of a classifier that knows noise takes the disease out
on the way back.
Changes: the sampler's starting point (inversion); classifier guidance on the way back; x0 clipped to the data's range.
Departs: works on latents, where the range is the source's own largest value in each channel, the map compares with the
autoencoder's reconstruction and the scale that serves is smaller; 50 steps, spaced in log-SNR and each refined to a
residual, take the place of 1000 plain ones; the denoiser itself is told no class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....primitives import guidance, plans
from ....primitives.inversion import invert
from ....primitives.sampler import sample
from ....registry import method
from ....types import Backbone, Denoiser, NoiseLevel, NoiseSource, Prediction, Sample


@method(
    labels="replaced", aliases=["diffusion_anomaly_detection", "wolleb"], needs=["guide"], neutral={"strength": 0.0}
)
def classifier_counterfactual(
    backbone: Backbone,
    image: Tensor,
    *,
    prompt: str | list[str] = "healthy",
    strength: float = 0.5,
    scale: float = 30.0,
    tolerance: float = 1e-3,
    steps: int = 50,
    generator: NoiseSource | None = None,
) -> Sample:
    """What ``image`` (B, C, *S) would look like if a classifier were to call it ``prompt``.

    Args:
        backbone: with a ``guide``, a classifier of noisy latents.
        image: in the contract's value range.
        prompt: the guide's class without lesions, one or one an image.
        strength: L / T, how far the image is encoded; 0 leaves it (up to the autoencoder).
        scale: s of ``eps - s sigma grad log p``; 0 is the round trip, too much destroys the anatomy.
        tolerance: relative miss that a step of the inversion may leave.
        steps: steps of a full chain; ``strength`` of them are walked down and up.
        generator: not drawn from, since both ways are deterministic.

    Returns:
        ``image``; ``map`` (B, 1, *S), the sum over channels of the absolute change; ``label`` the prompt; ``mask``
        (B, 1, *S) of zeros; ``info``: ``residual`` of the inversion and ``score``, the map's mean, one an image.
    """
    words = [prompt] * image.shape[0] if isinstance(prompt, str) else list(prompt)
    towards = backbone.guide.towards(words)
    z = backbone.encode(image)
    limit = z.abs().flatten(2).amax(2).reshape(*z.shape[:2], *[1] * (z.ndim - 2))
    plain = _clipped(backbone.denoiser(backbone.condition(image.shape[0])), limit)

    guided = _clipped(guidance.classifier(plain, towards, scale), limit) if scale else plain
    abduced = invert(plain, z, plans.ddim(backbone.schedule, steps, strength=strength), tolerance=tolerance)
    out = backbone.decode(sample(guided, abduced.latent, abduced.plan))
    change = (backbone.decode(z) - out).abs().sum(1, keepdim=True)
    return Sample(
        out,
        label=words,
        mask=torch.zeros_like(change),
        map=change,
        prompt=prompt,
        info={"residual": list(abduced.residuals), "score": change.flatten(1).mean(1).tolist()},
    )


def _clipped(denoiser: Denoiser, limit: Tensor) -> Denoiser:
    """With x0 within the data's range, and the noise that then belongs to it."""

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        x0 = denoiser(x, level).x0.clamp(-limit, limit)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoise
