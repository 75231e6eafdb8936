"""A job that is killed, at least twenty times and at any moment, ends as if it had not been."""

import io
import json
import random
import signal
import subprocess
import sys
import time

from monai_diffaug.backbones import hub
from monai_diffaug.expand import expand
from monai_diffaug.io import atomic
from monai_diffaug.testing import tiny

from .conftest import Forked, files_of

KILLS = 24


class SlowFile:
    """A file on a disk so slow that kills fall between two halves of it."""

    def __init__(self, path, mode):
        self.file = io.open(path, mode, buffering=0)  # noqa: SIM115, UP020 - `open` is this class

    def write(self, data):
        for i in range(0, len(data), max(1, len(data) // 3)):
            self.file.write(data[i : i + max(1, len(data) // 3)])
            time.sleep(0.001)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def test_killed_at_random_moments(tmp_path, scans, heads):
    """Every batch, filter, file and the datalist at the end may be what is interrupted."""

    def job(out):
        def run():
            vars(atomic)["open"] = SlowFile  # in the child alone
            methods = ["sdedit", "healthy_counterfactual"]
            settings = {"parameters": {"steps": 6}, "copies": 3, "batch_size": 2, "keep": {"novelty": 0.3}}
            expand(scans, tmp_path / out, methods, heads, **settings)

        return run

    begin = time.monotonic()
    assert Forked(job("whole")).wait() == 0
    length = time.monotonic() - begin
    whole = files_of(tmp_path / "whole")
    assert len(whole) > 30
    rng, kills, jobs, at = random.Random(0), 0, 0, set()
    while kills < KILLS:
        out = tmp_path / f"broken{jobs}"
        jobs += 1
        done = False
        while not done:
            child = Forked(job(out.name))
            time.sleep(rng.uniform(0, 0.5 * length))
            code = child.kill()
            done = code == 0
            kills += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL)
            there = {k: v for k, v in files_of(out).items() if not k.endswith(".part")} if out.exists() else {}
            assert there.items() <= whole.items()  # what has its name is whole
            at.add(len(there))
            assert jobs < 200
        assert files_of(out) == whole
    assert len(at) > 4, f"kills fell on the same moments: {sorted(at)}"


def test_the_command_is_killed_and_goes_on(tmp_path, scans):
    """The same through `diffaug` itself, weights from disk."""
    hub.save(tiny("class_mask", size=16), tmp_path / "backbone")
    command = [sys.executable, "-m", "monai_diffaug", "expand", str(scans), "-m", "sdedit"]
    command += ["-b", str(tmp_path / "backbone"), "-p", "steps=12", "--copies", "4", "--batch-size", "2", "--no-sheet"]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "broken")], stderr=subprocess.DEVNULL)
    records = tmp_path / "broken" / "records"
    end = time.monotonic() + 120
    while not (records.is_dir() and any(records.glob("*.json"))) and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "broken" / "datalist.json").exists()
    done = subprocess.run([*command, "--json", "--out", str(tmp_path / "broken")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["made"] == 24
    assert 0 < said["before"] < 24
    expand(
        scans,
        tmp_path / "whole",
        "sdedit",
        hub.load(tmp_path / "backbone"),
        parameters={"steps": 12},
        copies=4,
        batch_size=2,
    )
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
