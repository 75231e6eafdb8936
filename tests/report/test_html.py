"""The report: everything that is known is told, what is not known is named, and nobody's name gets out."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from monai_diffaug.cli import app
from monai_diffaug.report.html import page as pages
from monai_diffaug.report.html import plots, report
from monai_diffaug.report.html.pictures import SIDE, Plane, drawn, window
from monai_diffaug.report.html.run import COMMANDS, opened
from monai_diffaug.report.html.sheets import EDITS, PER_CLASS
from monai_diffaug.report.html.volumes import VOXELS, packed
from monai_diffaug.report.html.words import brief, number, percent
from monai_diffaug.types import DiffAugError

from . import made_up
from .made_up import SECRET


def text_of(run, **how):
    return pages.page(opened(run, **how))


def pairs_of(run, n=3):
    """The closest pairs as an audit names them: by path."""
    entries = json.loads((run / "datalist.json").read_text())["training"]
    return [
        {"image": str(run / e["image"]), "nearest": str((run / e["source"]).resolve()), "space": "pixels", "rare": 0.01}
        for e in entries[:n]
    ]


def full(folder, **more):
    run = made_up.slices(folder)
    parts = {"scores": made_up.scores(), "utility": made_up.utility(), "readers": made_up.readers()}
    return made_up.put(run, **{**parts, "audit": made_up.audit(pairs_of(run)), **more})


class Tags(HTMLParser):
    """Elements, and the text in each section."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.inside, self.sections, self.words = [], [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.inside.append(dict(attrs)["id"])

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag == "section":
            self.inside.pop()

    def handle_data(self, data):
        self.words.append(data)
        for name in self.inside:
            self.sections[name] = self.sections.get(name, "") + " " + data


def said(page, section):
    return " ".join(Tags(page).sections[section].split())


