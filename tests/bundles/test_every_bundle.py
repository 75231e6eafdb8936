"""What every bundle in ``bundles/`` must be: complete, described as MONAI wants it, loadable, checkable, exportable."""

import json
import re
from pathlib import Path

import monai.bundle
import pytest
import torch

from monai_diffaug.backbones import hub

ROOT = Path(__file__).parents[2] / "bundles"
BUNDLES = sorted(p.parent.parent.name for p in ROOT.glob("*/configs/metadata.json"))
CONFIGS = ("metadata", "train", "finetune", "inference", "evaluate", "multi_gpu_train")

TEXT = {"type": "string", "minLength": 1}
VERSION = {"type": "string", "pattern": r"^\d+\.\d+(\.\d+)?"}
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"],
    "properties": {
        "type": TEXT,
        "format": TEXT,
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}},
        "dtype": {"enum": ["float32", "float16", "bfloat16", "int64", "uint8"]},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "additionalProperties": TEXT},
    },
}
# The keys that MONAI's bundle specification calls mandatory, and the form it gives them. The published schema file lies
# on a server; a test must not need one.
SPECIFICATION = {
    "type": "object",
    "required": [
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "name", "task", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {
        **dict.fromkeys(("name", "task", "description", "authors", "copyright", "intended_use", "data_source"), TEXT),
        **dict.fromkeys(("version", "monai_version", "pytorch_version", "numpy_version"), VERSION),
        "schema": {"type": "string", "pattern": r"^https://.*/meta_schema_\d+\.json$"},
        "changelog": {"type": "object", "minProperties": 1, "additionalProperties": TEXT},
        "required_packages_version": {"type": "object", "additionalProperties": VERSION},
        "eval_metrics": {"type": "object"},
        "references": {"type": "array", "items": TEXT},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {
                "inputs": {"type": "object", "required": ["image"], "additionalProperties": TENSOR},
                "outputs": {"type": "object", "required": ["pred"], "additionalProperties": TENSOR},
            },
        },
    },
}


def config(name, file):
    return str(ROOT / name / "configs" / f"{file}.json")


def test_the_six_are_there():
    assert set(BUNDLES) == {
        "anonymous_chest_xray",
        "brain_mri_healthy_counterfactual",
        "brain_mri_latent_diffusion_3d",
        "chest_xray_text_to_image",
        "lesion_inpainting",
        "low_dose_ct_denoising",
    }


@pytest.mark.parametrize("name", BUNDLES)
def test_it_is_complete(name):
    folder = ROOT / name
    missing = [f for f in CONFIGS if not (folder / "configs" / f"{f}.json").is_file()]
    assert not missing
    assert len((folder / "LICENSE").read_text()) > 200
    page = (folder / "docs" / "README.md").read_text()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
    assert pictures, "the README shows nothing"
    assert all((folder / "docs" / p).is_file() for p in pictures)
    assert "python -m monai.bundle run" in page
    for config_file in (folder / "configs").glob("*.json"):
        assert "/work" not in config_file.read_text()


@pytest.mark.parametrize("name", BUNDLES)
def test_its_metadata_is_valid(name, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SPECIFICATION))
    monai.bundle.verify_metadata(meta_file=config(name, "metadata"), filepath=str(schema))


def test_metadata_without_a_mandatory_key_is_found(tmp_path):
    schema, meta = tmp_path / "schema.json", tmp_path / "metadata.json"
    schema.write_text(json.dumps(SPECIFICATION))
    said = json.loads(Path(config(BUNDLES[0], "metadata")).read_text())
    del said["network_data_format"]["outputs"]["pred"]
    meta.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="Failed validating"):
        monai.bundle.verify_metadata(meta_file=str(meta), filepath=str(schema))


@pytest.mark.parametrize("name", BUNDLES)
def test_its_network_does_what_the_metadata_says(name):
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=config(name, "metadata"),
        config_file=config(name, "inference"),
        bundle_root=str(ROOT / name),
        device="cpu",
    )


@pytest.mark.parametrize("name", BUNDLES)
def test_it_loads_by_its_folder_and_its_digests_hold(name):
    if not (ROOT / name / "models" / "contract.json").is_file():
        pytest.skip("borrows the checkpoint of another bundle")
    backbone = hub.load(ROOT / name)
    assert backbone.contract.license
    assert backbone.contract.data


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_it_exports(name, tmp_path):
    """What TorchScript makes of a noise image is what the backbone makes of it."""
    said = json.loads(Path(config(name, "metadata")).read_text())["network_data_format"]["inputs"]["image"]
    shape = [1, said["num_channels"], *said["spatial_shape"]]
    target = tmp_path / "network.ts"
    parser = monai.bundle.ConfigParser()
    parser.read_config(config(name, "inference"))
    parser["bundle_root"] = str(ROOT / name)
    network = parser.get_parsed_content("network_def")
    models = ROOT / name / "models"
    weights = next(p for p in (models / "network.pt", models / "verifier" / "network.pt") if p.is_file())
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(target),
        ckpt_file=str(weights),
        meta_file=config(name, "metadata"),
        config_file=config(name, "inference"),
        bundle_root=str(ROOT / name),
        use_trace=True,
        input_shape=shape,
    )
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(str(target))(noise), network(noise), rtol=1e-3, atol=1e-3)
