"""A study on disk: one SQLite file with pictures, key and answers.

Nothing that a reader's browser gets tells real from synthetic: every picture is written anew, at one size, in 8 bits,
without compression (a smooth picture would make a smaller file) and without meta data, under a random name; both kinds
are shown equally often, in an order of the reader's own, with repeats far from their first showing.
"""

from __future__ import annotations

import io
import json
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ...evaluation.images import Pictures
from ...types import DiffAugError

__all__ = ["QUESTIONS", "Question", "Shown", "Study", "create", "open_study"]


@dataclass(frozen=True)
class Question:
    """One mark on a scale of five. ``low`` and ``high`` say what 1 and 5 mean."""

    key: str
    text: str
    low: str
    high: str


ORIGIN = Question("origin", "Real or synthetic?", "surely real", "surely synthetic")

QUESTIONS = (
    ORIGIN,
    Question("realism", "Realism: texture, contrast and noise as a scanner makes them", "not recognizable", "flawless"),
    Question("detail", "Detail: fine structures that matter for the task are kept", "lost", "all kept"),
    Question("edit", "Edit consistency: what was changed is changed, the rest intact", "inconsistent", "consistent"),
    Question("context", "Context: the finding fits the anatomy around it", "does not fit", "fits"),
    Question("semantic", "Semantic accuracy: no misleading or impossible content", "misleading", "accurate"),
)

_TABLES = """
CREATE TABLE study (id INTEGER PRIMARY KEY CHECK (id = 1), about TEXT NOT NULL);
CREATE TABLE pictures (token TEXT PRIMARY KEY, png BLOB NOT NULL, synthetic INTEGER NOT NULL, path TEXT NOT NULL,
    kind TEXT NOT NULL, caption TEXT NOT NULL, planted INTEGER NOT NULL);
CREATE TABLE showings (reader TEXT, position INTEGER, token TEXT NOT NULL, again INTEGER NOT NULL,
    PRIMARY KEY (reader, position));
CREATE TABLE answers (reader TEXT, position INTEGER, question TEXT, value INTEGER NOT NULL, seconds REAL NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (reader, position, question));
"""


@dataclass(frozen=True)
class Shown:
    """One showing to one reader: its place, its picture and what is said of it, and the marks given so far."""

    position: int
    token: str
    caption: str
    answers: dict[str, int]


def _png(image: Tensor, side: int) -> bytes:
    """An image (C, H, W) in [-1, 1], or the middle plane of a volume, as a gray 8-bit picture of ``side`` pixels."""
    plane = image if image.ndim == 3 else image[..., image.shape[-1] // 2].transpose(1, 2)
    values = ((plane.float().mean(0) + 1) / 2 * 255).clamp(0, 255).round().numpy().astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC).save(out, "PNG", compress_level=0)
    return out.getvalue()