def shown(page):
    """The pixels of all pictures."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(x)))) for x in found]


def holds(page, picture):
    return any(x.shape == picture.shape and np.array_equal(x, picture) for x in shown(page))


def as_shown(path):
    plane = Plane(np.asarray(Image.open(path), float))
    uri = drawn(plane, window(plane), "").uri
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


# --------------------------------------------------------------------------------------------------------- it is told


def test_everything_is_told(tmp_path):
    page = text_of(full(tmp_path))
    summary = said(page, "summary")
    assert "Is it real? No 2 of 4 scores lie within what real images score against each other" in summary
    assert "Outside: Fréchet distance (FID) and Perceptual diversity" in summary
    assert "Does it help? Yes" in summary
    assert "2 better, 0 worse, 14 not shown to differ" in summary
    assert "Does it leak? Judged in part No leak was found by 4 tests" in summary
    assert "8 synthetic images" in page
    assert "8 real images of 4 patients" in page
    made = said(page, "made")
    assert "da fusion 8 images" in made
    assert "Strength 0.25 to 1, mean 0.625" in made
    assert "tumor 4 4" in made
    assert "within the floor" in said(page, "real")
    assert "outside: farther from real" in said(page, "real")
    assert "outside: less than among real images" in said(page, "real")
    assert "Few images." in said(page, "real")
    assert "Reader 1 300" in said(page, "readers")
    assert "da_fusion less classical 5 " in said(page, "help")
    assert "+0.050 +0.020 to +0.080 0.001 0.010 better" in said(page, "help")
    assert "Re-identification Passed" in said(page, "leak")
    assert "No model was given." in said(page, "leak")
    assert "Kernel distance (KID) ● 0.100" in said(page, "fair")
    assert "◆ 0.400" in said(page, "fair")
    assert "AUROC by Sex" in said(page, "fair")
    assert hashlib.sha256((tmp_path / "run/datalist.json").read_bytes()).hexdigest() in page
    assert "torch" in said(page, "provenance")
    for line in ("13 test patients.", "The verifier is weak.", "Not judged by the audit: extraction."):
        assert line in said(page, "limits")


@pytest.mark.parametrize("gone", COMMANDS)
def test_what_is_missing_is_said_to_be_unjudged(tmp_path, gone):
    run = full(tmp_path)
    command = COMMANDS[gone].replace(">", "&gt;")
    assert command not in text_of(run)
    (run / f"{gone}.json").unlink()
    page = text_of(run)
    where = {"scores": "real", "utility": "help", "audit": "leak", "readers": "readers"}[gone]
    assert said(page, where).count("Not judged.") == 1
    assert page.count(command) >= 2  # in its section and among the limitations
    assert said(page, "limits").count("Not judged") == 1 + (gone != "audit")


def test_a_run_that_nobody_judged(tmp_path):
    summary = said(text_of(made_up.slices(tmp_path)), "summary")
    assert summary.count("Not judged") == 3


def test_a_gap_may_be_small(tmp_path):
    """Of a gap only too much is outside; of the score itself also too little."""
    row = {"attribute": "sex", "n": 14, "score": "coverage", "value": 0.0, "interval": [0.0, 0.1], "floor": 0.2}
    rows = [{**row, "group": g, "floor_interval": [0.1, 0.3]} for g in ("F", "gap")]
    run = made_up.put(made_up.slices(tmp_path), scores=made_up.scores(groups=rows))
    assert "Coverage ◆ 0 0 to 0.10 floor 0.20 (0.10 to 0.30) ● 0 0 to 0.10" in said(text_of(run), "fair")


def test_filters_and_the_gate_are_told(tmp_path):
    run = made_up.slices(tmp_path)
    job = {"seed": 3, "keep": {"novelty": 0.3, "label": 0.5}, "gate": {"kind": "audit", "rate": 0.02}}
    made_up.put(run, job=job)
    (run / "audit").mkdir()
    (run / "audit/a.gate.json").write_text("{}")
    made = said(text_of(run), "made")
    assert "novelty 0.3; label 0.5; gate audit, which lets 2 % of unseen images pass for copies" in made
    assert "1 image refused by the gate at least once" in made
    assert "Seed of the job 3" in made


def test_real_pictures_are_those_that_scores_were_taken_against(tmp_path):
    """The path that the scores name is from where they were taken; else the sources are shown."""
    run = made_up.slices(tmp_path)
    unseen, _ = made_up.head(np.random.default_rng(9), False)
    for i in range(3):
        made_up.save(tmp_path, f"unseen/{i}.png", unseen)
    made_up.put(run, scores=made_up.scores(real="unseen"))
    (tmp_path / "unseen/datalist.json").write_text(
        json.dumps({"training": [{"image": f"{i}.png", "class": "healthy"} for i in range(3)]})
    )
    page = text_of(run)
    assert holds(page, as_shown(tmp_path / "unseen/0.png"))
    assert "3 of 3" in said(page, "pictures")
    made_up.put(run, scores=made_up.scores(real="gone"))
    page = text_of(run)
    assert not holds(page, as_shown(tmp_path / "unseen/0.png"))
    assert "images that synthetic ones were made of, 4 of 4" in said(page, "pictures")


def test_a_run_from_noise_without_patients(tmp_path):
    run = made_up.slices(tmp_path)
    data = json.loads((run / "datalist.json").read_text())
    for entry in data["training"]:
        for key in ("source", "source_mask", "patient"):
            del entry[key]
    (run / "datalist.json").write_text(json.dumps(data))
    page = text_of(run)
    assert "noise, no real image" in page
    assert "the datalist names none" in page


# --------------------------------------------------------------------------------------------------------- the verdicts


@pytest.mark.parametrize(
    ("gain", "p", "word"), [(0.05, 0.01, "Yes"), (-0.05, 0.01, "No, it harms"), (0.05, 0.3, "Not shown")]
)
def test_whether_it_helps(tmp_path, gain, p, word):
    """A gain counts only if its corrected chance is small, and against the control with classical augmentation."""
    run = made_up.put(made_up.slices(tmp_path), utility=made_up.utility(gain, p))
    assert f"Does it help? {word} " in said(text_of(run), "summary")


def test_a_gain_against_no_augmentation_is_none(tmp_path):
    data = made_up.utility()
    data["comparisons"] += [{**c, "control": "real"} for c in data["comparisons"] if c["p_corrected"] < 0.05]
    for c in data["comparisons"]:
        c["p_corrected"] = 1.0 if c["control"] == "classical" else c["p_corrected"]
    run = made_up.put(made_up.slices(tmp_path), utility=data)
    assert "Does it help? Not shown" in said(text_of(run), "summary")


def test_a_fall_is_a_gain_where_low_is_good(tmp_path):
    """A score of which low values are good; the study in a folder of its own, as its command leaves it."""
    data = made_up.utility(-0.05)
    data["lower_is_better"] = ["auroc"]
    run = made_up.slices(tmp_path)
    (run / "utility").mkdir()
    made_up.put(run / "utility", utility=data)
    page = text_of(run)
    assert "Does it help? Yes" in said(page, "summary")
    assert "−0.050 −0.080 to −0.020 0.001 0.010 better" in said(page, "help")
    assert "duplicated 10 no difference hurts no" in said(page, "help")


@pytest.mark.parametrize(
    ("sections", "verdict", "word"),
    [
        ({}, "pass", "Judged in part"),
        ({"extraction": made_up.section("pass", "None came out.")}, "pass", "No leak found"),
        ({"membership": made_up.section("fail", "Training patients stand out.")}, "fail", "Yes"),
        ({k: made_up.section("not judged", "") for k in made_up.audit()["sections"]}, "pass", "Not judged"),
    ],
)
def test_whether_it_leaks(tmp_path, sections, verdict, word):
    run = made_up.put(made_up.slices(tmp_path), audit=made_up.audit(verdict=verdict, **sections))
    summary = said(text_of(run), "summary")
    assert f"Does it leak? {word} " in summary
    assert ("could judge none of its sections" in summary) == (word == "Not judged")


@pytest.mark.parametrize(("told_apart", "word"), [(False, "Not told apart"), (True, "Told apart")])
def test_readers_outweigh_scores(tmp_path, told_apart, word):
    scores = made_up.scores()
    scores["scores"] = [s for s in scores["scores"] if s["within_floor"]]
    run = made_up.put(made_up.slices(tmp_path), scores=scores, readers=made_up.readers(told_apart))
    page = text_of(run)
    assert word in said(page, "readers")
    assert ("Is it real? Told apart" in said(page, "summary")) == told_apart


def test_marks_differ_in_shape_and_not_only_in_color():
    icons = [re.sub(r"#[0-9a-f]{3,6}", "", str(plots.icon(m))) for m in ("good", "caution", "bad", "unknown")]
    assert len(set(icons)) == 4
    inside = plots.row_plot("", 1.0, (0.5, 1.5), 1.0, (0.0, 2.0), True)
    outside = plots.row_plot("", 3.0, (2.5, 3.5), 1.0, (0.0, 2.0), False)
    assert ("<circle" in inside, "<polygon" in inside) == (True, False)
    assert ("<circle" in outside, "<polygon" in outside) == (False, True)


def test_a_point_lies_in_the_band_if_it_is_within():
    def places(value):
        svg = str(plots.row_plot("", value, (value - 0.1, value + 0.1), 1.0, (0.5, 1.5), True))
        left, wide = map(float, re.search(r'<rect x="([\d.]+)" y="2.0" width="([\d.]+)"', svg).groups())
        return left, float(re.search(r'<circle cx="([\d.]+)"', svg)[1]), left + wide

    for value, place in ((0.6, "in"), (1.4, "in"), (0.3, "below"), (2.0, "above")):
        left, x, right = places(value)
        assert {"in": left < x < right, "below": x < left, "above": x > right}[place]


# ---------------------------------------------------------------------------------------------------- whom it names


def test_it_names_no_patient_and_no_file_of_one(tmp_path):
    """Neither the datalist's names nor those that other commands put into their sentences."""
    run = full(tmp_path)
    audit = made_up.audit(pairs_of(run))
    audit["sections"]["copies"]["says"] = f"Closest: {SECRET}_0 in {tmp_path}/real/images/{SECRET}_0_00.png."
    audit["limitations"] = [f"{SECRET}_1 was seen twice.", r"C:\scans\doe.dcm is missing"]
    scores = made_up.scores(real=str(tmp_path / "real.json"), skipped=[f"{tmp_path}/{SECRET}.nii.gz is corrupt"])
    made_up.put(run, audit=audit, scores=scores)
    page = text_of(run)
    bare = re.sub(r'base64,[^"]+', "", page)  # pixels, among which any three letters come by chance
    for hidden in (SECRET, "DOE", "doe.dcm", str(tmp_path), "Anna", "real/images"):
        assert hidden not in bare, hidden
    assert "Closest: (name) in (file)." in said(page, "leak")
    assert "It names no patient" in page
    named = text_of(run, with_paths=True)
    for hidden in (SECRET, str(tmp_path), "Anna"):
        assert hidden in named, hidden


