"""A method from another package: installed, found by name, held to the laws; and what happens with a bad one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monai_diffaug import registry
from monai_diffaug.types import DiffAugError

LOOPBACK = Path(__file__).parent / "loopback"


def installed(site: Path, name: str, source: Path | str, entry: str) -> Path:
    """A package as pip leaves it: its modules and a dist-info with entry points."""
    package = site / name
    package.mkdir(parents=True)
    files = (
        {f.name: f.read_text() for f in source.glob("*.py")} if isinstance(source, Path) else {"__init__.py": source}
    )
    for file, text in files.items():
        (package / file).write_text(text)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[monai_diffaug.plugins]\n{name} = {entry}\n")
    return package


def run(site: Path, code: str) -> subprocess.CompletedProcess:
    """In a process of its own, since discovery happens once."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_pip_installs_it_and_its_entry_point_is_seen(tmp_path):
    """Really built and installed, beside the tests' own environment, from what is on this machine."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    work = tmp_path / "source"
    subprocess.run(["cp", "-r", str(LOOPBACK), str(work)], check=True)
    made = subprocess.run([*command, "--target", str(tmp_path / "site"), str(work)], capture_output=True, text=True)
    if made.returncode and "setuptools" in made.stderr:
        pytest.skip("no setuptools here to build with")
    assert made.returncode == 0, made.stderr
    found = run(tmp_path / "site", "from monai_diffaug import registry; print(registry.get('there_and_back').file)")
    assert found.stdout.strip() == str(tmp_path / "site" / "diffaug_loopback" / "loopback.py"), found.stderr


def test_it_is_found_by_name_everywhere_and_obeys_the_laws(tmp_path):
    package = installed(tmp_path, "diffaug_loopback", LOOPBACK / "diffaug_loopback", "diffaug_loopback.loopback")
    code = """
import json, sys
import torch
from monai_diffaug import registry
from monai_diffaug.testing import check_method, tiny
from monai_diffaug.types import NoiseSource
from monai_diffaug.transforms import RandDiffusionAugment
entry = registry.get("there_and_back")
check_method("loopback", tiny("text", size=8))
backbone = tiny("text", size=8)
image = torch.rand(1, 1, 8, 8)
out = registry.call("loopback", backbone, image, generator=NoiseSource([0])).image
RandDiffusionAugment("loopback", backbone, prob=1.0)(image[0])
print(json.dumps([entry.name, entry.shape, entry.heading, str(entry.file), list(out.shape), entry.card["Idea"]]))
print(json.dumps([m.name for m in registry.listing()]))
"""
    found = run(tmp_path, code)
    assert found.returncode == 0, found.stderr
    facts, names = (json.loads(line) for line in found.stdout.splitlines()[-2:])
    assert facts[:5] == ["loopback", "edit", "diffaug_loopback", str(package / "loopback.py"), [1, 1, 8, 8]]
    assert facts[5].startswith("one call of the denoiser")
    assert {"loopback", "sdedit"} <= set(names)
    shown = run(tmp_path, "from monai_diffaug.cli import app; app(['where', 'loopback'])")
    assert "loopback.py" in shown.stdout.replace("\n", ""), shown.stderr


def test_a_broken_one_is_warned_about_and_passed_over(tmp_path):
    installed(tmp_path, "good", LOOPBACK / "diffaug_loopback", "good.loopback")
    installed(tmp_path, "bad", "import a_library_that_is_not_there", "bad")
    registers = "from monai_diffaug.registry import method\n@method(labels='kept')\ndef half(backbone, image): ...\n"
    half = registers + "raise OSError('in the middle')"
    installed(tmp_path, "half", half, "half")
    found = run(
        tmp_path,
        "import json; from monai_diffaug import registry; "
        "print(json.dumps([[m.name for m in registry.listing()], registry.broken()]))",
    )
    assert found.returncode == 0, found.stderr
    names, broken = json.loads(found.stdout)
    assert {"loopback", "sdedit"} <= set(names)
    assert "half" not in names  # nothing that it registered before it broke
    assert set(broken) == {"bad", "half"}
    assert "a_library_that_is_not_there" in broken["bad"]
    assert "plug-in 'bad' was passed over: ModuleNotFoundError" in found.stderr


def test_a_name_taken_twice_is_refused_naming_both_files(tmp_path):
    taken = "from monai_diffaug.registry import method\n\n@method(labels='kept')\ndef sdedit(backbone, image): ...\n"
    package = installed(tmp_path, "twin", taken, "twin")
    found = run(tmp_path, "from monai_diffaug import registry; print(registry.get('sdedit').file)")
    assert found.stdout.strip().endswith("semantic/image_to_image/sdedit.py")  # ours stays
    text = found.stderr.replace("\n", " ")
    assert "method name 'sdedit' is taken twice" in text
    assert str(package / "__init__.py") in text
    assert "image_to_image/sdedit.py" in text


def test_aliases_are_names_too():
    with pytest.raises(DiffAugError, match=r"'img2img' is taken twice, by .*sdedit.py and .*test_plugin.py: rename"):

        @registry.method(labels="kept", aliases=["img2img"])
        def another(backbone, image):
            raise NotImplementedError

    assert "another" not in [m.name for m in registry.listing()]
    assert registry.get("img2img").name == "sdedit"