class Study:
    """A study's file, opened."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._connection = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        self._lock = threading.RLock()  # the server answers in threads
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")  # an answer that was confirmed is on the disk
        with self._opened() as c:
            about = json.loads(c.execute("SELECT about FROM study").fetchone()[0])
        self.questions = tuple(Question(**q) for q in about["questions"])
        self.repeats: float = about["repeats"]
        self.seed: int = about["seed"]
        self.title: str = about["title"]

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._connection:
            yield self._connection

    def picture(self, token: str) -> bytes | None:
        """The PNG of a token."""
        with self._opened() as c:
            row = c.execute("SELECT png FROM pictures WHERE token = ?", (token,)).fetchone()
        return None if row is None else bytes(row[0])

    def _order(self, reader: str) -> list[tuple[str, bool]]:
        """Blocks with as many real as synthetic pictures, each shuffled; repeats come at least a third later."""
        with self._opened() as c:
            rows = c.execute("SELECT token, synthetic FROM pictures ORDER BY token").fetchall()
        rng = random.Random(f"{self.seed} {reader}")
        kinds = [[t for t, s in rows if s == kind] for kind in (0, 1)]
        for tokens in kinds:
            rng.shuffle(tokens)
        order: list[str] = []
        for first in range(0, max(map(len, kinds)), 4):
            block = [t for tokens in kinds for t in tokens[first : first + 4]]
            rng.shuffle(block)
            order += block
        early = set(order[: 3 * len(order) // 5])
        again: list[str] = []
        for tokens in kinds:
            known = [t for t in tokens if t in early]
            again += rng.sample(known, min(round(self.repeats * len(tokens)), len(known)))
        showings = [(t, False) for t in order]
        for t in again:  # at least a third of the study after the first showing
            first = next(i for i, (other, _) in enumerate(showings) if other == t)
            showings.insert(rng.randint(min(first + max(len(order) // 3, 1), len(showings)), len(showings)), (t, True))
        return showings

    def enroll(self, reader: str) -> None:
        """Give a reader an order; one who comes again keeps it.

        Raises:
            DiffAugError: the name is empty or too long.
        """
        if not 0 < len(reader.strip()) <= 64:
            raise DiffAugError("a reader needs a name of 1 to 64 letters: give one")
        with self._opened() as c:
            if c.execute("SELECT 1 FROM showings WHERE reader = ?", (reader,)).fetchone() is None:
                rows = [(reader, i, t, int(again)) for i, (t, again) in enumerate(self._order(reader))]
                c.executemany("INSERT INTO showings VALUES (?, ?, ?, ?)", rows)

    def showings(self, reader: str) -> list[Shown]:
        """All that a reader is shown, in order, with the marks given."""
        self.enroll(reader)
        with self._opened() as c:
            rows = c.execute(
                "SELECT position, token, caption FROM showings JOIN pictures USING (token) WHERE reader = ? "
                "ORDER BY position",
                (reader,),
            )
            shown = {p: Shown(p, t, caption, {}) for p, t, caption in rows.fetchall()}
            for p, q, v in c.execute("SELECT position, question, value FROM answers WHERE reader = ?", (reader,)):
                shown[p].answers[q] = v
        return list(shown.values())

    def answer(self, reader: str, position: int, question: str, value: int, seconds: float = 0.0) -> None:
        """Keep a mark; a later one takes its place.

        Raises:
            DiffAugError: the reader was not shown that, or question or mark are not of the study.
        """
        if question not in {q.key for q in self.questions}:
            raise DiffAugError(f"question {question!r} is not of this study: reload the page")
        if value not in (1, 2, 3, 4, 5):
            raise DiffAugError(f"mark {value!r} is not on the scale: give 1 to 5")
        with self._opened() as c:
            known = c.execute("SELECT 1 FROM showings WHERE reader = ? AND position = ?", (reader, position)).fetchone()
            if known is None:
                raise DiffAugError(f"reader {reader!r} was not shown picture {position + 1}: reload the page")
            c.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (reader, position, question) "
                "DO UPDATE SET value = excluded.value, seconds = excluded.seconds, at = excluded.at",
                (reader, position, question, value, seconds, time.time()),
            )

    def table(self) -> list[dict[str, object]]:
        """Every mark with its key: who and where, whether shown again, synthetic, path, kind, caption, wrong or not."""
        columns: tuple[str, ...] = ("reader", "position", "token", "again", "synthetic", "path", "kind")
        columns += ("caption", "planted", "question", "value", "seconds")
        with self._opened() as c:
            rows = c.execute(
                "SELECT a.reader, a.position, s.token, s.again, p.synthetic, p.path, p.kind, p.caption, p.planted, "
                "a.question, a.value, a.seconds FROM answers a JOIN showings s USING (reader, position) "
                "JOIN pictures p USING (token) ORDER BY a.reader, a.position, a.question"
            ).fetchall()
        return [dict(zip(columns, row, strict=True)) for row in rows]


def create(
    path: str | Path,
    real: Pictures,
    synthetic: Pictures,
    *,
    n: int = 40,
    repeats: float = 0.1,
    marks: Sequence[str] = (),
    title: str = "Reader study",
    side: int = 512,
    seed: int = 0,
    captions: bool = False,
    planted: float = 0.1,
) -> Study:
    """A new study of ``n`` real and ``n`` synthetic pictures.

    Args:
        path: of the file; must not exist.
        real: fitted as the synthetic ones are, so that matrix, window and crop tell nothing.
        synthetic: likewise.
        n: of each kind at most; the smaller set decides.
        repeats: share of each kind that is shown a second time, for the agreement of a reader with himself.
        marks: further questions, of the task (``"the lesion could be measured"``).
        title: shown on the page.
        side: pixels of a picture.
        seed: of choice and order.
        captions: say with each picture what it is to show, its class; of every class there are then as many real as
            synthetic pictures, so that captions tell nothing.
        planted: share of the real pictures whose captions are exchanged, which a reader should mark as misleading.

    Raises:
        DiffAugError: the file exists, sizes differ, there are fewer than four of a kind, or captions are wanted and the
            images have no classes in common.
    """
    target = Path(path)
    if target.exists():
        raise DiffAugError(f"{target} exists: go on with `diffaug review {target}`, or give another --study")
    if real.images.shape[1:] != synthetic.images.shape[1:]:
        raise DiffAugError(
            "real and synthetic images differ in size or channels: fit them to one size, or all can tell"
        )
    rng = random.Random(seed)
    chosen = _chosen(real, synthetic, n, captions, rng)
    if len(chosen[0]) < 4:
        raise DiffAugError(f"there are {len(chosen[0])} of a kind: give at least 4 real and 4 synthetic images")
    own = tuple(Question(f"task_{i}", text, "no", "yes") for i, text in enumerate(marks, 1))
    about = {
        "questions": [asdict(q) for q in (*QUESTIONS, *own)],
        "repeats": repeats,
        "seed": seed,
        "title": title,
    }
    rows = []
    for kind, (pictures, which) in enumerate(zip((real, synthetic), chosen, strict=True)):
        said = {i: pictures.kinds[i] if captions else "" for i in which}
        wrong = _exchanged(said, planted, rng) if captions and kind == 0 else {}
        for i in which:
            known = (secrets.token_hex(12), _png(pictures.images[i], side), kind, str(pictures.paths[i]))
            rows.append((*known, pictures.kinds[i], wrong.get(i, said[i]), int(i in wrong)))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    connection = sqlite3.connect(part)
    with connection:
        connection.executescript(_TABLES)
        connection.execute("INSERT INTO study VALUES (1, ?)", (json.dumps(about),))
        connection.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?)", sorted(rows))
    connection.close()
    part.rename(target)
    return Study(target)


def _chosen(
    real: Pictures, synthetic: Pictures, n: int, captions: bool, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Which real and which synthetic pictures; with captions as many of a class on either side."""
    if not captions:
        n = min(n, len(real), len(synthetic))
        return rng.sample(range(len(real)), n), rng.sample(range(len(synthetic)), n)
    shared = sorted({k for k in real.kinds if k} & set(synthetic.kinds))
    if len(shared) < 2:
        raise DiffAugError(
            "captions need two classes that both sets have: give datalists with classes, or no --captions"
        )
    of = [{k: [i for i, x in enumerate(p.kinds) if x == k] for k in shared} for p in (real, synthetic)]
    each = [min(len(of[0][k]), len(of[1][k]), -(-n // len(shared))) for k in shared]
    first, second = ([i for k, m in zip(shared, each, strict=True) for i in rng.sample(side[k], m)] for side in of)
    return first, second


def _exchanged(said: Mapping[int, str], share: float, rng: random.Random) -> dict[int, str]:
    """Pictures whose captions change places with that of one of another class: as many of each caption as before."""
    left = list(said)
    rng.shuffle(left)
    wrong: dict[int, str] = {}
    while len(wrong) < round(share * len(said)) and left:
        one = left.pop()
        other = next((i for i in left if said[i] != said[one]), None)
        if other is not None:
            left.remove(other)
            wrong |= {one: said[other], other: said[one]}
    return wrong


def open_study(path: str | Path) -> Study:
    """A study that exists.

    Raises:
        DiffAugError: there is none, or the file is something else.
    """
    if not Path(path).is_file():
        raise DiffAugError(f"{path} is no study: create one with `diffaug review REAL SYNTHETIC --study {path}`")
    try:
        return Study(path)
    except sqlite3.DatabaseError as e:
        raise DiffAugError(f"{path} is no study ({e}): create one with `diffaug review REAL SYNTHETIC`") from None
