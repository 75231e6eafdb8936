"""The reader study: what a browser gets tells nothing, no mark is lost, and the analysis knows simulated readers."""

import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from sklearn.model_selection import cross_val_predict

from monai_diffaug.cli import app
from monai_diffaug.evaluation import Pictures
from monai_diffaug.metrics.proportion import wilson
from monai_diffaug.report import reading
from monai_diffaug.report.reading.agreement import components, fleiss, kappa
from monai_diffaug.report.reading.analysis import _detection, equivalent
from monai_diffaug.report.reading.server import server
from monai_diffaug.types import DiffAugError

CHROMIUM = "/usr/bin/chromium"


def stack(n, smooth, seed=0, size=32):
    x = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    if smooth:  # would make far smaller files if they were compressed
        x = torch.nn.functional.avg_pool2d(x, 9, 1, 4)
    where = tuple(Path(f"{'made' if smooth else 'scan'}/{i}.png") for i in range(n))
    return Pictures(x, None, ("",) * n, tuple(map(str, range(n))), where, (None,) * n)


def study(folder, n=20, **how):
    return reading.create(folder / "study.sqlite", stack(n, False), stack(n, True, 1), n=n, side=64, **how)


def read_by(of, name, judge):
    """A simulated reader: ``judge(synthetic, question) -> mark``."""
    with sqlite3.connect(of.path) as c:
        kinds = dict(c.execute("SELECT token, synthetic FROM pictures"))
    for shown in of.showings(name):
        for question in of.questions:
            of.answer(name, shown.position, question.key, judge(kinds[shown.token], question.key), 2.0)


# ------------------------------------------------------------------------------------------------------------ blinding


def test_metadata_tells_nothing(tmp_path):
    """Everything but the pixels that a reader's browser gets: a classifier on it must be at chance, 0.5 ± 0.05."""
    found = []
    for k in range(12):  # one study's AUROC has a standard error of 0.05
        made = reading.create(tmp_path / f"{k}.sqlite", stack(60, False), stack(60, True, 1), n=60, side=32, seed=k)
        x, y = told_by_metadata(made)
        assert len(set(x[:, 0])) == 1, "sizes differ"
        forest = RandomForestClassifier(20, random_state=k)
        found.append(roc_auc_score(y, cross_val_predict(forest, x, y, cv=5, method="predict_proba")[:, 1]))
    assert abs(float(np.mean(found)) - 0.5) < 0.05, found


def told_by_metadata(made):
    with sqlite3.connect(made.path) as c:
        kinds = dict(c.execute("SELECT token, synthetic FROM pictures"))
    rows, truth, seen = [], [], set()
    for shown in made.showings("anna"):
        if shown.token in seen:  # a repeat, which would be learned by heart
            continue
        seen.add(shown.token)
        png = made.picture(shown.token)
        picture = Image.open(io.BytesIO(png))
        assert picture.mode == "L"
        assert not picture.info
        digits = [int(shown.token[i : i + 4], 16) for i in range(0, 24, 4)]
        rows.append([len(png), *picture.size, shown.position, shown.position % 2, shown.position % 8, *digits])
        truth.append(kinds[shown.token])
    return np.array(rows), np.array(truth)


def test_with_compression_the_size_alone_would_tell():
    """The control of the test above."""
    sizes = []
    for x in (*stack(10, False).images, *stack(10, True, 1).images):
        out = io.BytesIO()
        Image.fromarray(((x[0] + 1) * 127.5).numpy().astype(np.uint8)).save(out, "PNG")
        sizes.append(len(out.getvalue()))
    assert max(sizes[10:]) < min(sizes[:10])


