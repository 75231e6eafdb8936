"""One self-contained HTML file that says what was made, whether it is real, whether it helps and whether it leaks."""

from .page import report
from .run import Run, opened

__all__ = ["Run", "opened", "report"]
