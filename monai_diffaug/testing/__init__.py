"""What every method must obey, for the methods here and in plug-ins; and backbones to test it on.

``check_method("my_method")`` in a plug-in's own tests runs every law on tiny 2D and 3D networks and, where the method
can do without attention and text, on the exact denoiser of a small data set.
"""

from __future__ import annotations

from ..backbones.tiny import digest_of, ideal_backbone, tiny
from .laws import LawBrokenError, check_method, laws
from .supply import Case, case_for, variants

__all__ = [
    "Case",
    "LawBrokenError",
    "case_for",
    "check_method",
    "digest_of",
    "ideal_backbone",
    "laws",
    "tiny",
    "variants",
]
