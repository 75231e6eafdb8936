"""From a backbone and a few hundred images of one's own to a bundle: fully, by an adapter, or privately."""

from .evaluating import evaluate
from .run import Outcome, finetune
from .settings import Ask

__all__ = ["Ask", "Outcome", "evaluate", "finetune"]
