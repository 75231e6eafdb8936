"""Training an autoencoder, one step at a time: see :mod:`.stages` for what a stage is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import DiffAugError
from .runs import Draws, Settings, averaged, descend
from .stages import Batch, plain

__all__ = ["AutoencoderStage", "psnr"]


def psnr(a: Tensor, b: Tensor, span: float) -> Tensor:
    """Peak signal-to-noise ratio in dB, one number an image (B,), for intensities that span ``span``."""
    return 10 * torch.log10(span**2 / (a - b).float().pow(2).flatten(1).mean(1).clamp(min=1e-12))


class AutoencoderStage:
    """An ``AutoencoderKL`` or ``VQVAE`` (Rombach et al. 2022, arXiv:2112.10752, section 3.1 and eq. 25).

    L1, plus L1 of finite differences, plus a patch discriminator's hinge loss (Isola et al. 2017) and matching of its
    feature maps (Wang et al. 2018, arXiv:1711.11585, eq. 4), which stands in for a downloaded perceptual network.

    Args:
        module: the autoencoder; ends with its averaged weights.
        discriminator: returns a list of feature maps, the last its verdict.
        settings: length, batch, rates.
        held_out: images (M, C, *S) not trained on, for the PSNR that is watched; none to go without.
        crop: side of the random windows trained on; whole images if None.
        kl: weight of the regularizer.
        edges: weight of the finite differences.
        adversarial: weight of the discriminator's verdict, from ``adversarial_from`` of the steps on.
        matching: weight of feature matching, likewise.
        adversarial_from: fraction of the steps after which the two begin.
        span: width of the value range.
    """

    name = "autoencoder"

    def __init__(
        self,
        module: nn.Module,
        discriminator: nn.Module,
        settings: Settings,
        *,
        held_out: Tensor | None = None,
        crop: int | None = None,
        kl: float = 1e-4,
        edges: float = 0.5,
        adversarial: float = 0.05,
        matching: float = 0.5,
        adversarial_from: float = 0.5,
        span: float = 2.0,
    ):
        self.module, self.discriminator, self.settings = module.requires_grad_(True).train(), discriminator, settings
        self.held_out, self.crop, self.span = held_out, crop, span
        self.kl, self.edges, self.adversarial, self.matching = kl, edges, adversarial, matching
        self.begin = int(adversarial_from * settings.steps)
        self.average = averaged(module, settings.ema)
        decay = settings.weight_decay
        self.optimizer = torch.optim.AdamW(module.parameters(), settings.lr, weight_decay=decay, betas=(0.9, 0.99))
        self.opponent = torch.optim.AdamW(
            discriminator.parameters(), settings.lr, weight_decay=decay, betas=(0.5, 0.99)
        )
        self.state: Mapping[str, Any] = {
            "module": module,
            "average": self.average,
            "discriminator": discriminator,
            "optimizer": self.optimizer,
            "opponent": self.opponent,
        }

    def step(self, batch: Batch, step: int, draws: Draws) -> dict[str, float]:
        """One step on ``batch["image"]`` (B, C, *S), and one of the discriminator once it plays."""
        device = next(self.module.parameters()).device
        x = _crops(plain(batch["image"]), self.crop, draws.generator).to(device)
        playing = step >= self.begin and bool(self.adversarial or self.matching)
        with self.settings.autocast(device):
            y, regularizer = _reconstruct(self.module, x, draws)
        y = y.float()
        l1 = (y - x).abs().mean()
        edge = torch.stack([(a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True)]).mean()
        loss = l1 + self.edges * edge + self.kl * regularizer.float()
        row = {"l1": float(l1.detach()), "edge": float(edge.detach()), "kl": float(regularizer.detach())}
        if playing:
            fake, real = self._verdicts(y, x)
            verdict = -fake[-1].float().mean()
            alike = torch.stack([(f - r.detach()).abs().float().mean() for f, r in zip(fake[:-1], real[:-1])]).mean()
            loss = loss + self.adversarial * verdict + self.matching * alike
            row |= {"verdict": float(verdict.detach()), "match": float(alike.detach())}
        descend(self.optimizer, loss, self.settings, step, list(self.module.parameters()))
        self.average.update_parameters(self.module)
        if playing:
            fake, real = self._verdicts(y.detach(), x)
            hinge = F.relu(1 + fake[-1].float()).mean() + F.relu(1 - real[-1].float()).mean()
            descend(self.opponent, 0.5 * hinge, self.settings, step, list(self.discriminator.parameters()))
            row["hinge"] = float(hinge.detach())
        return {"loss": float(loss.detach()), **row}

    def _verdicts(self, y: Tensor, x: Tensor) -> tuple[Any, Any]:
        with self.settings.autocast(x.device):
            return self.discriminator(y), self.discriminator(x)

    def check(self, step: int) -> dict[str, float]:
        """``psnr`` (held out, dB) and ``spread``, the least standard deviation of a latent channel over the widest.

        Raises:
            DiffAugError: the autoencoder collapsed; the message says how it was noticed and what to change.
        """
        if self.held_out is None:
            return {}
        module = self.module if step >= self.settings.steps else self.average.module
        found = _health(module, self.held_out.to(next(module.parameters()).device), self.span)
        if step >= self.settings.steps // 4:
            _refuse_collapse(found)
        return found

    def finish(self) -> None:
        """Averaged weights go in."""
        self.module.load_state_dict(self.average.module.state_dict())
        self.module.eval()


def _crops(images: Tensor, size: int | None, generator: torch.Generator) -> Tensor:
    """One random window of ``size`` voxels a side for the whole batch; all of it where ``size`` is None."""
    if size is None:
        return images
    spans = [slice(None), slice(None)]
    for side in images.shape[2:]:
        start = int(torch.randint(max(side - size, 0) + 1, (), generator=generator))
        spans.append(slice(start, start + size))
    return images[tuple(spans)]


def _edges(x: Tensor) -> list[Tensor]:
    return [x.diff(dim=d) for d in range(2, x.ndim)]


def _reconstruct(module: Any, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Reconstruction and regularizer: KL of an ``AutoencoderKL`` per latent voxel, commitment of a ``VQVAE``."""
    out = module.encode(x)
    if not isinstance(out, tuple):
        image, commitment = module(x)
        return image, commitment
    mu, sigma = out
    image = module.decode(mu + sigma * draws.normal(sigma))
    mu, sigma = mu.float(), sigma.float()
    kl = 0.5 * (mu.pow(2) + sigma.pow(2) - (sigma.pow(2) + 1e-12).log() - 1)
    return image, kl.mean()


