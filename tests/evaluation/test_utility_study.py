"""A study that cannot be run, or would not be fair, is refused in one line that says what to do."""

import json

import pytest

from monai_diffaug.evaluation.utility import opened
from monai_diffaug.evaluation.utility.study import METRICS
from monai_diffaug.types import DiffAugError
from tests.evaluation.toy_study import MADE, study


def arms(*more):
    return study("scans.json", more)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arms": [{"kind": "real"}]}, "no arm of kind 'classical'"),
        ({"arms": [{"kind": "classical"}]}, "no arm of kind 'real'"),
        ({"arms": "real"}, "no list 'arms'"),
        ({"task": "clasification"}, "did you mean 'classification'"),
        ({"metrics": ["aurok"]}, "did you mean 'auroc'"),
        ({"metrics": ["dice"]}, "has no metric 'dice'"),
        ({"classes": ["with"]}, "wants two or more"),
        ({"task": "segmentation"}, "give one class"),
        ({"patients": [0]}, "cannot be drawn"),
        ({"ratios": [0]}, "no ratio"),
        ({"sizes": 3}, "unknown key 'sizes'"),
        ({"training": {"steps": 1}}, "at least 2 steps"),
        ({"training": {"pretraining": 1.0}}, "between 0 and 1"),
    ],
)
def test_refused(change, says):
    with pytest.raises(DiffAugError, match=says):
        opened({**arms(), **change})


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"name": "x", "kind": "difusion"}, "did you mean 'diffusion'"),
        ({"name": "x", "kind": "diffusion", "method": "sdedti"}, "sdedit"),
        ({"name": "x", "kind": "diffusion", "method": "textual_inversion"}, "makes no images"),
        ({"name": "x", "kind": "diffusion", "method": "sdedit", "learn": {"method": "edict"}}, "learns nothing"),
        ({"name": "x", "kind": "diffusion", "method": "sdedit", "regions": "some"}, "use own or moved"),
        ({"name": "x", "kind": "shuffled", "of": "nothing"}, "made as 'of'"),
        ({"name": "x", "kind": "synthetic_only"}, "made as 'of'"),
        ({"name": "made", "kind": "mixup"}, "two arms called 'made'"),
        ({"name": "x", "kind": "mixup", "patients": [4]}, "wants 4 patients"),
        ({"name": "x", "kind": "classical"}, "give one arm of kind 'classical'"),
    ],
)
def test_arms_refused(arm, says):
    with pytest.raises(DiffAugError, match=says):
        opened(arms(MADE, arm))


def test_no_backbone_and_no_masks_are_refused():
    with pytest.raises(DiffAugError, match="has no backbone"):
        opened({**arms(MADE), "generator": None})
    with pytest.raises(DiffAugError, match="makes no masks"):
        opened({**arms(MADE), "task": "segmentation", "classes": ["with"]})


def test_files(tmp_path):
    path = tmp_path / "s.json"
    with pytest.raises(DiffAugError, match="cannot be read"):
        opened(path)
    path.write_text("{")
    with pytest.raises(DiffAugError, match="is not JSON"):
        opened(path)
    (tmp_path / "bundle").mkdir()
    path.write_text(json.dumps(arms({**MADE, "backbone": "bundle"})))
    found = opened(path)
    assert found.arm("made").backbone == str(tmp_path / "bundle")
    assert found.metrics == METRICS["classification"]


def test_shipped_studies_open_and_share_the_control():
    from pathlib import Path

    for file in sorted((Path(__file__).parents[2] / "studies").glob("*.json")):
        found = opened(file)
        kinds = [a.kind for a in found.arms]
        assert {"duplicated", "shuffled", "oracle", "synthetic_only", "pretraining"} <= set(kinds)
        assert kinds.count("diffusion") >= 3
        assert found.patients == (5, 10, 20, "all")
        assert len(found.seeds) >= 3
        assert found.generator.patients_seen == 56
        for arm in found.arms:
            assert not arm.backbone.startswith("..") or Path(arm.backbone).is_dir()
