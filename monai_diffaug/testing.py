"""What every method must obey, for the methods here and in plug-ins; and backbones to test it on."""

from __future__ import annotations

from .backbones.tiny import digest_of, ideal_backbone, tiny

__all__ = ["digest_of", "ideal_backbone", "tiny"]
