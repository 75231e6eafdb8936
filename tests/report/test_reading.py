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
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from sklearn.model_selection import cross_val_predict

from monai_diffaug.evaluation import Pictures
from monai_diffaug.report import reading
from monai_diffaug.report.reading.analysis import fleiss, wilson
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
    """Everything but the pixels that a reader's browser gets: a classifier on it must be at chance."""
    made = study(tmp_path, 60)
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
    x, y = np.array(rows), np.array(truth)
    assert len(set(x[:, 0])) == 1, "sizes differ"
    found = []
    for seed in range(3):
        forest = RandomForestClassifier(50, random_state=seed)
        said = cross_val_predict(forest, x, y, cv=5, method="predict_proba")[:, 1]
        found.append(roc_auc_score(y, said))
    assert abs(float(np.mean(found)) - 0.5) < 0.15, found  # standard error of one at n = 120: 0.053


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


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.5, True), (0.65, False), (0.9, False)])
def test_equivalence_is_found_where_it_is_and_only_there(accuracy, verdict):
    """600 decisions of a simulated reader; the verdict must be right in 95 % of the simulations."""
    from monai_diffaug.report.reading.analysis import _detection

    right = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = [
            {"synthetic": i % 2, "value": 5 if (rng.random() < accuracy) == bool(i % 2) else 1, "token": str(i)}
            for i in range(600)
        ]
        right += _detection(rows, seed)["not_told_apart"] == verdict
    assert right >= 19  # 95 %


def test_marks_agreement_and_known_kappas(tmp_path):
    made = study(tmp_path, 10, repeats=0.5, marks=["the lesion can be measured"])
    read_by(made, "a", lambda s, q: 3 + s if q == "realism" else 1 + s)
    read_by(made, "b", lambda s, q: 3 + s if q == "realism" else 1 + s)
    found = reading.analyze(made)
    assert found["marks"]["realism"]["synthetic"]["mean"] == 4.0
    assert found["marks"]["task_1"]["real"]["mean"] == 1.0
    assert found["agreement"]["realism"]["fleiss"]["kappa"] == pytest.approx(1.0)
    assert found["agreement"]["realism"]["intra_reader"]["kappa"] == 1.0
    table = "0000E 02642 00356 03920 22811 77000 32630 25322 65210 02237"  # the example of Fleiss 1971
    assert fleiss([[int(c, 16) for c in row] for row in table.split()]) == pytest.approx(0.210, abs=1e-3)
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert cohen_kappa_score([1, 5], [1, 5], weights="quadratic") == 1.0


def test_the_area_is_scikit_learn_s():
    from monai_diffaug.report.reading.analysis import _auroc

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 50)
    marks = np.clip(rng.integers(1, 6, 50) + truth, 1, 5)
    found = _auroc(truth, marks, np.array([str(i) for i in range(50)]), 0)
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
