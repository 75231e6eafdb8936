"""Plans: a solver is a function that fills a table, one row a step.

Every solver here is ``x' = alpha' x0 + sqrt(sigma'^2 - eta^2) eps + eta z + kappa (x0 - x0_previous)``. The next level
is always the next entry of the grid; it is never computed from ``T // n``, which is wrong whenever ``n`` does not
divide ``T``. ``h`` below is the step in log-SNR, ``log(alpha'/sigma') - log(alpha/sigma)``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..types import DiffAugError, NoiseLevel, Plan, Row, Schedule

__all__ = [
    "ORDER",
    "PLANS",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "euler",
    "heun",
    "levels",
    "make",
    "sde_dpmpp_2m",
    "with_jumps",
]

SPACINGS = ("log_snr", "linspace", "leading", "trailing")


def levels(schedule: Schedule, steps: int, spacing: str = "log_snr", strength: float = 1.0) -> list[NoiseLevel]:
    """The grid of noise levels at which the network is called, noisiest first.

    Args:
        schedule: the checkpoint's noise schedule.
        steps: number of levels for the whole chain; a start at ``strength`` uses ``ceil(strength * steps)`` of them.
        spacing: ``log_snr`` (uniform in log-SNR, which is what makes few steps accurate), ``linspace``, ``leading`` or
            ``trailing`` (uniform in network time, as in Lin et al. 2024, table 2).
        strength: network time to start from, as a fraction of the last; 0 gives no level at all.
    """
    if steps < 1:
        raise DiffAugError(f"steps is {steps}: give at least 1")
    if not 0.0 <= strength <= 1.0:
        raise DiffAugError(f"strength is {strength}: give a number from 0 (unchanged) to 1 (from pure noise)")
    if strength == 0.0:
        return []
    n = max(1, math.ceil(strength * steps - 1e-9))
    first, last = schedule.times[0], schedule.times[-1]
    top = first + strength * (last - first)
    if spacing == "log_snr":
        hi, lo = schedule.at(top).log_snr, schedule.at(first).log_snr
        # A schedule with no signal left at its last time (zero terminal SNR) has no finite log-SNR there; its first
        # call is made at that time all the same, and the uniform grid begins one sensible level below.
        hi = max(hi, -12.0)
        grid = [schedule.at(top)] + [schedule.at_log_snr(hi + (lo - hi) * i / max(n - 1, 1)) for i in range(1, n)]
    elif spacing == "linspace":
        grid = [schedule.at(top + (first - top) * i / max(n - 1, 1)) for i in range(n)]
    elif spacing == "trailing":
        span = (top - first + (schedule.times[1] - first)) / n
        grid = [schedule.at(top - i * span) for i in range(n)]
    elif spacing == "leading":
        span = (top - first + (schedule.times[1] - first)) / n
        grid = [schedule.at(first + (n - 1 - i) * span) for i in range(n)]
    else:
        raise DiffAugError(f"spacing {spacing!r} is unknown: use one of {', '.join(SPACINGS)}")
    return [replace(level, index=i, total=n) for i, level in enumerate(grid)]


_Coefficients = Callable[[NoiseLevel, NoiseLevel, "NoiseLevel | None"], tuple[float, float]]


def _fill(grid: Sequence[NoiseLevel], coefficients: _Coefficients) -> Plan:
    """A row for every level; ``coefficients(level, next, previous) -> (eta, kappa)``. The last arrives at no noise."""
    if not grid:
        return ()
    clean = NoiseLevel(0.0, 1.0, 0.0)
    rows: list[Row] = []
    for i, level in enumerate(grid):
        arrive = grid[i + 1] if i + 1 < len(grid) else clean
        if arrive.sigma >= level.sigma:
            continue  # two entries of a fine grid that fell on one level
        eta, kappa = (0.0, 0.0) if arrive.sigma == 0 else coefficients(level, arrive, grid[i - 1] if rows else None)
        rows.append(Row(level, arrive.alpha, arrive.sigma, eta, kappa))
    return tuple(rows)


def _decay(level: NoiseLevel, arrive: NoiseLevel) -> float:
    """``e^-h``, written so that neither end may divide by zero."""
    return level.alpha * arrive.sigma / (level.sigma * arrive.alpha)


def ddim(schedule: Schedule, steps: int, *, eta: float = 0.0, spacing: str = "log_snr", strength: float = 1.0) -> Plan:
    """DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16). ``eta`` 0 is deterministic, 1 is ancestral (DDPM)."""

    def coefficients(level: NoiseLevel, arrive: NoiseLevel, _: NoiseLevel | None) -> tuple[float, float]:
        return eta * arrive.sigma * math.sqrt(max(0.0, 1.0 - _decay(level, arrive) ** 2)), 0.0

    return _fill(levels(schedule, steps, spacing, strength), coefficients)


def ddpm(schedule: Schedule, steps: int | None = None, *, spacing: str = "linspace", strength: float = 1.0) -> Plan:
    """Ancestral sampling (Ho et al. 2020, arXiv:2006.11239) with the posterior of the jump that each step makes.

    With ``steps=None`` every time of the schedule is visited; fewer gives the strided form of Improved DDPM
    (arXiv:2102.09672), whose posterior is that of ``t -> t'`` and not of ``t -> t - 1``.
    """
    return ddim(schedule, len(schedule.times) if steps is None else steps, eta=1.0, spacing=spacing, strength=strength)


def dpmpp_2m(schedule: Schedule, steps: int, *, spacing: str = "log_snr", strength: float = 1.0) -> Plan:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2), second order, one call a step."""

    def coefficients(level: NoiseLevel, arrive: NoiseLevel, before: NoiseLevel | None) -> tuple[float, float]:
        if before is None:
            return 0.0, 0.0
        r = (level.log_snr - before.log_snr) / (arrive.log_snr - level.log_snr)
        return 0.0, arrive.alpha * (1.0 - _decay(level, arrive)) / (2.0 * r)

    return _fill(levels(schedule, steps, spacing, strength), coefficients)