def test_orders_are_the_readers_own_balanced_and_with_late_repeats(tmp_path):
    made = study(tmp_path, 40, repeats=0.2)
    orders = {name: [s.token for s in made.showings(name)] for name in ("anna", "bert")}
    assert orders["anna"] != orders["bert"]
    assert orders["anna"] == [s.token for s in made.showings("anna")]
    with sqlite3.connect(made.path) as c:
        kinds = dict(c.execute("SELECT token, synthetic FROM pictures"))
        again = dict(c.execute("SELECT position, again FROM showings WHERE reader = 'anna'"))
    firsts = [t for i, t in enumerate(orders["anna"]) if not again[i]]
    assert len(firsts) == len(set(firsts)) == 80
    assert all(sum(kinds[t] for t in firsts[i : i + 8]) == 4 for i in range(0, 80, 8))
    assert sum(again.values()) == 16
    for i, token in enumerate(orders["anna"]):
        if again[i]:
            assert i - orders["anna"].index(token) >= 80 // 3


# ------------------------------------------------------------------------------------------------------------- answers


def test_an_answer_outlives_a_kill(tmp_path):
    """A process that is killed right after the answer was confirmed: it is in the file, whole."""
    made = study(tmp_path)
    made.enroll("anna")
    code = (
        "import os, signal, sys; from monai_diffaug.report.reading.study import Study\n"
        "Study(sys.argv[1]).answer('anna', 3, 'origin', 4); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made.path)], check=False)
    assert done.returncode == -9
    assert reading.open_study(made.path).showings("anna")[3].answers == {"origin": 4}


def test_wrong_answers_are_refused(tmp_path):
    made = study(tmp_path)
    made.enroll("anna")
    for bad in (
        ("anna", 0, "nonesuch", 3),
        ("anna", 0, "origin", 6),
        ("anna", 999, "origin", 3),
        ("eve", 0, "origin", 3),
    ):
        with pytest.raises(DiffAugError):
            made.answer(*bad)
    assert not made.table()


def test_studies_that_cannot_be(tmp_path):
    study(tmp_path)
    with pytest.raises(DiffAugError, match="exists"):
        study(tmp_path)
    with pytest.raises(DiffAugError, match="at least 4"):
        reading.create(tmp_path / "few.sqlite", stack(3, False), stack(9, True))
    with pytest.raises(DiffAugError, match="differ in size"):
        reading.create(tmp_path / "unlike.sqlite", stack(9, False), stack(9, True, size=48))
    (tmp_path / "text").write_text("no database")
    for name in ("none", "text"):
        with pytest.raises(DiffAugError, match="no study"):
            reading.open_study(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------ analysis


def test_readers_who_see_everything_and_nothing(tmp_path):
    made = study(tmp_path, 40)
    rng = np.random.default_rng(0)
    read_by(made, "sees", lambda synthetic, _: 5 if synthetic else 1)
    read_by(made, "guesses", lambda *_: int(rng.integers(1, 6)))
    found = reading.analyze(made)
    sees, guesses = found["readers"]["sees"], found["readers"]["guesses"]
    assert sees["auroc"]["value"] == sees["accuracy"]["value"] == sees["sensitivity"]["value"] == 1.0
    assert guesses["auroc"]["interval"][0] < 0.5 < guesses["auroc"]["interval"][1]
    assert not sees["not_told_apart"]
    assert not guesses["not_told_apart"]  # 64 decisions are too few to show it
    assert found["agreement"]["origin"]["intra_reader"]["n"] == 16
    assert -0.5 < found["agreement"]["origin"]["cohen"]["guesses / sees"] < 0.5


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.5, True), (0.6, False), (0.9, False)])
def test_equivalence_is_found_where_it_is_and_only_there(accuracy, verdict):
    """Simulated readers of 400 pictures; at 0.6, the margin itself, the verdict must not be given either."""
    rng = np.random.default_rng(0)
    right = [equivalent(int(h), 400) == verdict for h in rng.binomial(400, accuracy, 2000)]
    assert np.mean(right) >= 0.95
    told = 0
    for seed in range(8):  # the whole analysis comes to the same, from answers
        rows = simulated(accuracy, 400, seed)
        found = _detection(rows, seed)
        hits = sum((r["value"] == 5) == bool(r["synthetic"]) for r in rows)
        assert found["accuracy"]["value"] == hits / 400
        assert not found["not_told_apart"] or equivalent(hits, 400)
        told += found["not_told_apart"]
    assert told >= 7 if verdict else told <= 2


