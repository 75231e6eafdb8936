"""From blobs to a bundle: what is written, what stays as it was, and runs that were killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from monai_diffaug.backbones import hub, tiny
from monai_diffaug.cli import app
from monai_diffaug.finetune import Ask, evaluate, finetune
from monai_diffaug.types import DiffAugError

from . import blobs

SHORT = {"steps": 8, "batch": 4, "samples": 8, "precision": "float32", "autoencoder": "keep"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    blobs.images(folder)
    blobs.base(folder)
    return folder


@pytest.fixture(scope="module")
def made(place):
    """A full run, with forgetting measured on a data set of the old classes."""
    items = [i | {"class": "tumor"} for i in blobs.entries(place / "datalist.json")]
    old = blobs.listed(place, items, "old.json")
    said = []
    outcome = finetune(
        place / "class_mask_base", place / "datalist.json", place / "ours", Ask(**SHORT), old=old, say=said.append
    )
    return outcome, said


def outputs(backbone, label=None):
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    return backbone.output(x, 500.0, backbone.condition(2, label=label))


def test_a_full_run_writes_a_bundle_that_loads_by_its_folder(made, place):
    outcome, said = made
    backbone = hub.load(place / "ours")
    assert backbone.contract.labels == ("healthy", "tumor", "long", "round")
    assert backbone.contract.license == "Apache-2.0; data of the fine-tuning: CC0"
    assert backbone.name == "ours"
    assert set(backbone.judge.labels) == {"long", "round"}
    assert not torch.equal(outputs(backbone), outputs(hub.load(place / "class_mask_base")))
    for name in ("LICENSE", "docs/README.md", "docs/samples.png", "docs/curves.png", "models/network.pt"):
        assert (place / "ours" / name).stat().st_size > 100
    assert any("new classes: long, round" in line for line in said)
    f = outcome.figures
    assert f["new"]["before"]["kid"]["floor_spread"] > 0
    assert f["new"]["kid_gain"]["low"] < f["new"]["kid_gain"]["gain"] < f["new"]["kid_gain"]["high"]
    assert f["old"]["after"]["held_out"] != f["old"]["before"]["held_out"]
    assert "Of the old kind of image, KID" in (place / "ours/docs/README.md").read_text()
    assert not list(place.glob(".ours*"))


def test_monai_runs_the_bundle(made, place):
    from monai.bundle import run

    root = place / "ours"
    run(
        config_file=str(root / "configs/inference.json"),
        bundle_root=str(root),
        output_dir=str(place / "sampled"),
        count=1,
        steps=3,
        prompts=["long"],
    )
    (entry,) = json.loads((place / "sampled/datalist.json").read_text())["training"]
    assert entry["synthetic"] is True
    assert (place / "sampled" / entry["image"]).is_file()
    run(
        config_file=str(root / "configs/evaluate.json"),
        bundle_root=str(root),
        dataset_dir=str(place / "datalist.json"),
        output_dir=str(place / "judged"),
        samples=8,
    )
    assert json.loads((place / "judged/figures.json").read_text())["kid"]["score"] is not None


def test_its_finetune_config_goes_on_from_it(made, place):
    from monai.bundle import ConfigParser

    root = place / "ours"
    parser = ConfigParser()
    parser.read_config(str(root / "configs/finetune.json"))
    parser.update({"bundle_root": str(root), "dataset_dir": str(place / "datalist.json"), "steps": 2})
    parser["output_dir"] = str(place / "again")
    parser.parse()
    parser.get_parsed_content("run")
    again = hub.load(place / "again")
    assert again.contract.labels == hub.load(root).contract.labels
    metadata = json.loads((root / "configs/metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"] == [16, 16]


def test_a_transform_takes_the_folder(made, place):
    from monai_diffaug.transforms import RandDiffusionAugmentd

    how = {"prompt": "long", "steps": 3}
    change = RandDiffusionAugmentd("image", method="sdedit", backbone=str(place / "ours"), prob=1.0, **how)
    image = torch.rand(1, 20, 20)
    assert change({"image": image})["image"].shape == image.shape


def test_run_again_it_has_nothing_to_do(made, place):
    before, begin = hub.load(place / "ours").digest, (place / "ours.run/network.jsonl").read_text()
    finetune(place / "class_mask_base", place / "datalist.json", place / "ours", Ask(**SHORT))
    assert hub.load(place / "ours").digest == before
    assert (place / "ours.run/network.jsonl").read_text() == begin
    with pytest.raises(
        DiffAugError, match=r"ours.run holds a run with mode full, this one has lora: give another --out"
    ):
        finetune(place / "class_mask_base", place / "datalist.json", place / "ours", Ask(**{**SHORT, "mode": "lora"}))


def test_an_adapter_leaves_the_backbone_alone_and_is_small(place):
    from monai_diffaug.primitives import concepts

    folder = place / "plain"
    folder.mkdir()
    blobs.images(folder, classes=False)
    base = hub.load(blobs.base(place, "none"))
    before = tiny.digest_of(base)
    finetune(
        place / "none_base", folder / "datalist.json", place / "adapted", Ask(**{**SHORT, "mode": "lora", "rank": 2})
    )
    assert tiny.digest_of(base) == before
    adapter = place / "adapted/adapter.safetensors"
    assert adapter.stat().st_size < 0.5 * (place / "adapted/models/network.pt").stat().st_size
    merged = hub.load(place / "adapted")
    with concepts.applied(base, adapter) as taught:
        assert torch.allclose(outputs(taught), outputs(merged), atol=2e-2)  # weights are stored with 16 bits
        assert float((outputs(taught) - outputs(base)).abs().max()) > 5 * float(
            (outputs(taught) - outputs(merged)).abs().max()
        )


def test_an_adapter_keeps_the_rows_of_known_classes(place):
    finetune(place / "class_mask_base", place / "datalist.json", place / "lora", Ask(**{**SHORT, "mode": "lora"}))
    table, old = (hub.load(place / n).network.module.class_embedding.weight for n in ("lora", "class_mask_base"))
    assert torch.equal(table[:3], old)
    assert not torch.equal(table[3], table[4])


def test_a_private_run_tells_its_epsilon_and_no_patient(place):
    ask = Ask(**{**SHORT, "mode": "private", "rank": 2, "epsilon": 6.0, "batch": 5})
    outcome = finetune(place / "class_mask_base", place / "datalist.json", place / "private", ask)
    terms = outcome.figures["privacy"]
    assert 5.5 < terms["epsilon"] <= 6.0
    assert terms["patients"] == outcome.figures["counts"]["train"]["patients"]
    assert "epsilon" in (place / "private/docs/README.md").read_text()
    assert hub.load(place / "private").judge is None
    assert not (place / "private.run/secret").exists()
    assert outcome.stopped == ""


def test_a_decoder_is_trained_when_asked_and_the_encoder_is_not(place):
    blobs.base(place, "class", autoencoder=True)
    said = []
    ask = Ask(**{**SHORT, "autoencoder": "train", "autoencoder_steps": 200})
    outcome = finetune(place / "class_base", place / "datalist.json", place / "decoded", ask, say=said.append)
    assert outcome.figures["autoencoder"]["after"] > outcome.figures["autoencoder"]["before"]
    assert any("its decoder was trained" in line for line in said)
    x, new, old = torch.rand(1, 1, 16, 16), hub.load(place / "decoded"), hub.load(place / "class_base")
    assert torch.allclose(new.encode(x), old.encode(x), atol=1e-3)
    assert not torch.allclose(new.decode(old.encode(x)), old.decode(old.encode(x)), atol=1e-2)


def test_a_stable_diffusion_folder_becomes_a_bundle_and_its_models_a_pipeline(tmp_path):
    from diffusers import StableDiffusionPipeline

    from .stable_diffusion import stable_diffusion

    (tmp_path / "sd").mkdir()
    data = blobs.images(tmp_path, n=24, each=2, classes=False, prompt="film, left dark")
    outcome = finetune(stable_diffusion(tmp_path / "sd"), data, tmp_path / "ours", Ask(**{**SHORT, "steps": 4}))
    assert outcome.figures["new"]["after"]["held_out"] > 0
    assert hub.load(tmp_path / "ours").contract.channels == 3
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "ours/models")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("film", num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)


SCRIPT = """
import sys
from monai_diffaug.finetune import Ask, finetune
finetune(sys.argv[1], sys.argv[2], sys.argv[3], Ask(**eval(sys.argv[4])))
"""


def test_killed_and_run_again_it_ends_the_same(place):
    how = {**SHORT, "steps": 36, "checkpoint_seconds": 0.0, "patience": 0, "memorized": 0.0}
    folder = place / "to_kill"
    folder.mkdir()
    words = [str(blobs.base(folder, "none")), str(blobs.images(folder, classes=False))]
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words, str(place / "killed"), repr(how)], stderr=subprocess.DEVNULL
    )
    checkpoint = place / "killed.run/network.ckpt"
    for _ in range(4000):
        if checkpoint.is_file() or child.poll() is not None:
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert checkpoint.is_file()
    assert not (place / "killed").exists()
    done = torch.load(checkpoint, weights_only=True)["step"]
    assert 0 < done < 36
    finetune(*words, place / "killed", Ask(**how))
    finetune(*words, place / "whole", Ask(**how))
    assert hub.load(place / "killed").digest == hub.load(place / "whole").digest


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"mode": "half"}, "mode 'half' is unknown"),
        ({"epsilon": 3.0}, "add --mode private"),
        ({"mode": "lora", "autoencoder": "train"}, "leaves the autoencoder as it is"),
        ({"mode": "lora", "rank": 0}, "rank is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"samples": 2}, "samples is 2"),
        ({"mode": "private", "noise": 1.0, "epsilon": 1.0}, "give one of"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_read(how, said, tmp_path):
    with pytest.raises(DiffAugError, match=said):
        finetune("nowhere", "nothing", tmp_path / "x", Ask(**how))
    assert not list(tmp_path.iterdir())


def cli(*words):
    return CliRunner().invoke(app, ["finetune", *map(str, words)])


def test_bad_input_is_one_line_and_leaves_nothing(place, tmp_path):
    import shutil

    base, data = place / "class_mask_base", place / "datalist.json"
    blobs.listed(place, blobs.entries(data), "unlicensed.json", licence="")
    blobs.listed(place, blobs.entries(data), "imported.json", licence="unknown")
    lacking = shutil.copytree(base, tmp_path / "in/lacking")
    contract = json.loads((lacking / "contract.json").read_text())
    (lacking / "contract.json").write_text(json.dumps({k: v for k, v in contract.items() if k != "latent_scale"}))
    other = shutil.copytree(base, tmp_path / "in/other")
    network = json.loads((other / "network.json").read_text())
    (other / "network.json").write_text(json.dumps({**network, "channels": [8, 32]}))
    (tmp_path / "in/mine").mkdir()
    (tmp_path / "in/mine/thesis.txt").write_text("years of work")
    for words, said in (
        ((base, "--data", place / "unlicensed.json"), "weights follow the license of their data: name it"),
        ((base, "--data", place / "imported.json"), "weights follow the license of their data: name it"),
        ((lacking, "--data", data), "contract lacks latent_scale"),
        ((other, "--data", data), "weights do not fit DiffusionModelUNet"),
        ((base, "--data", tmp_path / "none.json"), "none.json does not exist"),
    ):
        result = cli(*words, "--out", tmp_path / "x")
        assert result.exit_code == 1, said
        assert said in " ".join(result.output.split())
        assert result.output.count("error:") == 1
        assert [p.name for p in tmp_path.iterdir()] == ["in"], said
    result = cli(base, "--data", data, "--out", tmp_path / "in/mine")
    assert "holds something that this command has not made" in result.output
    assert (tmp_path / "in/mine/thesis.txt").is_file()


def test_the_command_prints_its_figures(place, tmp_path):
    short = ("--steps", 4, "--batch", 2, "--samples", 8, "--precision", "float32", "--autoencoder", "keep", "--json")
    result = cli(place / "class_mask_base", "--data", place / "datalist.json", "--out", tmp_path / "x", *short)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert Path(found["bundle"]) == tmp_path / "x"
    assert found["kept_step"] in (1, 2, 3, 4)


def test_a_backbone_that_does_not_know_the_classes_is_not_evaluated_on_them(place, tmp_path):
    with pytest.raises(DiffAugError, match="class 'long' is not the backbone's"):
        evaluate(hub.load(place / "class_mask_base"), place / "datalist.json", tmp_path)
