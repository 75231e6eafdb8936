"""Does it help: curves of a score against the number of labeled patients, and the comparisons with the control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .plots import Point, Series, curves, effect, swatch
from .run import Run, faults_of
from .terms import name_of
from .words import BAD, CAUTION, GOOD, UNKNOWN, Verdict, brief, count, interval, number, plain, wraps

__all__ = ["Utility", "utility"]

LEVEL = 0.05
ROWS = 100  # comparisons in the table at most
ARMS = 8  # curves in one plot at most
CONTROLS = ("real", "classical")
SYNTHETIC = ("diffusion", "synthetic_only", "pretraining")
MIXES = ("mixup", "cutout", "cutmix", "patchshuffle")
CHECKS = ("duplicated", "shuffled", "oracle")
PANELS = (
    ("images added to real ones", ("diffusion",)),
    ("images mixed", MIXES),
    ("synthetic images otherwise", ("synthetic_only", "pretraining")),
    ("checks of the study", CHECKS),
)
LOW_IS_GOOD = ("false_positive_area",)  # for files that do not say

Result = Mapping[str, Any]
Patients = int | str
Table = tuple[list[str], list[tuple[str, list[str]]]]
"""Names of columns, and lines of a name and a text for each column."""
Named = tuple[str, list[str], list[tuple[str, list[str]]]]
"""The same with a title."""


@dataclass(frozen=True)
class Chart:
    """A plot and its key."""

    title: str
    plot: Markup
    key: list[tuple[Markup, str]]


@dataclass(frozen=True)
class Comparison:
    """One arm against its control."""

    arm: str
    control: str
    patients: str
    ratio: str
    metric: str
    difference: str
    ends: str
    p: str
    p_corrected: str
    plot: Markup
    verdict: str
    sure: bool


@dataclass(frozen=True)
class Utility:
    """The whole section."""

    study: str
    task: str
    generator: str
    seeds: int
    n_test: str
    charts: list[Chart]
    table: Table
    comparisons: list[tuple[tuple[str, str], list[Comparison]]]
    ratios: bool
    checks: list[tuple[str, str, str, str, bool]]
    left_out: int
    metric: str
    low_is_good: bool
    verdict: Verdict
    groups: list[Named]


def utility(run: Run) -> Utility | None:
    """What ``diffaug utility`` found; nothing if it was not run."""
    data = run.parts.get("utility")
    if data is None:
        return None
    with faults_of(run, "utility"):
        results: list[Result] = list(data["results"])
        metrics = [str(m) for m in data.get("metrics") or sorted({m for r in results for m in r["metrics"]})]
        kinds = {str(a["name"]): str(a.get("kind", "")) for a in data.get("arms", ())}
        first, low = metrics[0], metrics[0] in data.get("lower_is_better", LOW_IS_GOOD)
        compared = [c for c in data.get("comparisons", ()) if c["metric"] == first]
        mine = [c for c in compared if kinds.get(str(c["control"])) == "classical"] or compared
        mine.sort(key=lambda c: _rank(kinds.get(str(c["arm"]), "")))
        rows = _compared(mine[:ROWS], low)
        tested = {c["n_patients"] for c in compared if c.get("n_patients")}
        charts = _charts(data, kinds, first, len(PANELS))
        charts += [c for m in metrics[1:2] for c in _charts(data, kinds, m, 1)]
        return Utility(
            run.scrubbed(data.get("study", "")).replace("_", " "), run.scrubbed(plain(data.get("task", ""))),
            _generator(run, data.get("generator") or {}), len({r.get("seed") for r in results}),
            wraps([number(n) for n in sorted(tested)], "or"), charts, _table(results, first), _by_arm(rows),
            len({r.get("ratio") for r in results if r.get("ratio")}) > 1, _checks(data),
            len(data.get("comparisons", ())) - len(rows), name_of(first)[0], low, _verdict(mine, kinds, first, low),
            _groups(run, results, first),
        )  # fmt: skip


def _rank(kind: str) -> int:
    """Synthetic arms first, checks last."""
    return 0 if kind in SYNTHETIC else 2 if kind in CHECKS else 1


def _checks(data: Mapping[str, Any]) -> list[tuple[str, str, str, str, bool]]:
    """Of each check the arm, patients, what was expected and seen, and whether they agree."""
    return [
        (str(c["arm"]), str(c["patients"]), str(c["expected"]), str(c["seen"]), bool(c["as_expected"]))
        for c in data.get("checks") or ()
    ]


def _generator(run: Run, g: Mapping[str, Any]) -> str:
    if not g:
        return "not named"
    said = f"{run.scrubbed(g.get('name', ''))} ({str(g.get('digest', ''))[:12]})"
    seen = g.get("patients_seen")
    return f"{said}, trained on {count(seen, 'patient')}" if isinstance(seen, int) else said


# -------------------------------------------------------------------------------------------------------------- curves


def _order(patients: Iterable[Patients]) -> list[Patients]:
    """Numbers first, then ``all``."""
    return sorted(set(patients), key=lambda p: (not isinstance(p, int), p if isinstance(p, int) else 0, str(p)))


def _line_name(r: Result, several: bool) -> str:
    return f"{r['arm']}, {brief(r['ratio'])} : 1" if several and r.get("ratio") else str(r["arm"])


def _lines(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by arm, and by ratio where an arm has several."""
    ratios: dict[str, set[Any]] = {}
    for r in results:
        ratios.setdefault(str(r["arm"]), set()).add(r.get("ratio"))
    lines: dict[str, list[Result]] = {}
    for r in results:
        lines.setdefault(_line_name(r, len(ratios[str(r["arm"])]) > 1), []).append(r)
    return lines