def test_sources_go_by_their_content(tmp_path):
    run = made_up.slices(tmp_path)
    source = next(iter(sorted((tmp_path / "real/images").iterdir())))
    assert f"source {hashlib.sha256(source.read_bytes()).hexdigest()[:8]}" in text_of(run)


def test_a_copy_for_sharing_shows_no_patient(tmp_path):
    run = full(tmp_path)
    entries = json.loads((run / "datalist.json").read_text())["training"]
    real = [as_shown(run / e["source"]) for e in entries]
    made = [as_shown(run / e["image"]) for e in entries]
    plain, shared = text_of(run), text_of(run, share=True)
    assert all(holds(plain, x) for x in [real[0], *made])
    assert not any(holds(shared, x) for x in real)
    assert not any(holds(shared, x) for x in made[:3]), "synthetic images of the closest pairs"
    assert all(holds(shared, x) for x in made[3:])
    assert len(shown(shared)) == 2 * 5, "each in its class's sheet and among the edits; no difference"
    digests = [hashlib.sha256((run / e["source"]).read_bytes()).hexdigest()[:8] for e in entries]
    assert sum(d in plain for d in digests) == 8
    assert not any(d in shared for d in digests), "who has the file could tell that it was used"
    assert "They are left out of this copy, which is for sharing." in said(shared, "leak")
    assert "left out" not in said(plain, "leak")