def simulated(accuracy, n, seed, readers=1):
    rng = np.random.default_rng(seed)
    return [
        {"reader": f"r{k}", "synthetic": i % 2, "token": str(i), "seconds": 1.0,
         "value": 5 if (rng.random() < accuracy) == bool(i % 2) else 1}
        for k in range(readers) for i in range(n)
    ]  # fmt: skip


def test_readers_who_all_say_the_same_are_one_reader():
    """Ten readers with the same marks on 60 pictures are no 600 decisions."""
    once = simulated(0.5, 60, 3)
    assert not _detection(once, 0)["not_told_apart"]
    assert not _detection([{**r, "reader": f"r{k}"} for k in range(10) for r in once], 0)["not_told_apart"]
    assert _detection(simulated(0.5, 600, 3), 0)["not_told_apart"]


def test_an_interval_of_three_readers_is_of_readers_too():
    """Readers who differ: another three might do better, so that the interval is wider than over pictures alone."""
    rows = [r | {"reader": f"r{k}"} for k, a in enumerate((0.5, 0.7, 0.95)) for r in simulated(a, 80, k)]
    of = _detection(rows, 0)["auroc"]["interval"]
    few = _detection([{**r, "reader": "r0" if r["reader"] == "r0" else "r1"} for r in rows], 0)["auroc"]["interval"]
    assert of[1] - of[0] > 1.5 * (few[1] - few[0])


def test_d_prime_is_that_of_known_rates():
    rows = [
        r | {"value": 5 if (i % 100 < 84) == bool(r["synthetic"]) else 1} for i, r in enumerate(simulated(1, 400, 0))
    ]
    assert _detection(rows, 0)["d_prime"] == pytest.approx(
        2.0, abs=0.05
    )  # hits 0.84, false alarms 0.16: one on each side
    assert np.isfinite(_detection(simulated(1.0, 20, 0), 0)["d_prime"])


def test_variances_of_readers_and_pictures_are_recovered():
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        readers, pictures = rng.normal(0, 1.0, (12, 1)), rng.normal(0, 1.5, (1, 60))
        found.append(components(3 + readers + pictures + rng.normal(0, 0.8, (12, 60))))
    for name, truth in (("reader", 1.0), ("picture", 2.25), ("residual", 0.64)):
        assert np.mean([f[name] for f in found]) == pytest.approx(truth, rel=0.2), name
    six = [
        [9, 6, 8, 7, 10, 6],
        [2, 1, 4, 1, 5, 2],
        [5, 3, 6, 2, 6, 4],
        [8, 2, 8, 6, 9, 7],
    ]  # Shrout and Fleiss, table 2
    assert components(six)["icc"] == pytest.approx(0.29, abs=0.005)
    with pytest.raises(DiffAugError, match="two or more"):
        components([[1, 2, 3]])


def test_marks_agreement_and_known_kappas(tmp_path):
    made = study(tmp_path, 10, repeats=0.5, marks=["the lesion can be measured"])
    read_by(made, "a", lambda s, q: 3 + s if q == "realism" else 1 + s)
    read_by(made, "b", lambda s, q: 3 + s if q == "realism" else 1 + s)
    found = reading.analyze(made)
    assert found["marks"]["realism"]["synthetic"]["mean"] == 4.0
    assert found["marks"]["task_1"]["real"]["mean"] == 1.0
    assert found["agreement"]["realism"]["fleiss"]["kappa"] == pytest.approx(1.0)
    assert found["agreement"]["realism"]["variance"]["icc"] == 1.0
    assert found["agreement"]["realism"]["intra_reader"]["kappa"] == 1.0
    table = "0000E 02642 00356 03920 22811 77000 32630 25322 65210 02237"  # the example of Fleiss 1971
    known = fleiss([[int(c, 16) for c in row] for row in table.split()])
    assert known["kappa"] == pytest.approx(0.210, abs=1e-3)
    assert known["interval"][0] < 0.210 < known["interval"][1]
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)


