"""Sizes, names, cards and layers: what keeps a reader's ten seconds at ten seconds."""

import ast
import inspect
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

import monai_diffaug
from monai_diffaug import registry

ROOT = Path(monai_diffaug.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
METHODS = registry.listing()


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_are_short(file):
    limit = 150 if "methods" in file.relative_to(ROOT).parts else 400
    assert len(file.read_text().splitlines()) <= limit


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_vague_names_and_no_torchvision(file):
    assert file.stem not in {"utils", "common", "helpers", "manager", "core", "misc"}
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(n.split(".")[0] in {"torchvision", "lpips"} for n in names)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_method_stands_in_its_own_file_with_a_complete_card(method):
    assert method.file.stem == method.name
    assert method.heading == str(method.file.parent.relative_to(ROOT / "methods")).replace("\\", "/")
    assert set(method.card) == {"Paper", "Idea", "Changes", "Departs"}, f"card of {method.name} is incomplete"
    assert all(method.card.values())
    assert "eprint" in method.bibtex or "year" in method.bibtex
    assert not method.card["Idea"].rstrip(".").count(". "), "the idea is one sentence"
    module = inspect.getmodule(method.function)
    public = {n: v for n, v in vars(module).items() if not n.startswith("_")}
    own = [n for n, v in public.items() if getattr(v, "__module__", "") == module.__name__]
    assert own == [method.name], "one public name a method file"


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_method_has_few_parameters_and_documents_them(method):
    shared = {"steps", "solver", "prompt", "source_prompt", "mask", "label"}
    own = [p for p in registry.parameters(method) if p not in shared]
    assert len(own) <= 9, own
    text = inspect.getdoc(method.function) or ""
    for name in registry.parameters(method):
        assert f"{name}:" in text, f"{method.name} does not document {name}"


def test_methods_do_not_import_methods():
    for file in (ROOT / "methods").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                assert not (node.level <= 3 and file.name != "__init__.py"), f"{file.name} imports a sibling"
                assert "methods" not in node.module.split(".")


def test_no_public_name_is_monais():
    """MONAI's bundle locator searches every module whose name starts with `monai`, ours too: the first one wins."""
    from monai.bundle.config_item import ComponentLocator

    locator = ComponentLocator(excludes=["monai_diffaug"])
    clashes = []
    for module in pkgutil.walk_packages(monai_diffaug.__path__, "monai_diffaug."):
        if ".weights" in module.name:
            continue
        loaded = import_module(module.name)
        for name, value in vars(loaded).items():
            defined_here = inspect.isclass(value) or inspect.isfunction(value)
            if defined_here and value.__module__ == module.name and not name.startswith("_"):
                found = locator.get_component_module_name(name)
                found = [found] if isinstance(found, str) else found or []
                if any(f.startswith("monai.") for f in found):
                    clashes.append(f"{module.name}.{name} is also {found}")
    assert not clashes, "\n".join(clashes)


def test_imports_go_down_only():
    """The contracts of .importlinter hold; `lint-imports` says which one does not and where."""
    import shutil
    import subprocess
    import sys

    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if command is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run([command, "--no-logo"], cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_method_has_a_behavior_check(method):
    """What its paper claims is measured somewhere in tests/behaviour, for a teacher together with what it teaches."""
    folder = Path(__file__).parent.parent / "behaviour"
    names = {method.name, *(m.name for m in METHODS if m.extra.get("learned_by") == method.name)}
    said = " ".join(f"{f.stem} {f.read_text()}" for f in folder.glob("test_*.py"))
    words = set(re.findall(r"[a-z]\w+", said.replace("test_", "")))
    assert names & words, f"no test in {folder.name}/ measures what {method.name} claims"