def sde_dpmpp_2m(schedule: Schedule, steps: int, *, spacing: str = "log_snr", strength: float = 1.0) -> Plan:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, section 5): 2M with fresh noise at every step."""

    def coefficients(level: NoiseLevel, arrive: NoiseLevel, before: NoiseLevel | None) -> tuple[float, float]:
        spread = 1.0 - _decay(level, arrive) ** 2
        eta = arrive.sigma * math.sqrt(max(0.0, spread))
        if before is None:
            return eta, 0.0
        r = (level.log_snr - before.log_snr) / (arrive.log_snr - level.log_snr)
        return eta, arrive.alpha * spread / (2.0 * r)

    return _fill(levels(schedule, steps, spacing, strength), coefficients)


def euler(schedule: Schedule, steps: int, *, spacing: str = "linspace", strength: float = 1.0) -> Plan:
    """Euler steps along a rectified flow (Liu et al. 2022, arXiv:2209.03003); on other schedules the same as DDIM."""
    return ddim(schedule, steps, spacing=spacing, strength=strength)


def heun(schedule: Schedule, steps: int, *, spacing: str = "linspace", strength: float = 1.0) -> Plan:
    """Heun's second-order step (Karras et al. 2022, arXiv:2206.00364, algorithm 1): two calls a step, the last one.

    The corrector is a row that stays where it is and adds ``kappa (x0 - x0_previous)``: at the predicted point
    ``alpha' dx0 + sigma' deps = 0``, so half the difference of the two slopes is a multiple of ``dx0`` alone.
    """
    rows: list[Row] = []
    for row in euler(schedule, steps, spacing=spacing, strength=strength):
        rows.append(row)
        if row.sigma == 0.0:
            continue
        there = schedule.at_log_snr(math.log(row.alpha) - math.log(row.sigma))
        there = replace(there, alpha=row.alpha, sigma=row.sigma, index=row.level.index, total=row.level.total)
        if schedule.is_flow:
            kappa = (row.level.sigma - row.sigma) / (2.0 * row.sigma)
        else:  # the flow is straight in y = x / alpha against s = sigma / alpha
            s, s_next = row.level.sigma / max(row.level.alpha, 1e-12), row.sigma / row.alpha
            kappa = row.alpha * (s - s_next) / (2.0 * s_next)
        rows.append(Row(there, row.alpha, row.sigma, 0.0, kappa))
    return tuple(rows)


def with_jumps(plan: Plan, length: int, rounds: int) -> Plan:
    """RePaint's time travel (Lugmayr et al. 2022, arXiv:2201.09865, section 4.2).

    Counted from the clean end, every ``length`` steps are walked ``rounds`` times in all, each time after noising the
    state back up to where they begin. The step that leaves no noise, and what is left over at the noisy end, are walked
    once. ``rounds=1`` returns the plan unchanged.
    """
    if rounds < 1 or length < 1:
        raise DiffAugError("jump length and rounds must be at least 1")
    noisy = [row for row in plan if row.sigma > 0.0]
    left_over = len(noisy) % length
    out: list[Row] = list(noisy[:left_over])
    for i in range(left_over, len(noisy), length):
        block = noisy[i : i + length]
        last, top = block[-1], block[0].level
        here = NoiseLevel(0.0, last.alpha, last.sigma, last.level.index, last.level.total)
        again = [Row(here, top.alpha, top.sigma, jump=True), replace(block[0], kappa=0.0), *block[1:]]
        out += [*block, *again * (rounds - 1)]
    return (*out, *plan[len(noisy) :])


PLANS: dict[str, Callable[..., Plan]] = {
    "dpmpp_2m": dpmpp_2m,
    "sde_dpmpp_2m": sde_dpmpp_2m,
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "heun": heun,
}
# Global order in the step of log-SNR; of the moments for the plans that draw noise. Measured in the tests.
ORDER = {"ddim": 1, "ddpm": 1, "euler": 1, "dpmpp_2m": 2, "sde_dpmpp_2m": 2, "heun": 2}


def make(
    schedule: Schedule, steps: int, solver: str = "dpmpp_2m", *, strength: float = 1.0, spacing: str | None = None
) -> Plan:
    """A plan by name. The default, 2M on uniform log-SNR steps, has the right spread from about 6 steps on.

    Raises:
        DiffAugError: the solver is unknown; the message names the nearest one.
    """
    if solver not in PLANS:
        near = difflib.get_close_matches(solver, PLANS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DiffAugError(f"solver {solver!r} is unknown: {hint}there are {', '.join(PLANS)}")
    extra = {} if spacing is None else {"spacing": spacing}
    return PLANS[solver](schedule, steps, strength=strength, **extra)
