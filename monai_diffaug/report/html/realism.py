"""Is it real: scores against their floors, and what readers said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .plots import counts_bar, row_plot
from .run import Run, faults_of
from .terms import name_of
from .words import BAD, CAUTION, GOOD, UNKNOWN, Verdict, count, interval, number, percent, plain, wraps

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
    notes: list[str]


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
        networks = [(run.scrubbed(x["name"]), str(x.get("sha256", ""))[:16]) for x in data.get("extractors", ())]
        return Scores(
            [(f"seen by {k}" if k else "from the pixels", rows) for k, rows in by.items()],
            int(data.get("n_real", 0)), int(data.get("n_synthetic", 0)), _verdict(data["scores"]),
            [run.scrubbed(line) for line in data.get("skipped", ())], [f"{k}, SHA-256 {sha}" for k, sha in networks],
            [run.scrubbed(line) for line in data.get("notes") or ()],
        )  # fmt: skip


def _row(s: Mapping[str, Any]) -> Row:
    name, says = name_of(s["name"])
    verdict, good = in_words(s), within(s)
    title = f"{name}: {number(s['value'])} ({interval(s['interval'])}), floor {number(s['floor'])} "
    title += f"({interval(s['floor_interval'])}), {verdict}"
    plot = row_plot(
        title, s["value"], s["interval"], s["floor"], s["floor_interval"], None if s["name"] == APART else good
    )
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
class GroupCell:
    """A score of one group; ``within`` is nothing where it is not judged."""

    value: str
    ends: str
    floor: str
    within: bool | None


@dataclass(frozen=True)
class Groups:
    """A table of one attribute: a line a score, a column a group as (name, how many images); the last is of all."""

    attribute: str
    names: list[tuple[str, str]]
    rows: list[tuple[str, list[GroupCell | None]]]


BETWEEN = ("gap", "all")  # what is not one group's


def groups(run: Run) -> list[Groups]:
    """Scores by group of patients, one table an attribute."""
    data = run.parts.get("scores", {})
    with faults_of(run, "scores"):
        found: dict[str, list[Mapping[str, Any]]] = {}
        for g in data.get("groups") or ():
            found.setdefault(str(g["attribute"]), []).append(g)
        return [_table(run, name, rows) for name, rows in found.items()]


def _table(run: Run, attribute: str, rows: Sequence[Mapping[str, Any]]) -> Groups:
    own = sorted({str(r["group"]) for r in rows} - set(BETWEEN))
    by = {(str(r["score"]), "" if r["group"] in BETWEEN else str(r["group"])): r for r in rows}
    columns = [*own, *([""] if any(g == "" for _, g in by) else [])]
    lines = []
    for score in dict.fromkeys(str(r["score"]) for r in rows):
        cells = [_cell(by[score, g]) if (score, g) in by else None for g in columns]
        lines.append((name_of(score)[0], cells))
    titles = [(run.scrubbed(g), _size_of(rows, g)) if g else ("Between groups", "largest gap") for g in columns]
    return Groups(plain(attribute.replace("+", " and ")), titles, lines)


def _size_of(rows: Sequence[Mapping[str, Any]], group: str) -> str:
    """How many images a group is judged by; of those that are too small only the share is known."""
    judged = [int(r["n"]) for r in rows if str(r["group"]) == group and not str(r["score"]).startswith("share")]
    return f"n = {judged[0]}" if judged else "too few to judge"


def _cell(r: Mapping[str, Any]) -> GroupCell:
    value, ends, floor = r["value"], r.get("interval"), r.get("floor_interval")
    judged: bool | None = None
    if floor is not None and floor[0] < floor[1]:
        if str(r["score"]).startswith("share") and ends is not None:
            judged = bool(ends[0] <= floor[1] and ends[1] >= floor[0])  # a share may be far off by chance alone
        else:
            low = "low" if r["group"] in BETWEEN else good_when({"name": r["score"]})
            judged = within({"value": value, "floor_interval": floor, "good": low})
    said = f"floor {number(r.get('floor'), 2)} ({interval(floor, 2)})" if r.get("floor") is not None else ""
    return GroupCell(number(value), interval(ends, 2), said, judged)


# ------------------------------------------------------------------------------------------------------------- readers


@dataclass(frozen=True)
class Reader:
    """One reader, or all of them: shares as (value, interval)."""

    name: str
    n: int
    auroc: tuple[str, str]
    plot: Markup
    sensitivity: tuple[str, str]
    specificity: tuple[str, str]
    accuracy: tuple[str, str]


@dataclass(frozen=True)
class Readers:
    """What the reader study says."""

    rows: list[Reader]
    verdict: Verdict
    marks: list[tuple[str, list[tuple[str, str, int, Markup]]]]
    agreement: list[tuple[str, tuple[str, str], tuple[str, str]]]
    captions: str


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
            (plain(key), _kappa(a.get("intra_reader")), _kappa(a.get("fleiss")))
            for key, a in (data.get("agreement") or {}).items()
        ]
        return Readers(rows, _told(pooled, len(named)), marks, agreement, _captions(data.get("captions")))


def _reader(name: str, d: Mapping[str, Any]) -> Reader:
    if "auroc" not in d:
        none = ("–", "")
        return Reader(name, d["n"], ("too few", ""), Markup(""), none, none, none)
    ends = d["auroc"]["interval"]
    said = f"{number(d['auroc']['value'], 2)} ({interval(ends, 2)})"
    plot = row_plot(f"{name}: AUROC {said}; 0.5 is chance", d["auroc"]["value"], ends, 0.5, None, None, 220, (0.0, 1.0))
    value = (number(d["auroc"]["value"], 2), interval(ends, 2))
    return Reader(name, d["n"], value, plot, *(_share(d[k]) for k in ("sensitivity", "specificity", "accuracy")))


def _kappa(k: Mapping[str, Any] | None) -> tuple[str, str]:
    """With its interval."""
    return (number(k.get("kappa"), 2), interval(k.get("interval"), 2)) if k else ("–", "")


def _share(d: Mapping[str, Any]) -> tuple[str, str]:
    """In percent, and its interval."""
    low, high = d["interval"]
    return percent(d["value"]), f"{percent(low).removesuffix(' %')} to {percent(high)}"


def _marks(kind: str, v: Mapping[str, Any]) -> tuple[str, str, int, Markup]:
    counts = [int(n) for n in v["counts"]]
    told = ", ".join(f"{n} times {i}" for i, n in enumerate(counts, 1) if n)
    return plain(kind), number(v["mean"], 2), int(v["n"]), counts_bar(f"{kind}: {told}", counts)


def _captions(found: Mapping[str, Any] | None) -> str:
    """How many wrong captions the readers caught; nothing where none was planted."""
    if not found:
        return ""
    caught, passed = (_share(found[k]) for k in ("sensitivity", "specificity"))
    return f"Wrong captions planted on real pictures: {caught[0]} caught ({caught[1]}); right ones passed: {passed[0]}."


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
