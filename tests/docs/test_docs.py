"""What the documentation shows works: its blocks run, its commands parse, its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import pages

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")])
WITH_CODE = [p for p in PAGES if any(b.mark is None and b.kind in ("python", "sh") for b in pages.blocks(p))]


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not pages.write_files(page, tmp_path):
        pages.run(page)
        return
    # A page that writes a package has it installed: an entry point is metadata on the path, and a process of its own.
    project = (tmp_path / "pyproject.toml").read_text()
    (group,) = re.findall(r'^\[project\.entry-points\."(.*)"\]\n(.*?)\n\n', project, re.M | re.S)
    info = tmp_path / "my_methods-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{group[0]}]\n{group[1].replace(chr(34), '')}\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, pages.__file__, str(page)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my_methods/ilvr.py" in done.stdout
    assert "factor: int = 4" in done.stdout
    assert "torch.Size([2, 1, 16, 16])" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_parse_and_unrun_blocks_say_why(page):
    for block in pages.blocks(page):
        assert block.mark is None or block.note.strip()
        for words in block.commands():
            pages.parse(words)


def test_a_command_that_is_not_there_is_found_out():
    for words in (["lst"], ["list", "--jsn"]):
        with pytest.raises(Exception, match=r"lst|jsn"):
            pages.parse(words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_methods_named_in_the_docs_exist():
    from monai_diffaug import registry

    for page in PAGES:
        for word in re.findall(
            r'method="(\w+)"|--method (\w+)|diffaug where ([a-z]\w*)', page.read_text(encoding="utf-8")
        ):
            method = next(w for w in word if w)
            assert method == "ilvr" or registry.get(method)