def test_a_copy_for_sharing_names_nobody(tmp_path):
    with pytest.raises(DiffAugError, match="leave out --with-paths, or --share"):
        report(made_up.slices(tmp_path), share=True, with_paths=True)


@pytest.mark.parametrize(
    "audit", [None, made_up.audit(copies=made_up.section("fail", "Copies.")), {"sections": {}},
              made_up.audit(reidentification=made_up.section("fail", "Recognized."))],
)  # fmt: skip
def test_what_was_not_cleared_is_not_shared(tmp_path, audit):
    run = made_up.slices(tmp_path)
    if audit:
        made_up.put(run, audit=audit)
    assert shown(text_of(run))
    assert not shown(text_of(run, share=True))


# ------------------------------------------------------------------------------------------------- nothing is fetched


EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"' {{ 7*7 }}"


def test_all_text_is_escaped(tmp_path):
    run = full(tmp_path, utility=json.dumps(made_up.utility()).replace("da_fusion", "EVIL"))
    for name in ("datalist", "audit", "utility", "scores", "readers", "job"):
        path = run / f"{name}.json"
        text = path.read_text().replace("healthy", "EVIL").replace("No image is a copy", "EVIL")
        text = text.replace("judge of brain_mri", "EVIL").replace('"F"', '"EVIL"').replace("CC BY-NC", "EVIL")
        path.write_text(text.replace("EVIL", json.dumps(EVIL)[1:-1]))
    page = text_of(run, with_paths=True)
    tags = Tags(page)
    assert sum(name == "script" for name, _ in tags.tags) == 1
    assert all(v.startswith("data:image/png;base64,") for name, a in tags.tags for k, v in a.items() if k == "src")
    assert not [k for _, a in tags.tags for k in a if k.startswith("on")]
    assert "".join(tags.words).count("<script>alert(1)</script>") > 5  # it is there, as text
    assert "{{ 7*7 }}" in page


