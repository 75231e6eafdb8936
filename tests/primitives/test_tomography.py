"""The simulated scanner: what it projects comes back, and its noise is that of photons."""

import dataclasses

import pytest
import torch

from monai_diffaug.primitives.tomography import (
    WATER,
    Scanner,
    filtered,
    projected,
    simulated_low_dose,
    smeared,
)
from monai_diffaug.types import DiffAugError


def disk(size=64, radius=22.0, value=1.0, offset=0.0):
    axis = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = ((x - offset) ** 2 + y**2).sqrt()
    return (value * (radius + 0.5 - distance).clamp(0, 1))[None, None]


def water(size=64, radius=22.0):
    return disk(size, radius) * 1000 - 1000


SMALL = Scanner(views=90)


def test_line_integrals_are_chords():
    got = projected(disk(), 8)[0]
    middle = got.shape[1] // 2
    for place in (0, 8, 16):
        chord = 2 * (22.0**2 - place**2) ** 0.5
        torch.testing.assert_close(got[:, middle + place], torch.full((8,), chord), rtol=0.03, atol=0.6)


def test_what_is_projected_comes_back():
    image = disk(radius=24) + disk(radius=6, value=0.5, offset=9)
    back = smeared(filtered(projected(image, 120), 4.0), image.shape[2:])
    inside = disk(radius=16) > 0.5
    assert float((back - image)[inside].abs().mean()) < 0.03
    assert abs(float(back[inside].mean() - image[inside].mean())) < 0.01
    assert float(back[disk(radius=26) == 0].abs().mean()) < 0.03


def test_wider_kernels_are_softer():
    noise = torch.randn(1, 60, 91)
    assert float(filtered(noise, 0.5).std()) < 0.6 * float(filtered(noise, 1.0).std())


def noise_of(dose, **changes):
    scanner = dataclasses.replace(SMALL, **changes)
    x = water()
    out = simulated_low_dose(x, dose, 4.0, scanner=scanner, copies=4, generator=torch.Generator().manual_seed(0))
    inside = (disk(radius=10) > 0.5).expand_as(out)
    return (out - x)[inside]


def test_noise_falls_with_the_root_of_the_dose_and_has_no_bias():
    low, high = noise_of(0.25, electronic=0.0, photons=4e4), noise_of(1.0, electronic=0.0, photons=4e4)
    assert float(low.std() / high.std()) == pytest.approx(2.0, rel=0.12)
    assert abs(float(low.mean())) < 3.0


def test_noise_is_of_the_size_that_photons_leave():
    """The variance of a line integral is one over the photons counted; that of its change is what is reconstructed."""
    photons, x = 1e4, water()
    scanner = Scanner(photons=photons, electronic=0.0, modulation=0.0, views=90)
    clean = projected(((x + 1000) / 1000) * WATER * 4.0, 90)
    deviation = (torch.exp(clean) / photons).sqrt()
    draw = torch.randn(4, *clean.shape[1:], generator=torch.Generator().manual_seed(1)) * deviation
    expected = smeared(filtered(draw), x.shape[2:]) * 1000 / (WATER * 4.0)
    got = simulated_low_dose(x, 1.0, 4.0, scanner=scanner, copies=4, generator=torch.Generator().manual_seed(0)) - x
    inside = (disk(radius=10) > 0.5).expand_as(got)
    assert float(got[inside].std()) == pytest.approx(float(expected[inside].std()), rel=0.12)


def test_electronics_make_it_worse_where_hardly_a_photon_arrives():
    assert float(noise_of(0.02, electronic=30.0).std()) > 1.3 * float(noise_of(0.02, electronic=0.0).std())


def test_the_tube_follows_the_patient():
    def ratio(modulation):
        scanner = Scanner(views=60, modulation=modulation, electronic=0.0)
        stds = []
        for radius in (12.0, 26.0):
            x = water(radius=radius)
            y = simulated_low_dose(x, 0.2, 5.0, scanner=scanner, copies=16, generator=torch.Generator().manual_seed(0))
            stds.append(float((y - x)[(disk(radius=6) > 0.5).expand_as(y)].std()))
        return stds[1] / stds[0]

    assert ratio(0.5) < 0.75 * ratio(0.0)


def test_the_longer_path_is_the_noisier_one():
    """An ellipse: streaks lie along its long axis, so noise varies more across than along."""
    axis = torch.arange(64) - 31.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    body = ((x / 29) ** 2 + (y / 12) ** 2 <= 1).float()[None, None] * 1000 - 1000
    scanner = Scanner(views=90, photons=2e4, modulation=0.0, electronic=0.0)
    noise = simulated_low_dose(body, 0.1, 7.0, scanner=scanner, copies=4, generator=torch.Generator().manual_seed(0))
    noise = (noise - body)[..., 24:40, 16:48]
    assert float(noise.diff(dim=-2).std()) > 1.3 * float(noise.diff(dim=-1).std())


def test_same_generator_same_scan_and_the_slice_keeps_its_resolution():
    x = water()
    a, b = (simulated_low_dose(x, 0.1, 2.0, scanner=SMALL, generator=torch.Generator().manual_seed(3)) for _ in "ab")
    assert torch.equal(a, b)
    rich = simulated_low_dose(x, 1e6, 2.0, scanner=SMALL, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(rich, x, atol=1.0, rtol=0)


@pytest.mark.parametrize(
    ("shape", "dose", "pixel", "says"),
    [((1, 8, 8), 0.1, 1.0, "give \\(batch, 1"), ((1, 1, 8, 8), 0.0, 1.0, "above 0"), ((1, 1, 8, 8), 0.1, 0.0, "mm")],
)
def test_what_cannot_be_is_refused(shape, dose, pixel, says):
    with pytest.raises(DiffAugError, match=says):
        simulated_low_dose(torch.zeros(shape), dose, pixel)
