"""The interval of a share."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

__all__ = ["wilson"]


def wilson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of ``hits`` of ``n`` (Wilson 1927), within 0 and 1; all of it where there is none."""
    if n == 0:
        return 0.0, 1.0
    z = float(norm.ppf(0.5 + level / 2))
    p = hits / n
    middle, half = p + z * z / (2 * n), z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))
