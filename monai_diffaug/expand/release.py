"""Images that may leave the house: made by anonymous generation, with the log that says how that was checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backbones import hub
from ..io import atomic
from ..types import Backbone, DiffAugError
from .generate import generate
from .run import Outcome

__all__ = ["LOG", "release"]

LOG = "audit.jsonl"


def release(
    backbone: str | Path | Backbone,
    out: str | Path,
    histogram: Mapping[str, int],
    *,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    **more: Any,
) -> Outcome:
    """Make anonymous images, as many of each prompt as ``histogram`` says; resumable like :func:`generate`.

    Beside images and datalist the folder then holds ``audit.jsonl``, one line an image: the training image nearest to
    it, the cosine distance, the probability of one patient, and the same of what was drawn before and rejected. It
    names training images and is not for whoever gets the others. Datalist and log hold the certificate: that none of
    the images was recognized, or the sentence why that cannot be vouched for.

    Args:
        backbone: with a verifier that remembers its training images.
        out: a new folder, or that of the same job begun before.
        histogram: prompt -> number of images.
        parameters: of the method ``anonymous_generation``.
        seed: of the job.
        batch_size: images at once.
        more: of :func:`generate`.

    Raises:
        DiffAugError: the backbone has no verifier, or what :func:`generate` raises.
    """
    model = backbone if isinstance(backbone, Backbone) else hub.load(backbone)
    if model.verifier is None:
        raise DiffAugError(
            f"{model.name!r} has no verifier, without which nothing is anonymous: give bundle anonymous_chest_xray, or "
            "train one as its train.json does"
        )
    outcome = generate(
        model,
        out,
        count=histogram,
        method="anonymous_generation",
        parameters=parameters,
        seed=seed,
        batch_size=batch_size,
        **more,
    )
    said = json.loads(outcome.datalist.read_text(encoding="utf-8"))
    certificate = _certificate(model.verifier, len(said["training"]))
    atomic.write_json(outcome.datalist, {"certificate": certificate, **said})
    lines = [json.dumps({"certificate": certificate})]
    for entry in said["training"]:
        name = Path(entry["image"]).stem
        found = json.loads((outcome.folder / "audit" / f"{name}.json").read_text(encoding="utf-8"))
        lines.append(json.dumps({"image": entry["image"], **found}))
    atomic.write_bytes(outcome.folder / LOG, ("\n".join(lines) + "\n").encode())
    return outcome


def _certificate(verifier: Any, n: int) -> dict[str, Any]:
    withheld = verifier.withheld()
    given = (
        f"none of {n} images was taken for a patient of {len(verifier.index.ids)} training images by a verifier that "
        f"reaches an AUROC of {verifier.figures.get('auroc', 0):.3f} on visits of held-out patients"
    )
    return {"given": not withheld, "says": withheld or given, "verifier": dict(verifier.figures)}
