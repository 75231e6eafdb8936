"""What fine-tuning gained on patients that it never saw, and what of the old kind of image it forgot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics.distribution import Floored, copies, floored, kid
from ..primitives import guidance, plans
from ..primitives.runs import Draws, Settings
from ..primitives.sampler import sample
from ..primitives.stages import NetworkStage
from ..types import Backbone, Condition, NoiseSource
from .cases import Cases
from .memorizing import thumbnails
from .stage import told_of

__all__ = ["Measure", "batches_of", "compared", "drawn_like", "encoded", "measure"]

Extractor = Callable[[Tensor], Tensor]


def encoded(backbone: Backbone, images: Tensor, batch: int = 16) -> Tensor:
    """Latents (N, c, *S / factor) of images (N, C, *S)."""
    with torch.no_grad():
        return torch.cat([backbone.encode(x.to(backbone.device)) for x in images.split(batch)]).float().cpu()


def batches_of(cases: Cases, latents: Tensor, size: int) -> list[dict[str, Any]]:
    """Batches of latents and what is told of them, in order; with ``size`` 1 the items that a trainer collates."""
    out = []
    for first in range(0, len(cases), size):
        some = cases.at(range(first, min(first + size, len(cases))))
        row = {"image": latents[first : first + size], **some.told}
        out.append(row | ({"masked": some.masked} if "mask" in some.told else {}))
    return out


def drawn_like(
    backbone: Backbone, cases: Cases, n: int, *, seed: int = 0, steps: int = 20, scale: float = 1.5, masks: bool = True
) -> Tensor:
    """``n`` images (n, C, *S) told what is known of cases, in turn; image i has seed ``seed + i``.

    Args:
        backbone: what makes them.
        cases: whose classes, prompts, numbers and masks are told.
        n: how many.
        seed: of the first.
        steps: of the chain.
        scale: of guidance; 1 for none.
        masks: whether masks are told.
    """
    contract, plan, made = backbone.contract, plans.make(backbone.schedule, steps), []
    cycled = cases.at([i % len(cases) for i in range(n)])
    fields = {k: v for k, v in cycled.told.items() if masks or k != "mask"}
    with torch.no_grad():
        for a in range(0, n, 16):
            b = min(a + 16, n)
            told: Condition = backbone.condition(b - a, **{k: v[a:b] for k, v in fields.items()})
            if "mask" in fields:
                told = told.dropped(backbone.condition(b - a), {"concat": cycled.masked[a:b]})
            noise = NoiseSource(range(seed + a, seed + b))
            like = torch.empty(b - a, contract.latent_channels, *contract.latent_size, device=backbone.device)
            guided = scale if told.batch is not None else 1.0
            denoise = guidance.classifier_free(backbone, told, guided, batch=b - a)
            z = sample(denoise, plan[0].level.sigma * noise.normal(like), plan, noise=noise)
            made.append(backbone.decode(z).clamp(*contract.value_range).cpu())
    return torch.cat(made)


def extractor_of(backbone: Backbone) -> tuple[Extractor, str]:
    """Features (n, D) that images are compared by: the judge's, or the latent averaged to 4 voxels a side."""
    judge = backbone.judge
    if judge is not None:
        return lambda x: torch.cat([judge.features(part) for part in x.split(64)]), "the judge's features"
    pool = F.adaptive_avg_pool2d if backbone.contract.spatial_dims == 2 else F.adaptive_avg_pool3d
    return lambda x: pool(encoded(backbone, x), 4).flatten(1), "latents averaged to 4 voxels a side"


@dataclass(frozen=True)
class Measure:
    """A backbone against real images of patients that it was not trained on.

    ``held_out`` is the loss on fixed noise, ``kid`` the distance of ``images`` to the real ones with its floor,
    ``agreement`` how often the judge sees the class that was told, ``features`` of the images and of the real ones.
    """

    held_out: float
    kid: Floored
    agreement: float | None
    images: Tensor
    features: tuple[Tensor, Tensor]

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        score = {k: round(float(getattr(self.kid, k)), 5) for k in ("score", "spread", "floor", "floor_spread", "n")}
        return {"held_out": round(self.held_out, 5), "kid": score, "agreement": self.agreement, "n": len(self.images)}


