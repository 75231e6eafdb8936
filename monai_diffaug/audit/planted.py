"""Does the re-identification filter do what it is for: copies of training images are planted, and must be caught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import registry
from ..primitives.runs import Draws
from ..types import Backbone, NoiseSource
from .recognition import Patients, auroc, copies, interval, pairs_of_visits, recognized

__all__ = ["caught", "figures", "found_out", "sampled"]

BATCH = 16


def caught(verifier: Any, images: Tensor, seed: int = 0, most: int = 400) -> dict[str, float]:
    """Share of exact and of changed copies of remembered images (N, C, *S) that are recognized."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:most]
    exact = images[chosen]
    changed = copies(exact, Draws.of(seed, 1))
    return {
        "planted": len(exact),
        "exact_rejected": float(recognized(verifier, exact).mean()),
        "changed_rejected": float(recognized(verifier, changed).mean()),
    }


def found_out(verifier: Any, images: Tensor, seed: int = 0, most: int = 10) -> tuple[Tensor, list[dict[str, Any]]]:
    """A few changed copies of remembered images that are recognized, with their matches."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: 2 * most]
    changed = copies(images[chosen], Draws.of(seed, 1))
    matches = [asdict(m) for m in verifier.nearest(changed)]
    kept = [i for i, m in enumerate(matches) if m["probability"] >= verifier.threshold][:most]
    return changed[kept], [matches[i] for i in kept]


def sampled(backbone: Backbone, prompts: Sequence[str], images: int, seed: int = 0, **given: Any) -> dict[str, Any]:
    """How often a sample was recognized at its first draw and at its last, and the audit of each."""
    audit: list[dict[str, Any]] = []
    made = []
    for start in range(0, images, BATCH):
        seeds = range(seed + start, seed + min(start + BATCH, images))
        told = [prompts[s % len(prompts)] for s in seeds]
        sample = registry.call("anonymous_generation", backbone, prompt=told, generator=NoiseSource(seeds), **given)
        audit += sample.info["audit"]
        made.append(sample.image)
    limit = backbone.verifier.threshold
    first = [(a["rejected"] or [a])[0]["probability"] for a in audit]
    return {
        "images": torch.cat(made),
        "audit": audit,
        "before": float(np.mean([p >= limit for p in first])),
        "after": float(np.mean([a["probability"] >= limit for a in audit])),
        "draws": float(np.mean([1 + len(a["rejected"]) for a in audit])),
    }


def figures(
    backbone: Backbone,
    training: Patients,
    test: Patients,
    more: Patients,
    images: int = 200,
    prompts: Sequence[str] = ("",),
    seed: int = 0,
    keep: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All figures of the bundle's page, measured again.

    Args:
        backbone: with its verifier.
        training: what it remembers.
        test: patients that neither was trained on.
        more: other such patients, for the figures of visits only.
        images: to generate; none for 0.
        prompts: of the images, in turn.
        seed: of the first image.
        keep: is given the samples and their audit, to be drawn.
    """
    verifier = backbone.verifier
    visits = pairs_of_visits(verifier, test.several().joined(more.several()))
    pairs, patients = visits.count()
    found: dict[str, Any] = {
        "auroc": auroc(visits),
        "interval": interval(visits),
        "pairs": pairs,
        "patients": patients,
        **caught(verifier, training.images, seed),
        "unseen_rejected": float(recognized(verifier, test.images).mean()),
        "unseen": len(test.ids),
        "certificate": verifier.withheld() or "given",
    }
    if images:
        samples = sampled(backbone, prompts, images, seed)
        if keep is not None:
            keep.update(samples)
        found |= {f"samples_{k}": samples[k] for k in ("before", "after", "draws")} | {"samples": images}
    return found
