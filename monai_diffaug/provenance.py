"""What was done to make an item, in a form that survives JSON and can be done again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from . import registry
from .types import Backbone, DiffAugError, NoiseSource, Sample

__all__ = ["Record", "replay"]


@dataclass(frozen=True)
class Record:
    """The record of one synthetic item. ``parameters`` holds only what JSON can hold."""

    method: str
    backbone: str
    backbone_digest: str
    seed: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    prompt: str | None = None
    label: Any = None
    scores: Mapping[str, float] = field(default_factory=dict)
    version: str = "0.1.0"
    synthetic: bool = True

    def to_json(self) -> str:
        """Serialize, keys sorted.

        Raises:
            DiffAugError: a parameter is not JSON; the message names it.
        """
        for key, value in self.parameters.items():
            try:
                json.dumps(value)
            except TypeError:
                raise DiffAugError(
                    f"parameter {key!r} of {self.method} cannot be written to the record: give a number, text or list"
                ) from None
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> Record:
        """Read back what ``to_json`` wrote; unknown keys are passed over."""
        data = json.loads(text) if isinstance(text, str) else dict(text)
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})


def replay(record: Record, backbone: Backbone, **data: Any) -> Sample:
    """Make the item again: the same method, parameters and seed, on the same image.

    Args:
        record: what was written with the item.
        backbone: must have the record's digest.
        data: the image (1, C, *S) and whatever other tensors the method was given.
    """
    if backbone.digest != record.backbone_digest:
        raise DiffAugError(
            f"the record was made with backbone digest {record.backbone_digest[:12]}, this one is "
            f"{backbone.digest[:12]}: load the backbone that it names ({record.backbone})"
        )
    result: Sample = registry.call(
        record.method, backbone, **data, **record.parameters, generator=NoiseSource([record.seed])
    )
    return result