def test_the_policy_fits_the_page(tmp_path):
    """Only the style and the script that are in it may run; nothing may be fetched; no style stands in an attribute."""
    page = text_of(full(tmp_path))
    policy = next(a["content"] for name, a in Tags(page).tags if name == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    attributes = [(k, v) for _, a in Tags(page).tags for k, v in a.items()]
    assert not [k for k, _ in attributes if k == "style"]
    assert all(v.startswith("#") for k, v in attributes if k == "href")
    assert not re.search(r"""(?:src|href|url\(|@import)\W{0,3}(?:https?:)?//""", page)


# ------------------------------------------------------------------------------------------------------------- bounds


def test_it_stays_small(tmp_path):
    """Three hundred images of 500 pixels: samples, made smaller, numbered; the page says how many it shows."""
    run = made_up.slices(tmp_path, n=6)
    data = json.loads((run / "datalist.json").read_text())
    wide = np.random.default_rng(0).integers(0, 255, (500, 300), dtype=np.uint8)
    Image.fromarray(wide).save(run / "images/wide.png")
    data["training"] = [{**data["training"][i % 6], "image": "images/wide.png"} for i in range(300)]
    (run / "datalist.json").write_text(json.dumps(data))
    page = text_of(run)
    pictures = shown(page)
    assert len(pictures) <= 2 * 2 * PER_CLASS + 3 * EDITS
    assert max(max(p.shape[:2]) for p in pictures) == SIDE
    assert len(page) < 2e6
    assert f"{PER_CLASS} of 150" in page
    assert f"at most {SIDE} pixels a side" in page


def test_a_volume_comes_back_out_of_its_sheet():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (7, 5, 11)).astype(float)
    values[0, 0, :2] = 0, 255
    v = packed(Plane(values, (1.0, 1.0, 2.0)), (0.0, 255.0), "")
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(v.slices.split(",")[1]))))
    for z in range(11):
        r, c = divmod(z, v.columns)
        assert np.array_equal(sheet[r * 5 : r * 5 + 5, c * 7 : c * 7 + 7], values[:, :, z].T)
    assert v.size == (7, 5, 11)
    assert v.still_size == (7 + 7 + 5 + 4, 22)  # three planes and two gaps; slices are two voxels thick
    large = packed(Plane(np.zeros((2 * VOXELS, 10, 10)), (1.0, 1.0, 1.0)), (0.0, 1.0), "")
    assert large.size == (VOXELS, 10, 10)
    assert large.spacing == (2.0, 1.0, 1.0)


def test_an_outline_goes_around_the_mask():
    mask = np.zeros((20, 30))
    mask[5:9, 10:20] = 1
    picture = drawn(Plane(np.random.default_rng(0).random((20, 30))), (0, 1), "", Plane(mask))
    points = np.array([[float(v) for v in p.split(",")] for p in picture.outline.strip("MZ").split()])
    assert points.min(0) == pytest.approx([10, 5], abs=0.6)
    assert points.max(0) == pytest.approx([20, 9], abs=0.6)


