"""The main job, `diffaug expand`, and its two smaller sisters: one image edited, and images from nothing."""

from .generate import generate
from .learning import learn
from .release import release
from .run import Outcome, expand
from .single import Edited, edit

__all__ = ["Edited", "Outcome", "edit", "expand", "generate", "learn", "release"]
