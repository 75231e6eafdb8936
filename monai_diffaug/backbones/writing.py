"""Pieces of a checkpoint on their way to disk."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_diffaug.types import DiffAugError, Schedule

__all__ = ["cast", "schedule_config", "write_json"]


def write_json(path: Path, data: Any) -> None:
    """Indented, with a newline at the end."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def cast(module: nn.Module, precision: torch.dtype) -> Any:
    """A copy in another precision; numbers that it cannot hold are refused."""
    cast = copy.deepcopy(module).to(precision)
    for name, p in cast.named_parameters():
        if not bool(torch.isfinite(p).all()):
            raise DiffAugError(f"weight {name} is not finite in {precision}: save with precision=torch.float32")
    return cast


def schedule_config(schedule: Schedule) -> dict[str, Any]:
    """The scheduler config that the schedule was made from."""
    if not schedule.config:
        raise DiffAugError("the schedule does not say how it was made: make it with schedule_from_config")
    return dict(schedule.config)
