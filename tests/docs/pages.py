"""Run the code blocks of a page, in order, in one namespace and one folder."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from monai_diffaug.cli import app

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|file): (?P<note>.*?) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    mark: str | None
    note: str

    def commands(self):
        """The `diffaug` lines of a shell block, as words."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.kind == "sh" else []
        return [shlex.split(x.split(" > ")[0], comments=True)[1:] for x in lines if x.startswith("diffaug ")]


def blocks(page):
    return [
        Block(m["kind"], m["text"], m["mark"], m["note"] or "")
        for m in BLOCK.finditer(Path(page).read_text(encoding="utf-8"))
    ]


def write_files(page, folder):
    """Write the blocks that are files; returns whether there were any."""
    found = [b for b in blocks(page) if b.mark == "file"]
    for block in found:
        target = Path(folder) / block.note
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text)
    return bool(found)


def parse(words):
    """Whether a command line has a meaning: unknown commands and options are refused, nothing is run."""
    name, *rest = words
    command = get_command(app).get_command(None, name)
    assert command is not None, f"there is no command diffaug {name}"
    command.make_context(name, rest)


def run(page):
    """Run the page's blocks in the working directory."""
    namespace = {"__name__": "page"}
    for block in blocks(page):
        if block.mark is None and block.kind == "python":
            exec(compile(block.text, f"{page}", "exec"), namespace)
        for words in block.commands() if block.mark is None else []:
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"diffaug {' '.join(words)}: {result.output}"
            print(result.stdout)


if __name__ == "__main__":
    run(sys.argv[1])
