"""`diffaug list`, `diffaug where`, `diffaug cite`: what the registry knows."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monai_diffaug.cli.main import app, as_json

if TYPE_CHECKING:
    from monai_diffaug.registry import Entry

__all__ = ["as_dict", "as_markdown"]

JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class Shape(str, Enum):
    """What a method makes of what: the four shapes."""

    generate = "generate"
    edit = "edit"
    learn = "learn"
    expand = "expand"


@app.command("list")
def list_methods(
    pattern: Annotated[str, typer.Argument(help="A word or a wildcard: of names and headings, else of cards.")] = "*",
    shape: Annotated[Shape | None, typer.Option(help="Only methods of this shape.")] = None,
    json: JSON = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference page of the methods.")] = False,
) -> None:
    """List the methods by heading: shape, labels, what they need of a backbone, and the idea.

    Examples:
      diffaug list
      diffaug list counterfactual
      diffaug list "semantic/*" --shape edit --json
    """
    found = [m for m in _find(pattern) if shape is None or m.shape == shape.value]
    if not found:
        from monai_diffaug.types import DiffAugError

        if shape is not None:
            raise DiffAugError(f"no method of shape {shape.value} matches {pattern!r}: `diffaug list` shows all")
        raise DiffAugError(_none(pattern))
    if json:
        as_json([as_dict(m) for m in found])
    elif markdown:
        print(as_markdown(found), end="")
    else:
        _table(found)


@app.command("where")
def where_is(
    name: Annotated[str, typer.Argument(help="A method's name or alias.")],
    json: JSON = False,
) -> None:
    """Say where a method stands and what it takes: heading, paper, idea, needs, parameters, file and line.

    Examples:
      diffaug where sdedit
      diffaug where healthy_counterfactual --json
    """
    from monai_diffaug import registry

    entry = registry.get(name)
    if json:
        as_json(as_dict(entry))
        return
    about = as_dict(entry)
    dims = ", ".join(f"{d}D" for d in entry.dims)
    also = f" (also {', '.join(entry.aliases)})" if entry.aliases else ""
    print(f"{entry.name}{also}: {about['title']}")
    facts = {
        "Heading": f"{entry.heading} ({entry.shape}, labels {entry.labels}, {dims})",
        **{key: about[key.lower()] for key in ("Paper", "Idea", "Changes", "Departs")},
        "Needs": ", ".join(entry.needs) or "nothing beyond a backbone",
        "File": f"{about['file']}:{about['line']}",
    }
    for key, value in facts.items():
        print(_wrapped(f"  {key:<10}", value))
    print("\n  Parameters")
    for p in about["parameters"]:
        default = "required" if p["required"] else f"= {p['default']!r}"
        print(f"    {p['name']}: {p['type']} {default}")
        print(_wrapped(" " * 8, p["text"]))


@app.command()
def cite(
    names: Annotated[list[str], typer.Argument(help="Names or aliases of methods.")],
    json: JSON = False,
) -> None:
    """Print the papers of methods as BibTeX.

    Examples:
      diffaug cite sdedit edict > methods.bib
    """
    from monai_diffaug import registry

    if json:
        as_json(
            [{"name": m.name, "paper": m.card.get("Paper", ""), "bibtex": m.bibtex} for m in map(registry.get, names)]
        )
    else:
        print(registry.cite(dict.fromkeys(registry.get(n).name for n in names)))


def _find(pattern: str) -> list[Entry]:
    from monai_diffaug import registry

    found = registry.listing(pattern)
    if found or any(c in pattern for c in "*?["):
        return found
    return [m for m in registry.listing() if pattern.lower() in " ".join(m.card.values()).lower()]


def _none(pattern: str) -> str:
    from monai_diffaug import registry

    words = {w for m in registry.listing() for w in (m.name, *m.aliases, *m.heading.split("/"))}
    return f"no method matches {pattern!r}: {registry.nearest(pattern, words)}`diffaug list` shows all"


def as_dict(entry: Entry) -> dict[str, Any]:
    """All that the registry and a method's own file say of it, fit for JSON."""
    from monai_diffaug import registry

    texts = _argument_texts(inspect.getdoc(entry.function) or "")
    title = (inspect.getdoc(inspect.getmodule(entry.function)) or "").split("\n", 1)[0]
    parameters = [
        {
            "name": p.name,
            "type": _type(p.annotation),
            "required": p.default is p.empty,
            "default": None if p.default is p.empty else p.default,
            "text": texts.get(p.name, ""),
        }
        for p in registry.parameters(entry).values()
    ]
    return {
        "name": entry.name,
        "title": title.partition(":")[2].strip().rstrip(".") or title,
        "aliases": list(entry.aliases),
        "heading": entry.heading,
        "shape": entry.shape,
        "labels": entry.labels,
        "needs": list(entry.needs),
        "dims": list(entry.dims),
        "neutral": dict(entry.neutral or {}),
        **{key: entry.card.get(key.capitalize(), "") for key in ("paper", "idea", "changes", "departs")},
        "file": str(entry.file),
        "line": entry.line,
        "parameters": parameters,
    }


