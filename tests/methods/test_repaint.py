"""RePaint's mechanism: the order of its steps, and what stays as it was."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.primitives import plans
from monai_diffaug.testing import ideal_backbone, tiny
from monai_diffaug.types import DiffAugError, NoiseSource


def published_times(total: int, length: int, rounds: int) -> list[int]:
    """The published schedule: indices of noise levels, 0 the least noisy, -1 clean (supplement B of the paper)."""
    left = dict.fromkeys(range(0, total - length, length), rounds - 1)
    t, visited = total, []
    while t >= 1:
        t -= 1
        visited.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            for _ in range(length):
                t += 1
                visited.append(t)
    return [*visited, -1]


@pytest.mark.parametrize(("total", "length", "rounds"), [(250, 10, 10), (50, 5, 3), (20, 1, 2), (13, 4, 2), (6, 10, 4)])
def test_levels_are_visited_in_the_published_order(total, length, rounds):
    schedule = ideal_backbone().schedule
    plan = plans.with_jumps(plans.ddpm(schedule, total), length, rounds)
    sigmas = [*[row.level.sigma for row in plans.ddpm(schedule, total)][::-1], 0.0]  # by index; the last is -1
    walked = [plan[0].level.sigma]
    for row in plan:
        assert row.level.sigma == pytest.approx(walked[-1], abs=1e-12), "every row begins where the last one ended"
        walked += [row.sigma]
    # the published schedule climbs level by level, ours in one jump: only the ends of a climb are compared
    want = published_times(total, length, rounds)
    turning = [t for i, t in enumerate(want) if i == 0 or t < want[i - 1] or want[i + 1] < t]
    assert walked == pytest.approx([sigmas[t] for t in turning])


def test_a_jump_has_the_distribution_of_its_levels():
    """From level to level by sqrt(1 - beta) x + sqrt(beta) z, as published, or at once: the same mean and spread."""
    schedule = ideal_backbone().schedule
    plan = plans.with_jumps(plans.ddpm(schedule, 50), 10, 2)
    jump = next(row for row in plan if row.jump)
    mean, var = 1.0, 0.0
    times = [row.level for row in plans.ddpm(schedule, 50)][::-1]
    below = [level for level in times if jump.level.sigma - 1e-12 <= level.sigma <= jump.sigma + 1e-12]
    for a, b in zip(below, below[1:]):
        kept = (b.alpha / a.alpha) ** 2
        mean, var = mean * kept**0.5, var * kept + 1 - kept
    keep = jump.alpha / jump.level.alpha
    assert mean == pytest.approx(keep)
    assert var == pytest.approx(jump.sigma**2 - (keep * jump.level.sigma) ** 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_known_pixels_come_back_exactly_through_a_lossy_autoencoder(dims):
    backbone = tiny("none", dims, 16 if dims == 2 else 8, autoencoder=True)
    image = torch.rand(2, 1, *backbone.contract.size) * 2 - 1
    mask = torch.zeros_like(image)
    mask[(..., *[slice(2, 7)] * dims)] = 1
    out = registry.call(
        "repaint", backbone, image, mask=mask, steps=8, jump_length=2, rounds=2, generator=NoiseSource([1, 2])
    ).image
    assert torch.equal(out[mask == 0], image[mask == 0])
    assert (out - image)[mask == 1].abs().min() > 0


def test_what_the_mask_hides_plays_no_part():
    backbone = ideal_backbone(labels=False)
    image = backbone.network.module.points[:1]
    mask = torch.zeros_like(image)
    mask[..., 4:12, 4:12] = 1
    other = torch.where(mask > 0, -image, image)
    made = [
        registry.call("repaint", backbone, x, mask=mask, steps=20, rounds=1, generator=NoiseSource([5])).image
        for x in (image, other)
    ]
    assert torch.equal(*made)


def test_number_of_network_calls_is_the_documented_one():
    schedule = ideal_backbone().schedule

    def calls(steps, length, rounds):
        return sum(not r.jump for r in plans.with_jumps(plans.ddpm(schedule, steps), length, rounds))

    assert calls(250, 10, 10) == 250 + 9 * 240
    assert calls(50, 5, 4) == 50 + 3 * 45


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"jump_length": 0}])
def test_refusals(wrong):
    backbone = ideal_backbone(labels=False)
    image = backbone.network.module.points[:1]
    with pytest.raises(DiffAugError, match="at least 1"):
        registry.call(
            "repaint", backbone, image, mask=torch.ones_like(image), steps=4, generator=NoiseSource([1]), **wrong
        )
