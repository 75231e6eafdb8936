"""Training a verifier: views that stand in for visits, pairs, and one process or two."""

import json
import subprocess
import sys

import pytest
import torch

from monai_diffaug.backbones.verifier import SiameseNet
from monai_diffaug.primitives.runs import Draws, Settings
from monai_diffaug.primitives.verification import VerifierStage, paired, visits


def patients(n=12, size=16):
    """Patients that differ in a smooth pattern, each seen twice with noise of its own."""
    g = torch.Generator().manual_seed(0)
    own = torch.nn.functional.interpolate(torch.randn(n, 1, 4, 4, generator=g), (size, size), mode="bilinear")
    films = torch.stack([own, own]) * 0.5 + 0.1 * torch.randn(2, n, 1, size, size, generator=g)
    return films.clamp(-1, 1)


def test_a_visit_is_like_the_image_and_never_its_mirror_image():
    torch.manual_seed(0)
    x = patients(16, 32)[0]
    views = visits(x, Draws.of(0, 0), 0.5)
    assert views.shape == x.shape
    assert float(views.min()) >= -1
    assert float(views.max()) <= 1

    def alike(a, b):
        a, b = (y.flatten(1) - y.flatten(1).mean(1, keepdim=True) for y in (a, b))
        return torch.nn.functional.cosine_similarity(a, b)

    assert float(alike(x, views).mean()) > 0.6
    assert float(alike(x, views).mean()) > 2 * float(alike(x.flip(-1), views).mean())
    assert torch.allclose(visits(x, Draws.of(0, 0), 0.0), x, atol=1e-3), "strength 0 changes nothing"


def test_volumes_have_visits_too():
    x = torch.rand(2, 1, 8, 8, 8) * 2 - 1
    assert visits(x, Draws.of(0, 0)).shape == x.shape


def test_two_processes_see_the_views_that_one_would():
    x = patients(8)[0]
    whole = visits(x, Draws.of(3, 5))
    shares = [visits(x[rank::2], Draws.of(3, 5, rank, 2)) for rank in range(2)]
    assert torch.allclose(torch.stack(shares, 1).flatten(0, 1), whole, atol=1e-6)


def test_partners_are_of_the_same_patient_and_another_image_where_there_is_one():
    items = [
        {"image": torch.full((1, 2, 2), float(i)), "patient": p, "source": s}
        for i, (p, s) in enumerate([("a", "x"), ("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")])
    ]
    out = paired(items, {"x": 0.25, "y": 0.75}, length=40)
    of = {0.0: 0, 1.0: 0, 2.0: 1, 3.0: 2, 4.0: 3}
    assert len(out) == 40
    for row in out:
        a, b = float(row["image"].mean()), float(row["partner"].mean())
        assert of[a] == of[b] == row["patient"]
        assert (a != b) == (row["patient"] == 0)
    assert sum(row["patient"] > 1 for row in out) == 30


def test_it_learns_to_tell_patients_apart():
    films = patients()
    torch.manual_seed(0)
    net = SiameseNet((16, 16), widths=(8, 16), embedding=16, features=16)
    settings = Settings(60, 12, lr=3e-3, warmup=5, ema=0.9, precision=torch.float32)
    stage = VerifierStage(net, settings, view=lambda x, _: x)
    batch = {"image": films[0], "partner": films[1], "patient": torch.arange(12)}

    def margin():
        net.eval()
        with torch.no_grad():
            logits = net.same(net.seen(films[0])[:, None], net.seen(films[1])[None])
        net.train()
        own = torch.eye(12, dtype=torch.bool)
        return float(logits[own].mean() - logits[~own].max())

    before = margin()
    for step in range(60):
        row = stage.step(batch, step, Draws.of(0, step))
    stage.finish()
    assert row["found"] == 1.0
    assert margin() > 0 > before, "every patient's other film is told from all other patients'"


SCRIPT = """
import json, sys, torch
from monai_diffaug.backbones.verifier import SiameseNet
from monai_diffaug.primitives.runs import Draws, Settings
from monai_diffaug.primitives.verification import VerifierStage
rank, world, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
torch.manual_seed(0)
net = SiameseNet((16, 16), widths=(8, 16), embedding=8, features=8)
stage = VerifierStage(net, Settings(4, 8 // world, lr=1e-2, warmup=1, ema=0.9, precision=torch.float32))
g = torch.Generator().manual_seed(0)
losses = []
for step in range(4):
    image, partner = torch.rand(2, 8, 1, 16, 16, generator=g) * 2 - 1
    batch = {"image": image[rank::world], "partner": partner[rank::world], "patient": torch.arange(8)[rank::world]}
    losses.append(stage.step(batch, step, Draws.of(0, step, rank, world))["loss"])
weights = float(sum(p.double().abs().sum() for p in net.parameters()))
print(json.dumps([losses, weights]))
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_that_one_takes(tmp_path):
    def run(rank, world):
        command = [sys.executable, "-c", SCRIPT, str(rank), str(world), str(tmp_path / "store")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    found = []
    for process in (run(0, 1), run(0, 2), run(1, 2)):
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        found.append(json.loads(out))
    (losses, weights), *shared = found
    for other, theirs in shared:
        assert other == pytest.approx(losses, rel=1e-3)
        assert theirs == pytest.approx(weights, rel=1e-4)
