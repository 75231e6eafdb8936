"""What is known of a kind of image: where it is read from, its words, and how its backbone is trained."""

from __future__ import annotations

import hashlib

__all__ = ["part_of"]


def part_of(patient: str) -> str:
    """``train``, ``validation`` or ``test``, by hash: the same everywhere, whatever else is in the data.

    One patient in eight is a test patient and one in eight is for validation.
    """
    place = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) % 8
    return {0: "test", 1: "validation"}.get(place, "train")
