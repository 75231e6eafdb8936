"""Filters keep what shows its class, is no copy and looks real; the rest is made again or given up."""

import json
from dataclasses import replace

import pytest
import torch

from monai_diffaug.expand import expand
from monai_diffaug.primitives.filters import Sieve, check_limits
from monai_diffaug.testing import ideal_backbone
from monai_diffaug.types import DiffAugError

from .conftest import points


class BySpot:
    """Judges the heads by their brightest spot, which is what sets the classes apart."""

    labels = ("healthy", "tumor")

    def classify(self, images):
        p = torch.sigmoid(20 * (images.flatten(1).amax(1) - 0.3))
        return torch.stack([1 - p, p], 1)

    def features(self, images):
        return torch.nn.functional.avg_pool2d(images, 4).flatten(1)


@pytest.fixture(scope="module")
def judged():
    return replace(ideal_backbone(2, size=16), judge=BySpot())


def test_label(judged):
    sieve = Sieve(judged, None, {"label": 0.5})
    real = points(judged)
    kinds = ["healthy", "tumor"] * 6
    assert all(v.passed for v in sieve(real, kinds))
    wrong = sieve(real, kinds[::-1])
    assert not any(v.passed for v in wrong)
    assert {v.failed for v in wrong} == {("label",)}
    with pytest.raises(DiffAugError, match="cannot judge 'cat', only healthy, tumor"):
        sieve(real[:1], ["cat"])


def test_novelty_knows_copies(judged):
    real = points(judged)
    sieve = Sieve(judged, real[:8], {"novelty": 0.25})
    generator = torch.Generator().manual_seed(0)
    copies = real[:8] + 0.01 * torch.randn(real[:8].shape, generator=generator)
    assert not any(v.passed for v in sieve(copies, [None] * 8))
    assert all(v.passed for v in sieve(real[8:], [None] * 4))
    (exact,) = sieve(real[:1], [None])
    assert exact.scores["novelty"] == 0


def test_quality_knows_what_looks_real(judged):
    real = points(judged)
    sieve = Sieve(judged, real[:8], {"quality": 1.5})
    assert all(v.passed for v in sieve(real[8:], [None] * 4))
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(real[:4].shape, generator=generator) * 2 - 1
    assert not any(v.passed for v in sieve(noise, [None] * 4))
    assert not any(v.passed for v in sieve(-real[:4], [None] * 4))  # negatives


def test_an_images_score_does_not_depend_on_its_batch(judged):
    real = points(judged)
    sieve = Sieve(judged, real[:8], {"novelty": 0.1, "quality": 2.0, "label": 0.5})
    together = sieve(real[8:], ["healthy", "tumor"] * 2)
    alone = [sieve(real[8 + i : 9 + i], [("healthy", "tumor")[i % 2]])[0] for i in range(4)]
    assert [v.scores for v in together] == [v.scores for v in alone]


def test_limits_are_checked(judged):
    bare = replace(judged, judge=None)
    for limits, says in (
        ({"label": 0.5}, "judge or a scorer"),
        ({"quality": 1}, "a judge"),
        ({"x": 1}, "no filter 'x'"),
    ):
        with pytest.raises(DiffAugError, match=says):
            check_limits(limits, bare)
    with pytest.raises(DiffAugError, match="give two or more"):
        Sieve(judged, points(judged)[:1], {"novelty": 1})


def test_rejected_images_are_made_again_and_logged(tmp_path, scans, judged):
    """With a limit that about half of the attempts reach, more attempts keep more images."""
    settings = {"parameters": {"steps": 6, "strength": 0.9, "scale": 1.0, "prompt": ""}, "copies": 2}
    few = expand(scans, tmp_path / "few", "sdedit", judged, keep={"label": 0.5}, attempts=1, **settings)
    more = expand(scans, tmp_path / "more", "sdedit", judged, keep={"label": 0.5}, attempts=6, **settings)
    assert len(few.rejected) > len(more.rejected)
    assert few.made + len(few.rejected) == more.made + len(more.rejected) == 12
    entries = json.loads(more.datalist.read_text())["training"]
    assert all(e["provenance"]["scores"]["label"] >= 0.5 for e in entries)
    again = [e["provenance"]["rejected_before"] for e in entries if "rejected_before" in e["provenance"]]
    assert again
    for attempt in (a for tries in again for a in tries):
        assert attempt["scores"]["label"] < 0.5
        assert attempt["failed"] == ["label"]
    (name, *_) = few.rejected
    record = json.loads((tmp_path / "few" / "records" / f"{name}.json").read_text())
    assert record["rejected"] is True
    assert len(record["attempts"]) == 1
    assert not (tmp_path / "few" / "images" / f"{name}.png").exists()
    assert name in json.loads(few.datalist.read_text())["rejected"]


def test_when_nothing_passes_the_job_has_failed(tmp_path, scans, judged):
    with pytest.raises(DiffAugError, match="no image passed the filters"):
        expand(scans, tmp_path / "out", "sdedit", judged, keep={"novelty": 1e9}, attempts=2, parameters={"steps": 2})
