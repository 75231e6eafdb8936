"""RoentGen on three small sets: the prompt acts, and shuffled prompts do not (after Chambon et al. 2022)."""

from pathlib import Path

import pytest
import torch

from monai_diffaug.backbones import hub
from monai_diffaug.backbones.parts import judge_of
from monai_diffaug.domains.chest_xray import coarse
from monai_diffaug.domains.chest_xray_figures import PAIRS, agreement, drawn, seen

BUNDLE = Path(__file__).parents[2] / "bundles" / "chest_xray_text_to_image"
N = 12


@pytest.fixture(scope="module")
def backbone():
    return hub.load(BUNDLE, precision=torch.float32)


@pytest.mark.parametrize(("pair", "least"), [("finding, coarse", 0.8), ("view", 0.75)])
def test_a_judge_of_real_films_sees_what_the_prompt_says(backbone, pair, least):
    judges = {"finding": backbone.judge, "kind": judge_of(BUNDLE / "judges" / "kind")}
    what, prompts = PAIRS[pair]
    told = torch.arange(2).repeat_interleave(N)
    for seed in (11, 12):
        films = drawn(backbone, [prompts[int(t)] for t in told], seed=seed, steps=12)
        found = agreement(told, seen(judges, what, films))
        assert found["agreement"] >= least
        assert found["agreement"] > found["shuffled_interval"][1]


def test_coarse_means_coarse(backbone):
    lost = {}
    for prompt in ("a normal chest x-ray of a child", "a coarse normal chest x-ray of a child"):
        films = drawn(backbone, [prompt] * 6, seed=3, steps=12)
        lost[prompt] = float((films - coarse(films)).pow(2).mean().sqrt())
    sharp, blurred = lost.values()
    assert sharp > 1.3 * blurred
