"""The one error."""

from __future__ import annotations

__all__ = ["DiffAugError"]


class DiffAugError(ValueError):
    """Anything the user can mend. The message is one sentence that names the remedy."""
