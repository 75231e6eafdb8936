"""What was made from what; and provenance: files, digests, versions, licenses."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from ...types import DiffAugError
from .run import LIST, Run
from .sheets import kind_of
from .words import brief, count, number, percent, plain

__all__ = ["Origin", "Provenance", "origin", "provenance"]

PACKAGE = "monai-diffaug"


@dataclass(frozen=True)
class Origin:
    """Tables of (what, how many); ``methods`` as (name, images, idea, parameters)."""

    facts: list[tuple[str, str]]
    methods: list[tuple[str, int, str, list[tuple[str, str]]]]
    classes: list[tuple[str, int, int]]
    patients: list[tuple[str, int]]
    n: int
    n_sources: int
    n_patients: int
    backbone: str
    license: str


@dataclass(frozen=True)
class Provenance:
    """Files with SHA-256 and size, versions, and the package's dependencies as (name, version, license)."""

    files: list[tuple[str, str, str]]
    made_with: list[tuple[str, str]]
    software: list[tuple[str, str, str]]
    seeds: str
    digests: list[tuple[str, str]]


def origin(run: Run) -> Origin:
    """Count what the datalist lists."""
    entries = run.entries
    sources = {str(e["source"]) for e in entries if e.get("source")}
    patients = Counter(str(e["patient"]) for e in entries if e.get("patient") not in (None, ""))
    backbone = str(run.head.get("backbone") or run.job.get("backbone") or _first(run, "backbone") or "not named")
    digest = str(run.head.get("backbone_digest") or _first(run, "backbone_digest") or "")
    began, ended = (_date(run.folder / name) for name in ("job.json", LIST))
    facts = [
        ("Synthetic images", number(len(entries))),
        ("Made from", count(len(sources), "real image") if sources else "noise, no real image"),
        ("Patients", _spread(patients) if patients else "the datalist names none"),
        ("Backbone", f"{backbone} (SHA-256 {digest[:16]}…)" if digest else backbone),
        ("Made", f"{began} to {ended}" if began and began != ended else ended),
        ("Seed of the job", number(run.job["seed"]) if isinstance(run.job.get("seed"), int) else "not written down"),
        ("Filters", _filters(run.job.get("keep"), run.job.get("gate"))),
        ("Not made", _not_made(run)),
    ]
    return Origin(
        [(k, run.scrubbed(v)) for k, v in facts if v], _methods(run), _classes(run), _named(run, patients),
        len(entries), len(sources), len(patients), run.scrubbed(backbone),
        run.scrubbed(run.head.get("licence") or "unknown"),
    )  # fmt: skip


def _first(run: Run, key: str) -> Any:
    return next((p[key] for p in run.provenances if p.get(key)), None)


def _date(path: Path) -> str:
    if not path.is_file():
        return ""
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _spread(patients: Counter[str]) -> str:
    each = sorted(patients.values())
    few, many = each[0], each[-1]
    middle = brief(statistics.median(each))
    per = f"{few} to {many} images each, median {middle}" if few != many else f"{count(few, 'image')} each"
    return f"{count(len(patients), 'patient')}; {per}"


def _filters(keep: Any, gate: Any) -> str:
    said = [f"{plain(k).lower()} {brief(v)}" for k, v in keep.items()] if isinstance(keep, Mapping) else []
    if isinstance(gate, Mapping):
        said.append(
            f"gate {gate.get('kind', '')}, which lets {percent(gate.get('rate'))} of unseen images pass for copies"
        )
    return "; ".join(said) or "none"


def _not_made(run: Run) -> str:
    refused = len(list((run.folder / "audit").glob("*.gate.json")))
    said = [f"{count(refused, 'image')} refused by the gate at least once"] if refused else []
    said += [
        f"{len(run.head[key])} {what}"
        for key, what in (
            ("rejected", "rejected by a filter"), ("skipped", "inputs that could not be read"),
            ("unchanged", "left as they are, since the method has nothing to do to them"),
        )
        if isinstance(run.head.get(key), list) and run.head[key]
    ]  # fmt: skip
    return "; ".join(said)


