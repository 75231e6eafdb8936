"""Training a network to tell whether two images show the same patient.

Packhaeuser et al. 2022 (Scientific Reports 12:14851, arXiv:2103.08562) had 100,000 films of 30,000 patients. Where few
patients were seen twice, a film and a changed view of it stand in for two visits: :func:`visits` moves, bends and
exposes it anew, lays shadows over the lungs and hides parts, but never mirrors it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import DiffAugError
from .runs import Draws, Settings, averaged, descend
from .stages import Batch, plain

__all__ = ["VerifierStage", "paired", "visits"]

View = Callable[[Tensor, Draws], Tensor]


def visits(images: Tensor, draws: Draws, strength: float = 1.0) -> Tensor:
    """Each image as another visit might show it.

    Args:
        images: (B, C, *S) in [-1, 1].
        draws: of the step.
        strength: 1 is turned by up to 12 degrees, shifted by 16 % of the size, scaled by 0.85 to 1.2 (each axis 8 % of
            its own), bent by 3 %; contrast 0.6 to 1.6, gamma 0.67 to 1.5, shadows up to 0.15, noise up to 0.04, and up
            to two blocks of at most 30 % a side hidden.

    Returns:
        (B, C, *S) in [-1, 1].
    """
    return _hidden(_exposed(_moved(images, draws, strength), draws, strength), draws, strength)


def _between(like: Tensor, low: float, high: float, draws: Draws) -> Tensor:
    """One number an image, to be multiplied with (B, C, *S)."""
    return (low + (high - low) * draws.uniform(len(like))).reshape(-1, *[1] * (like.ndim - 1))


def _smooth(like: Tensor, cells: int, channels: int, draws: Draws) -> Tensor:
    """A random field (B, channels, *S) that changes slowly: standard normal at ``cells`` points a side."""
    dims = like.ndim - 2
    coarse = draws.normal(torch.empty(len(like), channels, *[cells] * dims))
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]
    return F.interpolate(coarse, like.shape[2:], mode=mode, align_corners=True)


def _moved(x: Tensor, draws: Draws, strength: float) -> Tensor:
    b, dims = len(x), x.ndim - 2
    matrix = torch.eye(dims).expand(b, dims, dims).clone()
    for i in range(dims):
        for j in range(i + 1, dims):
            angle = (draws.uniform(b) - 0.5) * 0.42 * strength
            turn = torch.eye(dims).expand(b, dims, dims).clone()
            turn[:, i, i] = turn[:, j, j] = angle.cos()
            turn[:, i, j], turn[:, j, i] = -angle.sin(), angle.sin()
            matrix = matrix @ turn
    zoom = torch.stack([(draws.uniform(b) - 0.5) * 0.16 for _ in range(dims)], 1)
    zoom = zoom + (draws.uniform(b) * 0.34 - 0.18)[:, None]
    matrix = matrix * torch.exp(zoom * strength)[:, None]
    shift = torch.stack([(draws.uniform(b) - 0.5) * 0.32 * strength for _ in range(dims)], 1)
    grid = F.affine_grid(torch.cat([matrix, shift[..., None]], 2), list(x.shape), align_corners=False)
    bend = _smooth(x, 5, dims, draws) * 0.03 * strength
    return F.grid_sample(x, grid + bend.movedim(1, -1), padding_mode="border", align_corners=False)


def _exposed(x: Tensor, draws: Draws, strength: float) -> Tensor:
    x = ((x + 1) / 2).clamp(1e-4, 1) ** torch.exp(_between(x, -0.4, 0.4, draws) * strength)
    center = x.mean(tuple(range(1, x.ndim)), keepdim=True) + _between(x, -0.1, 0.1, draws) * strength
    x = (x - center) * torch.exp(_between(x, -0.5, 0.47, draws) * strength) + center
    x = x + _smooth(x, 4, 1, draws) * _between(x, 0, 0.15, draws) * strength
    x = x + draws.normal(x) * _between(x, 0, 0.04, draws) * strength
    return x.clamp(0, 1) * 2 - 1


def _hidden(x: Tensor, draws: Draws, strength: float) -> Tensor:
    for often in (2 / 3, 1 / 3):
        inside = draws.uniform(len(x)) < often
        inside = inside.reshape(-1, *[1] * (x.ndim - 1))
        for axis, n in enumerate(x.shape[2:], 2):
            side = draws.uniform(len(x)) * 0.3 * strength
            start = draws.uniform(len(x)) * (1 - side)
            at = torch.arange(n) / n
            along = (at >= start[:, None]) & (at <= (start + side)[:, None])
            inside = inside & along.reshape(len(x), *[n if i == axis else 1 for i in range(1, x.ndim)])
        x = torch.where(inside, _between(x, -1, 1, draws), x)
    return x


class VerifierStage:
    """A siamese network from pairs of one patient (the paper's BCE on balanced pairs) and an embedding of its own.

    The batch gives the pairs that match; those that do not are made within it, two for every image: one at random and
    one that the embedding takes for near, so that the hard ones come up. The embedding learns by contrast within the
    batch (van den Oord et al. 2018, arXiv:1807.03748, eq. 4).

    Args:
        module: ``backbones.verifier.SiameseNet``, or another with ``seen``, ``same`` and ``length``; ends with its
            averaged weights.
        settings: length, batch, rates.
        view: ``(images, draws) -> images``, drawn anew for both sides of every pair.
        held_out: what :meth:`check` measures, for the log.
        temperature: of the contrast.
    """

    name = "verifier"

    def __init__(
        self,
        module: nn.Module,
        settings: Settings,
        *,
        view: View = visits,
        held_out: Callable[[Any], Mapping[str, float]] | None = None,
        temperature: float = 0.1,
    ):
        self.module, self.settings, self.view = module.train(), settings, view
        self.held_out, self.temperature = held_out, temperature
        self.average = averaged(module, settings.ema)
        self.optimizer = torch.optim.AdamW(module.parameters(), settings.lr, weight_decay=settings.weight_decay)
        self.state: Mapping[str, Any] = {"module": module, "average": self.average, "optimizer": self.optimizer}

    def step(self, batch: Batch, step: int, draws: Draws) -> dict[str, float]:
        """One step on ``batch["image"]`` and ``batch["partner"]`` (B, C, *S), and ``batch["patient"]`` (B,) numbers.

        Several processes see each other's images, so that they contrast the whole batch as one process would.
        """
        net: Any = self.module
        device = next(net.parameters()).device
        pairs = torch.cat([plain(batch["image"]), plain(batch["partner"])])
        x = self.view(pairs, draws).to(device)
        with self.settings.autocast(device):
            seen = net.seen(x)
        s, t = (_gathered(half.float(), draws) for half in seen.chunk(2))
        patient = _gathered(plain(batch["patient"]).to(device), draws)
        contrast, verify, found = self._losses(s, t, patient, draws)
        loss = contrast + verify
        # Every process knows the gradient of its own images only; the mean over processes must be their sum.
        descend(self.optimizer, loss * draws.world, self.settings, step, list(net.parameters()))
        self.average.update_parameters(net)
        return {
            "loss": float(loss.detach()),
            "contrast": float(contrast.detach()),
            "verify": float(verify.detach()),
            "found": found,
        }

    def _losses(self, s: Tensor, t: Tensor, patient: Tensor, draws: Draws) -> tuple[Tensor, Tensor, float]:
        """Contrast, binary cross-entropy, and how often the partner is the nearest of the batch."""
        net: Any = self.module
        alike = s[:, : net.length] @ t[:, : net.length].T
        ours = patient[:, None] == patient[None]
        own = torch.eye(len(s), dtype=torch.bool, device=s.device)
        logits = (alike / self.temperature).masked_fill(ours & ~own, -torch.inf)  # others of the patient: neither
        target = torch.arange(len(s), device=s.device)
        contrast = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
        hard = _drawn((alike.detach() / self.temperature).masked_fill(ours, -torch.inf), draws)
        easy = _drawn(torch.zeros_like(alike).masked_fill(ours, -torch.inf), draws)
        said = torch.stack([net.same(s, t), net.same(s, t[hard]), net.same(s, t[easy])])
        truth = torch.zeros_like(said)
        truth[0] = 1.0
        weight = torch.tensor([[2.0], [1.0], [1.0]], device=s.device)
        verify = (F.binary_cross_entropy_with_logits(said, truth, reduction="none") * weight).mean()
        return contrast, verify, float((logits.argmax(1) == target).float().mean())

    def check(self, step: int) -> Mapping[str, float]:
        """What ``held_out`` finds of the averaged weights."""
        return {} if self.held_out is None else self.held_out(self.average.module)

    def finish(self) -> None:
        """Averaged weights go in."""
        self.module.load_state_dict(self.average.module.state_dict())
        self.module.eval()


def _gathered(x: Tensor, draws: Draws) -> Tensor:
    """The rows of all processes in the order of the whole batch; a gradient flows to this process's own."""
    if draws.world == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(draws.world)]
    torch.distributed.all_gather(parts, x.detach().contiguous())
    parts[draws.rank] = x
    return torch.stack(parts, 1).flatten(0, 1)


