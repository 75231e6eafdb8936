"""The default extractor's training: every shipped domain, patients apart, rare kinds repeated, and what comes out."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.backbones.extractors import extractor
from monai_diffaug.domains import medical, mednist, part_of
from monai_diffaug.types import DiffAugError
from tests.films import three_sets


def table(path, rows):
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def data(tmp_path):
    """All five sets, with a handful of images each."""
    rng = np.random.default_rng(0)
    three_sets(tmp_path)
    place = tmp_path / "mednist6" / "dev"
    labels = [label for label in mednist.MODALITIES for _ in range(24)]
    np.savez(place / "images.npz", images=rng.integers(0, 255, (len(labels), 64, 64), dtype=np.uint8))
    table(place / "labels.csv", [{"label": x, "index": i} for i, x in enumerate(labels)])
    brains = tmp_path / "brain_lgg_2d" / "dev"
    brains.mkdir(parents=True)
    rows = []
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(brains / f"{i}.png")
        rows.append({"file": f"{i}.png", "patient": f"P{i}", "has_pre_contrast": str(i % 2), "has_post_contrast": "1"})
    table(brains / "labels.csv", rows)
    slices = tmp_path / "ct_tcga_lung" / "dev"
    slices.mkdir(parents=True)
    rows = []
    for i in range(12):
        Image.fromarray(rng.integers(0, 2048, (32, 32)).astype(np.uint16)).save(slices / f"{i}.png")
        rows.append({"file": f"{i}.png", "patient": f"C{i}", "pixel_mm_256": 1.0, "contrast": 0, "dicom": ""})
    table(slices / "labels.csv", rows)
    return tmp_path


def test_all_domains_are_read_and_no_patient_is_in_two_parts(data):
    parts = {name: medical.read(data, name) for name in ("train", "validation", "test")}
    seen = torch.cat([p.kinds for p in parts.values()]).bincount(minlength=12)
    assert (seen > 0).all(), [medical.KINDS[k] for k in (seen == 0).nonzero().flatten()]
    assert int(seen[medical.KINDS.index("brain mri t1")]) == 6, "a channel that repeats another is left out"
    assert int(seen[medical.KINDS.index("brain mri flair")]) == 12
    for name, part in parts.items():
        assert part.images.shape[1:] == (1, 64, 64)
        assert part.images.min() >= -1
        assert part.images.max() <= 1
        brains = sum(part_of(f"P{i}") == name for i in range(12))
        assert int((part.kinds == medical.KINDS.index("brain mri flair")).sum()) == brains
    (data / "brain_lgg_2d" / "dev" / "labels.csv").unlink()
    with pytest.raises(DiffAugError, match="brain_lgg_2d"):
        medical.read(data, "train")


def test_jitter_neither_blurs_nor_adds_noise():
    x = torch.rand(64, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.6
    y = medical.jittered(x, torch.Generator().manual_seed(1))

    def rough(z):
        return float((z - torch.nn.functional.avg_pool2d(z, 3, 1, 1))[..., 8:-8, 8:-8].std())

    assert 0.7 < rough(y) / rough(x) < 1.15
    assert not torch.allclose(x, y, atol=0.05)


def test_an_echo_lies_half_a_side_away():
    line = torch.zeros(1, 1, 64, 64)
    line[..., 10, :] = 0.8
    seen = medical.ghosted(line, 0.4)[0, 0, :, 0]
    assert float(seen[10]) == pytest.approx(0.64, abs=1e-5)
    assert float(seen[42]) == pytest.approx(0.16, abs=1e-5)
    assert float(seen.sum()) == pytest.approx(0.8, abs=1e-5)


def test_a_short_run_learns_and_what_is_saved_is_an_extractor(tmp_path):
    """Stripes of twelve widths, lying or upright: told apart after a few steps, with rare ones repeated."""
    grid = torch.arange(64) / 64 * 2 * torch.pi
    kinds = torch.arange(12).repeat_interleave(6)
    images = torch.stack([torch.sin(grid * (1 + 1.7 * int(k))).expand(64, 64)[None] for k in kinds]).float()
    films_ = medical.Films(images[2:], kinds[2:])
    even = medical._even(films_, 10)
    assert even.kinds.bincount().tolist() == [10] * 12
    states = medical.in_states(even)
    assert states.kinds.bincount().tolist() == [10] * 48
    as_is, turned, soft, echoed = states.images.split(120)
    assert torch.equal(as_is, even.images)
    assert torch.equal(turned, even.images.rot90(1, (-2, -1)))
    fine = even.kinds == 11
    assert float(soft[fine].std() / even.images[fine].std()) < 0.9
    assert torch.allclose(echoed, even.images, atol=1e-5)  # stripes along the axis have no echo
    network = medical.judge(films_, tmp_path / "run", steps=60)
    right = medical.upright(network, images).argmax(1) == kinds
    assert right.float().mean() > 0.5
    found = extractor(medical.save(network, tmp_path / "own"))
    assert found.size == (64, 64)
    assert found.name == "medical (12 kinds of image)"
    assert found.probabilities(images) == pytest.approx(medical.upright(network, images), abs=0.02)  # kept in 16 bits
