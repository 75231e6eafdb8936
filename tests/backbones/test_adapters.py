"""Networks and autoencoders of three libraries behind one face: the same numbers as when called bare."""

import copy

import pytest
import torch
from monai.networks.nets import VQVAE, AutoencoderKL, ControlNet, DiffusionModelUNet

from monai_diffaug.backbones.diffusers_unet import DiffusersAutoencoder, DiffusersUNet
from monai_diffaug.backbones.monai_unet import (
    IdentityAutoencoder,
    MonaiAutoencoder,
    MonaiUNet,
    load_weights,
    modern_keys,
)
from monai_diffaug.types import Condition, DiffAugError
from tests.networks import diffusers_unet, diffusers_vae, stirred

T = torch.tensor([100.0, 700.0])


def monai_unet(dims, **changes):
    arguments = {
        "spatial_dims": dims,
        "in_channels": 3,
        "out_channels": 3,
        "channels": [8, 16],
        "attention_levels": [False, True],
        "num_res_blocks": 1,
        "num_head_channels": 8,
        "norm_num_groups": 4,
    }
    return stirred(DiffusionModelUNet(**{**arguments, **changes}))


TEXT = {"with_conditioning": True, "cross_attention_dim": 6}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["plain", "text", "class", "concat"])
def test_monai_networks_give_what_they_give_bare(dims, kind):
    changes = {"text": TEXT, "class": {"num_class_embeds": 4}, "concat": {"in_channels": 5}}.get(kind, {})
    module = monai_unet(dims, **changes)
    bare = copy.deepcopy(module)
    x = torch.randn(2, 3, *[8] * dims)
    tokens, labels, more = torch.randn(2, 5, 6), torch.tensor([1, 3]), torch.randn(2, 2, *[8] * dims)
    condition = {
        "plain": Condition(),
        "text": Condition(tokens=tokens),
        "class": Condition(labels=labels),
        "concat": Condition(concat=more),
    }[kind]
    expected = bare(
        torch.cat([x, more], 1) if kind == "concat" else x,
        timesteps=T,
        context=tokens if kind == "text" else None,
        class_labels=labels if kind == "class" else None,
    )
    got = MonaiUNet(module)(x, T, condition)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)  # fused attention against MONAI's own product


@pytest.mark.parametrize("dims", [2, 3])
def test_residuals_are_those_of_monais_controlnet(dims):
    module = monai_unet(dims, **TEXT)
    control = stirred(
        ControlNet(
            spatial_dims=dims,
            in_channels=3,
            channels=[8, 16],
            attention_levels=[False, True],
            num_res_blocks=1,
            num_head_channels=8,
            norm_num_groups=4,
            conditioning_embedding_in_channels=1,
            conditioning_embedding_num_channels=[8],
            **TEXT,
        )
    )
    x, tokens, hint = torch.randn(2, 3, *[8] * dims), torch.randn(2, 5, 6), torch.rand(2, 1, *[8] * dims)
    down, middle = control(x, timesteps=T, controlnet_cond=hint, context=tokens)
    expected = copy.deepcopy(module)(
        x, timesteps=T, context=tokens, down_block_additional_residuals=down, mid_block_additional_residual=middle
    )
    network = MonaiUNet(module)
    got = network(x, T, Condition(tokens=tokens, residuals=(*down, middle)))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got, network(x, T, Condition(tokens=tokens)))
    with pytest.raises(DiffAugError, match=r"takes 5 residuals .* given 2"):
        network(x, T, Condition(tokens=tokens, residuals=(down[0], middle)))


@pytest.mark.parametrize("dims", [2, 3])
def test_diffusers_networks_give_what_they_give_bare(dims):
    module = diffusers_unet(dims)
    bare = copy.deepcopy(module)
    x, tokens = torch.randn(2, 4, *[8] * dims), torch.randn(2, 5, 16)
    expected = bare(x, T, encoder_hidden_states=tokens, return_dict=False)[0]
    network = DiffusersUNet(module)
    assert network.spatial_dims == dims
    torch.testing.assert_close(network(x, T, Condition(tokens=tokens)), expected, atol=1e-5, rtol=1e-4)


