"""Corruptions spoil what they say, step by step, and an extractor's blindness is found."""

import pytest
import torch
from torch import nn

from monai_diffaug.backbones.extractors import extractor
from monai_diffaug.evaluation import pictures
from monai_diffaug.evaluation.corruptions import CORRUPTIONS, sight, table


def real(n=60, seed=0):
    """Smooth blobs with fine texture."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 32, 32, generator=g)
    return (nn.functional.avg_pool2d(x, 9, 1, 4) * 1.6 + 0.2 * x - 0.9).clamp(-1, 1)


class Roughness(nn.Module):
    """Local variation at three widths."""

    def forward(self, x):
        kept = [x - nn.functional.avg_pool2d(x, k, 1, k // 2, count_include_pad=False) for k in (3, 5, 9)]
        return torch.stack([k.flatten(1).std(1) for k in kept], 1) * 20


class Mean(nn.Module):
    """Blind to all that keeps the mean."""

    def forward(self, x):
        return x.flatten(1).mean(1, keepdim=True).expand(-1, 3)


@pytest.mark.parametrize("name", [n for n in CORRUPTIONS if n[:3] not in ("sli", "few")])
def test_each_step_changes_more(name):
    x = real()
    g = [torch.Generator().manual_seed(0) for _ in range(3)]
    far = [float((CORRUPTIONS[name](x, s, k) - x).square().mean()) for s, k in zip((0.25, 0.5, 1.0), g, strict=True)]
    assert 0 < far[0] < far[1] < far[2]


def test_fewer_images_are_different():
    x = real()
    kept = [CORRUPTIONS["few different images"](x, s, torch.Generator().manual_seed(0)) for s in (0.25, 0.5, 1.0)]
    assert [len(k.flatten(1).unique(dim=0)) for k in kept] == [46, 33, 6]
    assert {len(k) for k in kept} == {60}


def test_slices_are_put_in_disorder_and_none_is_lost():
    x = torch.arange(8.0).reshape(1, 1, 1, 1, 8).expand(2, 1, 3, 3, 8)
    y = CORRUPTIONS["slices in disorder"](x, 1.0, torch.Generator().manual_seed(0))
    assert not torch.equal(x, y)
    assert torch.equal(y.sort(-1).values, x)
    half = CORRUPTIONS["slices in disorder"](x, 0.5, torch.Generator().manual_seed(0))
    assert 0 < int((half != x)[0, 0, 0, 0].sum()) <= 4


def test_who_sees_what():
    sees, blind = (sight(extractor(m()), real()) for m in (Roughness, Mean))
    of = [{s.corruption: s for s in found} for found in (sees, blind)]
    assert "slices in disorder" not in of[0]
    assert of[0]["blur"].seen_from == 0.5, "a quarter of it is a quarter of a pixel here"
    assert of[0]["noise"].seen_from == 0.25
    assert of[0]["blur"].rising
    assert of[1]["blur"].seen_from is None
    said = table({"sees": sees, "blind": blind}).splitlines()
    assert next(line for line in said if "blur" in line).split("|")[2:4] == [" 0.5 ", " blind "]


def test_the_default_extractor_sees_damage_of_real_images():
    """Strong damage moves features farther than half of what the images of one kind differ by."""
    seen, see = pictures("mednist", 64), extractor()
    clean = see(seen.images)
    kinds = torch.tensor([sorted(set(seen.kinds)).index(k) for k in seen.kinds])
    spread = torch.cat([(clean[kinds == k] - clean[kinds == k].mean(0)).norm(dim=1) for k in kinds.unique()]).mean()
    for kind in ("blur", "noise", "ghosting", "wrong window", "broken anatomy"):
        spoiled = see(CORRUPTIONS[kind](seen.images, 1.0, torch.Generator().manual_seed(0)))
        assert float((spoiled - clean).norm(dim=1).mean() / spread) > 0.5, kind