# ------------------------------------------------------------------------------------------------- older and broken


def test_an_audit_of_an_earlier_version(tmp_path):
    run = made_up.slices(tmp_path)
    pairs = pairs_of(run, 8)
    found = [{**p, "scores": {}, "copy": i < 4, "rare": 0.01 * (i + 1)} for i, p in enumerate(pairs)]
    made_up.put(run, audit={"rate": 0.02, "extractor": "x", "images": 8, "copies": 4, "found": found})
    page = text_of(run)
    assert "Copies Failed" in said(page, "leak")
    assert "4 of 8 images" in said(page, "summary")
    assert "The audit did not look for: re-identification, membership, extraction and attributes." in said(page, "leak")
    assert page.count("It was made from this image.") == 8
    assert "looked for copies only" in said(page, "limits")


def test_pairs_of_other_images_are_not_called_sources(tmp_path):
    run = made_up.slices(tmp_path)
    pairs = pairs_of(run, 4)
    for p, other in zip(pairs, pairs[1:]):
        p["nearest"] = other["nearest"]
    made_up.put(run, audit=made_up.audit(pairs))
    assert text_of(run).count("It was made from this image.") == 1


def test_scores_of_an_earlier_version(tmp_path):
    scores = made_up.scores()
    for s in scores["scores"]:
        del s["within_floor"], s["good"]
    del scores["groups"]
    runs = (made_up.put(made_up.slices(tmp_path / n), scores=s) for n, s in (("a", made_up.scores()), ("b", scores)))
    new, old = map(text_of, runs)
    assert said(new, "real") == said(old, "real")


def test_a_picture_that_is_gone(tmp_path):
    run = made_up.slices(tmp_path)
    for path in sorted((run / "images").glob("*.png"))[:2]:
        path.unlink()
    (tmp_path / "real/images" / f"{SECRET}_3_06.png").write_bytes(b"no picture")
    assert "2 pictures that the datalist names could not be read" in said(text_of(run), "limits")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("datalist", None, "has no datalist.json: give the folder that `diffaug expand`"),
        ("datalist", "{", "datalist.json is not JSON"),
        ("datalist", '{"training": []}', "lists no image under 'training'"),
        ("datalist", '{"training": [{"label": 1}]}', "entry 1 has no 'image'"),
        ("scores", "{", "scores.json is not JSON .*: make it anew with `diffaug evaluate"),
        ("scores", "[]", "scores.json holds a list where an object should be"),
        ("scores", '{"scores": [{"name": "kid"}]}', "scores.json is not what its command writes"),
        ("utility", '{"results": 3}', "utility.json is not what .*`diffaug utility"),
        ("audit", '{"sections": []}', "audit.json is not what .*`diffaug audit"),
        ("readers", "{}", "readers.json is not what its command writes .no 'pooled'.*`diffaug review"),
    ],
)
def test_what_is_broken_is_named_in_one_line(tmp_path, name, text, line):
    run = full(tmp_path)
    path = run / f"{name}.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DiffAugError, match=line) as caught:
        report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_from_the_command_line(tmp_path):
    run = full(tmp_path)
    done = CliRunner().invoke(app, ["report", str(run), "--share", "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    assert "Copy for sharing." in (tmp_path / "r.html").read_text()
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    assert "For this hospital only." in (run / "report.html").read_text()
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code == 1


def test_numbers():
    assert [number(v) for v in (0.12345, 1234567, -0.5, float("nan"), None, 12.0, 1e-7)] == [
        "0.123", "1,234,567", "−0.500", "–", "–", "12.0", "1.00e−07",
    ]  # fmt: skip
    assert [brief(v) for v in (0.25, 1.0, 10, 0.000976)] == ["0.25", "1", "10", "0.00098"]
    assert [percent(v) for v in (0.5, 0.004, 1.0, None)] == ["50 %", "0.4 %", "100 %", "–"]
