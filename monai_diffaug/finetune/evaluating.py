"""A backbone against the test patients of one's own data, as a bundle's ``evaluate.json`` asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..io.atomic import write_json
from ..types import Backbone
from .cases import read
from .measuring import extractor_of, measure

__all__ = ["evaluate"]


def evaluate(
    backbone: Backbone, data: str | Path, out: str | Path, *, samples: int = 96, seed: int = 0
) -> dict[str, Any]:
    """Held-out loss, KID with its floor and the judge's agreement on test patients, written to ``figures.json``.

    Args:
        backbone: what is measured.
        data: a datalist or a folder, parted as for fine-tuning.
        out: folder of the figures.
        samples: images made.
        seed: of the first.
    """
    cases, grown = read(data, backbone, grow=False)
    extractor, what = extractor_of(grown)
    found = measure(grown, cases.part("test"), extractor, n=samples, seed=seed, judge=grown.judge)
    figures = {"features": what, "counts": cases.counts(), **found.summary()}
    write_json(Path(out) / "figures.json", figures)
    return figures
