"""The main job, `diffaug expand`, and its two smaller sisters: one image edited, and images from nothing."""

from .run import Outcome, expand

__all__ = ["Outcome", "expand"]