def _charts(data: Mapping[str, Any], kinds: Mapping[str, str], metric: str, panels: int) -> list[Chart]:
    """Both controls in each panel, and the arms of its kinds; all panels on one scale."""
    results = [r for r in data["results"] if _value(r, metric) is not None]
    lines, order = _lines(results), _order(r["patients"] for r in results)
    apart = {
        (str(c["arm"]), c.get("ratio") or 0, c["patients"]): c
        for c in data.get("comparisons", ()) if c["metric"] == metric and kinds.get(str(c["control"])) == "classical"
    }  # fmt: skip
    kind = {name: kinds.get(str(rows[0]["arm"]), "") for name, rows in lines.items()}
    points = {name: _points(rows, metric, order, apart) for name, rows in lines.items()}
    controls = [n for n in lines if kind[n] in CONTROLS]
    known = {k for _, of in PANELS for k in of} | set(CONTROLS)
    chosen = []
    for title, of in PANELS[:panels]:
        names = [n for n in lines if kind[n] in of or (of == ("diffusion",) and kind[n] not in known)]
        room = ARMS - len(controls)
        chosen += [(title, [*controls, *names[i : i + room]]) for i in range(0, len(names), room)]
    shown = {n for _, names in chosen for n in names}
    ends = [v for n in shown for p in points[n] for v in (p.low, p.high)]
    charts = []
    for title, names in chosen:
        series = [Series(n, points[n], j, kind[n] == "real") for j, n in enumerate(names)]
        head = f"{name_of(metric)[0]}: {title}"
        spoken = f"{head}; {_spoken(series, order)}"
        plot = curves(spoken, series, [str(p) for p in order], "labeled patients", within=(min(ends), max(ends)))
        charts.append(Chart(head, plot, [(swatch(s.style), s.name) for s in series]))
    return charts


def _spoken(series: Sequence[Series], order: Sequence[Patients]) -> str:
    """The curves in words, for those who cannot see them."""
    return "; ".join(f"{s.name}: " + ", ".join(f"{number(p.y)} with {order[p.x]}" for p in s.points) for s in series)


def _value(r: Result, metric: str) -> float | None:
    value = r["metrics"].get(metric)
    return float(value) if isinstance(value, int | float) and value == value else None


def _points(
    rows: Sequence[Result], metric: str, order: Sequence[Patients], apart: Mapping[Any, Mapping[str, Any]]
) -> tuple[Point, ...]:
    """Mean over seeds; around it the interval of the difference to the control with classical augmentation."""
    points = []
    for i, patients in enumerate(order):
        found = [(r, v) for r in rows if r["patients"] == patients and (v := _value(r, metric)) is not None]
        if not found:
            continue
        mean = sum(v for _, v in found) / len(found)
        first = found[0][0]
        c = apart.get((str(first["arm"]), first.get("ratio") or 0, patients))
        low, high = (mean - c["difference"] + e for e in c["interval"]) if c and c.get("interval") else (mean, mean)
        points.append(Point(i, mean, low, high))
    return tuple(points)


def _table(results: Sequence[Result], metric: str) -> Table:
    """Means of the first score: a line an arm, a column a number of patients."""
    order = _order(r["patients"] for r in results)
    rows = []
    for name, found in _lines(results).items():
        points = {p.x: p for p in _points(found, metric, order, {})}
        cells = [number(points[i].y) if i in points else "–" for i in range(len(order))]
        rows.append((name, cells))
    return [str(p) for p in order], rows


