"""The doctor on sound and on sick patients: every fault is found, with the line that mends it."""

import copy
import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from monai.networks import nets
from typer.testing import CliRunner

from monai_diffaug import registry
from monai_diffaug.backbones import bundles, hub, machine
from monai_diffaug.backbones.doctor import examine
from monai_diffaug.cli import app
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError

run = CliRunner().invoke

UNET = {"spatial_dims": 2, "in_channels": 2, "out_channels": 2, "num_res_blocks": 1, "attention_levels": [False, True]}
UNET |= {"norm_num_groups": 4, "num_head_channels": 4}
AUTOENCODER = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "latent_channels": 2, "num_res_blocks": 1}
AUTOENCODER |= {"attention_levels": [False, False], "norm_num_groups": 4}
AUTOENCODER |= {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
CONFIG = {
    "imports": ["$import torch", "$from scripts.sampler import Sampler"],
    "bundle_root": ".",
    "spatial_dims": 2,
    "width": 8,
    "device": "$torch.device('cpu')",
    "latent_shape": [2, 8, "$@width"],
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0}],
    },
    "autoencoder_def": {"_target_": "AutoencoderKL", **AUTOENCODER, "channels": ["@width", "$@width * 1"]},
    "network_def": {
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        **UNET,
        "spatial_dims": "@spatial_dims",
        "channels": ["@width", "$2 * @width"],
    },
    "network": "$@network_def.to(@device)",
    "noise_scheduler": {
        "_target_": "monai.networks.schedulers.DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.0015,
        "beta_end": 0.0205,
        "schedule": "scaled_linear_beta",
        "prediction_type": "epsilon",
    },
    "scale_factor": "$1 / 4",
    "inferer": {"_target_": "LatentDiffusionInferer", "scheduler": "@noise_scheduler", "scale_factor": "@scale_factor"},
    "sampler": {"_target_": "scripts.sampler.Sampler", "_requires_": "@network"},
}
CONTRACT = {
    "name": "small",
    "modality": "MRI",
    "spatial_dims": 2,
    "channels": 1,
    "size": [16, 16],
    "latent_channels": 2,
}
CONTRACT |= {"latent_scale": 0.25, "factor": 2, "license": "CC0", "data": "none"}


def old_names(state):
    """The same tensors under the names of monai-generative."""
    pairs = ((".attn.out_proj.", ".proj_attn."), (".attn.to_", ".to_"), (".postconv.", ".conv."))
    renamed = {}
    for key, value in state.items():
        for new, old in pairs:
            key = key.replace(new, old)
        renamed[key] = value
    return renamed


@pytest.fixture
def bundle(tmp_path):
    """A function that writes a bundle; ``change`` takes the config, the contract and the weights apart first."""

    def write(change=lambda config, contract, weights: None):
        config, contract = copy.deepcopy(CONFIG), dict(CONTRACT)
        torch.manual_seed(0)
        network = nets.DiffusionModelUNet(**UNET, channels=(8, 16))
        autoencoder = nets.AutoencoderKL(**AUTOENCODER, channels=(8, 8))
        weights = {"model.pt": network.state_dict(), "model_autoencoder.pt": autoencoder.state_dict()}
        change(config, contract, weights)
        for folder in ("configs", "models", "scripts"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "configs" / "inference.json").write_text(json.dumps(config))
        (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0", "monai_version": "1.4.0"}))
        (tmp_path / "scripts" / "sampler.py").write_text(
            "raise SystemExit('a doctor does not run this')\nclass Sampler: ...\n"
        )
        if contract:
            (tmp_path / "contract.json").write_text(json.dumps(contract))
        for name, state in weights.items():
            torch.save(state, tmp_path / "models" / name)
        return tmp_path

    return write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return hub.save(tiny("class", autoencoder=True), tmp_path_factory.mktemp("saved") / "tiny")


def mends(diagnosis):
    return [(f.where, f.what, f.mend) for f in diagnosis.faults]


def test_a_sound_bundle_has_no_fault_and_the_hub_loads_it(bundle):
    folder = bundle()
    found = examine(folder)
    assert mends(found) == []
    assert found.facts["loads"]
    assert found.facts["latent_scale"] == 0.25
    assert found.facts["schedule"]["prediction"] == "epsilon"
    assert found.facts["network"]["channels"] == [8, 16]
    assert found.facts["network"]["weights"] == "models/model.pt"
    assert found.facts["autoencoder"]["weights"] == "models/model_autoencoder.pt"
    assert {w["layout"] for w in found.facts["weights"]} == {"MONAI"}
    assert hub.load(folder).contract.latent_scale == 0.25


def test_old_and_wrapped_key_names_are_told_and_load(bundle):
    def change(config, contract, weights):
        weights["model.pt"] = {"state_dict": {f"module.{k}": v for k, v in old_names(weights["model.pt"]).items()}}
        weights["model_autoencoder.pt"] = old_names(weights["model_autoencoder.pt"])

    found = examine(bundle(change))
    assert mends(found) == []
    assert [w["layout"] for w in found.facts["weights"]] == ["monai-generative"] * 2
    assert [w["wrapped_in"] for w in found.facts["weights"]] == [["state_dict", "module.*"], []]
    assert sum("monai-generative" in f.what for f in found.findings) == 2


def _set(*path, value=None, drop=False):
    def change(config, contract, weights):
        here = config
        for key in path[:-1]:
            here = here[key]
        if drop:
            del here[path[-1]]
        else:
            here[path[-1]] = value

    return change


def _old_argument(config, contract, weights):
    config["network_def"]["num_channels"] = config["network_def"].pop("channels")


def _old_betas(config, contract, weights):
    config["noise_scheduler"]["beta_schedule"] = config["noise_scheduler"].pop("schedule").removesuffix("_beta")


def _wrong_width(config, contract, weights):
    config["width"] = 16


@pytest.mark.parametrize(
    ("change", "where", "what", "mend"),
    [
        (
            _set("autoencoder_def", "_target_", value="AutoencoderLK"),
            "autoencoder_def",
            "no 'AutoencoderLK'",
            "'AutoencoderKL'",
        ),
        (
            _set("network_def", "_target_", value="monai.networks.nets.DiffusionModelUnet"),
            "network_def",
            "DiffusionModelUnet' does not exist",
            "DiffusionModelUNet",
        ),
        (_set("network_def", "out_chanels", value=2), "network_def", "no argument 'out_chanels'", "'out_channels'"),
        (_old_argument, "network_def", "no argument 'num_channels'", '"channels": ["@width", "$2 * @width"]'),
        (
            _set("network_def", "in_channels", drop=True),
            "network_def",
            "needs the argument 'in_channels'",
            '"in_channels"',
        ),
        (_set("network_def", "norm_num_groups", value=3), "network", "cannot be built|refuses", ""),
        (
            _set("inferer", "scheduler", value="@noise_sheduler"),
            "inferer",
            "@noise_sheduler leads nowhere",
            "@noise_scheduler",
        ),
        (_old_betas, "noise_scheduler", "no argument 'beta_schedule'", '"schedule": "scaled_linear_beta"'),
        (
            _set("noise_scheduler", "schedule", value="scaled_linear_betas"),
            "noise_scheduler",
            "refuses its arguments",
            '"schedule": "scaled_linear_beta"',
        ),
        (
            _set("sampler", "_target_", value="scripts.sampler.Sampeler"),
            "sampler",
            "does not define 'Sampeler'",
            "'Sampler'",
        ),
        (_set("network_def", drop=True), "configs", "no config defines a diffusion network", "network_def"),
        (_set("width", value="@latent_shape::2"), "configs", "leads back to itself", "value"),
        (_set("width", value="$__import__('os').getpid()"), "configs", "is not worked out here", "value"),
        (_wrong_width, "models/model.pt", "weights do not fit", '"channels": [8, 16]'),
    ],
)
def test_each_fault_of_a_bundle_is_found_with_its_remedy(bundle, change, where, what, mend):
    import re

    found = mends(examine(bundle(change)))
    assert any(where in w and re.search(what, t) and mend in m for w, t, m in found), found


def test_a_bundle_without_contract_and_scale_gets_a_draft(bundle):
    def change(config, contract, weights):
        contract.clear()
        config["scale_factor"] = "$torch.tensor(0.25)"

    found = mends(examine(bundle(change)))
    assert any("latent scale stands nowhere" in t and '"latent_scale": N' in m for _, t, m in found), found
    (draft,) = [m for w, _, m in found if w.endswith("contract.json")]
    draft = json.loads(draft.removeprefix("write there "))
    assert draft["value_range"] == [-1.0, 1.0]
    assert (draft["channels"], draft["latent_channels"], draft["factor"], draft["size"]) == (1, 2, 2, [16, 16])
    assert draft["latent_scale"] is None


def test_a_drafted_contract_makes_the_bundle_load(bundle):
    folder = bundle(lambda config, contract, weights: contract.clear())
    draft = next(m for w, _, m in mends(examine(folder)) if w.endswith("contract.json"))
    (folder / "contract.json").write_text(draft.removeprefix("write there "))
    again = examine(folder)
    assert mends(again) == []
    assert hub.load(folder).contract.latent_scale == 0.25


def test_a_contract_that_contradicts_the_networks(bundle):
    found = mends(examine(bundle(lambda config, contract, weights: contract.update(factor=4, latent_channels=3))))
    assert [m for w, _, m in found if w.endswith("contract.json")] == ['"latent_channels": 2', '"factor": 2']


def test_a_bundle_that_asks_for_flash_attention_loads_without_a_gpu(bundle):
    folder = bundle(_set("network_def", "use_flash_attention", value=True))
    assert mends(examine(folder)) == []


def test_overlaid_configs_data_beside_configs_and_large_files(bundle):
    folder = bundle()
    overlay = {
        "train#sampler": {"_target_": "Compose"},
        "train#loader#sampler": "@train#sampler",
        "n": "@train#smapler",
    }
    (folder / "configs" / "multi_gpu_train.json").write_text(json.dumps(overlay))
    (folder / "configs" / "masks.json").write_text("[1, 2]")
    listed = {"path": "models/model.pt", "url": "https://x/model.pt", "hash_val": "0" * 32, "hash_type": "md5"}
    lines = ["large_files:"] + [f"- {json.dumps(e)}" for e in (listed, {"path": "models/gone.pt", "url": "https://x"})]
    (folder / "large_files.yml").write_text("\n".join(lines))
    found = mends(examine(folder))
    assert [w for w, _, _ in found] == ["large_files.yml", "models/model.pt", "configs/multi_gpu_train.json, n"]
    assert "models/gone.pt" in found[0][1]
    assert "download_large_files" in found[0][2]
    assert "md5" in found[1][1]
    assert found[2][2] == "write @train#sampler"


def test_bundle_code_is_not_run_and_expressions_stay_arithmetic():
    config = {"n": 4, "list": [1, 2], "size": "$[@n * 2, @list::1 + 1]"}
    assert bundles.evaluate("@size", [config]) == [8, 3]
    for text in ("$().__class__", "$open('/etc/passwd')", "$[x for x in (1,)]", "$(lambda: 1)()", "$2 ** 99"):
        with pytest.raises(DiffAugError, match="not worked out"):
            bundles.evaluate(text, [config])


def test_a_saved_checkpoint_is_sound(checkpoint):
    found = examine(checkpoint)
    assert found.kind == "MONAI"
    assert mends(found) == []
    assert found.facts["loads"]
    assert found.facts["contract"]["labels"] == ["healthy", "tumor"]
    assert found.facts["digest"] == hub.load(checkpoint).digest


def _edit(path, **changes):
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("break_it", "what", "mend"),
    [
        (lambda f: _edit(f / "contract.json", latent_scale=None), "lacks latent_scale", "add it"),
        (lambda f: _edit(f / "contract.json", latent_scale=-1.0), "latent_scale is -1.0", '"latent_scale": N'),
        (lambda f: _edit(f / "contract.json", size=[15, 16]), "no multiple of factor", "multiples of 2"),
        (lambda f: _edit(f / "contract.json", labels=["healthy"]), "has 3 classes", "2 names"),
        (lambda f: _edit(f / "network.json", chanels=[8]), "no argument 'chanels'", "'channels'"),
        (
            lambda f: _edit(f / "scheduler.json", beta_schedule="scaled"),
            "beta schedule 'scaled' is unknown",
            "scaled_linear",
        ),
        (lambda f: (f / "conditioner.json").unlink(), "is missing", "add it"),
        (lambda f: (f / "autoencoder.json").unlink(), "though factor is not 1", "add it"),
        (
            lambda f: (f / "network.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"),
            "cannot be read",
            "download it again",
        ),
        (lambda f: (f / "network.safetensors").unlink(), "is missing", "download the checkpoint again"),
        (lambda f: (f / "contract.json").write_text("{"), "not JSON", "repair it"),
    ],
)
def test_each_fault_of_a_checkpoint_is_found_with_its_remedy(checkpoint, tmp_path, break_it, what, mend):
    import shutil

    folder = tmp_path / "sick"
    shutil.copytree(checkpoint, folder)
    break_it(folder)
    found = mends(examine(folder))
    assert any(what in f"{w} {t}" and mend in m for w, t, m in found), found


def test_changed_weights_are_told_by_their_hash(checkpoint, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "changed"
    shutil.copytree(checkpoint, folder)
    state = load_file(folder / "network.safetensors")
    state["out.2.conv.bias"] += 1
    save_file(state, folder / "network.safetensors")
    assert any("differs from its SHA-256" in t for _, t, _ in mends(examine(folder)))
    state["out.2.conv.bias"][0] = float("nan")
    save_file(state, folder / "network.safetensors")
    assert any("NaN or infinity (first: out.2.conv.bias)" in t for _, t, _ in mends(examine(folder)))


def _pipeline(folder):
    UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        scaling_factor=0.3,
    ).save_pretrained(folder / "vae")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiffusionPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_diffusers_folder(tmp_path):
    folder = _pipeline(tmp_path)
    found = examine(folder)
    assert mends(found) == []
    assert found.facts["loads"]
    assert found.facts["schedule"]["prediction"] == "v_prediction"
    assert found.facts["latent_scale"] == 0.3
    assert {w["layout"] for w in found.facts["weights"]} == {"diffusers"}
    _edit(folder / "vae" / "config.json", scaling_factor=None)
    _edit(folder / "model_index.json", unet=["diffusers", "UNet2DModle"])
    found = mends(examine(folder))
    assert any("latent scale is missing" in t and '"scaling_factor": N' in m for _, t, m in found)
    assert any("UNet2DModle" in t and "UNet2DModel" in m for _, t, m in found)


def test_a_weight_file_says_which_network_it_fits(bundle):
    folder = bundle(lambda c, k, weights: weights.update({"old.pt": {"model": old_names(weights["model.pt"])}}))
    result = run(app, ["doctor", str(folder / "models" / "old.pt"), "--json"])
    assert result.exit_code == 0
    (about,) = json.loads(result.stdout)["facts"]["weights"]
    assert about["layout"] == "monai-generative"
    assert about["wrapped_in"] == ["model"]
    assert about["architecture"]["channels"] == [8, 16]
    assert about["architecture"]["attention_levels"] == [False, True]
    nets.DiffusionModelUNet(**{k: v for k, v in about["architecture"].items() if k != "_target_"}, norm_num_groups=4)


def test_a_broken_file_is_one_fault_and_exit_code_1(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not weights")
    result = run(app, ["doctor", str(tmp_path / "x.safetensors")])
    assert result.exit_code == 1
    assert "fault: x.safetensors" in result.stdout
    assert "mend: download it again" in result.stdout
    result = run(app, ["doctor", str(tmp_path)])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "neither checkpoint nor bundle" in result.stderr


def test_this_machine(monkeypatch):
    result = run(app, ["doctor", "--json", "--no-trial"])
    report = json.loads(result.stdout)
    assert report["ok"] == (result.exit_code == 0)
    assert report["facts"]["packages"]["monai"]
    assert {b["name"] for b in report["facts"]["backbones"]} == set(hub.shipped())
    monkeypatch.setattr(machine, "versions", lambda: {"monai": None})
    result = run(app, ["doctor", "--no-trial"])
    assert result.exit_code == 1
    assert "pip install monai" in result.stdout


def test_a_plug_in_that_was_passed_over_is_a_fault(monkeypatch):
    monkeypatch.setitem(registry._BROKEN, "theirs", "ImportError: no module named x")
    result = run(app, ["doctor", "--no-trial"])
    assert result.exit_code == 1
    assert "fault: plug-in theirs: ImportError: no module named x" in result.stdout


def test_text_for_people(checkpoint):
    lines = run(app, ["doctor", str(checkpoint)]).stdout.splitlines()
    assert "  network: monai.networks.nets.DiffusionModelUNet, filled from network.safetensors" in lines
    assert "  schedule: 1000 steps, variance preserving, predicts v_prediction, log-SNR 3.25 to -4.621" in lines
    assert "  value range: -1.0, 1.0" in lines
    assert lines[-1] == "no fault found"


def test_fast_paths_are_measured():
    for dims in (2, 3):
        threads = torch.get_num_threads()
        found = machine.fast_paths(dims, budget=0.2)
        assert torch.get_num_threads() == threads
        assert set(found) == {"fused attention", "channels_last", "bfloat16", "all but bfloat16", "all"}
        assert all(0.01 < factor < 100 for factor in found.values())