def _type(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "any"
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _argument_texts(doc: str) -> dict[str, str]:
    """Name -> text, of the ``Args:`` part of a Google docstring."""
    block = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.M | re.S)
    found = re.findall(r"^    ([\w, ]+):[ ]*(.*?)(?=^    \S|\Z)", block.group(1) if block else "", re.M | re.S)
    return {name: " ".join(text.split()) for names, text in found for name in re.split(r",\s*", names)}


def _wrapped(head: str, text: str) -> str:
    width = max(60, shutil.get_terminal_size((100, 20)).columns)
    return textwrap.fill(text, width, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False)


def _table(found: list[Entry]) -> None:
    """One line a method, cut to the width of a terminal; whole where the output goes to a file or a pipe."""
    head = ("method", "shape", "labels", "needs", "idea")
    rows = [(m.name, m.shape, m.labels, ", ".join(m.needs) or "-", m.card.get("Idea", "")) for m in found]
    widths = [max(map(len, column)) for column in list(zip(head, *rows, strict=True))[:4]]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize

    def line(cells: tuple[str, ...]) -> str:
        text = "  ".join(["", *(cell.ljust(w) for cell, w in zip(cells, widths)), cells[4]])
        return text if len(text) <= room else text[: room - 1] + "…"

    print(line(head))
    for heading, group in groupby(zip(found, rows, strict=True), key=lambda pair: pair[0].heading):
        print(heading)
        print("\n".join(line(row) for _, row in group))


def as_markdown(found: list[Entry]) -> str:
    """The reference page: a section for each heading, a table row for each parameter."""
    lines = ["# Methods", "", "Made by `diffaug list --markdown`; do not edit.", ""]
    for heading, group in groupby(found, key=lambda m: m.heading):
        lines += [f"## {heading}", ""]
        for m in group:
            about = as_dict(m)
            also = f" Also called {', '.join(f'`{a}`' for a in m.aliases)}." if m.aliases else ""
            needs = ", ".join(f"`{n}`" for n in m.needs) or "nothing beyond a backbone"
            lines += [
                f"### {m.name}",
                "",
                f"{about['title'][:1].upper()}{about['title'][1:]}.{also}",
                "",
                f"- Shape: {m.shape}; labels: {m.labels}; {' and '.join(f'{d}D' for d in m.dims)}.",
                f"- Needs: {needs}.",
                *(f"- {key.capitalize()}: {about[key]}" for key in ("paper", "idea", "changes", "departs")),
                "",
                "| parameter | default | meaning |",
                "|---|---|---|",
            ]
            for p in about["parameters"]:
                default = "required" if p["required"] else f"`{p['default']!r}`"
                lines.append(f"| `{p['name']}` | {default} | {p['text'].replace('|', chr(92) + '|')} |")
            lines.append("")
    return "\n".join(lines)
