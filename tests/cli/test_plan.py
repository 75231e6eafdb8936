"""`diffaug plan`: what it says fits is what a run then takes."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from monai_diffaug.backbones import hub
from monai_diffaug.cli import app
from monai_diffaug.cli.plan import planned
from monai_diffaug.types import DiffAugError

GIB = 2**30

# A process that plans, then samples as it was told to, and says what was planned and what was taken.
SAMPLE = """
import json, sys
import torch
from monai_diffaug.backbones import hub
from monai_diffaug.cli.plan import planned
from monai_diffaug.expand.generate import plain
from monai_diffaug.types import NoiseSource
model = hub.load("brain_mri")
need, base = planned(model, float(sys.argv[1]), None, 16, "float32", False)
open("/proc/self/clear_refs", "w").write("5")
bounded = model.with_memory((float(sys.argv[1]) * 2**30 - base - need.weights) / 2**30)
with torch.no_grad():
    plain(bounded, prompt=["tumor"] * need.batch, steps=2, generator=NoiseSource(range(need.batch)))
line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
print(json.dumps({"planned": base + need.peak, "taken": int(line.split()[1]) * 1024}))
"""


def test_a_run_takes_what_was_planned_within_a_quarter():
    done = subprocess.run([sys.executable, "-c", SAMPLE, "2"], capture_output=True, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    assert 0.75 < row["taken"] / row["planned"] < 1.25, row


def test_it_says_tile_precision_batch_and_peak():
    done = CliRunner().invoke(app, ["plan", "brain_mri", "--memory", "8", "--json"])
    said = json.loads(done.stdout)
    assert done.exit_code == 0
    assert said["decode"]["way"] == "whole"
    assert said["precision"] == "float32"
    assert said["batch"] == 16
    assert 0 < said["peak_gb"] < 8


def test_less_memory_means_a_smaller_batch_and_then_slabs_or_tiles():
    model = hub.load("brain_mri")
    size = (768, 768)
    _, base = planned(model, 1000.0, size, 1, "float32", False)
    seen = []
    for extra in (8.0, 4.0, 2.5):
        need, _ = planned(model, base / GIB + extra, size, None, None, False)
        assert need.peak <= extra * GIB + 2**20
        seen.append((need.batch, need.way.name))
    assert seen[0][0] > seen[-1][0] or seen[0][1] != seen[-1][1]
    assert seen == sorted(seen, key=lambda s: -s[0])


@pytest.mark.parametrize(
    ("memory", "size", "what"),
    [(0.01, None, "does not fit into 0.01 GB"), (4.0, (100, 96), "multiples of"), (4.0, (96, 96, 96), "2D images")],
)
def test_what_cannot_be_is_one_line(memory, size, what):
    with pytest.raises(DiffAugError, match=what) as caught:
        planned(hub.load("brain_mri"), memory, size, None, None, False)
    assert "\n" not in str(caught.value)


def test_a_size_that_is_none():
    done = CliRunner().invoke(app, ["plan", "brain_mri", "--size", "large"])
    assert done.exit_code != 0
