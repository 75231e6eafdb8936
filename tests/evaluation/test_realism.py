"""Whole comparisons: real against other real images stays within the floor, what is spoiled does not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from monai_diffaug.backbones.extractors import extractor
from monai_diffaug.cli import app
from monai_diffaug.evaluation import Pictures, evaluate, pictures
from monai_diffaug.types import DiffAugError


def drawn(n, seed=0, size=48, dims=2):
    """Ellipses with texture, one or two a patient."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, size)] * dims, indexing="ij"))
    out = []
    for _ in range(n):
        radii = 0.5 + 0.3 * torch.rand(dims, generator=g)
        body = ((grid / radii.reshape(-1, *[1] * dims)) ** 2).sum(0) < 1
        texture = torch.rand(grid.shape[1:], generator=g)
        out.append((body * (0.5 + 0.4 * texture))[None] * 2 - 1)
    return torch.stack(out)


def stack(images, prefix="p", masks=None):
    n = len(images)
    return Pictures(
        images, masks, ("",) * n, tuple(f"{prefix}{i // 2}" for i in range(n)), (Path("x"),) * n, (None,) * n
    )


class Texture(nn.Module):
    """Random filters: enough to see blur."""

    def __init__(self, dims=2):
        super().__init__()
        torch.manual_seed(0)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.conv = conv(1, 6, 3)

    def forward(self, x):
        y = self.conv(x).relu().flatten(2)
        return torch.cat([y.mean(2), y.std(2)], 1)


def by_name(found):
    return {s.name: s for s in found.scores}


def test_other_real_images_stay_within_the_floor_and_blurred_ones_do_not():
    real, same = stack(drawn(60)), stack(drawn(40, seed=1), "q")
    blurred = replace(same, images=nn.functional.avg_pool2d(same.images, 5, 1, 2))
    good, bad = (by_name(evaluate(real, x, extractors=[extractor(Texture())], size=48)) for x in (same, blurred))
    assert all(good[k].within_floor or good[k].value < 1.3 * good[k].floor_interval[1] for k in ("fid", "kid", "frd"))
    for name in ("fid", "kid", "frd", "coverage"):
        assert not bad[name].within_floor, name
    assert bad["fid"].value > 5 * good["fid"].value
    assert good["fid"].extractor == "Texture"
    assert good["fid"].n == 20


def test_copies_of_one_image_show_in_variety():
    real = stack(drawn(40))
    one = stack(drawn(1, seed=5).expand(20, -1, -1, -1).contiguous(), "q")
    found = by_name(evaluate(real, one, extractors=[extractor(Texture())], size=48))
    assert found["vendi"].value == pytest.approx(1.0, abs=1e-3)
    assert not found["vendi"].within_floor
    assert found["ms_ssim_pairs"].value > 0.99
    assert not found["ms_ssim_pairs"].within_floor


def test_volumes_are_scored_by_planes_with_a_2d_network_and_whole_with_a_3d_one():
    real, made = stack(drawn(12, size=24, dims=3)), stack(drawn(12, seed=1, size=24, dims=3), "q")
    found = by_name(evaluate(real, made, extractors=[extractor(Texture(2)), extractor(Texture(3), dims=3)], size=24))
    assert {"fid_2.5d", "kid_2.5d", "coverage_2.5d", "fid", "kid", "frd", "anatomy_body"} <= set(found)
    noisy = replace(made, images=made.images + 0.3 * torch.randn(made.images.shape))
    worse = by_name(evaluate(real, noisy, extractors=[extractor(Texture(2))], size=24))
    assert worse["fid_2.5d"].value > 3 * found["fid_2.5d"].value


def test_a_judge_gives_classes_and_layers():
    real, made = stack(drawn(16, size=96)), stack(drawn(16, seed=1, size=96), "q")
    found = by_name(evaluate(real, made, extractors=["brain_mri"]))
    assert 1 <= found["inception_score"].value <= 2
    assert found["perceptual_diversity"].value > 0
    assert "judge of brain_mri" in found["fid"].extractor


def test_variety_of_volumes_is_seen_in_their_slices():
    real = stack(drawn(12, size=24, dims=3))
    one = stack(drawn(1, seed=5, size=24, dims=3).expand(12, -1, -1, -1, -1).contiguous(), "q")
    found = by_name(evaluate(real, one, size=24))
    assert found["perceptual_diversity_2.5d"].value == pytest.approx(0.0, abs=1e-6)
    assert found["perceptual_diversity_2.5d"].floor > 0.05
    assert "kid_2.5d" in found


def test_lesion_volume_is_compared_where_both_have_masks():
    masks = (drawn(40, seed=3) > 0).float()
    large = (drawn(40, seed=3) > -2).float()
    real = stack(drawn(40), masks=masks)
    same = by_name(evaluate(real, stack(drawn(40, seed=1), "q", masks), extractors=[extractor(Texture())], size=48))
    off = by_name(evaluate(real, stack(drawn(40, seed=1), "q", large), extractors=[extractor(Texture())], size=48))
    assert same["anatomy_lesion"].within_floor
    assert off["anatomy_lesion"].value > 3


def folder(root, n, seed):
    root.mkdir(parents=True)
    for i, x in enumerate(drawn(n, seed)):
        Image.fromarray(((x[0] + 1) / 2 * 255).numpy().astype(np.uint8)).save(root / f"{i}.png")
    return root


def test_the_command_writes_scores_and_names_what_it_skipped(tmp_path, capsys):
    real, made = folder(tmp_path / "real", 12, 0), folder(tmp_path / "made", 12, 1)
    (made / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "scores.json"
    assert app(["evaluate", str(real), str(made), "--size", "64", "--out", str(out)], standalone_mode=False) in (
        0,
        None,
    )
    text = capsys.readouterr()
    assert "broken.png" in text.err
    assert "real against real" in text.out
    said = json.loads(out.read_text())
    assert said["n_synthetic"] == 12
    assert {"fid", "kid", "precision", "frd"} <= {s["name"] for s in said["scores"]}
    assert all(s["interval"][0] <= s["value"] <= s["interval"][1] for s in said["scores"] if s["name"] == "kid")
    assert said["extractors"][0]["sha256"]


def test_too_few_images_and_unlike_ones_are_refused(tmp_path):
    with pytest.raises(DiffAugError, match="at least 4"):
        pictures(folder(tmp_path / "few", 3, 0))
    with pytest.raises(DiffAugError, match="same dimensions"):
        evaluate(stack(drawn(8)), stack(drawn(8, size=24, dims=3)), extractors=[extractor(Texture())])


def test_extractors_from_files_and_folders(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    file = tmp_path / "net.pt"
    torch.jit.trace(net, torch.zeros(1, 3, 16, 16)).save(str(file))
    x = drawn(3)
    assert extractor(file)(x).shape == (3, 4)
    assert len(extractor(file).digest) == 64

    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    ).save_pretrained(tmp_path / "dinov2")
    found = extractor(tmp_path / "dinov2")
    assert found(x).shape == (3, 16)
    assert found.size == (28, 28)
    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pt")
    with pytest.raises(DiffAugError, match="no TorchScript"):
        extractor(tmp_path / "state.pt")
    with pytest.raises(DiffAugError, match="unknown"):
        extractor("nonesuch")
