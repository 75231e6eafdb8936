"""The command's frame and what it says of methods: help, errors in one line, exit codes, JSON."""

import json
import re
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from monai_diffaug import registry
from monai_diffaug.cli import app
from monai_diffaug.cli.methods import as_markdown
from monai_diffaug.types import DiffAugError

COMMANDS = sorted(get_command(app).commands)
METHODS = registry.listing()


def run(*args):
    return CliRunner().invoke(app, list(args))


def test_the_commands_are_there():
    assert {"list", "where", "cite", "doctor", "train", "edit", "expand", "generate"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_parse(command):
    text = run(command, "--help").stdout
    assert "Examples:" in text
    examples = re.findall(rf"^ +diffaug {command}\b(.*)$", get_command(app).get_command(None, command).help, re.M)
    assert examples, "no example of the command itself"
    for example in examples:
        words = shlex.split(example.split(" > ")[0], comments=True)
        get_command(app).get_command(None, command).make_context(command, words)  # refuses what does not parse


def test_help_comes_at_once_and_without_heavy_imports():
    program = "import sys; sys.argv = ['diffaug', '--help']\ntry:\n    from monai_diffaug.cli import app; app()\n"
    program += (
        "except SystemExit: print([m for m in ('torch', 'monai', 'diffusers', 'transformers') if m in sys.modules])"
    )
    start = time.process_time()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "diffaug list" in done.stdout
    assert time.process_time() - start < 1.0


def test_python_m_and_no_argument_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "monai_diffaug", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"monai-diffaug \d+\.\d+\.\d+\S*\n", done.stdout)
    result = run()
    assert result.exit_code == 0
    assert "Usage: diffaug" in result.stdout


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["where", "sdedti"], 1, "did you mean 'sdedit'"),
        (["list", "sdedti"], 1, "did you mean 'sdedit'"),
        (["cite", "edict", "edikt"], 1, "did you mean 'edict'"),
        (["list", "sdedit", "--shape", "learn"], 1, "no method of shape learn"),
        (["list", "--shape", "lern"], 2, "'learn'"),
        (["lst"], 2, "'list'"),
        (["list", "--jsn"], 2, "--json"),
        (["cite"], 2, "diffaug cite --help"),
        (["doctor", "brain_mir"], 1, "no checkpoint|unknown"),
    ],
)
def test_errors_are_one_line_with_the_nearest_name(args, code, says):
    result = run(*args)
    assert result.exit_code == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(says, line), line


@pytest.fixture
def failing():
    """A command that raises what it is told to, taken away again."""
    raised = {
        "mendable": DiffAugError("the folder is full:\n  give another"),
        "file": OSError(28, "No space left on device", "/data/out"),
        "bug": KeyError("a bug"),
        "stopped": KeyboardInterrupt(),
    }

    @app.command("fail")
    def fail(how: str) -> None:
        warnings.warn("from elsewhere", stacklevel=2)
        raise raised[how]

    yield
    app.registered_commands.pop()


def test_what_the_user_can_mend_is_one_line_and_a_bug_keeps_its_traceback(failing):
    result = run("fail", "mendable")
    assert (result.exit_code, result.stderr) == (1, "error: the folder is full: give another\n")
    result = run("fail", "file")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: /data/out: No space left on device; check")
    result = run("fail", "bug")
    assert isinstance(result.exception, KeyError)
    assert run("fail", "stopped").exit_code == 130


def test_debug_shows_the_traceback_and_other_warnings(failing, monkeypatch):
    result = run("--debug", "fail", "mendable")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "warning: from elsewhere" in result.stderr
    monkeypatch.setenv("DIFFAUG_DEBUG", "1")
    assert "Traceback" in run("fail", "mendable").stderr
    monkeypatch.delenv("DIFFAUG_DEBUG")
    assert "Traceback" not in run("fail", "mendable").stderr


def test_list_shows_every_method_once_under_its_heading():
    head, *lines = run("list").stdout.splitlines()
    assert head.split() == ["method", "shape", "labels", "needs", "idea"]
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert names == [m.name for m in METHODS]
    assert [line for line in lines if not line.startswith("  ")] == sorted({m.heading for m in METHODS})
    assert [m["name"] for m in json.loads(run("list", "--json").stdout)] == names


