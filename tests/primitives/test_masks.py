"""Masks at image and latent size, in 2D and 3D."""

import pytest
import torch

from monai_diffaug.backbones.ideal import ideal
from monai_diffaug.primitives import masks, plans
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.testing import ideal_backbone
from monai_diffaug.types import DiffAugError, NoiseSource, Prediction


@pytest.fixture(params=[2, 3])
def box(request):
    mask = torch.zeros(2, 1, *[16] * request.param)
    mask[(slice(None), slice(None), *[slice(5, 11)] * request.param)] = 1.0
    return mask


def sides(mask):
    return [int(mask[0, 0].amax([d for d in range(mask.ndim - 2) if d != axis]).sum()) for axis in range(mask.ndim - 2)]


def test_growing_and_shrinking_is_by_voxels(box):
    assert sides(masks.grow(box, 2)) == [10] * (box.ndim - 2)
    assert sides(masks.shrink(box, 2)) == [2] * (box.ndim - 2)
    assert torch.equal(masks.grow(box, 0), box)
    assert torch.equal(masks.shrink(masks.grow(box, 2), 2), box)


def test_softened_edges_stay_where_they_are(box):
    soft = masks.soften(box, 2)
    assert float(soft.min()) >= 0
    assert float(soft.max()) <= 1
    line = soft[(0, 0, *[8] * (box.ndim - 3))]
    assert float(line[4] + line[5]) == pytest.approx(1.0, abs=0.05)  # the edge between voxels 4 and 5 is at one half
    assert torch.equal(masks.soften(box, 0), box)


def test_latent_masks_cover_or_are_half_covered(box):
    latent = torch.zeros(2, 4, *[8] * (box.ndim - 2))
    covered, half = masks.to_latent(box, latent, cover=True), masks.to_latent(box, latent)
    assert sides(covered) == [4] * (box.ndim - 2)  # 5 to 10 touches latent voxels 2 to 5
    expected = 12 if box.ndim == 4 else 32  # without the corners, of which less than half is covered
    assert int(half[0].sum()) == expected
    assert covered.shape == (2, 1, *[8] * (box.ndim - 2))


def test_blending(box):
    inside, outside = torch.ones_like(box), -torch.ones_like(box)
    assert torch.equal(masks.blend(inside, outside, box), 2 * box - 1)


def test_outside_the_source_comes_back_at_every_row(box):
    backbone = ideal_backbone(box.ndim - 2)
    source = backbone.network.module.points[:2].clone()
    plan, rows = plans.ddim(backbone.schedule, 6), []
    keep = masks.keep_outside(source, box, NoiseSource([1, 2]))

    def callback(x, row, prediction):
        kept = keep(x, row, prediction)
        assert torch.equal(kept * box, x * box)
        rows.append(((kept - row.alpha * source) * (1 - box)).std() / (1 - box).mean() ** 0.5)
        assert float(rows[-1]) == pytest.approx(row.sigma, abs=0.15)
        return kept

    out = sample(lambda x, level: Prediction(0 * x, x), torch.randn_like(source), plan, callback=callback)
    assert len(rows) == len(plan)
    assert torch.equal(out * (1 - box), source * (1 - box))


def test_one_draw_is_kept_if_given():
    backbone = ideal_backbone()
    source = backbone.network.module.points[:1]
    nothing, draw = torch.zeros(1, 1, 16, 16), torch.randn(1, 1, 16, 16)
    keep = masks.keep_outside(source, nothing, draw)
    for row in plans.ddim(backbone.schedule, 3):
        torch.testing.assert_close(keep(source, row, None), row.alpha * source + row.sigma * draw)


@pytest.mark.parametrize("dims", [2, 3])
def test_two_conditions_disagree_where_the_spot_is(dims):
    """Two images that differ in a spot: the exact denoisers of the two classes differ there and nowhere else."""
    spot = torch.zeros(1, 1, *[16] * dims)
    spot[(0, 0, *[slice(4, 9)] * dims)] = 1.0
    head = torch.randn(1, 1, *[16] * dims).clamp(-1, 1)
    backbone = ideal(torch.cat([head, masks.blend(-head, head, spot)]), [0, 1], ["healthy", "tumor"], spread=0.1)
    towards, away = (backbone.denoiser(backbone.condition(1, label=name)) for name in ("healthy", "tumor"))
    level = backbone.schedule.at(600.0)
    found = masks.from_noise_difference(backbone, head, towards, away, level, NoiseSource([0]), draws=4, threshold=0.05)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert not bool((found * (1 - spot)).any())
    assert float((found * spot).sum()) > 0.8 * float(spot.sum())
    strict = masks.from_noise_difference(backbone, head, towards, away, level, NoiseSource([0]), draws=4, threshold=0.9)
    assert 0 < float(strict.sum()) < float(found.sum())


def test_wrong_masks_are_refused():
    image = torch.zeros(2, 3, 8, 8)
    assert masks.check(torch.ones(1, 1, 8, 8), image).shape == (2, 1, 8, 8)
    for wrong in (torch.ones(2, 1, 8, 7), torch.ones(2, 3, 8, 8), torch.ones(1, 8, 8)):
        with pytest.raises(DiffAugError, match=r"give \(B, 1, \*spatial\)"):
            masks.check(wrong, image)
    with pytest.raises(DiffAugError, match="binarize it"):
        masks.check(2 * torch.ones(1, 1, 8, 8), image)
