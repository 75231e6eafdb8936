"""Anonymous images as a job: the histogram, the log, the certificate; and the filter in the other jobs."""

import json
from dataclasses import replace

import pytest

from monai_diffaug.expand import expand, generate, release
from monai_diffaug.primitives.filters import Sieve, check_limits
from monai_diffaug.testing import ideal_backbone
from monai_diffaug.types import DiffAugError

from ..verifying import by_pixels
from .conftest import points


@pytest.fixture(scope="module")
def guarded():
    backbone = ideal_backbone(2, size=16)
    return replace(backbone, verifier=by_pixels(points(backbone)[:6].float()))


def test_as_many_of_each_as_asked_for_with_a_log_and_a_certificate(tmp_path, guarded):
    asked = {"healthy": 3, "tumor": 1}
    out = release(guarded, tmp_path / "out", asked, parameters={"steps": 8})
    said = json.loads(out.datalist.read_text())
    kinds = [e.get("class", e.get("label")) for e in said["training"]]
    assert sorted(kinds) == ["healthy"] * 3 + ["tumor"]
    assert said["certificate"]["given"] is False
    assert "never measured" in said["certificate"]["says"]
    head, *lines = [json.loads(line) for line in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    assert head["certificate"] == said["certificate"]
    assert [line["image"] for line in lines] == [e["image"] for e in said["training"]]
    assert all(line["nearest"].startswith("film ") and line["probability"] < 0.5 for line in lines)
    assert any(line["rejected"] for line in lines)
    shared = out.datalist.read_text() + "".join(p.read_text() for p in (tmp_path / "out" / "records").glob("*"))
    assert "film " not in shared, "what goes with the images names no training image"


def test_a_certificate_is_given_where_the_verifier_is_good_enough(tmp_path, guarded):
    verifier = by_pixels(points(guarded)[:6].float())
    verifier.figures = {"auroc": 0.99, "pairs": 40, "patients": 20}
    out = release(replace(guarded, verifier=verifier), tmp_path / "out", {"tumor": 1}, parameters={"steps": 8})
    certificate = json.loads(out.datalist.read_text())["certificate"]
    assert certificate["given"] is True
    assert "none of 1 images was taken for a patient of 6 training images" in certificate["says"]


def test_without_a_verifier_it_is_refused_in_one_sentence(tmp_path, guarded):
    bare = replace(guarded, verifier=None)
    with pytest.raises(DiffAugError, match="has no verifier, without which nothing is anonymous"):
        release(bare, tmp_path / "out", {"tumor": 1})
    with pytest.raises(DiffAugError, match="wants a verifier of patients and .* has none"):
        check_limits({"reidentification": 1.0}, bare)
    with pytest.raises(DiffAugError, match="wants a verifier of patients"):
        generate(bare, tmp_path / "out", ["tumor"], keep={"reidentification": 1.0})
    assert not (tmp_path / "out").exists()


def test_the_filter_knows_training_images_and_the_users_own(guarded):
    real = points(guarded).float()
    sieve = Sieve(guarded, None, {"reidentification": 1.0})
    verdicts = sieve(real, [None] * 12)
    assert {v.failed for v in verdicts[:6]} == {("reidentification",)}
    assert sum(v.passed for v in verdicts[6:]) >= 3
    assert not any(v.passed for v in Sieve(guarded, real[6:], {"reidentification": 1.0})(real, [None] * 12))
    assert all(v.passed for v in Sieve(guarded, None, {"reidentification": 3.0})(real, [None] * 12))
    guarded.verifier.index, kept = None, guarded.verifier.index
    with pytest.raises(DiffAugError, match="remembers none"):
        Sieve(guarded, None, {"reidentification": 1.0})
    guarded.verifier.index = kept


def test_expand_rejects_what_shows_a_source_patient(tmp_path, scans, guarded):
    settings = {"keep": {"reidentification": 1.0}, "attempts": 3}
    with pytest.raises(DiffAugError, match="no image passed the filters"):
        expand(scans, tmp_path / "near", "sdedit", guarded, parameters={"steps": 6, "strength": 0.1}, **settings)
    far = generate(guarded, tmp_path / "far", ["tumor"], count=4, parameters={"steps": 8}, **settings)
    for entry in json.loads(far.datalist.read_text())["training"]:
        assert entry["provenance"]["scores"]["reidentification"] < 1.0
