"""Is it real, and does it help: scores of synthetic images with their noise floors, and studies of their use."""

from .groups import GroupScore, of_groups
from .images import Pictures, pictures
from .realism import Evaluation, Score, evaluate

__all__ = ["Evaluation", "GroupScore", "Pictures", "Score", "evaluate", "of_groups", "pictures"]
