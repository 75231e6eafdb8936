"""Decoding within a memory budget: exact in slabs, close in tiles, and never more than was said."""

import json
import subprocess
import sys

import pytest
import torch
from monai.networks.nets import AutoencoderKL
from torch import nn

from monai_diffaug.backbones.budget import Within, ways, within
from monai_diffaug.backbones.memory import MIB, peak_of, skeleton
from monai_diffaug.backbones.slabs import in_slabs
from monai_diffaug.backbones.tiled import in_tiles
from monai_diffaug.backbones.tiny import tiny
from monai_diffaug.types import DiffAugError
from tests.behaviour import real


def net(dims=3, **more):
    torch.manual_seed(0)
    built = AutoencoderKL(
        spatial_dims=dims,
        channels=(8, 16, 16),
        num_res_blocks=(2, 1, 1),
        latent_channels=3,
        norm_num_groups=4,
        **{"attention_levels": (False,) * 3, **more},
    ).eval()
    for p in built.parameters():
        p.requires_grad_(False).add_(0.05 * torch.randn_like(p))
    return built


def off(a, b):
    return float((a - b).abs().max() / (b.max() - b.min()))


@pytest.mark.parametrize(
    ("dims", "more"),
    [(2, {}), (3, {}), (3, {"use_convtranspose": True}), (2, {"attention_levels": (False, False, True)})],
)
@pytest.mark.parametrize("voxels", [1, 300])
@pytest.mark.parametrize("fleeting_from", [float("inf"), 0])
def test_slabs_are_exact(dims, more, voxels, fleeting_from):
    built, z = net(dims, **more), torch.randn(2, 3, *(7, 6, 5)[:dims])
    whole = built.decode(z)
    assert off(in_slabs(built, z, voxels=voxels, fleeting_from=fleeting_from), whole) < 1e-5


def test_slabs_in_half_precision_are_within_a_thousandth():
    built, z = net(), torch.randn(1, 3, 7, 6, 5)
    assert 0 < off(in_slabs(built, z, voxels=300, half_from=0), built.decode(z)) < 1e-3


def test_tiles_that_cover_everything_are_exact_and_small_ones_are_not():
    built, z = net(), torch.randn(1, 3, 8, 8, 8)
    whole = built.decode(z)
    assert off(in_tiles(built, z, tile=8, overlap=2), whole) < 1e-5
    assert off(in_tiles(built, z, tile=6, overlap=2), whole) > 1e-3
    with pytest.raises(DiffAugError, match="larger tiles"):
        in_tiles(built, z, tile=2, overlap=2)


def real_latents():
    backbone = real.shipped("brain_mri")
    with torch.no_grad():
        return backbone, backbone.encode(real.brains()[0][:6])


def test_blended_tiles_with_shared_statistics_show_no_seams_where_hard_tiles_do():
    """At the borders of hard tiles the image jumps; with blending it does so no more than elsewhere."""
    backbone, z = real_latents()
    module = backbone.autoencoder.module
    with torch.no_grad():
        whole = module.decode(z)
    hard = in_tiles(module, z, tile=8, overlap=0, share=False)
    blended = in_tiles(module, z, tile=8, overlap=4)
    jumps = {}
    for name, made in (("hard", hard), ("blended", blended)):
        wrong = (made - whole).diff(dim=-1).abs().mean((0, 1, 2))
        seams = torch.tensor([31, 63])
        elsewhere = torch.tensor([i for i in range(95) if (i + 1) % 32 > 6 and (i + 1) % 32 < 26])
        jumps[name] = float(wrong[seams].mean() / wrong[elsewhere].mean())
    assert jumps["hard"] > 2.5
    assert jumps["blended"] < 1.5
    assert (blended - whole).pow(2).mean() < 0.3 * (hard - whole).pow(2).mean()


def test_the_ledger_counts_what_is_alive_at_once():
    def chain():
        x = torch.empty(MIB // 4, device="meta")  # 1 MiB
        for _ in range(5):
            x = x + 1  # two at a time
        return x

    assert peak_of(chain) == 2 * MIB
    bare = skeleton(nn.Linear(1000, 1000))
    assert bare.weight.device.type == "meta"
    assert peak_of(lambda: bare(torch.empty(1, 1000, device="meta"))) < MIB


def test_fused_attention_builds_no_map():
    q = torch.empty(1, 1, 4096, 16, device="meta")
    assert peak_of(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) < MIB


@pytest.mark.slow
def test_the_first_way_that_fits_is_taken():
    built, shape = net(with_decoder_nonlocal_attn=False), (2, 3, 12, 12, 12)
    found = list(ways(built, shape))
    assert found[0].name == "whole"
    most = found[0].peak
    assert within(built, shape, most).settings == {}
    least = {name: min(w.peak for w in found if w.name == name) for name in ("whole", "slabs", "tiles")}
    assert least["whole"] > least["slabs"] > least["tiles"]
    for name, peak in least.items():
        assert within(built, shape, peak).name == name
        assert within(built, shape, peak).peak <= peak
    assert within(built, shape, least["slabs"], exact=True).exact
    with pytest.raises(DiffAugError, match="does not fit into"):
        within(built, shape, 1000)
    with pytest.raises(DiffAugError, match="without --exact"):
        within(built, shape, 1000, exact=True)


def test_a_backbone_with_memory_decodes_the_same_within_it():
    backbone = tiny("none", dims=3, size=32, autoencoder=True)
    z = torch.randn(1, backbone.contract.latent_channels, *backbone.contract.latent_size)
    whole = backbone.decode(z)
    bounded = backbone.with_memory(100)
    assert isinstance(bounded.autoencoder, Within)
    assert torch.equal(bounded.decode(z), whole)
    need = list(ways(backbone.autoencoder.module, z.shape))
    small = backbone.with_memory(min(w.peak for w in need if w.name == "slabs") / 2**30, exact=True)
    assert small.autoencoder.way(z.shape).name == "slabs"
    assert off(small.decode(z), whole) < 1e-3
    assert bounded.autoencoder.scale == backbone.autoencoder.scale
    with pytest.raises(DiffAugError, match="more than 0"):
        backbone.with_memory(0)


def test_gradients_go_through_the_whole_map():
    backbone = tiny("none", dims=2, size=16, autoencoder=True).with_memory(10)
    z = torch.randn(1, backbone.contract.latent_channels, *backbone.contract.latent_size, requires_grad=True)
    backbone.decode(z).sum().backward()
    assert z.grad is not None


def measured(name, side, budget, out):
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.decoding",
        "--side",
        str(side),
        "--one",
        name,
        str(budget),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_estimated_is_what_is_measured(tmp_path):
    """Resident memory of a process that decodes: within a third of the estimate."""
    row = measured("plain", 48, 0, tmp_path / "x.pt")
    assert 0.67 < row["peak_mib"] / row["estimated_mib"] < 1.33


@pytest.mark.slow
def test_memory_of_128_cubed(tmp_path):
    plain = measured("plain", 128, 0, tmp_path / "plain.pt")["peak_mib"]
    exact = measured("exact", 128, plain * MIB // 4, tmp_path / "exact.pt")
    tiles = measured("tiles", 128, plain * MIB // 8, tmp_path / "tiles.pt")
    assert exact["peak_mib"] <= plain / 4
    assert tiles["peak_mib"] <= plain / 8
    assert off(torch.load(tmp_path / "exact.pt"), torch.load(tmp_path / "plain.pt")) < 1e-3
