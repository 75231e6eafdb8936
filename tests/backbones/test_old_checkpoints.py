"""Checkpoints of monai-generative 0.2 and of the model zoo's generative bundles: they load, train on, sample."""

import json
from dataclasses import dataclass, field

import pytest
import torch
from monai.networks import nets

from monai_diffaug.backbones import hub
from monai_diffaug.backbones.monai_unet import MonaiAutoencoder, MonaiUNet, load_weights
from monai_diffaug.backbones.saving import save
from monai_diffaug.primitives import plans
from monai_diffaug.primitives.runs import Draws, Settings
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.primitives.stages import NetworkStage
from monai_diffaug.types import Condition, NoiseSource
from tests.networks import stirred

old = pytest.importorskip("generative.networks.nets")
T = torch.tensor([100.0, 700.0])
UNET = {"in_channels": 3, "out_channels": 3, "num_res_blocks": 1, "norm_num_groups": 4}
KINDS = {
    "plain": {"attention_levels": (False, False), "num_head_channels": (0, 8)},
    "attention": {"attention_levels": (False, True), "num_head_channels": (0, 8)},
    "cross-attention": {
        "attention_levels": (False, True),
        "num_head_channels": (0, 8),
        "with_conditioning": True,
        "cross_attention_dim": 6,
    },
    "classes": {"attention_levels": (False, True), "num_head_channels": (0, 8), "num_class_embeds": 4},
    "resampling blocks": {"attention_levels": (False, True), "num_head_channels": (0, 16), "resblock_updown": True},
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_both_libraries_give_the_same_for_the_same_weights(kind, dims):
    torch.manual_seed(0)
    theirs = stirred(old.DiffusionModelUNet(spatial_dims=dims, num_channels=(8, 16), **UNET, **KINDS[kind]))
    ours = nets.DiffusionModelUNet(spatial_dims=dims, channels=(8, 16), **UNET, **KINDS[kind]).eval()
    load_weights(ours, theirs.state_dict())
    x = torch.randn(2, 3, *[8] * dims)
    told = Condition(
        tokens=torch.randn(2, 5, 6) if kind == "cross-attention" else None,
        labels=torch.tensor([1, 3]) if kind == "classes" else None,
    )
    expected = theirs(x, timesteps=T, context=told.tokens, class_labels=told.labels)
    assert float(expected.std()) > 1e-3
    for module in (ours, theirs):
        torch.testing.assert_close(MonaiUNet(module)(x, T, told), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("attention", [False, True])
def test_autoencoders_of_both_libraries_give_the_same_for_the_same_weights(attention, dims):
    torch.manual_seed(0)
    shared = {
        "spatial_dims": dims,
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 2,
        "norm_num_groups": 4,
        "num_res_blocks": (1, 1),
        "attention_levels": (False, attention),
        "with_encoder_nonlocal_attn": attention,
        "with_decoder_nonlocal_attn": attention,
    }
    theirs = stirred(old.AutoencoderKL(num_channels=(4, 8), **shared))
    ours = nets.AutoencoderKL(channels=(4, 8), **shared).eval()
    assert load_weights(ours, theirs.state_dict())
    image = torch.randn(1, 1, *[8] * dims)
    mean, sigma = theirs.encode(image)
    torch.testing.assert_close(ours.encode(image)[1], sigma, atol=1e-5, rtol=1e-4)
    for module in (ours, theirs):
        adapted = MonaiAutoencoder(module, 0.5)
        torch.testing.assert_close(adapted.encode(image), 0.5 * mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(adapted.decode(0.5 * mean), theirs.decode(mean), atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------- the model zoo's layouts


@dataclass
class Layout:
    """What one of the zoo's bundles has where: the tiny networks here have its build, not its width."""

    dims: int
    latent: int
    scale: float
    library: str
    files: tuple[str, str]  # of the network and the autoencoder
    names: tuple[str, str]  # what the config calls them
    unet: dict
    nonlocal_attention: bool = False
    scheduler: dict = field(default_factory=dict)
    conditioner: dict = field(default_factory=lambda: {"kind": "none"})
    told: dict = field(default_factory=dict)
    references: bool = False


ZOO = {
    "brats_mri_generative_diffusion": Layout(
        3, 4, 1.0, "generative", ("model.pt", "model_autoencoder.pt"), ("network_def", "autoencoder_def"),
        {"attention_levels": [False, True], "num_head_channels": [0, 8], "use_flash_attention": True},
        scheduler={"beta_end": 0.0195, "schedule": "scaled_linear_beta"}, references=True,
    ),
    "brats_mri_axial_slices_generative_diffusion": Layout(
        2, 1, 1.0, "generative", ("model.pt", "model_autoencoder.pt"), ("network_def", "autoencoder_def"),
        {"attention_levels": [False, True], "num_head_channels": [0, 8]},
        nonlocal_attention=True, scheduler={"beta_end": 0.0195, "schedule": "scaled_linear_beta"}, references=True,
    ),
    "brain_image_synthesis_latent_diffusion_model": Layout(
        3, 3, 1.0, "monai", ("model.pt", "autoencoder.pt"), ("diffusion_def", "autoencoder_def"),
        {
            "attention_levels": [False, True],
            "num_head_channels": [0, 16],
            "resblock_updown": True,
            "with_conditioning": True,
            "transformer_num_layers": 1,
            "cross_attention_dim": 4,
            "upcast_attention": True,
            "use_flash_attention": False,
        },
        scheduler={"beta_end": 0.0205, "schedule": "scaled_linear_beta"},
        conditioner={"kind": "vector", "size": 4, "concat": True, "names": ["gender", "age", "ventricles", "brain"]},
        told={"vector": torch.tensor([[0.0, 0.1, 0.2, 0.4]])},
    ),
    "cxr_image_synthesis_latent_diffusion_model": Layout(
        2, 3, 0.3, "generative", ("diffusion_model.pth", "autoencoder.pth"), ("diffusion_def", "autoencoder_def"),
        {
            "attention_levels": [False, True],
            "num_head_channels": [0, 16],
            "with_conditioning": True,
            "cross_attention_dim": 6,
        },
        nonlocal_attention=True,
        scheduler={"beta_end": 0.0205, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
        conditioner={"kind": "vector", "size": 6},
        told={"vector": torch.linspace(-1, 1, 6)[None]},
    ),
}  # fmt: skip


def written(folder, layout):
    """A bundle of this layout with weights under the old names; and its networks, of the old library."""
    torch.manual_seed(0)
    more = int(layout.conditioner.get("size", 0)) if layout.conditioner.get("concat") else 0
    unet = {**UNET, "in_channels": layout.latent + more, "out_channels": layout.latent, **layout.unet}
    encoder = {
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": layout.latent,
        "num_res_blocks": 1 if layout.library == "generative" else [1, 1],
        "norm_num_groups": 4,
        "attention_levels": [False, False],
        "with_encoder_nonlocal_attn": layout.nonlocal_attention,
        "with_decoder_nonlocal_attn": layout.nonlocal_attention,
    }
    network = stirred(
        old.DiffusionModelUNet(spatial_dims=layout.dims, num_channels=[8, 16], **{**unet, "use_flash_attention": False})
    )
    autoencoder = stirred(old.AutoencoderKL(spatial_dims=layout.dims, num_channels=[4, 8], **encoder))
    width = "num_channels" if layout.library == "generative" else "channels"
    said = {"spatial_dims": layout.dims}
    if layout.references:
        unet |= {"in_channels": "@latent_channels", "out_channels": "@latent_channels"}
        encoder |= {"latent_channels": "@latent_channels"}
        said = {"spatial_dims": "@spatial_dims"}
    target, name = f"{layout.library}.networks", dict(zip(("network", "autoencoder"), layout.names))
    config = {
        "imports": ["$import torch", "$from scripts.sampler import Sampler"],
        "bundle_root": ".",
        "spatial_dims": layout.dims,
        "latent_channels": layout.latent,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        name["autoencoder"]: {"_target_": f"{target}.nets.AutoencoderKL", **said, width: [4, 8], **encoder},
        name["network"]: {"_target_": f"{target}.nets.DiffusionModelUNet", **said, width: [8, 16], **unet},
        "load_it": f"$@{name['network']}.load_state_dict(torch.load(@bundle_root + '/models/{layout.files[0]}'))",
        "scheduler": {
            "_target_": f"{target}.schedulers.DDIMScheduler",
            "_requires_": ["@load_it"],
            "num_train_timesteps": 1000,
            "beta_start": 0.0015,
            "clip_sample": False,
            **layout.scheduler,
        },
        "sampler": {"_target_": "scripts.sampler.Sampler"},
        "run": ["$@sampler.sampling_fn(@scheduler)"],
    }
    contract = {
        "name": folder.name,
        "modality": "MR",
        "spatial_dims": layout.dims,
        "channels": 1,
        "size": [16] * layout.dims,
        "latent_channels": layout.latent,
        "latent_scale": layout.scale,
        "factor": 2,
        "license": "CC0",
        "data": "none",
        "extra": {"conditioner": layout.conditioner},
    }
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "1.0.0"}))
    (folder / "contract.json").write_text(json.dumps(contract))
    torch.save(network.state_dict(), folder / "models" / layout.files[0])
    torch.save(autoencoder.state_dict(), folder / "models" / layout.files[1])
    return network, autoencoder


@pytest.fixture(params=ZOO)
def zoo(request, tmp_path):
    layout = ZOO[request.param]
    network, autoencoder = written(tmp_path / request.param, layout)
    return layout, hub.load(tmp_path / request.param), network, autoencoder


def test_a_bundle_of_the_zoo_gives_what_its_old_networks_give(zoo):
    layout, backbone, network, autoencoder = zoo
    x = torch.randn(2, layout.latent, *[8] * layout.dims)
    told = backbone.condition(2, **layout.told)
    given = x if told.concat is None else torch.cat([x, told.concat], 1)
    expected = network(given, timesteps=torch.tensor([300.0, 300.0]), context=told.tokens)
    torch.testing.assert_close(backbone.output(x, 300.0, told), expected, atol=1e-5, rtol=1e-4)
    image = autoencoder.decode(x / layout.scale)
    torch.testing.assert_close(backbone.decode(x), image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        backbone.encode(image), layout.scale * autoencoder.encode(image)[0], atol=1e-4, rtol=1e-3
    )
    betas = torch.linspace(0.0015**0.5, layout.scheduler["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    assert backbone.schedule.alphas[-1] == pytest.approx(float((1 - betas).prod().sqrt()))
    assert backbone.schedule.prediction == layout.scheduler.get("prediction_type", "epsilon")


def test_it_trains_on_is_saved_anew_and_samples(zoo, tmp_path):
    layout, backbone, _, _ = zoo
    module = backbone.network.module.requires_grad_(True).train()
    images = torch.randn(4, 1, *[16] * layout.dims).clamp(-1, 1)
    stage = NetworkStage(
        backbone.network,
        backbone.schedule,
        Settings(steps=12, batch=4, lr=2e-3, warmup=1, ema=0.0, precision=torch.float32),
        told=lambda batch, draws: backbone.condition(len(batch["image"]), **layout.told),
        encode=backbone.encode,
        held_out=[{"image": images}],
    )
    before = stage.check(0)["held_out"]
    for step in range(12):
        stage.step({"image": images}, step, Draws.of(0, step))
    stage.finish()
    assert stage.check(12)["held_out"] < before
    module.requires_grad_(False)
    again = hub.load(save(backbone, tmp_path / "anew", torch.float32))
    plan = plans.make(again.schedule, 4)
    told = again.condition(2, **layout.told)
    found = [
        b.decode(
            sample(
                b.denoiser(told), NoiseSource([1, 2]).normal(torch.zeros(2, layout.latent, *[8] * layout.dims)), plan
            )
        )
        for b in (backbone, again)
    ]
    assert found[0].shape == (2, 1, *[16] * layout.dims)
    assert bool(found[0].isfinite().all())
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
