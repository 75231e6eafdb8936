"""Numbers and names as a clinician reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BAD",
    "CAUTION",
    "GOOD",
    "UNKNOWN",
    "Verdict",
    "brief",
    "count",
    "interval",
    "number",
    "percent",
    "plain",
    "wraps",
]

GOOD, CAUTION, BAD, UNKNOWN = "good", "caution", "bad", "unknown"


@dataclass(frozen=True)
class Verdict:
    """A mark (told by shape and word, not by color alone), the word beside it, and a sentence."""

    mark: str
    word: str
    says: str = ""


def plain(key: Any) -> str:
    """A key as words: ``anatomy_lung_field`` is *Anatomy lung field*."""
    text = str(key).replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def number(value: Any, digits: int = 3) -> str:
    """Three figures, at most three places, a true minus sign, a dash for what is no number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        text = f"{value:.{digits - 1}e}"
    elif abs(value) < 10**-digits:
        text = f"{value:.2g}"
    else:
        whole = math.floor(math.log10(abs(value))) + 1 if abs(value) >= 1 else 0
        text = f"{value:,.{max(0, digits - whole)}f}"
    return text.replace("-", "−")


def brief(value: Any) -> str:
    """The same without the zeros at its end: for settings and the numbers of an axis."""
    text = number(value)
    if isinstance(value, int | float) and "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return text


def interval(ends: Any, digits: int = 3) -> str:
    """``0.12 to 0.34``; nothing where there is none."""
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        return ""
    return f"{number(ends[0], digits)} to {number(ends[1], digits)}"


def percent(share: Any) -> str:
    """A share in percent, whole where that will do."""
    if not isinstance(share, int | float) or not math.isfinite(share):
        return "–"
    hundred = 100 * share
    return f"{hundred:.0f} %" if hundred in (0, 100) or 1 <= hundred <= 99 else f"{hundred:.1f} %"


def count(n: int, one: str, many: str = "") -> str:
    """``1 image``, ``3 images``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def wraps(words: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""
