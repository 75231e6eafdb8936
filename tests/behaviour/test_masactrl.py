"""MasaCtrl on the shipped text backbone: the layout is the prompt's, the tone is the source's."""

from functools import cache

import pytest

from monai_diffaug import registry

from . import real


@cache
def made(seed: int, begin: float):
    """Three dark little hands, asked to be large ones; the prompt says nothing of the tone."""
    images, _ = real.shown("hand x-ray", seed=seed, size="small", brightness="dark")
    images = images[3 * seed : 3 * seed + 3]
    out = registry.call(
        "masactrl", real.shipped("mednist"), images, prompt="a large hand x-ray", begin=begin, scale=5.0, steps=10
    )
    return images, out.image.clamp(-1, 1)


def overlap(a, b):
    a, b = a > -0.8, b > -0.8
    return float(((a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1)).mean())


def tone_apart(a, b):
    """Distance of the foregrounds' mean intensities."""

    def tone(x):
        inside = (x > -0.8).float()
        return (x * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)

    return float((tone(a) - tone(b)).abs().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_layout_changes_and_the_tone_comes_from_the_source(seed):
    """Overlap with the source 0.3 and 0.4 (bar 0.7); tone at 46 and 28 % of plain re-sampling's distance (bar 60 %).

    That a mutual attention from the first step on freezes the layout (overlap above 0.9) does not hold for this small
    network, whose convolutions lay out the picture: 0.3 as well.
    """
    images, asked = made(seed, 0.08)
    _, plain = made(seed, 1.0)  # the source is never asked
    assert overlap(images, asked) < 0.7
    assert overlap(images, plain) < 0.7
    assert tone_apart(images, asked) < 0.6 * tone_apart(images, plain)
