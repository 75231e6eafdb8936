"""What each arm is trained on: the same real images in the same order, and what its name says beside them."""

from dataclasses import replace

import pytest
import torch

from monai_diffaug.evaluation.utility import Arm, opened
from monai_diffaug.evaluation.utility.arms import Batches, borrowed, classical, mixed, others_than
from monai_diffaug.evaluation.utility.data import Pool, labeled
from monai_diffaug.types import DiffAugError
from tests.evaluation.toy_study import MADE, study


def pool(n, value, patients=None, masks=False):
    """Images that tell where they come from: pixel (0, 0) is the pool's, pixel (0, 1) the image's number."""
    images = torch.zeros(n, 1, 8, 8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = value, torch.arange(n) / 100
    m = torch.zeros(n, 1, 8, 8)
    m[1::2, 0, 2:5, 2:5] = 1
    who = patients or [f"p{i // 2}" for i in range(n)]
    return Pool(images, torch.arange(n) % 2, m if masks else None, tuple(who), tuple({} for _ in range(n)))


def batches(arm, made=None, ratio=1.0, seed=0, **training):
    s = opened(study("x.json", [MADE], training={"steps": 40, "batch": 16, **training}))
    return Batches(s, Arm("a", arm, classical=False), pool(12, 0.1), made, ratio, seed)


def origin(x):
    return x[:, 0, 0, 0]


def test_all_arms_of_a_seed_see_the_same_real_images():
    real, x = batches("real"), pool(20, 0.7)
    for step in (0, 7):
        plain, _ = real(step)
        beside, _ = batches("diffusion", x)(step)
        kept = origin(beside) == origin(plain)
        assert 0 < kept.sum() < 16
        assert torch.equal(beside[kept], plain[kept])  # those not replaced are the same, in the same places
    assert not torch.equal(real(0)[0], batches("real", seed=1)(0)[0])


@pytest.mark.parametrize(("ratio", "share"), [(1, 0.5), (4, 0.8), (0.25, 0.2)])
def test_ratio_is_the_share_of_a_batch(ratio, share):
    b = batches("diffusion", pool(int(12 * ratio), 0.7), ratio)
    seen = torch.cat([origin(b(step)[0]) for step in range(40)])
    assert float((seen > 0.5).float().mean()) == pytest.approx(share, abs=0.06)


def test_few_added_images_are_not_drawn_more_often_than_real_ones():
    b = batches("oracle", pool(4, 0.7), 2.0)  # 4 where the ratio wants 24
    seen = torch.cat([origin(b(step)[0]) for step in range(60)])
    assert float((seen > 0.5).float().mean()) == pytest.approx(4 / (4 + 12), abs=0.06)
    assert batches("oracle", pool(23, 0.7), 2.0).limited == {}  # one less than wanted is rounding


def test_both_classes_are_drawn_alike_whatever_was_made():
    one_kind = pool(20, 0.7).at(range(0, 20, 2))  # label 0 only
    b = batches("diffusion", one_kind)
    x, y = (torch.cat(z) for z in zip(*[b(s) for s in range(40)]))
    assert float(y[:, 0].mean()) == pytest.approx(0.5, abs=0.06)
    assert (origin(x)[y[:, 1] == 1] < 0.5).all()  # the other class stays real
    with pytest.raises(DiffAugError, match="do not show every class"):
        batches("synthetic_only", one_kind).check()


def test_synthetic_only_and_pretraining():
    made = pool(20, 0.7)
    assert all((origin(batches("synthetic_only", made)(s)[0]) > 0.5).all() for s in (0, 39))
    b = batches("pretraining", made, pretraining=0.25)
    assert all((origin(b(s)[0]) > 0.5).all() for s in (0, 9))
    assert all((origin(b(s)[0]) < 0.5).all() for s in (10, 39))


def test_what_is_borrowed():
    real, made = pool(12, 0.1), pool(40, 0.7)
    others = pool(30, 0.9, [f"q{i}" for i in range(30)])

    def of(kind, ratio=2.0):
        return borrowed(Arm("a", kind), made, real, others, ratio, 0)

    assert len(of("diffusion")) == 24
    assert sorted(of("diffusion").labels.tolist()) == [0] * 12 + [1] * 12
    twice = of("duplicated")
    assert torch.equal(twice.images, torch.cat([real.images] * 2))
    assert (origin(of("oracle").images) > 0.8).all()
    mixed_up, plain = of("shuffled"), of("diffusion")
    assert torch.equal(mixed_up.images, plain.images)
    assert 0.2 < float((mixed_up.labels != plain.labels).float().mean()) < 0.8
    assert len(of("diffusion", 9.0)) == 40  # no more than there are


def test_shuffled_masks_are_those_of_others():
    made = pool(40, 0.7, masks=True)
    found = borrowed(Arm("a", "shuffled"), made, pool(12, 0.1, masks=True), made, 3.0, 0)
    assert torch.equal(found.labels, found.masks.flatten(1).any(1).long())
    own = made.masks[(found.images[:, 0, 0, 1] * 100).round().long()]
    assert not torch.equal(own, found.masks)


def test_labeled_patients_grow_and_the_rest_are_others():
    train, validation = pool(40, 0.1), pool(6, 0.5, [f"v{i}" for i in range(6)])
    few, more = labeled(train, 3, 0), labeled(train, 8, 0)
    assert more[:3] == few
    assert labeled(train, 3, 1) != few
    assert len(labeled(train, "all", 0)) == 20
    rest = others_than(more, train, validation)
    assert not set(rest.patients) & set(more)
    assert len(rest) == 40 - 16 + 6


def images(n=8):
    g = torch.Generator().manual_seed(3)
    x = torch.rand(n, 1, 16, 16, generator=g) * 1.6 - 0.8
    masks = torch.zeros(n, 1, 16, 16)
    masks[:, :, 4:9, 3:8] = 1
    return torch.where(masks > 0, 0.9, x * 0.3 - 0.5), torch.eye(2)[torch.arange(n) % 2], masks


def test_classical_moves_masks_along_and_leaves_classes():
    x, y, masks = images()
    a, target = classical(x, y, torch.Generator().manual_seed(0))
    assert torch.equal(target, y)
    assert not torch.equal(a, x)
    assert a.abs().max() <= 1
    b, moved = classical(x, masks, torch.Generator().manual_seed(0))
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    inside, outside = (b * moved).sum() / moved.sum(), (b * (1 - moved)).sum() / (1 - moved).sum()
    assert inside > outside + 0.8  # the bright square is still under its mask
    overlap = (moved * masks).sum() / masks.sum()
    assert overlap < 0.9  # and it has moved


def test_mixes():
    x, y, masks = images()
    g = torch.Generator
    a, soft = mixed("mixup", x, y, g().manual_seed(1))
    assert torch.allclose(soft.sum(1), torch.ones(8))
    assert ((soft > 0.02) & (soft < 0.98)).any()
    a, cut = mixed("cutmix", x, y, g().manual_seed(1))
    assert torch.allclose(cut.sum(1), torch.ones(8))
    changed = (a != x).flatten(1).float().mean(1)
    for share, before, after in zip(changed, y, cut):
        assert float((before - after).abs().max()) in (0.0, pytest.approx(float(share), abs=0.03))
    some = masks * (torch.arange(8) % 2).reshape(-1, 1, 1, 1)
    a, m = mixed("cutmix", x, some, g().manual_seed(1))
    assert not torch.equal(m, some)
    a, same = mixed("cutout", x, y, g().manual_seed(1))
    assert torch.equal(same, y)
    assert ((a != x).flatten(1).float().mean(1) > 0.05).all()
    assert (a[a != x] == -1).all()
    x = x.repeat(20, 1, 1, 1)
    a, _ = mixed("patchshuffle", x, y.repeat(20, 1), g().manual_seed(1))
    moved = (a != x).flatten(1).any(1)
    assert 1 <= int(moved.sum()) <= 20
    blocks = (z.reshape(160, 1, 8, 2, 8, 2).mean((3, 5)) for z in (a, x))
    assert torch.allclose(*blocks, atol=1e-5)  # pixels stay in their 2 x 2 patch


def test_a_real_arm_is_never_augmented_and_the_control_always_is():
    plain = batches("real")
    assert torch.allclose(origin(plain(0)[0]), torch.tensor(0.1))
    control = replace(plain, arm=Arm("a", "classical", classical=False))
    assert not torch.equal(control(0)[0], plain(0)[0])
