"""The study of components: what each variant changes, and that its accuracy is that of images really made."""

import pytest
import torch

from monai_diffaug.backbones.judge import Judge
from monai_diffaug.finetune import components
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError


class Bright(torch.nn.Module):
    """Logits of dark and bright."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(1, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-9.0], [9.0]]))
            self.fc.bias.zero_()

    def forward(self, x):
        return self.fc(x.mean((1, 2, 3))[:, None])


def films(backbone, level):
    size = (1, *backbone.contract.size)
    return torch.stack([torch.full(size, level) + 0.05 * torch.randn(size) for _ in range(8)])


def test_a_study_of_two_brightnesses(tmp_path):
    backbone = tiny("text")
    before = {k: v.clone() for m in backbone.modules().values() for k, v in m.state_dict().items()}
    found = components.study(
        backbone,
        Judge(Bright(), ("dark", "bright")),
        {"dark": films(backbone, -0.6), "bright": films(backbone, 0.6)},
        {"dark": "a gloomy head ct", "bright": "a shining head ct"},
        tmp_path,
        shots=4,
        inversion_steps=2,
        dreambooth_steps=2,
        steps=60,
        images=8,
        seeds=(1,),
        sampling_steps=8,
        prior=4,
        known="head ct",
    )
    for label in ("dark", "bright"):
        assert found["textual_inversion"][label] == {"new_rows": 1, "changed_weights": 0}
    assert set(found["accuracy"]) == {"zero-shot", "textual inversion", "DreamBooth", "fine-tuned"}
    assert 0.3 <= found["accuracy"]["zero-shot"]["agreement"] <= 0.7  # new words mean nothing yet
    assert found["accuracy"]["fine-tuned"]["agreement"] > found["accuracy"]["zero-shot"]["agreement"] + 0.2
    assert found["accuracy"]["fine-tuned"]["n"] == 16
    assert (tmp_path / "components.png").is_file()
    after = {k: v for m in backbone.modules().values() for k, v in m.state_dict().items()}
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_prompts_of_words_that_differ_are_told_apart_better_than_of_one_word():
    backbone = tiny("text")
    assert components.told_apart(backbone, ["a head ct", "a head ct"], ["{}"] * 4) == pytest.approx(0.0, abs=1e-4)
    assert components.told_apart(backbone, ["a head ct", "a tumor"], ["{}"] * 4) > 0.9


def test_the_judge_must_know_both_findings(tmp_path):
    with pytest.raises(DiffAugError, match="two findings that the judge knows"):
        components.study(tiny("text"), Judge(Bright(), ("dark", "bright")), {"dark": torch.zeros(1)}, {}, tmp_path)