def test_diffusers_pixel_models_take_classes():
    from diffusers import UNet2DModel

    module = stirred(
        UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
            num_class_embeds=3,
        )
    )
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    network = DiffusersUNet(copy.deepcopy(module))
    expected = module(x, T, class_labels=labels, return_dict=False)[0]
    torch.testing.assert_close(network(x, T, Condition(labels=labels)), expected, atol=1e-5, rtol=1e-4)
    assert {kind for _, kind in network.attention_sites().values()} == {"self"}
    assert "bottleneck" in network.feature_sites()
    with pytest.raises(DiffAugError, match="needs labels on every call"):
        network(x, T, Condition())


@pytest.mark.parametrize("make", [lambda: MonaiUNet(monai_unet(2, **TEXT)), lambda: DiffusersUNet(diffusers_unet())])
def test_conditions_that_do_not_fit_are_refused(make):
    network = make()
    channels, width = (3, 6) if isinstance(network, MonaiUNet) else (4, 16)
    x, told = torch.randn(2, channels, 8, 8), Condition(tokens=torch.randn(2, 5, width))
    with pytest.raises(DiffAugError, match="needs tokens on every call"):
        network(x, T, Condition())
    with pytest.raises(DiffAugError, match="takes no labels"):
        network(x, T, Condition(tokens=told.tokens, labels=torch.tensor([0, 1])))
    with pytest.raises(DiffAugError, match="takes no vector"):
        network(x, T, Condition(tokens=told.tokens, vector=torch.zeros(2, 3)))
    with pytest.raises(DiffAugError, match=rf"takes {channels} input channels and was given {channels + 1}"):
        network(x, T, Condition(tokens=told.tokens, concat=torch.zeros(2, 1, 8, 8)))
    with pytest.raises(DiffAugError, match="is 2D and was given 3D latents"):
        network(torch.randn(2, channels, 8, 8, 8), T, told)


# ------------------------------------------------------------------------------------------------------- autoencoders


