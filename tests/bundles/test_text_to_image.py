"""chest_xray_text_to_image from the command line: a Stable Diffusion folder fine-tuned, and films from words."""

import json
from pathlib import Path

import monai.bundle
import pytest

from monai_diffaug.types import DiffAugError
from tests.films import three_sets
from tests.finetune.stable_diffusion import stable_diffusion

CONFIGS = Path(__file__).parents[2] / "bundles" / "chest_xray_text_to_image" / "configs"


def run(name, **settings):
    monai.bundle.run(
        config_file=str(CONFIGS / f"{name}.json"),
        **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    return three_sets(folder / "data"), stable_diffusion(folder / "sd")


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_stable_diffusion_folder_is_fine_tuned_and_sampled(places, tmp_path, adapter):
    data, model = places
    out = tmp_path / "out"
    run("finetune", pretrained=model, dataset_dir=data, output_dir=out, adapter=adapter, steps=2, batch_size=2, count=1)
    log = [json.loads(line) for line in (out / "run" / "network.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 2
    assert "held_out" in log[-1]
    assert len(list((out / "films").rglob("*.png"))) == 2
    more = {"pretrained": out / "model"} if adapter == "full" else {"pretrained": model}
    more |= {} if adapter == "full" else {"adapter": out / "model" / "adapter.safetensors"}
    run("inference", output_dir=tmp_path / "again", prompts=["a film"], count=2, steps=2, **more)
    films = sorted((tmp_path / "again").rglob("*.png"))
    assert len(films) == 2
    listed = json.loads((tmp_path / "again" / "datalist.json").read_text())["training"]
    assert all(i["synthetic"] for i in listed)
    assert {i["provenance"]["prompt"] for i in listed} == {"a film"}


def test_report_sentences_become_prompts(tmp_path):
    report = tmp_path / "report.txt"
    report.write_text("Chest X-ray with cardiomegaly.\n")
    with pytest.warns(UserWarning, match="left out: cardiomegaly"):
        run("inference", pretrained="mednist", report=report, output_dir=tmp_path / "films", count=1, steps=2)
    (film,) = json.loads((tmp_path / "films" / "datalist.json").read_text())["training"]
    assert film["provenance"]["prompt"] == "chest x-ray with"
    with pytest.raises(RuntimeError) as wrapped:  # by MONAI's parser of configs
        run("inference", pretrained="mednist", report="nowhere.txt", output_dir=tmp_path / "none", count=1, steps=2)
    assert isinstance(wrapped.value.__cause__, DiffAugError)
    assert "is missing: give a text file" in str(wrapped.value.__cause__)
