"""Does it leak: the audit's sections, and the synthetic images closest to training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pictures import Picture, deepest, drawn, perhaps, window
from .run import Run, faults_of
from .sheets import source_name, source_of
from .terms import figure_of, section_of
from .words import BAD, CAUTION, GOOD, UNKNOWN, Verdict, brief, count, interval, percent, plain, wraps

__all__ = ["Pair", "Privacy", "Section", "privacy"]

PAIRS = 12
SECTIONS = ("copies", "reidentification", "membership", "extraction", "attributes", "fairness")
NOBODY = "Nobody has looked whether these images give a patient away."
_MARKS = {"pass": (GOOD, "Passed"), "fail": (BAD, "Failed")}
_SPACES = {"pixels": "pixels", "structure": "edges", "embedding": "features of the network"}


@dataclass(frozen=True)
class Section:
    """One section of the audit: its verdict, and figures as (what, value, interval, control, bar)."""

    key: str
    name: str
    question: str
    verdict: Verdict
    figures: list[tuple[str, str, str, str, str]]
    warnings: list[str]

    @property
    def judged(self) -> list[tuple[str, str, str, str, str]]:
        """Figures that have a control or a limit to compare with."""
        return [f for f in self.figures if f[3] or f[4]]

    @property
    def further(self) -> str:
        """The other figures in a line."""
        by: dict[str, list[str]] = {}
        for name, value, *_ in (f for f in self.figures if not (f[3] or f[4])):
            head, _, last = name.rpartition(", ")
            by.setdefault(head or name, []).append(f"{last} {value}" if head else value)
        return "; ".join(f"{head}: {', '.join(values)}" for head, values in by.items())


@dataclass(frozen=True)
class Pair:
    """A synthetic image beside the training image that it is nearest to."""

    number: int | None
    made: Picture | None
    nearest: Picture | None
    space: str
    rare: str
    own: bool
    name: str


@dataclass(frozen=True)
class Privacy:
    """The whole section; ``fairness`` is told with the groups."""

    verdict: Verdict
    sections: list[Section]
    fairness: Section
    pairs: list[Pair]
    limitations: list[str]
    remark: str

    @property
    def unseen(self) -> str:
        """What the audit says nothing of."""
        silent = [s for s in self.sections if s.verdict.mark == UNKNOWN and not s.verdict.says and not s.figures]
        return wraps([s.name.lower() for s in silent])


def privacy(run: Run) -> Privacy:
    """What ``diffaug audit`` found, or that it did not look."""
    with faults_of(run, "audit"):
        data = _newer(run.parts.get("audit"))
        found = [_section(run, key, data["sections"].get(key)) for key in SECTIONS]
        extra = [_section(run, key, said) for key, said in data["sections"].items() if key not in SECTIONS]
        pairs = [] if run.share else [_pair(run, p) for p in data.get("pairs", ())[:PAIRS]]
        remark = ""
        if run.share and data.get("pairs"):
            remark = "The closest pairs show training images. They are left out of this copy, which is for sharing."
        told = [s for s in [*found, *extra] if s.key != "fairness"]
        fairness = next(s for s in found if s.key == "fairness")
        limits = [run.scrubbed(line) for line in data.get("limitations", ()) if not line.startswith("Not judged")]
        return Privacy(_verdict(data, told), told, fairness, pairs, limits, remark)


def _newer(data: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The form of today; earlier versions looked for copies only."""
    if data is None:
        return {"sections": {}}
    if "sections" in data or "found" not in data:
        return data
    allowed, n, copies = float(data["rate"]), int(data["images"]), int(data["copies"])
    says = (
        f"{copies} of {n} images are nearer to a training image than {percent(1 - allowed)} of unseen real images are."
    )
    share = {"value": copies / max(n, 1), "interval": None, "control": None, "bar": allowed}
    failed = copies > allowed * n
    copied = {"verdict": "fail" if failed else "pass", "says": says, "figures": {"share of images": share}}
    near = sorted(data["found"], key=lambda f: f["rare"])[:PAIRS]
    return {
        "verdict": copied["verdict"], "sections": {"copies": copied}, "pairs": near,
        "limitations": ["The audit was made by an earlier version, which looked for copies only."],
    }  # fmt: skip