def _health(module: nn.Module, images: Tensor, span: float) -> dict[str, float]:
    """Held-out PSNR of the posterior mean's reconstruction, and the least spread of a latent channel."""
    net: Any = module
    was = module.training
    module.eval()
    with torch.no_grad():
        found = []
        for x in images[:64].split(16):
            out = net.encode(x)
            mean = out[0] if isinstance(out, tuple) else net.quantize(out)[0]
            found.append((mean, psnr(net.decode_stage_2_outputs(mean), x, span)))
    module.train(was)
    latents = torch.cat([m for m, _ in found])
    spread = latents.transpose(0, 1).flatten(1).std(1)
    return {"psnr": float(torch.cat([p for _, p in found]).mean()), "spread": float(spread.min() / spread.max())}


def _refuse_collapse(found: Mapping[str, float]) -> None:
    if found["spread"] < 0.02:
        raise DiffAugError(
            f"the autoencoder collapsed: a latent channel spreads only {found['spread']:.3f} of the widest; "
            "lower the KL weight or the number of latent channels"
        )
    if found["psnr"] < 12.0:
        raise DiffAugError(
            f"the autoencoder does not reconstruct (held-out PSNR {found['psnr']:.1f} dB at a quarter of the steps): "
            "lower the learning rate or the adversarial weight"
        )