def test_list_narrows_by_name_heading_words_of_the_card_and_shape():
    assert "repaint" not in run("list", "counterfactual").stdout
    assert "healthy_counterfactual" in run("list", "semantic/counter*").stdout
    assert "healthy_counterfactual" in run("list", "disease").stdout  # of its card
    shapes = {m["shape"] for m in json.loads(run("list", "--shape", "edit", "--json").stdout)}
    assert shapes == {"edit"}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_where_says_all_of_a_method(method):
    about = json.loads(run("where", method.name, "--json").stdout)
    assert {p["name"] for p in about["parameters"]} == set(registry.parameters(method))
    assert all(p["text"] for p in about["parameters"]), "a parameter without a text"
    source = Path(about["file"]).read_text().splitlines()
    assert method.name in "\n".join(source[about["line"] - 1 : about["line"] + 12])
    text = " ".join(run("where", method.name).stdout.split())
    for part in (method.heading, method.card["Idea"], f":{about['line']}"):
        assert part in text


def _entries(text):
    """A small BibTeX reader: balanced braces, `key = {value}` fields; anything else fails."""
    entries = []
    for kind, key, body in re.findall(r"@(\w+)\{(\w+),\n(.*?)\n\}", text, re.S):
        fields = {}
        for line in body.splitlines():
            name, value = re.fullmatch(r"  (\w+) = \{(.*)\},", line).groups()
            depth = 0
            for sign in value:
                depth += (sign == "{") - (sign == "}")
                assert depth >= 0, line
            assert depth == 0, line
            assert not re.search(r"(?<!\\)[&%#$]", value), line
            fields[name] = value
        entries.append((kind, key, fields))
    return entries


def test_cite_prints_bibtex_of_every_method():
    found = _entries(run("cite", *(m.name for m in METHODS)).stdout)
    assert [key for _, key, _ in found] == [m.name for m in METHODS]
    for kind, key, fields in found:
        assert {"title", "author", "year"} <= set(fields), key
        assert {"article": "journal", "inproceedings": "booktitle"}.get(kind, "title") in fields
        assert re.fullmatch(r"(19|20)\d\d", fields["year"])
        card = registry.get(key).card["Paper"]
        assert fields["title"].strip("{}").replace("\\", "") in card
        for author in fields["author"].replace("{", "").replace("}", "").split(" and "):
            assert author == "others" or author in card
        assert len(fields["author"]) < 200, "the title has run into the authors"


def test_bibtex_of_awkward_cards(monkeypatch):
    def cited(paper):
        entry = registry.Entry(lambda: None, "kept")
        monkeypatch.setitem(vars(entry), "card", {"Paper": paper})
        ((kind, _, fields),) = _entries(entry.bibtex.replace("<lambda>", "x"))
        return kind, fields

    kind, fields = cited("Ho, J. Smith et al. R&D: 50% of x_t? Nature 2021.")
    assert (kind, fields["author"]) == ("article", "Ho and J. Smith and others")
    assert (fields["title"], fields["journal"]) == (r"{R\&D: 50\% of x\_t?}", "Nature 2021")
    kind, fields = cited("Lugmayr, Van Gool. A Title. arXiv:2301.00001")
    assert (kind, fields["year"], fields["author"]) == ("misc", "2023", "Lugmayr and {Van Gool}")


def test_cite_names_each_paper_once_and_knows_aliases():
    assert run("cite", "sdedit", "img2img", "sdedit").stdout.count("@") == 1
    assert json.loads(run("cite", "img2img", "--json").stdout)[0]["name"] == "sdedit"


def test_the_reference_page_is_as_the_command_prints_it():
    page = Path(__file__).parents[2] / "docs" / "reference" / "methods.md"
    ours = [m for m in registry.listing() if m.function.__module__.startswith("monai_diffaug.")]
    assert page.read_text() == as_markdown(ours), "run: diffaug list --markdown > docs/reference/methods.md"
