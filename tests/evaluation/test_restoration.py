"""Figures of restored slices: what they are of, and that they tell better from worse."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from monai_diffaug.evaluation import restoration
from monai_diffaug.metrics.restoration import bodies, figures, flat_regions
from monai_diffaug.testing import tiny


def scan(seed=0, size=64):
    """A body on a table: soft tissue at 40 HU with two lungs and a bone."""
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    hu = torch.full((size, size), -1000.0)
    hu[(x / 0.8) ** 2 + (y / 0.55) ** 2 < 1] = 40.0
    for side in (-0.35, 0.35):
        hu[((x - side) / 0.2) ** 2 + (y / 0.3) ** 2 < 1] = -850.0
    hu[(x**2 + (y - 0.4) ** 2) < 0.01] = 600.0
    hu[56:58] = -300.0
    hu = hu + 5 * torch.randn(hu.shape, generator=torch.Generator().manual_seed(seed))
    return (hu / 1000)[None]


def pairs(n=4, noise=0.05):
    items = []
    for i in range(n):
        image = scan(i)
        worse = image + noise * torch.randn(image.shape, generator=torch.Generator().manual_seed(100 + i))
        items.append({"image": image.clamp(-1, 1), "source": worse.clamp(-1, 1)})
    return restoration.Pairs(items, [f"P{i // 2}" for i in range(n)])


def test_the_body_has_its_lungs_and_not_the_table():
    body = bodies(scan()[None], -0.5)[0, 0]
    assert bool(body[32, 21])  # in a lung
    assert bool(body[32, 32])
    assert not bool(body[57].any())
    assert not bool(body[2, 2])


def test_flat_is_soft_tissue_away_from_edges():
    image = scan()[None]
    flat = flat_regions(image, bodies(image, -0.5), -0.15, 0.2)
    assert bool(flat.any())
    assert float(image[flat].mean()) == pytest.approx(0.04, abs=0.01)
    assert float(image[flat].std()) < 0.02


def test_figures_are_those_of_scikit_image():
    p = pairs()
    found = figures(p.source, p.image, p.body, p.flat)
    a, b = p.source[0, 0].numpy(), p.image[0, 0].numpy()
    assert found["psnr"][0] == pytest.approx(10 * np.log10(4 / ((a - b) ** 2).mean()), rel=1e-4)
    _, full = structural_similarity(
        a, b, data_range=2.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert found["ssim"][0] == pytest.approx(float(full[5:-5, 5:-5].mean()), abs=2e-3)
    shifted = figures(p.image + 0.01, p.image, p.body, p.flat)
    assert shifted["bias"][0] == pytest.approx(0.01, abs=1e-4)


def test_methods_are_compared_and_the_work_goes_on(tmp_path):
    p, calls = pairs(), []

    def half(source):
        calls.append(len(source))
        return (source + p.image) / 2

    arms = {"input": restoration.as_it_is(), "half": half}
    done = restoration.compare(arms, p, tmp_path / "it.json")
    again = restoration.compare(arms, p, tmp_path / "it.json")
    assert calls == [4]
    assert done == again
    better = restoration.gain(done, "half", "input")
    assert better.value == pytest.approx(6.02, abs=0.05)
    assert better.low > 5.5
    assert restoration.table(done).count("\n") == 3


def test_non_local_means_denoises_and_a_method_runs_on_windows():
    p = pairs(2)
    smooth = restoration.by_non_local_means(1.0)(p.source)
    found = [sum(p.figures(x)["psnr_body"]) / 2 for x in (p.source, smooth)]
    assert found[1] > found[0] + 1
    cut = restoration.Pairs([{"image": i, "source": i} for i in p.image], ["a", "b"], crop=16)
    assert cut.source.shape == (2, 1, 16, 16)
    assert bool(cut.body.all(-1).any())
    out = restoration.by_method(tiny("image"), steps=2)(cut.source)
    assert out.shape == cut.source.shape
