"""The trainer of the bundles: stopped and resumed, alone and in two processes, it takes the same steps."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from monai.data import Dataset

from monai_diffaug import testing
from monai_diffaug.bundle import StageTrainer, StepBatches, batches, encoded
from monai_diffaug.primitives.reconstruction import AutoencoderStage
from monai_diffaug.primitives.runs import Settings
from monai_diffaug.primitives.stages import ClassifierStage, NetworkStage, Told
from monai_diffaug.types import DiffAugError

SHORT = Settings(steps=12, batch=4, lr=1e-3, warmup=2, ema=0.9, log_every=4, precision=torch.float32)

CONFIG = {
    "imports": ["$import torch", "$import monai_diffaug.bundle as bundle"],
    "output_dir": "output",
    "device": "$bundle.device()",
    "steps": 12,
    "images": "$torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1",
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': x, 'label': ['healthy', 'tumor', ''][i % 3]} for i, x in enumerate(@images)]",
    },
    "network_def": {
        "_target_": "DiffusionModelUNet",
        "_mode_": "callable",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "channels": [8, 8],
        "attention_levels": [False, True],
        "num_res_blocks": 1,
        "num_head_channels": [0, 8],
        "norm_num_groups": 4,
        "num_class_embeds": 3,
    },
    "network": "$bundle.network(@network_def, @device)",
    "conditioner": {"_target_": "monai_diffaug.backbones.text.ClassConditioner", "labels": ["healthy", "tumor"]},
    "schedule": "$monai_diffaug.backbones.schedules.schedule_from_config(monai_diffaug.backbones.schedules.BRAIN_LDM)",
    "train": {
        "settings": {
            "_target_": "monai_diffaug.primitives.runs.Settings",
            "steps": "@steps",
            "batch": 4,
            "lr": 0.001,
            "warmup": 2,
            "log_every": 2,
            "precision": "$torch.float32",
        },
        "told": {
            "_target_": "monai_diffaug.primitives.stages.Told",
            "conditioner": "@conditioner",
            "fields": {"label": "label"},
            "drop": {"labels": 0.3},
        },
        "stage": {
            "_target_": "monai_diffaug.primitives.stages.NetworkStage",
            "network": "@network",
            "schedule": "@schedule",
            "settings": "@train#settings",
            "told": "@train#told",
        },
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False, "name": "train"}],
        "trainer": {
            "_target_": "monai_diffaug.bundle.StageTrainer",
            "stage": "@train#stage",
            "dataset": "@dataset",
            "folder": "@output_dir",
            "device": "@device",
            "handlers": "@train#handlers",
        },
    },
    "initialize": ["$bundle.join_processes()"],
    "run": ["$@train#trainer.run()"],
    "finalize": ["$bundle.leave_processes()"],
}
CONFIG["imports"].append("$import monai_diffaug.backbones.schedules")
CONFIG["imports"].append("$import monai_diffaug")


def run(folder, *more, launcher=()):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-W", "ignore", *launcher, "-m", "monai.bundle", "run"]
    command += ["--config_file", str(folder / "train.json"), "--output_dir", str(folder / "output"), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return rows(folder)


def rows(folder):
    return [json.loads(line) for line in (folder / "output" / "network.jsonl").read_text().splitlines()]


def test_two_processes_take_the_steps_of_one(tmp_path):
    alone = run(tmp_path / "one")
    shared = run(tmp_path / "two", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"))
    assert [r["step"] for r in alone] == [r["step"] for r in shared] == [2, 4, 6, 8, 10, 12]
    torch.testing.assert_close(
        torch.tensor([r["loss"] for r in alone]), torch.tensor([r["loss"] for r in shared]), rtol=1e-4, atol=1e-5
    )
    weights = [torch.load(tmp_path / n / "output" / "network.ckpt", weights_only=True)["parts"] for n in ("one", "two")]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-5)


def test_tracking_with_mlflow(tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is an extra: pip install monai-diffaug[mlflow]")
    from mlflow import MlflowClient

    run(tmp_path, "--tracking", "mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'output' / 'mlruns.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1
    curve = client.get_metric_history(runs[0].info.run_id, "loss")
    logged = [r["loss"] for r in rows(tmp_path)]
    assert [round(m.value, 4) for m in sorted(curve, key=lambda m: m.step)] == [round(x, 4) for x in logged]


# ------------------------------------------------------------------------------------------------------ in this process


def stage(seed=3, settings=SHORT):
    backbone = testing.tiny("class", seed=seed)
    backbone.network.module.requires_grad_(True).train()
    told = Told(backbone.conditioner, {"label": "label"}, {"labels": 0.3})
    return NetworkStage(backbone.network, backbone.schedule, settings, told=told, encode=backbone.encode)


def dataset(n=10, seed=0):
    images = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    names = ["healthy", "tumor", ""]
    return Dataset([{"image": x, "label": names[i % 3], "target": i % 2} for i, x in enumerate(images)])


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    whole = stage()
    StageTrainer(whole, dataset(), tmp_path / "whole").run()

    from ignite.engine import Events

    first = StageTrainer(stage(), dataset(), tmp_path / "parts")
    first.stage.settings.__dict__["checkpoint_seconds"] = -1.0  # after every epoch

    def stop():
        raise Stopped

    first.add_event_handler(Events.ITERATION_COMPLETED(once=10), stop)
    with pytest.raises(Stopped):
        first.run()
    SHORT.__dict__["checkpoint_seconds"] = 120.0
    resumed = stage(seed=4)  # other weights: those of the checkpoint must take their place
    again = StageTrainer(resumed, dataset(), tmp_path / "parts")
    assert again.state.iteration == 8
    again.run()
    one, two = whole.parts.state_dict(), resumed.parts.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    logs = [(tmp_path / n / "network.jsonl").read_text().splitlines() for n in ("whole", "parts")]
    losses = [[(json.loads(r)["step"], json.loads(r)["loss"]) for r in log] for log in logs]
    assert losses[0] == losses[1]


def test_a_run_may_be_ended_early_and_says_why(tmp_path):
    trainer = StageTrainer(stage(), dataset(), tmp_path, stop=lambda step, row: "enough" if step >= 8 else None)
    trainer.run()
    assert trainer.stopped == "enough"
    assert trainer.state.iteration == 8
    assert torch.load(tmp_path / "network.ckpt", weights_only=True)["step"] == 8


def test_every_image_once_before_any_comes_again():
    order = iter(StepBatches(10, 4, seed=1, first=0, rank=0, world=1))
    seen = [i for _ in range(5) for i in next(order)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_processes_share_a_batch_and_a_later_start_goes_on():
    whole = iter(StepBatches(10, 4, seed=1, first=0, rank=0, world=1))
    parts = [iter(StepBatches(10, 4, seed=1, first=0, rank=r, world=2)) for r in range(2)]
    for _ in range(4):
        batch = next(whole)
        assert [next(parts[0]), next(parts[1])] == [batch[::2], batch[1::2]]
    assert next(iter(StepBatches(10, 4, seed=1, first=4, rank=0, world=1))) == next(whole)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_diffaug.bundle._share", lambda: (0, 3))
    with pytest.raises(DiffAugError, match="multiple"):
        StageTrainer(stage(), dataset(), tmp_path)


def test_an_empty_data_set_is_refused(tmp_path):
    with pytest.raises(DiffAugError, match="empty"):
        StageTrainer(stage(), Dataset([]), tmp_path)


def test_a_field_that_is_missing_is_named(tmp_path):
    bare = Dataset([{"image": torch.zeros(1, 16, 16)}] * 4)
    with pytest.raises(DiffAugError, match="no 'label'"):
        StageTrainer(stage(), bare, tmp_path).run()


def test_latents_in_memory_are_those_of_the_autoencoder_and_views_multiply_them():
    backbone = testing.tiny("class")
    made = encoded(dataset(3), backbone.autoencoder, lambda x: [x, x.flip(-1)])
    assert len(made) == 6
    with torch.no_grad():
        expected = backbone.encode(dataset(3)[1]["image"].flip(-1)[None])[0]
    torch.testing.assert_close(made[3]["image"], expected)
    assert made[3]["label"] == dataset(3)[1]["label"]


def test_autoencoder_and_classifier_go_through_the_same_trainer(tmp_path):
    from monai.networks.nets import AutoencoderKL, PatchDiscriminator

    torch.manual_seed(0)
    module = AutoencoderKL(
        spatial_dims=2, in_channels=1, out_channels=1, channels=[8, 8], num_res_blocks=[1, 1], latent_channels=2,
        attention_levels=[False, False], norm_num_groups=4, with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    opponent = PatchDiscriminator(spatial_dims=2, channels=4, in_channels=1, num_layers_d=1, norm="INSTANCE")
    settings = Settings(steps=40, batch=4, lr=3e-3, warmup=2, ema=0.5, log_every=10, precision=torch.float32)
    StageTrainer(AutoencoderStage(module, opponent, settings), dataset(), tmp_path).run()
    log = [json.loads(r) for r in (tmp_path / "autoencoder.jsonl").read_text().splitlines()]
    assert log[-1]["l1"] < 0.9 * log[0]["l1"]
    assert "hinge" in log[-1]

    judge = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 2))
    unseen = batches(dataset(6, seed=1))
    classifier = ClassifierStage(judge, settings, target="target", held_out=unseen)
    StageTrainer(classifier, dataset(), tmp_path).run()
    log = [json.loads(r) for r in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert log[-1]["accuracy"] > log[0]["accuracy"]
    assert 0 <= log[-1]["held_out_accuracy"] <= 1


@pytest.mark.slow
def test_killed_from_outside(tmp_path):
    """A real SIGKILL in the middle: the command is run again and ends with the weights of an unbroken run."""
    run(tmp_path / "whole", "--steps", "300")
    folder = tmp_path / "killed"
    folder.mkdir()
    config = json.loads(json.dumps(CONFIG))
    config["train"]["settings"]["checkpoint_seconds"] = 0.05
    (folder / "train.json").write_text(json.dumps(config))
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", str(folder / "train.json")]
    command += ["--output_dir", str(folder / "output"), "--steps", "300"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder)
    while not (folder / "output" / "network.ckpt").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(folder / "output" / "network.ckpt", weights_only=True)["step"] < 300
    run(folder, "--steps", "300")
    weights = [
        torch.load(tmp_path / n / "output" / "network.ckpt", weights_only=True)["parts"] for n in ("whole", "killed")
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
