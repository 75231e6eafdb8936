"""Is it real: scores against their floors, and what readers said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .plots import counts_bar, row_plot
from .run import Run, faults_of
from .words import BAD, CAUTION, GOOD, UNKNOWN, Verdict, count, interval, name_of, number, percent, plain, wraps

__all__ = ["Readers", "Row", "Scores", "readers", "scores"]

LOW_IS_GOOD = ("fid", "kid", "frd", "anatomy")
APART = "ssim_to_source"  # says how far an edit went, not whether it is real
NEVER = 0.6  # of the scores within their floors: fewer, and the answer is no


@dataclass(frozen=True)
class Row:
    """A score as a line of a table."""

    name: str
    says: str
    value: str
    ends: str
    floor: str
    floor_ends: str
    n: int | str
    plot: Markup
    within: bool
    verdict: str


@dataclass(frozen=True)
class Scores:
    """All rows by what they were taken of, and the verdict."""

    by: list[tuple[str, list[Row]]]
    n_real: int
    n_made: int
    verdict: Verdict
    skipped: list[str]
    extractors: list[str]


def good_when(score: Mapping[str, Any]) -> str:
    """``low``, ``high`` or ``floor``; older files do not say."""
    name = str(score.get("name", score.get("score", "")))
    usual = "high" if name == APART else "low" if name.startswith(LOW_IS_GOOD) else "floor"
    return str(score.get("good") or usual)


def within(score: Mapping[str, Any]) -> bool:
    """Whether the value lies within what real images score against each other."""
    if isinstance(score.get("within_floor"), bool):
        return bool(score["within_floor"])
    low, high = score["floor_interval"]
    value, good = score["value"], good_when(score)
    return bool(value <= high if good == "low" else value >= low if good == "high" else low <= value <= high)


def in_words(score: Mapping[str, Any]) -> str:
    """The verdict on one score."""
    if score["name"] == APART:
        return "keeps its source" if within(score) else "no nearer to its source than to another"
    if within(score):
        return "within the floor"
    above = score["value"] > score["floor_interval"][1]
    if good_when(score) != "floor":
        return "outside: farther from real"
    return f"outside: {'more' if above else 'less'} than among real images"


def scores(run: Run) -> Scores | None:
    """What ``diffaug evaluate`` found; nothing if it was not run."""
    data = run.parts.get("scores")
    if data is None:
        return None
    with faults_of(run, "scores"):
        by: dict[str, list[Row]] = {}
        for s in data["scores"]:
            by.setdefault(run.scrubbed(s.get("extractor") or ""), []).append(_row(s))
        known = [f"{run.scrubbed(x['name'])}, SHA-256 {str(x.get('sha256', ''))[:16]}" for x in data.get("extractors", ())]
        return Scores(
            [(f"seen by {k}" if k else "from the pixels", rows) for k, rows in by.items()],
            int(data.get("n_real", 0)), int(data.get("n_synthetic", 0)), _verdict(data["scores"]),
            [run.scrubbed(line) for line in data.get("skipped", ())], known,
        )  # fmt: skip


def _row(s: Mapping[str, Any]) -> Row:
    name, says = name_of(s["name"])
    verdict, good = in_words(s), within(s)
    title = f"{name}: {number(s['value'])} ({interval(s['interval'])}), floor {number(s['floor'])} "
    title += f"({interval(s['floor_interval'])}), {verdict}"
    plot = row_plot(title, s["value"], s["interval"], s["floor"], s["floor_interval"], None if s["name"] == APART else good)
    return Row(
        name, says, number(s["value"]), interval(s["interval"]), number(s["floor"]), interval(s["floor_interval"]),
        s.get("n", "–"), plot, good, verdict,
    )  # fmt: skip


def _verdict(found: Sequence[Mapping[str, Any]]) -> Verdict:
    judged = [s for s in found if s["name"] != APART]
    if not judged:
        return Verdict(UNKNOWN, "Not judged", "The file holds no score.")
    good = [s for s in judged if within(s)]
    out = [name_of(s["name"])[0] for s in judged if not within(s)]
    least = min(int(s.get("n", 0)) for s in judged)
    said = f"{len(good)} of {count(len(judged), 'score')} lie within what real images score against each other"
    said += f", at {least} images a set." if least else "."
    if not out:
        return Verdict(GOOD, "As real, by these scores", said)
    said += f" Outside: {wraps(out[:4] + (['others'] if len(out) > 4 else []))}."
    mark, word = (CAUTION, "In part") if len(good) >= NEVER * len(judged) else (BAD, "No")
    return Verdict(mark, word, said)


# -------------------------------------------------------------------------------------------------------------- groups


@dataclass(frozen=True)
class Cell:
    """A score of one group."""

    value: str
    ends: str
    floor: str
    within: bool | None
    n: str


@dataclass(frozen=True)
class Groups:
    """A table of one attribute: a line a score, a column a group."""

    attribute: str
    names: list[str]
    rows: list[tuple[str, list[Cell | None]]]


def groups(run: Run) -> list[Groups]:
    """Scores by group of patients, one table an attribute."""
    data = run.parts.get("scores", {})
    with faults_of(run, "scores"):
        found: dict[str, list[Mapping[str, Any]]] = {}
        for g in data.get("groups") or ():
            found.setdefault(str(g["attribute"]), []).append(g)
        return [_table(run, name, rows) for name, rows in found.items()]


def _table(run: Run, attribute: str, rows: Sequence[Mapping[str, Any]]) -> Groups:
    names = sorted({str(r["group"]) for r in rows}, key=lambda g: (g == "gap", g))
    by = {(str(r["score"]), str(r["group"])): r for r in rows}
    lines = []
    for score in dict.fromkeys(str(r["score"]) for r in rows):
        cells = [_cell(by[score, g]) if (score, g) in by else None for g in names]
        lines.append((name_of(score)[0], cells))
    titles = ["Largest gap" if g == "gap" else run.scrubbed(g) for g in names]
    return Groups(plain(attribute.replace("+", " and ")), titles, lines)


def _cell(r: Mapping[str, Any]) -> Cell:
    as_low = {**r, "name": r["score"], "good": "low"} if r["group"] == "gap" else {**r, "name": r["score"]}
    judged = None if r.get("floor_interval") is None else within(as_low)
    floor = f"{number(r.get('floor'))} ({interval(r.get('floor_interval'))})"
    return Cell(number(r["value"]), interval(r.get("interval")), floor, judged, number(r.get("n")))


# ------------------------------------------------------------------------------------------------------------- readers


@dataclass(frozen=True)
class Reader:
    """One reader, or all of them."""

    name: str
    n: int
    auroc: str
    plot: Markup
    sensitivity: str
    specificity: str
    accuracy: str


@dataclass(frozen=True)
class Readers:
    """What the reader study says."""

    rows: list[Reader]
    verdict: Verdict
    marks: list[tuple[str, list[tuple[str, str, int, Markup]]]]
    agreement: list[tuple[str, str, str]]


def readers(run: Run) -> Readers | None:
    """What ``diffaug review --analyze --json`` wrote; readers go by number."""
    data = run.parts.get("readers")
    if data is None:
        return None
    with faults_of(run, "readers"):
        pooled = data["pooled"]
        named = data.get("readers") or {}
        rows = [_reader(name if run.with_paths else f"Reader {i}", d) for i, (name, d) in enumerate(named.items(), 1)]
        rows.append(_reader("All", pooled))
        marks = [
            (plain(key), [_marks(kind, v) for kind, v in kinds.items()])
            for key, kinds in (data.get("marks") or {}).items() if kinds
        ]  # fmt: skip
        agreement = [
            (plain(key), number(a.get("intra_reader", {}).get("kappa")), number(a.get("fleiss", {}).get("kappa")))
            for key, a in (data.get("agreement") or {}).items()
        ]
        return Readers(rows, _told(pooled, len(named)), marks, agreement)


def _reader(name: str, d: Mapping[str, Any]) -> Reader:
    if "auroc" not in d:
        return Reader(name, d["n"], "too few", Markup(""), "–", "–", "–")
    ends = d["auroc"]["interval"]
    said = f"{number(d['auroc']['value'], 2)} ({interval(ends, 2)})"
    plot = row_plot(f"{name}: AUROC {said}; 0.5 is chance", d["auroc"]["value"], ends, 0.5, None, None, 220, (0.0, 1.0))
    shares = [f"{percent(d[k]['value'])} ({percent(d[k]['interval'][0])} to {percent(d[k]['interval'][1])})" for k in ("sensitivity", "specificity", "accuracy")]  # fmt: skip
    return Reader(name, d["n"], said, plot, *shares)


def _marks(kind: str, v: Mapping[str, Any]) -> tuple[str, str, int, Markup]:
    counts = [int(n) for n in v["counts"]]
    told = ", ".join(f"{n} times {i}" for i, n in enumerate(counts, 1) if n)
    return plain(kind), number(v["mean"], 2), int(v["n"]), counts_bar(f"{kind}: {told}", counts)


def _told(pooled: Mapping[str, Any], n: int) -> Verdict:
    if "not_told_apart" not in pooled:
        return Verdict(UNKNOWN, "Not judged", "Too few answers to say whether readers tell synthetic from real.")
    who = count(n, "reader")
    right, said = pooled["accuracy"], pooled["auroc"]["interval"]
    share = f"{percent(right['value'])} of decisions right, {percent(right['interval'][0])} to "
    share += f"{percent(right['interval'][1])}"
    if pooled["not_told_apart"]:
        return Verdict(GOOD, "Not told apart", f"{who} did not tell synthetic from real ({share}; 50 % is chance).")
    if said[0] > 0.5:
        return Verdict(BAD, "Told apart", f"{who} told synthetic from real ({share}; 50 % is chance).")
    return Verdict(CAUTION, "Not shown", f"It is not shown that {who} cannot tell them apart ({share}).")
