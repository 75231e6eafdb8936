"""Studies from end to end in a toy world: what must help helps, what must hurt hurts, and killing one costs nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from monai_diffaug.evaluation.utility import cells as cells_module
from monai_diffaug.evaluation.utility import forecast, opened, utility
from monai_diffaug.evaluation.utility.cells import Done, cells_of
from monai_diffaug.evaluation.utility.data import Pool, labeled, real_pools, written
from monai_diffaug.evaluation.utility.downstream import task_of, trained
from monai_diffaug.evaluation.utility.figures import Figures
from monai_diffaug.evaluation.utility.run import compared
from monai_diffaug.evaluation.utility.synthetic import Synthetic
from monai_diffaug.types import DiffAugError
from tests.evaluation import toy_study
from tests.evaluation.toy_study import EDITED, MADE, data, produce, study

CHECKS = (
    {"name": "duplicated", "kind": "duplicated", "classical": False},
    {"name": "shuffled", "kind": "shuffled", "of": "made", "ratios": [8], "classical": False},
    {"name": "oracle", "kind": "oracle", "ratios": [8], "classical": False},
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return data(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def whole(scans, tmp_path_factory):
    """A study with every kind of check, by which the others are judged."""
    out = tmp_path_factory.mktemp("whole")
    arms = [{**MADE, "ratios": [8]}, *CHECKS]
    training = {"steps": 110, "batch": 16, "lr": 0.006, "channels": [8] * 4, "precision": "float32"}
    asked = opened(study(scans, arms, groups=["sex"], patients=[4], training=training))
    return utility(asked, out, produce), out


def against(found, arm, control="real", metric="auroc"):
    return next(c for c in found.comparisons if (c.arm, c.control, c.metric) == (arm, control, metric))


def test_more_real_images_help_wrong_labels_hurt_and_copies_do_neither(whole):
    found, _ = whole
    assert against(found, "oracle").interval[0] > 0
    assert against(found, "made").interval[0] > 0
    assert against(found, "shuffled").interval[1] < against(found, "made").interval[0]
    assert against(found, "shuffled").interval[1] < 0
    low, high = against(found, "duplicated").interval
    assert low < 0 < high


def test_the_file_says_everything(whole):
    found, out = whole
    said = json.loads((out / "utility.json").read_text())
    assert said["study"] == "toy"
    assert said["metrics"][0] == "auroc"
    assert {a["name"]: a["kind"] for a in said["arms"]}["oracle"] == "oracle"
    assert len(said["results"]) == 6 * 2
    row = next(r for r in said["results"] if r["arm"] == "made" and r["seed"] == 1)
    assert row["images"] == 8 + 64
    assert set(row["per_class"]) == {"without", "with"}
    assert row["per_group"]["sex"]["f"]["patients"] == 12
    assert set(said["comparisons"][0]) == {
        *("arm", "control", "patients", "ratio", "metric", "difference", "interval", "p", "p_corrected", "n_patients")
    }
    assert all(c["p_corrected"] >= c["p"] for c in said["comparisons"])
    assert said["comparisons"][0]["n_patients"] == 24
    assert said["generator"] == {"name": "toy", "digest": "d1", "patients_seen": 16}
    assert any("trained on 16 patients" in line for line in said["limitations"])
    assert [c["expected"] for c in said["checks"]] == ["no difference", "hurts", "helps"]
    mean = np.mean([r["metrics"]["auroc"] for r in said["results"] if r["arm"] == "oracle"])
    control = np.mean([r["metrics"]["auroc"] for r in said["results"] if r["arm"] == "real"])
    assert against(found, "oracle").difference == pytest.approx(mean - control)


def test_killed_and_run_again_it_trains_no_cell_twice(scans, tmp_path, monkeypatch):
    asked = opened(study(scans, [EDITED], training={"steps": 4, "batch": 4, "channels": [4, 4, 4, 4]}))
    count, toy_study.calls[:] = [], []

    def counting(*given, **more):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return trained(*given, **more)

    monkeypatch.setattr(cells_module, "trained", counting)
    with pytest.raises(KeyboardInterrupt):
        utility(asked, tmp_path / "a", produce)
    assert not (tmp_path / "a" / "utility.json").exists()
    assert len(list((tmp_path / "a" / "cells").glob("*.json"))) == 3
    found = utility(asked, tmp_path / "a", produce)
    assert len(count) == 4 + 3
    assert len(toy_study.calls) == 2  # asked once in each run; what was made before is the producer's to find
    fresh = utility(asked, tmp_path / "b", produce)
    assert [r["metrics"] for r in found.results] == [r["metrics"] for r in fresh.results]
    count.clear()
    other = opened(study(scans, [EDITED], training={"steps": 5, "batch": 4, "channels": [4, 4, 4, 4]}))
    monkeypatch.setattr(cells_module, "trained", trained)
    before = {f.name for f in (tmp_path / "a" / "cells").iterdir()}
    utility(other, tmp_path / "a", produce)
    assert not before & {f.name for f in (tmp_path / "a" / "cells").iterdir() if f.name not in before}
    assert len(list((tmp_path / "a" / "cells").iterdir())) == 12  # longer training, other cells


def test_every_arm_takes_the_same_steps_from_the_same_weights(scans, tmp_path, monkeypatch):
    steps, first = {}, {}
    asked = opened(
        study(
            scans,
            [MADE, {"name": "p", "kind": "pretraining", "of": "made"}, {"name": "m", "kind": "mixup"}],
            seeds=[3],
            training={"steps": 6, "batch": 4, "channels": [4, 4, 4, 4]},
        )
    )

    def watched(task, training, batches, seed, **more):
        def one(step):
            steps[batches.arm.name] = steps.get(batches.arm.name, 0) + 1
            x, y = batches(step)
            assert len(x) == training.batch
            return x, y

        module, seconds = trained(task, replace(training, lr=0.0), one, seed, **more)
        first[batches.arm.name] = module.conv1.weight.detach().clone()
        return module, seconds

    monkeypatch.setattr(cells_module, "trained", watched)
    utility(asked, tmp_path, produce)
    assert set(steps.values()) == {6}
    assert len(steps) == 5
    assert all(torch.equal(w, first["real"]) for w in first.values())


def test_an_edit_serves_every_cell_with_its_own_patients_images(scans, tmp_path):
    asked = opened(
        study(
            scans,
            [{**EDITED, "ratios": [2]}],
            patients=[2, 4],
            training={"steps": 2, "batch": 4, "channels": [4, 4, 4, 4]},
        )
    )
    toy_study.calls[:] = []
    found = utility(asked, tmp_path, produce)
    assert len(toy_study.calls) == 1
    assert [r["images"] for r in found.results if r["arm"] == "made"] == [4 + 8, 8 + 16] * 2
    learns = opened(
        study(
            scans,
            [{**EDITED, "learn": {"method": "textual_inversion"}}],
            patients=[2, 4],
            training={"steps": 2, "batch": 4, "channels": [4, 4, 4, 4]},
        )
    )
    toy_study.calls[:] = []
    utility(learns, tmp_path, produce)
    assert len(set(toy_study.calls)) == 4  # what learns from the labeled patients learns anew for each draw of them


def test_forecast_trains_nothing_and_counts(scans, tmp_path):
    asked = opened(study(scans, [MADE]))
    found = forecast(asked, tmp_path, produce)
    assert (found.trainings, found.done) == (6, 0)
    assert found.seconds > 0
    assert found.images == {"made": 6}
    assert not (tmp_path / "cells").exists()
    assert not (tmp_path / "synthetic").exists()


def test_unfair_data_are_refused(scans, tmp_path):
    def refused(says, change=lambda rows: None, **more):
        rows = json.loads(scans.read_text())
        change(rows)
        path = scans.with_name("changed.json")
        path.write_text(json.dumps(rows))
        with pytest.raises(DiffAugError, match=says):
            utility(opened(study(path, **more)), tmp_path / says[:8], produce)

    refused("is in train and in test", lambda r: r["test"].append(r["training"][0]))
    refused("too few for an interval", lambda r: r.update(test=r["test"][:6]))
    refused("draws 17 labeled patients and there are 16", patients=[17])
    refused("names no patient", lambda r: r["training"][0].pop("patient"))
    refused("is of class 'other'", lambda r: r["training"][0].update({"class": "other"}))
    refused("do not show every class", lambda r: r.update(test=[e for e in r["test"] if e["class"] == "with"]))
    refused("has a 'size'", groups=["size"])


def test_segmentation(scans, tmp_path):
    arms = [
        {**EDITED, "ratios": [2]},
        {"name": "shuffled", "kind": "shuffled", "of": "made", "ratios": [8]},
        {"name": "m", "kind": "cutmix"},
    ]
    asked = opened(
        study(
            scans,
            arms,
            task="segmentation",
            classes=["patch"],
            seeds=[0],
            patients=[12],
            training={"steps": 60, "batch": 8, "lr": 0.01, "channels": [8, 16]},
        )
    )
    found = utility(asked, tmp_path, produce)
    values = {r["arm"]: r["metrics"] for r in found.results}
    assert values["made"]["dice"] > 0.35
    assert values["shuffled"]["dice"] < values["made"]["dice"] - 0.1
    assert values["real"]["iou"] < values["real"]["dice"]
    assert 0 <= values["real"]["false_positive_area"] < 0.5


def test_weights_come_from_the_seed_alone():
    asked = opened(study("x.json"))

    def first(seed):
        torch.rand(3)  # whatever was drawn before
        module, _ = trained(task_of(asked), asked.training, lambda step: None, seed, steps=0)
        return module.conv1.weight

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_an_edited_image_is_used_with_its_own_patient_only(scans, tmp_path):
    asked = opened(study(scans, [{**EDITED, "ratios": [2]}], patients=[2, 6]))
    lists = written(asked, tmp_path / "real")
    train = real_pools(lists, asked)["train"]
    made = Synthetic(asked, lists, train, tmp_path / "synthetic", produce)
    for cell in cells_of(asked):
        if cell.arm.kind == "diffusion":
            who = labeled(train, cell.patients, cell.seed)
            assert set(made(cell.arm, cell, who).patients) == set(who)


def test_order_of_cells_shows_every_arm_first():
    asked = opened(study("x.json", [MADE], patients=[2, 3]))
    assert [c.seed for c in cells_of(asked)] == [0] * 6 + [1] * 6


def test_arms_that_say_the_same_differ_by_nothing_in_every_draw():
    """Pairing: both are seen under the same draws of patients, and seeds meet seeds."""
    rng = np.random.default_rng(0)
    n = 40
    labels = torch.arange(n) % 2
    test = Pool(torch.zeros(n, 1, 4, 4), labels, None, tuple(f"p{i // 4}" for i in range(n)), ({},) * n)
    asked = opened(study("x.json", [{"name": "m", "kind": "mixup"}]))
    told = {s: {"probabilities": rng.dirichlet([1, 1], n).tolist()} for s in asked.seeds}
    done = [Done(c, (1, 0), told[c.seed], 1.0) for c in cells_of(asked)]
    for c in compared(asked, Figures(asked, test), done[::-1]):
        assert (c.difference, c.interval, c.p) == (0.0, (0.0, 0.0), 1.0)
    worse = {s: {"probabilities": [[0.5, 0.5]] * n} for s in asked.seeds}
    done = [Done(c, (1, 0), worse[c.seed] if c.arm.name == "m" else told[c.seed], 1.0) for c in cells_of(asked)]
    found = compared(asked, Figures(asked, test), done)
    m = next(c for c in found if (c.arm, c.control, c.metric) == ("m", "classical", "auroc"))
    assert m.interval[0] < m.difference < m.interval[1]
    assert m.p_corrected == min(1.0, 2 * m.p)  # a family of two: m, and real against the same control