@pytest.mark.parametrize("dims", [2, 3])
def test_monai_autoencoder_gives_the_scaled_mean(dims):
    module = stirred(
        AutoencoderKL(
            spatial_dims=dims,
            in_channels=1,
            out_channels=1,
            channels=[4, 8],
            num_res_blocks=[1, 1],
            attention_levels=[False, True],
            latent_channels=2,
            norm_num_groups=4,
        )
    )
    bare, image = copy.deepcopy(module), torch.randn(1, 1, *[8] * dims)
    adapted = MonaiAutoencoder(module, 0.3)
    latent = adapted.encode(image)
    torch.testing.assert_close(latent, 0.3 * bare.encode(image)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(adapted.decode(latent), bare.decode(latent / 0.3), atol=1e-5, rtol=1e-4)
    assert torch.equal(latent, adapted.encode(image))  # the mean, no draw


@pytest.mark.parametrize("dims", [2, 3])
def test_vqvae_encodes_to_its_codebook_and_leaves_it_alone(dims):
    module = stirred(
        VQVAE(
            spatial_dims=dims,
            in_channels=1,
            out_channels=1,
            channels=[4, 8],
            num_res_channels=[4, 8],
            num_res_layers=1,
            downsample_parameters=[(2, 4, 1, 1)] * 2,
            upsample_parameters=[(2, 4, 1, 1, 0)] * 2,
            num_embeddings=8,
            embedding_dim=4,
        )
    ).train()
    adapted, image = MonaiAutoencoder(module, 0.5), torch.randn(1, 1, *[16] * dims)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    latent = adapted.encode(image)
    codes = module.quantizer.quantizer.embedding.weight
    nearest = torch.cdist(latent.movedim(1, -1).reshape(-1, 4) / 0.5, codes).min(1).values
    assert float(nearest.max()) < 1e-5
    assert latent.shape == (1, 4, *[4] * dims)
    assert adapted.decode(latent + 1e-4).shape == image.shape
    torch.testing.assert_close(adapted.decode(latent + 1e-4), adapted.decode(latent))  # moved back to the codebook
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_diffusers_autoencoder_gives_the_scaled_mean():
    module = diffusers_vae()
    bare, image = copy.deepcopy(module), torch.randn(1, 1, 16, 16)
    adapted = DiffusersAutoencoder(module)
    assert adapted.scale == 0.7
    latent = adapted.encode(image)
    torch.testing.assert_close(latent, 0.7 * bare.encode(image).latent_dist.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(adapted.decode(latent), bare.decode(latent / 0.7).sample, atol=1e-5, rtol=1e-4)
    shifted = DiffusersAutoencoder(copy.deepcopy(bare), scale=2.0, shift=0.5)
    torch.testing.assert_close(shifted.encode(image), 2.0 * (latent / 0.7 - 0.5), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shifted.decode(shifted.encode(image)), adapted.decode(latent), atol=1e-4, rtol=1e-4)


def test_pixel_models_work_on_the_image_itself():
    image = torch.randn(1, 1, 8, 8)
    assert IdentityAutoencoder().encode(image) is image
    assert IdentityAutoencoder().decode(image) is image


# ---------------------------------------------------------------------------------- monai-generative, its keys and nets


def old_unet(dims, **changes):
    nets = pytest.importorskip("generative.networks.nets")
    arguments = {
        "spatial_dims": dims,
        "in_channels": 3,
        "out_channels": 3,
        "num_channels": (8, 16),
        "attention_levels": (False, True),
        "num_res_blocks": 1,
        "num_head_channels": 8,
        "norm_num_groups": 4,
    }
    return stirred(nets.DiffusionModelUNet(**{**arguments, **changes}))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_old_weights_give_the_same_output_in_both_libraries(dims, text):
    more = TEXT if text else {}
    theirs = old_unet(dims, **more)
    ours = monai_unet(dims, **more)
    assert load_weights(ours, theirs.state_dict())
    x, tokens = torch.randn(2, 3, *[8] * dims), torch.randn(2, 5, 6) if text else None
    expected = copy.deepcopy(theirs)(x, timesteps=T, context=tokens)
    condition = Condition(tokens=tokens)
    torch.testing.assert_close(MonaiUNet(ours)(x, T, condition), expected, atol=1e-5, rtol=1e-4)
    adapted = MonaiUNet(theirs)  # and the old network itself, as it is
    torch.testing.assert_close(adapted(x, T, condition), expected, atol=1e-5, rtol=1e-4)
    assert [k for _, k in adapted.attention_sites().values()] == [
        k for _, k in MonaiUNet(ours).attention_sites().values()
    ]
    assert list(adapted.feature_sites()) == list(MonaiUNet(ours).feature_sites())


def test_old_autoencoders_load():
    nets = pytest.importorskip("generative.networks.nets")
    shared = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "latent_channels": 2, "norm_num_groups": 4}
    theirs = stirred(
        nets.AutoencoderKL(num_channels=(4, 8), num_res_blocks=(1, 1), attention_levels=(False, True), **shared)
    )
    ours = AutoencoderKL(channels=(4, 8), num_res_blocks=(1, 1), attention_levels=(False, True), **shared).eval()
    assert load_weights(ours, theirs.state_dict())
    image = torch.randn(1, 1, 16, 16)
    expected = theirs.encode(image)[0]
    torch.testing.assert_close(MonaiAutoencoder(ours, 1.0).encode(image), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        MonaiAutoencoder(ours, 1.0).decode(expected), theirs.decode(expected), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(MonaiAutoencoder(theirs, 1.0).encode(image), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_wrapped_states_load_and_new_keys_are_not_old(wrap):
    ours, again = monai_unet(2), monai_unet(2)
    found, old = modern_keys(wrap(ours.state_dict()), again)
    assert not old
    assert set(found) == set(ours.state_dict())


def test_weights_that_do_not_fit_are_refused():
    ours = monai_unet(2)
    state = ours.state_dict()
    first = next(iter(state))
    for wrong, says in (
        ({k: v for k, v in state.items() if k != first}, "1 missing"),
        ({**state, "extra": torch.zeros(1)}, r"1 unexpected \(first: extra\)"),
        ({**state, first: torch.zeros(2)}, "1 of another shape"),
    ):
        with pytest.raises(DiffAugError, match=rf"weights do not fit DiffusionModelUNet: {says}"):
            load_weights(monai_unet(2), wrong)
