"""Quality by subgroup: a group that is made badly shows, groups made well do not, and who is shown how often."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.backbones.extractors import extractor
from monai_diffaug.cli import app
from monai_diffaug.evaluation import Pictures, of_groups
from monai_diffaug.evaluation.attributes import group_of
from monai_diffaug.evaluation.shares import generated
from monai_diffaug.types import DiffAugError


class Means(torch.nn.Module):
    """Intensity and roughness in the four quarters."""

    def forward(self, x):
        parts = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return torch.cat([parts, (x - torch.nn.functional.avg_pool2d(x, 3, 1, 1)).flatten(1).std(1, keepdim=True)], 1)


NET = extractor(Means())


def drawn(sexes, seed=0, noise=0.3, bright=0.5, **fields):
    """A disc, brighter in women by a measure that overlaps; two images a patient."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    disc = (x**2 + y**2 < 0.6).float()
    n = len(sexes)
    level = torch.tensor([bright * (s == "female") for s in sexes]) + 0.15 * torch.randn(n, generator=g)
    images = disc * (level[:, None, None] + 0.2) + noise * torch.randn(n, 16, 16, generator=g) - 0.4
    told = tuple({"sex": s, "age": 30 + 7 * (i % 8), **fields} for i, s in enumerate(sexes))
    return Pictures(
        images[:, None].clamp(-1, 1), None, ("",) * n, tuple(f"{seed}p{i // 2}" for i in range(n)),
        (Path("x"),) * n, (None,) * n, fields=told,
    )  # fmt: skip


