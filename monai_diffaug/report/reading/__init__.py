"""A blinded reader study: which images are shown in which order, the page that shows them, what the answers say."""

from .analysis import analyze
from .server import serve
from .study import Question, Study, create, open_study

__all__ = ["Question", "Study", "analyze", "create", "open_study", "serve"]
