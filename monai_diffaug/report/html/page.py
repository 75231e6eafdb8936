"""The page: all sections in one file that fetches nothing, by its own policy."""

from __future__ import annotations

import base64
import hashlib
import os
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...io.atomic import write_bytes
from .origin import PACKAGE, origin, provenance
from .pictures import SIDE
from .plots import icon, key_of
from .privacy import PAIRS, privacy
from .realism import groups, readers, scores
from .run import COMMANDS, Run, opened
from .sheets import EDITS, PER_CLASS, VOLUMES, sheets
from .summary import limitations, questions
from .utility import utility
from .volumes import VOXELS
from .words import count

__all__ = ["report"]

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"
)


def report(folder: str | Path, out: str | Path | None = None, *, share: bool = False, with_paths: bool = False) -> Path:
    """Write the report of a run.

    Args:
        folder: what ``diffaug expand`` or ``generate`` wrote; ``scores.json``, ``utility.json``, ``audit.json`` and
            ``readers.json`` in it are taken in, and what is missing is named as not judged.
        out: the HTML file; ``report.html`` in the folder unless given.
        share: leave out pictures of patients.
        with_paths: name patients and files; otherwise sources go by a digest of their content.

    Returns:
        the file.

    Raises:
        DiffAugError: the folder has no datalist, or a file in it is broken; or the report cannot be written.
    """
    run = opened(folder, share=share, with_paths=with_paths)
    target = Path(out).expanduser() if out is not None else run.folder / "report.html"
    write_bytes(target, page(run).encode("utf-8"))
    return target


def page(run: Run) -> str:
    """The text of the page."""
    made, judged, read, helped = origin(run), scores(run), readers(run), utility(run)
    leaked, seen = privacy(run), sheets(run)
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "viewer.js"))
    now = _now()
    told: dict[str, Any] = {
        "run": run,
        "title": f"{count(made.n, 'synthetic image')}, backbone {made.backbone}",
        "policy": POLICY.format(style=_hash(style), script=_hash(script)),
        "style": Markup(style),  # our own files, whose digests are in the policy
        "script": Markup(script),
        "now": now,
        "version": metadata.version(PACKAGE),
        "questions": questions(judged, read, helped, leaked, "audit" in run.parts),
        "commands": COMMANDS,
        "made": made,
        "seen": seen,
        "judged": judged,
        "groups": groups(run),
        "read": read,
        "helped": helped,
        "leaked": leaked,
        "provenance": provenance(run),
        "limits": limitations(run, made, judged, helped, leaked, seen.remarks),
        "missing": [name for name in COMMANDS if name not in run.parts],
        "key": key_of(),
        "icon": icon,
        "side": SIDE,
        "voxels": VOXELS,
        "most": {"class": PER_CLASS, "edits": EDITS, "volumes": VOLUMES, "pairs": PAIRS},
    }
    known = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return known.get_template("page.html").render(told)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _now() -> str:
    """The date of the report; a fixed one where builds must repeat (SOURCE_DATE_EPOCH)."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    when = datetime.fromtimestamp(int(fixed), timezone.utc) if fixed.isdigit() else datetime.now(timezone.utc)
    return when.strftime("%B %-d, %Y, %H:%M UTC")
