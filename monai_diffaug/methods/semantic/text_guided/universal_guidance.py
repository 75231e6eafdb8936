"""Universal guidance: any network that reads clean images steers the sampler, without retraining.

Paper: Bansal, Chu, Schwarzschild, Sengupta, Goldblum, Geiping, Goldstein.
  Universal Guidance for Diffusion Models. CVPR Workshops 2023. arXiv:2302.07121
Idea: the guide sees the clean estimate instead of the noisy image, so that it need not know noise.
Changes: guidance (forward through the denoiser, backward on the estimate), the sampler's walk (every step repeated).
Departs: 50 DDIM steps where the authors' scripts take 250 to 500; the backward steps move the latent estimate,
as theirs do on latent models, and clamp it to its own largest value, since a latent knows no bounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....primitives import guidance, objectives, plans
from ....primitives.sampler import sample
from ....registry import method
from ....types import Backbone, Denoiser, NoiseLevel, NoiseSource, Prediction, Sample

Objective = Callable[[Tensor], Tensor]


@method(labels="generated", aliases=["ugd"], needs=["objective"])
def universal_guidance(
    backbone: Backbone,
    *,
    target: str | list[str] | None = None,
    objective: str | Objective = "scorer",
    prompt: str | list[str] | None = None,
    forward_scale: float = 10.0,
    backward_steps: int = 0,
    rounds: int = 5,
    scale: float = 3.0,
    steps: int = 50,
    generator: NoiseSource,
) -> Sample:
    """Generate images that an objective finds right.

    Args:
        backbone: the model; what it is not told, the objective may still ask for.
        target: what the objective shall see: words for the ``scorer``, a class name for the ``judge``; the prompt
            unless given.
        objective: ``scorer``, ``judge``, or any differentiable ``loss(images (B, C, *S)) -> (B,)``: a segmenter, a
            landmark network, a dose.
        prompt: what the denoiser itself is told; ``None`` is the null condition.
        forward_scale: s of ``eps + s sigma grad`` (eq. 6).
        backward_steps: m, steps of Adam on the clean estimate (eq. 7 to 9); 0 leaves backward guidance out.
        rounds: k, how often every step is repeated from fresh noise (section 3.3); 1 is once.
        scale: classifier-free guidance weight for ``prompt``.
        steps: of DDIM.
        generator: one seed per image; their number is the number of images.

    Returns:
        ``image``; ``label`` the target; ``info["loss"]`` what the objective says of each image.
    """
    batch = len(generator)
    loss = objectives.named(objective, backbone, prompt if target is None else target)
    condition = backbone.condition(batch, prompt=prompt)
    denoise = guidance.classifier_free(backbone, condition, scale if prompt is not None else 1.0, batch=batch)
    if forward_scale:
        denoise = guidance.loss(denoise, lambda x0: loss(backbone.decode(x0)), forward_scale)
    if backward_steps:
        denoise = _backward(denoise, lambda x0: loss(backbone.decode(x0)), backward_steps)
    plan = plans.with_jumps(plans.ddim(backbone.schedule, steps), 1, rounds)
    contract = backbone.contract
    like = torch.empty(batch, contract.latent_channels, *contract.latent_size, device=backbone.device)
    z = sample(denoise, plan[0].level.sigma * generator.normal(like), plan, noise=generator)
    with torch.no_grad():
        image = backbone.decode(z)
        found = loss(image)
    return Sample(image, label=target, prompt=prompt, info={"loss": found.tolist()})


def _backward(denoiser: Denoiser, objective: Objective, m: int, rate: float = 1e-2) -> Denoiser:
    """Find the change of ``x0`` that lowers the objective, and the noise that goes with it."""

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        x0 = denoiser(x, level).x0.detach()
        limit = x0.abs().flatten(1).amax(1).reshape(-1, *[1] * (x0.ndim - 1))
        with torch.enable_grad():
            change = torch.zeros_like(x0).requires_grad_(True)
            optimizer = torch.optim.Adam([change], lr=rate)
            for _ in range(m):
                loss = objective(x0 + change)
                if float(loss.detach().max()) < 1e-5:
                    break
                optimizer.zero_grad()
                loss.sum().backward()
                optimizer.step()
        x0 = (x0 + change.detach()).clamp(-limit, limit)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoise
