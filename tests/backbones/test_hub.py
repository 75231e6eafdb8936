"""Checkpoints: written, sealed, loaded, refused."""

import json
import shutil

import pytest
import torch

from monai_diffaug.backbones import hub, loading
from monai_diffaug.testing import ideal_backbone, tiny
from monai_diffaug.types import DiffAugError


def output(backbone, prompt=None):
    c = backbone.contract
    x = torch.randn(2, c.latent_channels, *c.latent_size, generator=torch.Generator().manual_seed(1))
    return backbone.output(x, 400.0, backbone.condition(2, prompt=prompt))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return hub.save(tiny("text", autoencoder=True), tmp_path_factory.mktemp("saved") / "words", torch.float32)


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def rewrite(path, **changes):
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


@pytest.mark.parametrize(
    ("kind", "dims", "autoencoder"), [("text", 2, True), ("text", 3, False), ("class_mask", 2, True), ("none", 3, True)]
)
def test_round_trip(kind, dims, autoencoder, tmp_path):
    before = tiny(kind, dims, autoencoder=autoencoder)
    after = hub.load(hub.save(before, tmp_path / "it", torch.float32))
    prompt = None if kind == "none" else "tumor"
    assert torch.equal(output(before, prompt), output(after, prompt))
    image = torch.randn(1, 1, *before.contract.size)
    assert torch.equal(before.encode(image), after.encode(image))
    assert torch.equal(before.decode(before.encode(image)), after.decode(after.encode(image)))
    assert after.contract == before.contract
    assert after.offers() == before.offers()
    if kind == "text":
        torch.testing.assert_close(before.scorer(image, "a head ct"), after.scorer(image, "a head ct"))


def test_half_precision_halves_the_file_and_stays_close(tmp_path):
    before = tiny("class")
    half, whole = (hub.save(before, tmp_path / str(d), d) for d in (torch.float16, torch.float32))
    assert (half / "network.safetensors").stat().st_size < 0.7 * (whole / "network.safetensors").stat().st_size
    torch.testing.assert_close(output(hub.load(half)), output(before), atol=5e-3, rtol=0)


def test_same_weights_same_digest_and_same_object(saved, tmp_path):
    again = hub.save(tiny("text", autoencoder=True), tmp_path / "again", torch.float32)
    other = hub.save(tiny("text", autoencoder=True, seed=1), tmp_path / "other", torch.float32)
    assert hub.load(saved).digest == hub.load(again).digest != hub.load(other).digest
    assert hub.load(saved) is hub.load(saved)
    assert hub.load(saved, precision="bf16").precision == torch.bfloat16
    assert hub.load(saved).precision == torch.float32


def test_loaded_is_frozen(saved):
    for module in hub.load(saved).modules().values():
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_a_changed_weight_file_is_refused(copy):
    path = copy / "network.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DiffAugError, match=r"network.safetensors differs .* download it again"):
        hub.load(copy)
    hub.seal(copy)
    hub.load(copy)


def test_a_missing_weight_file_is_refused(copy):
    (copy / "autoencoder.safetensors").unlink()
    with pytest.raises(DiffAugError, match=r"autoencoder.safetensors is missing"):
        hub.load(copy)


@pytest.mark.parametrize("key", ["latent_scale", "factor", "size", "modality"])
def test_a_contract_without_what_is_needed_is_refused(copy, key):
    rewrite(copy / "contract.json", **{key: None})
    with pytest.raises(DiffAugError, match=rf"contract.json.* lacks {key}"):
        hub.load(copy)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("contract.json", "write there name, modality"),
        ("scheduler.json", "scheduler.json is missing"),
        ("conditioner.json", "conditioner.json is missing"),
        ("autoencoder.json", "factor to 1 for a pixel model"),
        ("network.json", "is no checkpoint"),
    ],
)
def test_a_missing_part_is_refused(copy, name, says):
    (copy / name).unlink()
    with pytest.raises(DiffAugError, match=says):
        hub.load(copy)


def test_broken_json_is_refused(copy):
    (copy / "scheduler.json").write_text("{")
    with pytest.raises(DiffAugError, match=r"scheduler.json is not JSON"):
        hub.load(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channels": [8, 24]}, "weights do not fit DiffusionModelUNet"),
        ({"chanels": [8, 16]}, "takes no argument 'chanels'; did you mean 'channels'"),
        ({"_target_": "monai.networks.nets.DifusionModelUNet"}, "did you mean monai.networks.nets.DiffusionModelUNet"),
        ({"_target_": "monai.transforms.Resize"}, "is not a network class"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copy, change, says):
    rewrite(copy / "network.json", **change)
    with pytest.raises(DiffAugError, match=says):
        hub.load(copy)


def test_unknown_names_are_refused_with_the_nearest(monkeypatch, saved, tmp_path):
    monkeypatch.setattr(loading, "WEIGHTS", saved.parent)
    assert hub.shipped() == ["words"]
    with pytest.raises(DiffAugError, match="did you mean 'words'"):
        hub.load("wordz")
    with pytest.raises(DiffAugError, match="is no checkpoint"):
        hub.load(tmp_path)
    with pytest.raises(DiffAugError, match="float32, bfloat16"):
        hub.load("words", precision="int4")


def test_a_hub_id_without_a_network_is_refused(monkeypatch):
    import huggingface_hub

    def away(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    with pytest.raises(DiffAugError, match=r"the hub cannot be reached.*give its folder"):
        hub.load("somebody/something")


def test_what_is_no_checkpoint_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DiffAugError, match="holds something that is no checkpoint"):
        hub.save(tiny("none"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(DiffAugError, match="does not say how it was built"):
        hub.save(ideal_backbone(), tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path):
    backbone = tiny("none")
    with torch.no_grad():
        next(backbone.network.module.parameters())[0] = 1e6
    with pytest.raises(DiffAugError, match=r"precision=torch.float32"):
        hub.save(backbone, tmp_path / "it")
    assert list(tmp_path.iterdir()) == []