def sexes(n, share=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return ["female" if s else "male" for s in rng.random(n // 2) < share for _ in range(2)]


def rows(found, score):
    return {r.group: r for r in found if r.score == score}


def test_a_group_that_is_made_badly_shows_in_its_scores_and_in_the_gap():
    real, good = drawn(sexes(240)), drawn(sexes(200, seed=1), 1)
    male = torch.tensor([f["sex"] == "male" for f in good.fields])[:, None, None, None]
    blurred = replace(good, images=torch.where(male, torch.nn.functional.avg_pool2d(good.images, 3, 1, 1), good.images))
    fair, unfair = (of_groups(real, x, "sex", extractor=NET, draws=30) for x in (good, blurred))
    assert rows(unfair, "kid")["male"].interval[0] > rows(unfair, "kid")["male"].floor_interval[1]
    assert rows(unfair, "kid")["female"].interval[0] <= rows(unfair, "kid")["female"].floor_interval[1]
    assert rows(unfair, "coverage")["male"].value < 0.5 * rows(unfair, "coverage")["female"].value
    for score in ("kid", "coverage"):
        assert rows(unfair, score)["gap"].value > rows(unfair, score)["gap"].floor_interval[1], score
        fine = rows(fair, score)["gap"]
        assert fine.interval[0] <= fine.floor_interval[1], score
    one = rows(fair, "coverage")
    assert one["male"].n == one["female"].n == one["gap"].n, "coverage depends on the number"
    assert rows(fair, "anatomy_body")["female"].value < 1


def test_shares_by_the_list_and_by_what_the_images_show():
    real, made = drawn(sexes(400)), drawn(sexes(400, 0.9, 1), 1)
    found = of_groups(real, made, "sex", extractor=NET, draws=5)
    listed, seen = rows(found, "share"), rows(found, "share_corrected")
    truth = np.mean([f["sex"] == "female" for f in made.fields])
    assert listed["female"].value == pytest.approx(truth)
    assert listed["female"].floor == pytest.approx(np.mean([f["sex"] == "female" for f in real.fields]))
    assert seen["female"].interval[0] < truth < seen["female"].interval[1]
    apart = rows(found, "discrepancy")["all"]
    assert apart.value > 0.4 > apart.floor_interval[1]
    assert rows(found, "told_apart")["all"].floor == 0.5


def test_planted_bias_is_recovered_and_a_balanced_generator_has_no_discrepancy():
    """90 of 100 women, told by nothing but the images, through a classifier that is wrong in a tenth."""
    real = drawn(sexes(3000), bright=0.45, noise=0.5)
    for share in (0.9, 0.5):
        made = drawn(sexes(6000, share, 1), 1, bright=0.45, noise=0.5)
        truth = float(np.mean([f["sex"] == "female" for f in made.fields]))
        mute = replace(made, fields=({},) * len(made))
        found = generated(real, mute, "sex", extractor=NET, target={"female": 0.5, "male": 0.5}, draws=50)
        assert found.groups == ("female", "male")
        assert 0.8 < found.accuracy < 0.97
        assert abs(found.shares[0].value - truth) < 0.02
        assert found.shares[0].low < truth < found.shares[0].high
        if share == 0.9:
            assert abs(found.predicted[0] - truth) > 0.02, "the control: uncorrected it is off"
            assert found.discrepancy.value > 0.5
        else:
            assert found.discrepancy.value <= 0.05


def test_groups_that_cannot_be_told_apart_get_no_corrected_share():
    real, made = drawn(sexes(200), bright=0.0), drawn(sexes(200, 0.9, 1), 1, bright=0.0)
    with pytest.raises(DiffAugError, match="hardly tells"):
        generated(real, made, "sex", extractor=NET)
    found = of_groups(real, made, "sex", extractor=NET, draws=3)
    assert not rows(found, "told_apart")
    assert not rows(found, "share_corrected")
    assert rows(found, "share")


def test_what_the_fields_say():
    assert [group_of({"age": a}, "", "age") for a in (61, "061Y", "96M", 17.9, 80, "60-79", None)] == [
        "60-79", "60-79", "0-17", "0-17", "80+", "60-79", "unknown",
    ]  # fmt: skip
    assert group_of({"sex": "F", "age": "045Y"}, "", "sex+age") == "female 40-59"
    assert group_of({}, "tumor", "class") == "tumor"
    assert group_of({"sex": float("nan")}, "", "sex") == "unknown"


def test_what_cannot_be_judged_is_refused_and_small_groups_have_their_share_only():
    real, made = drawn(sexes(80)), drawn(sexes(80, seed=1), 1)
    with pytest.raises(DiffAugError, match="its fields: age, sex"):
        of_groups(real, made, "site", extractor=NET)
    with pytest.raises(DiffAugError, match="too many for groups"):
        of_groups(drawn(sexes(40), slice=1), replace(made, fields=tuple({"slice": i} for i in range(80))), "slice")
    with pytest.raises(DiffAugError, match="no group"):
        of_groups(drawn(sexes(8)), drawn(sexes(8, seed=1), 1), "sex", extractor=NET)
    few = replace(made, fields=tuple({"sex": "other" if i < 4 else f["sex"]} for i, f in enumerate(made.fields)))
    found = of_groups(real, few, "sex", extractor=NET, draws=3)
    assert set(rows(found, "kid")) == {"female", "male", "gap"}
    assert rows(found, "share")["other"].n == 4


def test_the_command_writes_groups_and_prints_a_table(tmp_path, capsys):
    for name, seed in (("real", 0), ("made", 1)):
        (tmp_path / name).mkdir()
        drew, items = drawn(sexes(64, seed=seed), seed), []
        for i, x in enumerate(drew.images):
            Image.fromarray(((x[0] + 1) * 127).numpy().astype(np.uint8)).save(tmp_path / name / f"{i}.png")
            items.append({"image": f"{i}.png", "patient": drew.patients[i], **drew.fields[i]})
        (tmp_path / name / "datalist.json").write_text(json.dumps({"training": items}))
    out = tmp_path / "scores.json"
    where = [str(tmp_path / n / "datalist.json") for n in ("real", "made")]
    app(["evaluate", *where, "--size", "64", "--by", "sex", "--out", str(out)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "by sex" in said
    groups = json.loads(out.read_text())["groups"]
    assert {"female", "male", "gap"} == {g["group"] for g in groups if g["score"] == "kid"}
    assert set(groups[0]) == {
        "attribute", "group", "n", "score", "value", "interval", "floor", "floor_interval",
    }  # fmt: skip
