"""Chest X-rays told in words: what is read, what is said, what coarse means, and which sets may be learned from."""

import re
import statistics

import pytest
import torch

from monai_diffaug.domains import chest_xray
from monai_diffaug.domains import chest_xray_figures as figures
from monai_diffaug.types import DiffAugError
from tests.films import three_sets


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return three_sets(tmp_path_factory.mktemp("data"))


def everything(data, **more):
    return [i for p in ("train", "validation", "test") for i in chest_xray.items(data, p, **more)]


def test_nobody_is_in_two_parts_and_twins_are_together(data):
    parts = {p: {i["patient"] for i in chest_xray.items(data, p)} for p in ("train", "validation", "test")}
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["validation"]
    small = [i for i in everything(data) if i["source"] == "cxr_pneumonia28"]
    assert len(small) == 80
    assert len({i["patient"] for i in small}) == 79


def test_noncommercial_films_are_read_when_asked_for_only(data):
    free = [i for i in everything(data) if i["source"] == "cxr_covid"]
    assert len(free) == 18
    assert not any("NC" in i["license"] for i in free)
    assert sum(i["source"] == "cxr_covid" for i in everything(data, noncommercial=True)) == 24


def test_a_missing_set_is_named(tmp_path):
    with pytest.raises(DiffAugError, match="give the folder that holds mednist6, cxr_pneumonia28 and cxr_covid"):
        chest_xray.items(tmp_path, "train")


def test_a_caption_says_what_is_known_and_nothing_else(data):
    child = next(i for i in everything(data) if i["finding"] == "normal" and i["person"] == "child")
    assert chest_xray.caption(child) == "a coarse normal chest x-ray of a child"
    adult = next(i for i in everything(data) if i["view"] == "ap supine" and i["person"] == "man" and not i["report"])
    assert chest_xray.caption(adult) == "an ap supine chest x-ray of a man with covid-19 pneumonia"
    assert chest_xray.caption(next(i for i in everything(data) if i["source"] == "mednist6")) == "a chest x-ray"
    generator = torch.Generator().manual_seed(0)
    said = {chest_xray.caption(adult, generator) for _ in range(200)}
    assert len(said) == 8  # every subset of view, person and finding
    assert all("coarse" in chest_xray.caption(child, generator) for _ in range(50))  # always said


def test_reports_are_cut_into_sentences_that_fit():
    assert chest_xray.sentences("Hazy infiltrates, in both lungs. ARDS. Fever of 39.1 degrees today!") == [
        "hazy infiltrates in both lungs",
        "fever of 39 1 degrees today",
    ]
    assert chest_xray.sentences("word " * 40) == []


def test_every_prompt_of_the_training_films_can_be_told(data):
    from monai_diffaug.backbones import hub
    from monai_diffaug.backbones.vocabulary import enlarged

    found = everything(data)
    told = enlarged(hub.load("mednist").conditioner, chest_xray.vocabulary(found), chest_xray.LENGTH)
    lessons = chest_xray.taught(chest_xray.films(found), 0, dict.fromkeys(chest_xray.COPIES, 2))
    ids = told.tokenize([i["prompt"] for i in lessons])
    assert ids.shape == (len(lessons), chest_xray.LENGTH)
    assert not bool((ids == told.tokenizer.unk_token_id).any())


def test_coarse_films_say_so_and_sharp_ones_do_not(data):
    lessons = chest_xray.taught(chest_xray.films(everything(data)), 0, dict.fromkeys(chest_xray.COPIES, 5))
    detail = {True: [], False: []}
    for i in lessons:
        if i["source"] == "cxr_pneumonia28":  # noise of 28 pixels is all detail
            continue
        x = i["image"][None]
        detail["coarse" in i["prompt"]].append(float((x - chest_xray.coarse(x)).std()))
    assert statistics.mean(detail[True]) < 0.4 * statistics.mean(detail[False])
    assert any(i["source"] == "mednist6" and "coarse" in i["prompt"] for i in lessons)


def test_words_that_are_not_known_are_left_out_of_a_report_and_said(tmp_path):
    from monai_diffaug.backbones import hub

    place = tmp_path / "report.txt"
    place.write_text("A chest X-ray, with cardiomegaly.\n\nunheard-of\n")
    with pytest.warns(UserWarning, match="cardiomegaly"):
        assert chest_xray.requested(hub.load("mednist"), report=place) == ["a chest x-ray with"]
    with pytest.raises(DiffAugError, match="nothing to show"):
        chest_xray.requested(hub.load("mednist"))


def test_the_first_judge_sees_28_pixels_only():
    judge = chest_xray.judge(chest_xray.FINDINGS, at_28_pixels=True)
    x = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    plain = chest_xray.judge(chest_xray.FINDINGS)
    with torch.no_grad():
        seen, blurred = judge.logits(x), judge.logits(chest_xray.coarse(x))
        assert float((seen - blurred).abs().max()) < 0.5 * float((plain.logits(x) - seen).abs().max())
    from monai_diffaug.backbones.weights import instantiate

    assert re.search("CoarseResNet", type(instantiate(judge.config)).__name__)


def test_agreement_falls_to_chance_when_prompts_are_shuffled():
    told = torch.arange(400) % 2
    said = torch.where(torch.arange(400) % 10 == 0, 1 - told, told)
    found = figures.agreement(told, said)
    assert found["agreement"] == pytest.approx(0.9)
    assert found["interval"][0] > 0.85
    assert abs(found["shuffled"] - 0.5) < 0.02
    assert found["shuffled_interval"][1] < 0.6


def test_silhouettes_tell_clusters_from_noise():
    classes = torch.arange(40) % 2
    z = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    apart = z * 0.1 + torch.eye(8)[classes]
    assert figures.separated(apart, classes) > 0.8
    assert abs(figures.separated(z, classes)) < 0.1
