"""Is it real, and does it help: scores of synthetic images with their noise floors, and studies of their use."""

from .images import Pictures, pictures
from .realism import Evaluation, Score, evaluate

__all__ = ["Evaluation", "Pictures", "Score", "evaluate", "pictures"]