def test_kappa_is_scikit_learn_s_and_its_interval_holds_the_truth():
    truths = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a = rng.integers(1, 6, 80)
        b = np.clip(a + rng.integers(-1, 2, 80), 1, 5)
        ours = kappa(list(zip(a.tolist(), b.tolist(), strict=True)), seed)
        assert ours["kappa"] == pytest.approx(cohen_kappa_score(a, b, weights="quadratic", labels=[1, 2, 3, 4, 5]))
        truths.append(ours)
    middle = np.mean([t["kappa"] for t in truths])
    assert np.mean([t["interval"][0] < middle < t["interval"][1] for t in truths]) > 0.85
    assert kappa([(3, 3)] * 4)["kappa"] == 1.0
    assert kappa([(3, 3)])["kappa"] is None


def kinds_of(of, columns="token, synthetic, caption, planted, kind"):
    with sqlite3.connect(of.path) as c:
        return c.execute(f"SELECT {columns} FROM pictures").fetchall()


def with_captions(folder, share=0.2, n=40):
    sides = []
    for smooth, of in ((False, ("lung", "heart")), (True, ("heart", "lung", "heart"))):
        base = stack(90, smooth, int(smooth))
        sides.append(replace(base, kinds=tuple(of[i % len(of)] for i in range(90))))
    return reading.create(folder / "c.sqlite", *sides, n=n, side=64, captions=True, planted=share)


def test_captions_tell_nothing_and_wrong_ones_are_planted_on_real_pictures(tmp_path):
    made = with_captions(tmp_path)
    rows = kinds_of(made)
    for caption in ("lung", "heart"):
        counts = [sum(r[2] == caption and r[1] == kind for r in rows) for kind in (0, 1)]
        assert counts[0] == counts[1] == 20
    wrong = [r for r in rows if r[3]]
    assert len(wrong) == 8
    assert all(r[1] == 0 and r[2] != r[4] for r in wrong)
    assert all(r[2] == r[4] for r in rows if not r[3])
    with pytest.raises(DiffAugError, match="two classes"):
        reading.create(tmp_path / "no.sqlite", stack(8, False), stack(8, True), captions=True)
    assert {s.caption for s in study(tmp_path, 8).showings("anna")} == {""}


def test_a_reader_who_reads_captions_catches_wrong_ones_and_one_who_does_not_does_not(tmp_path):
    made = with_captions(tmp_path, 0.6, 40)
    with sqlite3.connect(made.path) as c:
        planted = dict(c.execute("SELECT token, planted FROM pictures"))
    rng = np.random.default_rng(0)
    for name, sees in (("reads", 0.9), ("skips", 0.0)):
        for shown in made.showings(name):
            caught = planted[shown.token] and rng.random() < sees
            for q in made.questions:
                made.answer(name, shown.position, q.key, 1 if q.key == "semantic" and caught else 5)
    said = made.table()
    one = [r for r in said if r["reader"] == "reads"]
    from monai_diffaug.report.reading.analysis import _captions

    assert _captions(one)["sensitivity"]["value"] >= 0.8
    assert _captions(one)["specificity"]["value"] == 1.0
    assert _captions([r for r in said if r["reader"] == "skips"])["sensitivity"]["value"] == 0.0
    found = reading.analyze(made)
    assert 0.3 < found["captions"]["sensitivity"]["value"] < 0.6
    assert found["marks"]["semantic"]["real"]["mean"] == 5.0, "planted pictures do not count against real ones"


