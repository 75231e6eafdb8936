"""Scores of sets of images: against reference libraries on the same features, and against closed forms."""

import math
import time

import numpy as np
import pytest
import torch

from monai_diffaug.metrics import anatomy, radiomics
from monai_diffaug.metrics.distribution import fid, fid_infinity, floored, kid, sifid
from monai_diffaug.metrics.neighbors import authentic, mifid, prdc
from monai_diffaug.metrics.similarity import ssim_of
from monai_diffaug.metrics.variety import between_pairs, inception_score, perceptual, vendi
from monai_diffaug.types import DiffAugError


def normal(n, d, mean=0.0, std=1.0, seed=0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n=6, size=64, seed=0, dims=2):
    x = torch.rand(n, 1, *[size] * dims, generator=torch.Generator().manual_seed(seed))
    blur = torch.nn.functional.avg_pool2d if dims == 2 else torch.nn.functional.avg_pool3d
    return (blur(x, 5, 1, 2) * 2 - 1).float()


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 16), (20, 30, 64), (10, 400, 64)])
def test_fid_is_torchmetrics_and_monai_s(n, m, d):
    from monai.metrics.fid import get_fid_score
    from torchmetrics.image.fid import _compute_fid

    a, b = normal(n, d), normal(m, d, 0.3, 1.4, seed=1)
    parts = [x for y in (a, b) for x in (y.mean(0), y.T.cov())]
    theirs = float(_compute_fid(*parts))
    assert fid(a, b) == pytest.approx(theirs, rel=1e-4)
    assert fid(a, b) == pytest.approx(float(get_fid_score(a, b)), rel=1e-4)
    assert abs(fid(a, a)) < 1e-6


def test_few_images_with_many_features_take_no_time():
    a, b = normal(100, 2048), normal(100, 2048, seed=1)
    fid(a, b)
    began = time.process_time()
    value = fid(a, b)
    assert time.process_time() - began < 2.0  # the plain way takes 17 to 36 s; see the benchmark for the ratio
    assert value == pytest.approx(3380, rel=0.05)


def test_kid_is_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    a, b = normal(50, 12), normal(50, 12, 0.4, seed=1)
    assert kid(a, b) == pytest.approx(float(poly_mmd(a, b)), abs=1e-6)


def test_neighbors_are_those_of_prdc():
    from prdc import compute_prdc

    a, b = normal(80, 8, 0.2, 0.8, seed=1), normal(60, 8)
    theirs = compute_prdc(b.numpy(), a.numpy(), nearest_k=5)
    ours = prdc(a, b, k=5)
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(float(value), abs=1e-6), key


def test_coverage_of_one_distribution_is_the_known_constant():
    assert prdc(normal(3000, 2), normal(3000, 2, seed=1), k=5)["coverage"] == pytest.approx(1 - 2**-5, abs=0.015)


def test_a_lost_mode_lowers_recall_and_blur_lowers_precision():
    real = torch.cat([normal(150, 4), normal(150, 4, 8.0, seed=1)])
    whole = torch.cat([normal(150, 4, seed=2), normal(150, 4, 8.0, seed=3)])
    assert prdc(whole[:150], real)["recall"] < 0.7 * prdc(whole, real)["recall"]
    assert prdc(whole + 3, real)["precision"] < 0.5 * prdc(whole, real)["precision"]


def test_too_few_for_neighbors_is_refused():
    with pytest.raises(DiffAugError, match="neighbor number 5"):
        prdc(normal(5, 3), normal(50, 3))


def test_inception_score_of_known_posteriors():
    assert inception_score(torch.full((20, 5), 0.2)) == pytest.approx(1.0)
    assert inception_score(torch.eye(5).repeat(4, 1)) == pytest.approx(5.0, rel=1e-6)
    p = torch.softmax(normal(50, 4, std=2.0), 1)
    plain = np.exp(np.mean([np.sum(r * np.log(r / p.mean(0).numpy())) for r in p.numpy()]))
    assert inception_score(p) == pytest.approx(float(plain), rel=1e-6)


def test_inception_score_is_torchmetrics():
    from torchmetrics.image.inception import InceptionScore

    logits = 2 * normal(300, 7)
    theirs = InceptionScore(feature=torch.nn.Identity(), splits=1)
    theirs.update(logits)
    assert inception_score(logits.softmax(1)) == pytest.approx(float(theirs.compute()[0]), rel=1e-4)