def _drawn(logits: Tensor, draws: Draws) -> Tensor:
    """One column for every row, by the softmax of its logits."""
    u = torch.rand(logits.shape, generator=draws.generator).to(logits.device).clamp(1e-9, 1 - 1e-7)
    return (logits - (-u.log()).log()).argmax(1)


def paired(
    items: Sequence[Mapping[str, Any]], shares: Mapping[str, float], length: int = 8192, seed: int = 0
) -> list[dict[str, Any]]:
    """Items with a partner: another image of the same patient, or the same where there is no other.

    Args:
        items: with ``image``, ``patient`` and ``source``.
        shares: source -> how much of the result comes from it; sources are repeated or thinned to that.
        length: of the result.
        seed: of the choice.

    Returns:
        items with ``image``, ``partner`` and ``patient``, now a number.
    """
    numbers = {p: i for i, p in enumerate(dict.fromkeys(str(item["patient"]) for item in items))}
    films: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        films.setdefault(str(item["patient"]), []).append(item)
    generator = torch.Generator().manual_seed(seed)
    out = []
    for source, share in shares.items():
        patients = [p for p, own in films.items() if own[0]["source"] == source]
        if not patients:
            raise DiffAugError(f"there are no images of source {source!r}: correct the shares")
        order = torch.randperm(round(share * length), generator=generator) % len(patients)
        for patient in (patients[int(i)] for i in order):
            own = films[patient]
            a, b = torch.randperm(len(own), generator=generator)[:2] if len(own) > 1 else (0, 0)
            out.append({"image": own[int(a)]["image"], "partner": own[int(b)]["image"], "patient": numbers[patient]})
    return out