def _section(run: Run, key: str, said: Mapping[str, Any] | None) -> Section:
    name, question = section_of(key)
    known = said or {}
    mark, word = _MARKS.get(str(known.get("verdict")), (UNKNOWN, "Not judged"))
    says = run.scrubbed(known.get("says") or "")
    if mark == UNKNOWN:  # the mark says so already
        says = says.removeprefix("Not judged: ")
        says = says[:1].upper() + says[1:]
    warnings = [run.scrubbed(w) for w in known.get("warnings") or ()]
    return Section(key, name, question, Verdict(mark, word, says), _figures(run, known), warnings)


def _figures(run: Run, said: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for name, f in (said.get("figures") or {}).items():
        known = f if isinstance(f, Mapping) else {"value": f}
        told = [brief(known[k]) if known.get(k) is not None else "" for k in ("control", "bar")]
        value, ends = brief(known.get("value")), interval(known.get("interval"))
        rows.append((run.scrubbed(figure_of(name)), value, ends, told[0], told[1]))
    return rows


def _verdict(data: Mapping[str, Any], told: list[Section]) -> Verdict:
    failed = [s.name.lower() for s in told if s.verdict.mark == BAD]
    passed = [s.name.lower() for s in told if s.verdict.mark == GOOD]
    unknown = [s.name.lower() for s in told if s.verdict.mark == UNKNOWN]
    rest = f" Not judged: {wraps(unknown)}." if unknown else ""
    if failed or data.get("verdict") == "fail":
        why = next((f" {s.verdict.says}" for s in told if s.verdict.mark == BAD), "")
        said = f"The audit failed on {wraps(failed or ['the whole'])}.{why} Do not share these images.{rest}"
        return Verdict(BAD, "Yes", said)
    if not passed:
        looked = "The audit could judge none of its sections." if unknown and data["sections"] else NOBODY
        return Verdict(UNKNOWN, "Not judged", looked)
    said = f"No leak was found by {count(len(passed), 'test')}: {wraps(passed)}.{rest}"
    return Verdict(CAUTION, "Judged in part", said) if unknown else Verdict(GOOD, "No leak found", said)


def _pair(run: Run, p: Mapping[str, Any]) -> Pair:
    at = run.number(str(p.get("image", "")))
    made = run.file(str(run.entries[at - 1]["image"])) if at else Path(str(p.get("image", "")))
    near = _located(run, str(p.get("nearest", "")))
    first, second = perhaps(made), perhaps(near)
    source = source_of(run, run.entries[at - 1]) if at else None
    pictures = [
        drawn(x, window(x), alt, at=deepest(None, x)) if x is not None else None
        for x, alt in ((first, f"synthetic image {at or ''}"), (second, "the training image nearest to it"))
    ]
    rare = percent(p["rare"]) if isinstance(p.get("rare"), int | float) else ""
    own = source is not None and near is not None and _same(source, near)
    name = source_name(run, near) if near is not None else ""
    return Pair(
        at, pictures[0], pictures[1], _SPACES.get(str(p.get("space")), plain(p.get("space", ""))), rare, own, name
    )


def _located(run: Run, path: str) -> Path | None:
    return next((b / path for b in (Path(), run.folder, run.folder.parent) if path and (b / path).is_file()), None)


def _same(a: Path, b: Path) -> bool:
    """Whether two files hold one image."""
    if not a.is_file() or not b.is_file():
        return False
    return a.samefile(b) or (a.stat().st_size == b.stat().st_size and a.read_bytes() == b.read_bytes())
