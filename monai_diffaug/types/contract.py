"""What must be known to use a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import DiffAugError

__all__ = ["Contract"]


@dataclass(frozen=True)
class Contract:
    """What must be known to use a checkpoint. It lives in the checkpoint; loading without it is an error.

    ``size`` is the image size in voxels that the network was trained on, ``value_range`` the intensities that it sees
    and returns, ``crop`` how an image is fitted to ``size``: ``foreground`` (square box around the head, say) or
    ``none``. ``intensity`` are the percentiles of an image that go onto the ends of ``value_range`` (what MRI, which
    has no units, was trained with), or ``None`` when the data type's own range does (8-bit pictures).
    ``spacing`` in mm or ``None`` when the training data had none. ``labels`` are the class names, in the order of their
    integers; ``vocabulary`` the words that a prompt may use.
    """

    name: str
    modality: str
    spatial_dims: int
    channels: int
    size: tuple[int, ...]
    latent_channels: int
    latent_scale: float
    factor: int
    value_range: tuple[float, float] = (-1.0, 1.0)
    crop: str = "none"
    intensity: tuple[float, float] | None = None
    spacing: tuple[float, ...] | None = None
    orientation: str | None = None
    labels: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    license: str = ""
    data: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latent_size(self) -> tuple[int, ...]:
        """Spatial size of the latent."""
        return tuple(s // self.factor for s in self.size)

    def to_json(self) -> str:
        """Serialize."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Contract:
        """Read back what ``to_json`` wrote; a missing key is an error that names it."""
        required = (
            *("name", "modality", "spatial_dims", "channels", "size"),
            *("latent_channels", "latent_scale", "factor"),
        )
        missing = [k for k in required if k not in d]
        if missing:
            raise DiffAugError(f"the checkpoint's contract lacks {', '.join(missing)}: add it to contract.json")
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in d.items() if k in known}
        return cls(**values)