def loss_of(backbone: Backbone, cases: Cases, most: int = 256) -> float:
    """The mean training loss of the cases under noise that is always the same, over about ``most`` noisy latents."""
    draws = max(1, most // len(cases))
    told = told_of(backbone, cases, drop=False)
    network: Any = backbone.network
    stage = NetworkStage(
        network,
        backbone.schedule,
        Settings(steps=1, batch=1, precision=torch.float32),
        told=told,
        parameters=[torch.nn.Parameter(torch.zeros(1))],
    )
    rows = batches_of(cases, encoded(backbone, cases.images), 32)
    with torch.no_grad():
        found = [stage.loss(row, Draws.of(77, i)) for i in range(draws) for row in rows]
    return float(torch.cat(found).mean())


def measure(
    backbone: Backbone, cases: Cases, extractor: Extractor, *, n: int = 96, seed: int = 0, judge: Any = None
) -> Measure:
    """Everything about one backbone on one set of cases.

    Args:
        backbone: what is measured.
        cases: real images.
        extractor: images -> features, the same for all backbones that are compared.
        n: images that are made.
        seed: of the first.
        judge: says what the images show.
    """
    made = drawn_like(backbone, cases, n, seed=seed)
    features = extractor(made), extractor(cases.images)
    agreement = None
    if judge is not None and "label" in cases.told:
        labels = [cases.told["label"][i % len(cases)] for i in range(n)]
        agreement = agreed(judge, made, labels)
    return Measure(loss_of(backbone, cases), floored(kid, *features), agreement, made, features)


def agreed(judge: Any, images: Tensor, labels: Sequence[str]) -> float | None:
    """The share of images in which the judge sees their label, among those whose label it knows."""
    known = [i for i, name in enumerate(labels) if name in judge.labels]
    if not known:
        return None
    with torch.no_grad():
        said = torch.cat([judge.classify(x) for x in images[known].split(64)]).argmax(1).tolist()
    return round(sum(judge.labels[s] == labels[i] for s, i in zip(said, known, strict=True)) / len(known), 4)


def compared(
    before: Measure, after: Measure, patients: Sequence[str], draws: int = 300, seed: int = 0
) -> dict[str, float]:
    """By how much the KID fell, with its 95 % interval over patients (real ones redrawn) and over synthetic images."""
    generator = torch.Generator().manual_seed(seed)
    names = sorted(set(patients))
    members = {n: [i for i, p in enumerate(patients) if p == n] for n in names}
    real = after.features[1]
    gains = []
    for _ in range(draws):
        drawn = torch.randint(len(names), (len(names),), generator=generator).tolist()
        rows = real[[i for d in drawn for i in members[names[d]]]]
        picks = [torch.randint(len(m.images), (len(m.images),), generator=generator).unique() for m in (before, after)]
        gains.append(kid(before.features[0][picks[0]], rows) - kid(after.features[0][picks[1]], rows))
    spread = torch.tensor(gains)
    whole = kid(before.features[0], real) - kid(after.features[0], real)
    low, high = torch.quantile(spread, torch.tensor([0.025, 0.975])).tolist()
    return {"gain": round(whole, 5), "low": round(low, 5), "high": round(high, 5)}


def copied_share(made: Tensor, train: Tensor, unseen: Tensor) -> dict[str, Any]:
    """Images nearer to a training image than all but 1 % of unseen real ones are, and each image's nearest."""
    share, distance, which = copies(thumbnails(made), thumbnails(train), thumbnails(unseen))
    return {"share": round(share, 4), "distance": distance, "nearest": which}


def as_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, before and after of everything measured, as the card's table has them."""
    out = []
    for title, key in (("new data, test patients", "new"), ("old data", "old")):
        part = figures.get(key)
        if not part:
            continue
        before, after = part["before"], part["after"]
        out.append((f"{title}: held-out loss", f"{before['held_out']:.4f}", f"{after['held_out']:.4f}"))
        out.append((f"{title}: KID", _kid(before["kid"]), _kid(after["kid"])))
        if after["agreement"] is not None:
            said = "none" if before["agreement"] is None else f"{before['agreement']:.1%}"
            out.append((f"{title}: judge agrees with the class told", said, f"{after['agreement']:.1%}"))
    return out


def _kid(score: Mapping[str, float]) -> str:
    floor = f"real against real {score['floor']:.4g} ± {score['floor_spread']:.2g}"
    return f"{score['score']:.4g} ± {score['spread']:.2g} ({floor}, n = {score['n']:.0f})"