def test_fid_infinity_takes_the_bias_of_few_images_away():
    """Two samples of one distribution: FID falls with n, its line over 1 / n ends near 0."""
    a, b = normal(900, 16), normal(900, 16, seed=1)
    assert fid(a, b) > 0.1
    assert abs(fid_infinity(a, b)) < 0.05 < 0.3 * fid(a[:200], b[:200])
    moved = normal(900, 16, 0.5, seed=2)
    assert fid_infinity(a, moved) == pytest.approx(16 * 0.25, rel=0.1)
    with pytest.raises(DiffAugError, match="no line"):
        fid_infinity(a[:20], b)


def test_fid_grows_with_blur_noise_and_lost_modes():
    """On features of real pictures: each step of each damage is farther away than the one before."""
    from monai_diffaug.backbones.extractors import extractor
    from monai_diffaug.evaluation import pictures

    real, see = pictures("mednist", 64).images, extractor()
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    widths = (3, 5, 7)  # pixels; to this extractor wider blur is alike
    blurred = [torch.nn.functional.avg_pool2d(real, k, 1, k // 2, count_include_pad=False) for k in widths]
    for ladder in ([real + s * noise for s in (0.05, 0.15, 0.4)], blurred, [real[:n] for n in (30, 18, 6)]):
        steps = [fid(see(x), see(real)) for x in (real, *ladder)]
        assert steps == sorted(steps), steps


def test_copies_are_not_authentic_and_spoil_mifid():
    from torchmetrics.image.mifid import _mifid_compute

    train, new = normal(80, 6), normal(80, 6, seed=1)
    copied = train[:40] + 0.001 * normal(40, 6, seed=2)
    assert authentic(copied, train) == 0.0
    assert 0.3 < authentic(new, train) < 0.8
    for made in (new, copied):
        parts = [(x.mean(0), x.T.cov(), x) for x in (made, train)]
        assert mifid(made, train) == pytest.approx(float(_mifid_compute(*parts[0], *parts[1])), rel=1e-4)
    assert mifid(copied, train) > 100 * fid(copied, train)


def test_sifid_of_single_images():
    x = normal(8, 24 * 24).reshape(8, 24, 24)
    smooth = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    assert sifid(x, x) == pytest.approx(0.0, abs=1e-9)
    assert sifid(x, x.roll(3, -1)) < 0.01 * sifid(x, smooth)


def test_vendi_counts_what_differs():
    assert vendi(torch.eye(6)) == pytest.approx(6.0)
    assert vendi(torch.eye(6).repeat(3, 1)) == pytest.approx(6.0)
    assert vendi(torch.ones(6, 4)) == pytest.approx(1.0)


def test_ssim_is_scikit_image_s():
    from skimage.metrics import structural_similarity

    a, b = images(2)
    theirs = structural_similarity(
        ((a[0] + 1) / 2).numpy(), ((b[0] + 1) / 2).numpy(), gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, data_range=1.0,
    )  # fmt: skip
    assert float(ssim_of(a[None], b[None])) == pytest.approx(theirs, abs=2e-3)  # they differ in the border


def test_pairs_of_alike_images_are_alike_and_small_ones_are_refused():
    one = images(1).expand(6, -1, -1, -1)
    assert between_pairs(one, pairs=8) == pytest.approx(1.0, abs=1e-5)
    assert between_pairs(images(6), pairs=8) < 0.9
    assert between_pairs(images(4, 32, dims=3), "ssim", pairs=4) < 0.9
    with pytest.raises(DiffAugError, match="too small"):
        between_pairs(images(4, 8))


def test_perceptual_distance_grows_with_noise():
    x = images(3).double()
    noise = normal(3, 64 * 64).reshape(x.shape)

    def maps(y):
        return [torch.cat([y, y.roll(1, -1), y.roll(1, -2)], 1)]

    far = [float(perceptual(maps(x), maps(x + s * noise)).mean()) for s in (0.0, 0.05, 0.2)]
    assert far[0] == pytest.approx(0.0, abs=1e-12)
    assert far[0] < far[1] < far[2]


def test_perceptual_distance_is_lpips_on_the_same_maps():
    from torchmetrics.functional.image.lpips import _normalize_tensor, _spatial_average

    maps = [[normal(4, c * s * s, seed=k).reshape(4, c, s, s) for c, s in ((8, 12), (16, 6))] for k in (0, 1)]
    weights = [torch.rand(c, generator=torch.Generator().manual_seed(c)) for c in (8, 16)]
    theirs = torch.zeros(4, dtype=torch.float64)
    for x, y, w in zip(*maps, weights, strict=True):
        apart = (_normalize_tensor(x) - _normalize_tensor(y)) ** 2 * w.reshape(1, -1, 1, 1)
        theirs += _spatial_average(apart.sum(1, keepdim=True), keep_dim=False).flatten()
    assert perceptual(*maps, weights) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_radiomic_features_have_names_and_tell_textures_apart(dims):
    smooth, rough = images(8, 24, dims=dims), torch.rand(8, 1, *[24] * dims) * 2 - 1
    found = radiomics.features(smooth)
    assert found.shape == (8, len(radiomics.names(dims)))
    assert torch.isfinite(found).all()
    other = radiomics.features(images(8, 24, seed=1, dims=dims))
    assert radiomics.frd(radiomics.features(rough), found) > radiomics.frd(other, found) + 1


def test_co_occurrence_is_scikit_image_s():
    from skimage.feature import graycomatrix, graycoprops

    x = images(1)[0, 0]
    level = ((x - x.min()) / (x.max() - x.min()) * (radiomics.LEVELS - 1e-3)).long().numpy().astype(np.uint8)
    counts = sum(
        graycomatrix(level, [1], [angle], levels=radiomics.LEVELS, symmetric=True) for angle in (0, np.pi / 2)
    ).astype(float)
    names = radiomics.names(2)
    ours = radiomics.features(x[None, None])[0]
    for name in ("contrast", "dissimilarity", "homogeneity", "energy", "correlation"):
        theirs = graycoprops(counts / counts.sum(), name)[0, 0]
        assert float(ours[names.index(f"original_{name}")]) == pytest.approx(theirs, rel=1e-4), name


def test_anatomy_measures_what_was_drawn():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    body = ((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1).float()
    lung = ((x - 0.3) ** 2 + y**2 < 0.2**2).float()
    picture = body * (0.8 - 0.7 * lung) * 2 - 1
    found = anatomy.measures(picture[None, None], lung[None, None])
    assert float(found["body"]) == pytest.approx(math.pi * 0.8 * 0.6 / 4, abs=0.01)
    assert float(found["dark_inside"]) == pytest.approx(0.04 / 0.48, abs=0.01)
    assert float(found["lesion"]) == pytest.approx(math.pi * 0.04 / 4, abs=0.01)
    assert float(found["symmetry"]) < 0.99
    assert anatomy.apart(normal(500, 1)[:, 0] + 2, normal(500, 1, seed=1)[:, 0]) == pytest.approx(2.0, abs=0.2)


def test_no_patient_is_on_both_sides_of_the_floor():
    """Every patient's images are one point: were a patient on both sides, the floor would be lower."""
    points = normal(20, 8).repeat_interleave(10, 0) + 0.01 * normal(200, 8, seed=1)
    patients = [str(i // 10) for i in range(200)]
    parted, mixed = (floored(fid, points, points, groups=g) for g in (patients, None))
    assert parted.floor > 2 * mixed.floor


def test_one_patient_has_no_floor():
    with pytest.raises(DiffAugError, match="one patient"):
        floored(fid, normal(20, 3), normal(20, 3, seed=1), groups=["a"] * 20)


def test_the_interval_is_as_wide_as_repeating_the_whole_draw():
    """The interval must hold what other samples of the same size would have given."""
    draws = [kid(normal(200, 4, 0.5, seed=3 * i), normal(200, 4, seed=3 * i + 1)) for i in range(60)]
    spread = float(torch.tensor(draws).std())
    found = floored(kid, normal(200, 4, 0.5, seed=1), normal(200, 4, seed=2), draws=60)
    assert found.interval[0] < found.score < found.interval[1]
    assert 0.6 < found.spread / spread < 1.6
