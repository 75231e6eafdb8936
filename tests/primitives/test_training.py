"""Training: goes on as if it had never stopped, notices a collapse, weights the noise levels as the paper says."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from monai_diffaug import testing
from monai_diffaug.primitives import runs, training
from monai_diffaug.primitives.training import Settings
from monai_diffaug.types import Condition, DiffAugError

SHORT = Settings(steps=12, batch=4, lr=1e-3, warmup=2, ema=0.9, log_every=4, precision=torch.float32)


def pictures(n=12, size=16, seed=0):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def untold(index, generator):
    return Condition()


def network_after(folder, steps):
    backbone = testing.tiny("none", seed=3)
    backbone.network.module.requires_grad_(True).train()
    settings = replace(SHORT, steps=steps)
    figures = training.train_network(
        backbone.network, backbone.schedule, pictures(), untold, settings, folder, held_out=pictures(seed=1)
    )
    return backbone.network.module.state_dict(), figures


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    unbroken, figures = network_after(tmp_path / "whole", 12)
    save = runs.Resumable.save

    def save_and_stop(self, step):
        save(self, step)
        if step == 8:
            raise Stopped

    monkeypatch.setattr(runs.Resumable, "save", save_and_stop)
    monkeypatch.setattr(runs.time, "monotonic", iter(float(i) for i in range(0, 10**6, 1000)).__next__)
    with pytest.raises(Stopped):
        network_after(tmp_path / "parts", 12)
    monkeypatch.undo()
    resumed, again = network_after(tmp_path / "parts", 12)
    assert all(torch.equal(unbroken[k], resumed[k]) for k in unbroken)
    assert figures == again
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "network.jsonl").read_text().splitlines()]
    assert steps == [4, 8, 12]


def test_the_seed_decides(tmp_path):
    first, _ = network_after(tmp_path / "a", 4)
    backbone = testing.tiny("none", seed=3)
    backbone.network.module.requires_grad_(True).train()
    settings = replace(SHORT, steps=4, seed=1)
    training.train_network(backbone.network, backbone.schedule, pictures(), untold, settings, tmp_path / "b")
    assert any(not torch.equal(first[k], v) for k, v in backbone.network.module.state_dict().items())


def test_training_lowers_the_loss(tmp_path):
    backbone = testing.tiny("none", seed=3)
    backbone.network.module.requires_grad_(True).train()
    settings = replace(SHORT, steps=150, lr=3e-3, warmup=10, log_every=50)
    data = pictures(2).repeat(8, 1, 1, 1)
    training.train_network(backbone.network, backbone.schedule, data, untold, settings, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "network.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weights_the_error_of_x0_alike(prediction):
    """Whatever is predicted, the weight times the squared error must be min(SNR, gamma) times that of x0."""
    schedule = testing.tiny("none", prediction=prediction).schedule
    alpha = torch.tensor(schedule.alphas[::100], dtype=torch.float64)
    sigma = torch.tensor(schedule.sigmas[::100], dtype=torch.float64)
    output, target = torch.randn(2, len(alpha), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(len(alpha), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    off_x0 = schedule.convert(output, x, alpha, sigma).x0 - schedule.convert(target, x, alpha, sigma).x0
    expected = (alpha / sigma).pow(2).clamp(max=5.0) * off_x0.pow(2)
    got = training.min_snr(schedule, alpha, sigma) * (output - target).pow(2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-9)


def autoencoder(**more):
    from monai.networks.nets import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        **{
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 1,
            "channels": [8, 8],
            "num_res_blocks": [1, 1],
            "attention_levels": [False, False],
            "latent_channels": 2,
            "norm_num_groups": 4,
            "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False,
            **more,
        }
    )


def opponent():
    from monai.networks.nets import PatchDiscriminator

    return PatchDiscriminator(spatial_dims=2, channels=4, in_channels=1, num_layers_d=1, norm="INSTANCE")


def test_the_autoencoder_learns_with_all_its_losses(tmp_path):
    net = autoencoder()
    smooth = nn.functional.interpolate(pictures(16, 4), 16, mode="bilinear")
    settings = replace(SHORT, steps=120, lr=3e-3, log_every=20)
    figures = training.train_autoencoder(net, opponent(), smooth, smooth[:4], settings, tmp_path, crop=16)
    rows = [json.loads(line) for line in (tmp_path / "autoencoder.jsonl").read_text().splitlines()]
    assert rows[-1]["l1"] < 0.5 * rows[0]["l1"]
    assert "hinge" in rows[-1]
    assert "hinge" not in rows[0]
    assert figures["psnr"] > 15


def test_a_collapsed_channel_is_refused(tmp_path):
    net = autoencoder()
    with torch.no_grad():
        net.quant_conv_mu.conv.weight[1].zero_()
    net.quant_conv_mu.conv.weight.register_hook(lambda g: g * torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1))
    smooth = nn.functional.interpolate(pictures(16, 4), 16, mode="bilinear")
    settings = replace(SHORT, steps=80, lr=3e-3, log_every=4)
    with pytest.raises(DiffAugError, match=r"collapsed.*lower the KL weight"):
        training.train_autoencoder(net, opponent(), smooth, smooth[:4], settings, tmp_path)


def test_an_autoencoder_that_does_not_learn_is_refused(tmp_path):
    settings = replace(SHORT, steps=80, lr=1e-9, log_every=4)
    with pytest.raises(DiffAugError, match="does not reconstruct"):
        training.train_autoencoder(autoencoder(), opponent(), pictures(), pictures(4), settings, tmp_path)


def test_infinite_losses_stop_at_once(tmp_path):
    backbone = testing.tiny("none", seed=3)
    backbone.network.module.requires_grad_(True)
    data = pictures()
    data[:] = float("inf")
    with pytest.raises(DiffAugError, match="lower lr|finite"):
        training.train_network(backbone.network, backbone.schedule, data, untold, SHORT, tmp_path)