def test_the_command_writes_the_readers_file(tmp_path, capsys):
    made = study(tmp_path, 8)
    read_by(made, "a", lambda s, q: 3)
    out = tmp_path / "readers.json"
    app(["review", str(made.path), "--analyze", "--json", "--out", str(out)], standalone_mode=False)
    assert json.loads(out.read_text()) == json.loads(capsys.readouterr().out)
    assert {"readers", "pooled", "marks", "agreement", "captions", "seconds"} <= set(json.loads(out.read_text()))


def test_the_area_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 50)
    marks = np.clip(rng.integers(1, 6, 50) + truth, 1, 5)
    rows = [
        {"reader": "a", "synthetic": int(t), "value": int(m), "token": str(i)}
        for i, (t, m) in enumerate(zip(truth, marks, strict=True))
    ]
    found = _detection(rows, 0)["auroc"]
    assert found["value"] == pytest.approx(roc_auc_score(truth, marks), abs=1e-9)
    assert found["interval"][0] < found["value"] < found["interval"][1]


def test_nothing_to_analyze(tmp_path):
    with pytest.raises(DiffAugError, match="no answers"):
        reading.analyze(study(tmp_path))


# -------------------------------------------------------------------------------------------------------------- server


@pytest.fixture
def running(tmp_path):
    made = study(tmp_path, 4, repeats=0.0)
    with server(made) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield made, f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()
        thread.join()


def get(url, **headers):
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10)


def test_it_answers_this_machine_only(running):
    _, url = running
    assert running[0].title in get(url + "/study").read().decode()
    assert url.startswith("http://127.0.0.1")
    token = json.load(get(url + "/showings?reader=x"))[0]["token"]
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        for path in ("/study", "/showings?reader=x", f"/picture/{token}"):
            with pytest.raises(urllib.error.HTTPError):
                get(url + path, **headers)
    with pytest.raises(urllib.error.HTTPError):
        get(url + "/picture/../../etc/passwd")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(url + "/answer", data=b"{}", timeout=10)


def test_from_keyboard_to_result_in_a_browser(running, tmp_path):
    """A real Chromium: named, marked by keys alone, reloaded in the middle, server restarted, analyzed."""
    if not Path(CHROMIUM).exists():
        if os.environ.get("DIFFAUG_REQUIRE_BROWSER"):
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    from playwright.sync_api import expect, sync_playwright

    made, url = running
    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        problems = []
        count, pressed = page.locator("#count"), page.locator("[aria-pressed=true]")
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.goto(url)
        page.keyboard.type("anna")
        page.keyboard.press("Enter")
        page.wait_for_selector("#marks fieldset")
        assert page.inner_text("#count") == "1 of 8"
        page.keyboard.press("Enter")
        page.wait_for_selector("#alert:not([hidden])")
        assert "6 questions" in page.inner_text("#alert")

        def mark_all(first=0):
            for i, key in enumerate("213455"[first:], first + 1):
                page.keyboard.press(key)
                expect(pressed).to_have_count(i)

        mark_all()
        page.screenshot(path=str(tmp_path / "page.png"))
        page.keyboard.press("Enter")
        expect(count).to_have_text("2 of 8")
        page.keyboard.press("4")
        expect(pressed).to_have_count(1)
        page.reload()  # in the middle of the second picture
        expect(count).to_have_text("2 of 8")
        assert page.locator("[aria-pressed=true]").count() == 1
        for i in range(1, 8):
            mark_all(first=int(i == 1))
            page.keyboard.press("Enter")
            if i < 7:
                expect(count).to_have_text(f"{i + 2} of 8")
        page.wait_for_selector("#end:not([hidden])")
        assert not problems
        browser.close()
    rows = made.table()
    assert len(rows) == 8 * 6
    assert {r["value"] for r in rows if r["question"] == "origin"} == {2, 4}
    assert reading.analyze(made)["marks"]["context"]["real"]["mean"] == 5.0
