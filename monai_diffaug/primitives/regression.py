"""The plain way from one image to another: a network of the same build, trained on the squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .reconstruction import psnr
from .runs import Draws, Settings, averaged, descend
from .stages import Batch, plain

__all__ = ["RegressionStage", "regressed"]


def regressed(module: nn.Module, source: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """What a ``DiffusionModelUNet`` makes of ``source`` (B, C, *S) as a plain U-Net: it says what to add.

    Its time is held at 0. Learning the difference (Zhang et al. 2017, arXiv:1608.03981, section 3.2) starts it at the
    identity, since MONAI's last layer starts at zero.
    """
    still = torch.zeros(len(source), device=source.device)
    with torch.autocast(source.device.type, dtype=precision, enabled=precision != torch.float32):
        change: Tensor = module(source, timesteps=still)
    return source + change.float()


class RegressionStage:
    """A U-Net that makes ``batch["image"]`` of ``batch[source]``, both (B, C, *S): the baseline of a diffusion model.

    Args:
        module: as :func:`regressed` calls it; ends with its averaged weights.
        settings: length, batch, rates.
        source: the batch's key of what it is given.
        held_out: batches not trained on, for the PSNR that is watched.
        name: of the checkpoint.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Settings,
        *,
        source: str = "source",
        held_out: Sequence[Batch] = (),
        name: str = "regression",
    ):
        self.module, self.settings, self.source = module.train(), settings, source
        self.held_out, self.name = held_out, name
        self.average = averaged(module, settings.ema)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
        )
        self.state: Mapping[str, Any] = {"module": module, "average": self.average, "optimizer": self.optimizer}
        self.device = next(module.parameters()).device

    def _pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return plain(batch[self.source]).to(self.device), plain(batch["image"]).to(self.device)

    def step(self, batch: Batch, step: int, draws: Draws) -> dict[str, float]:
        """One step down the squared error."""
        source, wanted = self._pair(batch)
        loss = (regressed(self.module, source, self.settings.precision) - wanted).pow(2).mean()
        # In units of the source's own error, so that Adam's epsilon and the gradient's clip are of no account.
        scaled = loss / (source - wanted).pow(2).mean().clamp(min=1e-8)
        descend(self.optimizer, scaled, self.settings, step, self.parameters)
        self.average.update_parameters(self.module)
        return {"loss": float(scaled.detach())}

    def check(self, step: int) -> dict[str, float]:
        """``held_out_psnr``: in dB, over a span of 2, of the held-out batches."""
        module = self.module if step >= self.settings.steps else self.average.module
        with torch.no_grad():
            pairs = [self._pair(batch) for batch in self.held_out]
            found = [psnr(regressed(module, a), b, 2.0) for a, b in pairs]
        return {"held_out_psnr": float(torch.cat(found).mean())} if found else {}

    def finish(self) -> None:
        """Averaged weights go in."""
        self.module.load_state_dict(self.average.module.state_dict())
        self.module.eval()
