"""Real and synthetic images together, in the form that another program wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..io import datalist, layouts
from ..io.datalist import Item
from .loop import Say
from .run import Outcome

__all__ = ["laid_out"]

_KNOWN = ("labels", "channel_names", "modality")


def laid_out(
    outcome: Outcome, items: Sequence[Item], layout: str, source: str | Path, say: Say | None = None
) -> Outcome:
    """Write the job's images beside the real ones that they came from.

    Args:
        outcome: of the job.
        items: the real images.
        layout: ``nnunet`` (``nnunet:12`` for Dataset012), ``bids`` or ``datalist``; the last is there already.
        source: of the real images; a datalist may name labels and channels.
        say: called with a line for each image that is left out.

    Returns:
        the outcome, with the folder that was written.

    Raises:
        DiffAugError: the images do not fit the layout.
    """
    kind, _ = layouts.check_format(layout)
    if kind == "datalist":
        return outcome
    head: dict[str, Any] = {"licence": datalist.license_of(outcome.datalist)} | _told(Path(source).expanduser())
    made = datalist.read(outcome.datalist)
    real = [replace(i, fields={k: v for k, v in i.fields.items() if k != "synthetic"}) for i in items]
    # What was made belongs to the patient from which it was made, also where the list names no patients.
    owner = {i.id: str(i.fields.get("patient") or i.id) for i in items}
    real = [replace(i, fields={**i.fields, "patient": owner[i.id]}) for i in real]
    made = [replace(i, fields={**i.fields, "patient": owner.get(_source(i), _source(i))}) for i in made]
    folder = layouts.write([*real, *made], layout, outcome.folder, name=outcome.folder.name, head=head, say=say)
    return replace(outcome, laid_out=folder)


def _source(item: Item) -> str:
    return str((item.fields.get("provenance") or {}).get("source") or item.id)


def _told(source: Path) -> dict[str, Any]:
    """Names of labels and channels in a datalist."""
    path = next((source / n for n in datalist.LISTS if (source / n).is_file()), source)
    if not path.is_file() or path.suffix.lower() != ".json":
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    return {k: data[k] for k in _KNOWN if isinstance(data, dict) and isinstance(data.get(k), dict)}