def _named(run: Run, patients: Counter[str]) -> list[tuple[str, int]]:
    """Images of each patient: by name only if names are wanted."""
    return sorted(patients.items()) if run.with_paths else []


def _classes(run: Run) -> list[tuple[str, int, int]]:
    """Class, synthetic images, patients."""
    made: Counter[str] = Counter()
    who: dict[str, set[str]] = {}
    for e in run.entries:
        kind = kind_of(e) or "not named"
        made[kind] += 1
        if e.get("patient"):
            who.setdefault(kind, set()).add(str(e["patient"]))
    return [(run.scrubbed(k), n, len(who.get(k, ()))) for k, n in made.most_common()]


def _methods(run: Run) -> list[tuple[str, int, str, list[tuple[str, str]]]]:
    made = Counter(str(p.get("method") or "not named") for p in run.provenances)
    return [(name, n, _idea(name), _parameters(run, name)) for name, n in made.most_common()]


def _idea(name: str) -> str:
    from ... import registry

    try:
        card = registry.get(name).card
    except DiffAugError:
        return ""
    return card.get("Idea", "").rstrip(".")


def _parameters(run: Run, method: str) -> list[tuple[str, str]]:
    """What was set, each with its values and how often they occur; drawn numbers as their range."""
    seen: dict[str, Counter[str]] = {}
    drawn: dict[str, list[float]] = {}
    for p in run.provenances:
        if str(p.get("method")) != method:
            continue
        for key, value in (p.get("parameters") or {}).items():
            seen.setdefault(key, Counter())[brief(value) if isinstance(value, int | float) else str(value)] += 1
        for key, value in (p.get("scores") or {}).items():
            if isinstance(value, int | float):
                drawn.setdefault(key, []).append(float(value))
    told = [(plain(k), run.scrubbed(_values(c))) for k, c in seen.items()]
    return told + [(plain(k), _range(v)) for k, v in drawn.items()]


def _values(c: Counter[str]) -> str:
    if len(c) == 1:
        return next(iter(c))
    total = sum(c.values())
    return ", ".join(f"{v} ({percent(n / total)})" for v, n in c.most_common(4)) + (", …" if len(c) > 4 else "")


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return brief(low) if low == high else f"{brief(low)} to {brief(high)}, mean {brief(statistics.fmean(values))}"


# ---------------------------------------------------------------------------------------------------------- provenance


def provenance(run: Run) -> Provenance:
    """What the report rests on, and what made it."""
    files = [(p.name, f"{p.stat().st_size / 1024:.1f} KiB", sha) for p, sha in run.files()]
    seeds = sorted({int(p["seed"]) for p in run.provenances if isinstance(p.get("seed"), int)})
    each = f"{count(len(seeds), 'seed')}, one an image, in {LIST}" if seeds else "not written down"
    digests = Counter((str(p.get("backbone", "")), str(p.get("backbone_digest", ""))) for p in run.provenances)
    named = [(f"Backbone {run.scrubbed(b)}", d) for (b, d), _ in digests.most_common() if d]
    for x in run.parts.get("scores", {}).get("extractors") or ():
        named.append((f"Extractor {run.scrubbed(x.get('name', ''))}", str(x.get("sha256", ""))))
    return Provenance(files, list(run.versions.items()), _software(), each, named)


def _software() -> list[tuple[str, str, str]]:
    """The package and what it needs, as installed here."""
    try:
        wanted = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    names = [PACKAGE, *sorted(re.split(r"[^\w.-]", r)[0] for r in wanted if "extra ==" not in r)]
    found = []
    for name in dict.fromkeys(names):
        try:
            about = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.append((name, about.version, _license(about.metadata)))
    return found


def _license(about: Any) -> str:
    """By its expression, its classifiers, or the first line of what it says."""
    if about.get("License-Expression"):
        return str(about["License-Expression"])
    kinds = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    kinds = [k for k in kinds if k != "OSI Approved"]
    said = (about.get("License") or "").strip().splitlines()
    return ", ".join(kinds) if kinds else said[0][:60] if said else "not named"