def _groups(run: Run, results: Sequence[Result], metric: str) -> list[Named]:
    """The first score of each group of patients, all labeled patients, mean over seeds."""
    if not results:
        return []
    most = _order(r["patients"] for r in results)[-1]
    rows = [r for r in results if r["patients"] == most and r.get("per_group")]
    attributes: dict[str, dict[str, dict[str, list[float]]]] = {}
    for r in rows:
        for attribute, group, value in _by_group(r, metric):
            arms = attributes.setdefault(attribute, {})
            arms.setdefault(str(r["arm"]), {}).setdefault(group, []).append(value)
    tables = []
    for attribute, arms in attributes.items():
        names = sorted({g for by in arms.values() for g in by})
        lines = [(a, [number(sum(by[g]) / len(by[g])) if g in by else "–" for g in names]) for a, by in arms.items()]
        tables.append((f"{plain(attribute)}, {most} labeled patients", [run.scrubbed(n) for n in names], lines))
    return tables


def _by_group(r: Result, metric: str) -> Iterable[tuple[str, str, float]]:
    """Attribute, group and the score there."""
    for attribute, by in r["per_group"].items():
        for group, told in by.items():
            value = told.get(metric) if isinstance(told, Mapping) else told
            if isinstance(value, int | float) and value == value:
                yield attribute, group, float(value)


# --------------------------------------------------------------------------------------------------------- comparisons


def _better(c: Mapping[str, Any], low: bool) -> float:
    """The difference, positive where the arm is better; ``low`` values of the score may be the good ones."""
    return -float(c["difference"]) if low else float(c["difference"])


def _sure(c: Mapping[str, Any]) -> bool:
    p = c.get("p_corrected", c.get("p"))
    return p is not None and p < LEVEL


def _chance(p: Any) -> str:
    if not isinstance(p, int | float):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _compared(rows: Sequence[Mapping[str, Any]], low: bool) -> list[Comparison]:
    ends = [v for c in rows for v in (*(c.get("interval") or ()), c["difference"])]
    most = max((abs(float(v)) for v in ends), default=1.0) * 1.05 or 1.0
    found = []
    for c in rows:
        verdict = ("better" if _better(c, low) > 0 else "worse") if _sure(c) else "not shown"
        title = f"{c['arm']} less {c['control']}: {number(c['difference'])} ({interval(c.get('interval'))}), {verdict}"
        ratio = f"{brief(c['ratio'])} : 1" if c.get("ratio") else "–"
        plot = effect(title, float(c["difference"]), c.get("interval"), (-most, most), _sure(c), low)
        found.append(
            Comparison(
                str(c["arm"]), str(c["control"]), str(c["patients"]), ratio, name_of(c["metric"])[0],
                signed(c["difference"]), " to ".join(signed(v) for v in c.get("interval") or ()), _chance(c.get("p")),
                _chance(c.get("p_corrected")), plot, verdict, _sure(c),
            )
        )  # fmt: skip
    return found


def _by_arm(rows: Sequence[Comparison]) -> list[tuple[tuple[str, str], list[Comparison]]]:
    found: dict[tuple[str, str], list[Comparison]] = {}
    for c in rows:
        found.setdefault((c.arm, c.control), []).append(c)
    return list(found.items())


def signed(value: Any) -> str:
    """A difference with its sign, three places."""
    return f"{value:+.3f}".replace("-", "−") if isinstance(value, int | float) else "–"


def _verdict(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str], metric: str, low: bool) -> Verdict:
    """Over the arms with synthetic images, of the comparisons with one control."""
    mine = [c for c in rows if kinds.get(str(c["arm"]), "diffusion") in SYNTHETIC]
    if not mine:
        return Verdict(UNKNOWN, "Not judged", "The study compares no synthetic arm with a control.")
    against = "classical augmentation" if kinds.get(str(mine[0]["control"])) == "classical" else "the control"
    better, worse = ([c for c in mine if _sure(c) and (_better(c, low) > 0) == up] for up in (True, False))
    head = f"{count(len(mine), 'comparison')} with {against} ({name_of(metric)[0]})"
    said = (
        f"{head}: {len(better)} better, {len(worse)} worse, {len(mine) - len(better) - len(worse)} not shown to differ."
    )
    if better:
        top = max(better, key=lambda c: _better(c, low))
        said += f" Largest gain {signed(top['difference'])}, {top['arm']} with {_patients(top['patients'])}."
    if worse and not better:
        last = min(worse, key=lambda c: _better(c, low))
        said += f" Largest loss {signed(last['difference'])}, {last['arm']} with {_patients(last['patients'])}."
    if better:
        return Verdict(*((CAUTION, "In part") if worse else (GOOD, "Yes")), said)
    return Verdict(*((BAD, "No, it harms") if worse else (CAUTION, "Not shown")), said)


def _patients(p: Patients) -> str:
    return count(p, "labeled patient") if isinstance(p, int) else f"{p} labeled patients"
