"""The report in a real Chromium: it fetches nothing, its sliders go by keys, it is legible and prints."""

import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from monai_diffaug.report.html import report

from . import made_up
from .test_html import full

CHROMIUM = "/usr/bin/chromium"

CONTRAST = """() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parts(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3]) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll("main *, header *")) {
    if (e.closest("svg") || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const a = light(parts(getComputedStyle(e).color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push([e.tagName, e.textContent.trim().slice(0, 40), ratio]);
  }
  return poor;
}"""


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        if os.environ.get("DIFFAUG_REQUIRE_BROWSER"):
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        opened = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return report(full(tmp_path_factory.mktemp("slices")))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return report(made_up.volumes(tmp_path_factory.mktemp("volumes")))


def shown(browser, path, **how):
    """A page, what it asked for, and what went wrong in it."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, **how)
    asked, wrong = [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: wrong.append(m.text))
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.goto(path.as_uri())
    return page, asked, wrong


@pytest.fixture
def listener():
    """A server on this machine that notes what is asked of it."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}", heard
        web.shutdown()


def test_it_fetches_nothing_and_is_whole(browser, slices):
    page, asked, wrong = shown(browser, slices)
    assert [u for u in asked if not u.startswith("data:")] == [slices.as_uri()]
    assert not wrong
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.evaluate("document.images.length") > 20
    assert page.evaluate("getComputedStyle(document.querySelector('.cards')).display") == "grid"  # the style may act
    page.close()


@pytest.mark.parametrize("policy", [True, False])
def test_its_policy_forbids_what_is_smuggled_in(browser, slices, tmp_path, listener, policy):
    """An image, a script and a style sheet put in by hand: not asked for. Without the policy they are."""
    url, heard = listener
    evil = f"<img src='{url}/image'><link rel=stylesheet href='{url}/style'><script src='{url}/script'></script>"
    evil += f"<script>fetch('{url}/fetch')</script></body>"
    text = slices.read_text().replace("</body>", evil)
    if not policy:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (tmp_path / "page.html").write_text(text)
    page, _, _ = shown(browser, tmp_path / "page.html")
    page.wait_for_timeout(300)
    page.close()
    assert sorted(heard) == ([] if policy else ["/fetch", "/image", "/script", "/style"])


def canvas(page, figure, plane):
    """Gray values of one plane, row by row."""
    code = """([f, p]) => { const c = document.querySelectorAll(".volume")[f].querySelectorAll("canvas")[p];
      const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data, rows = [];
      for (let r = 0; r < c.height; r++) rows.push([...Array(c.width)].map((_, i) => d[4 * (r * c.width + i)]));
      return rows; }"""
    return page.evaluate(code, [figure, plane])


def test_sliders_move_real_and_synthetic_by_keys(browser, volumes):
    """Every voxel says where it is: 2x + 3y + 9z, and 7 more if it is synthetic."""
    page, asked, wrong = shown(browser, volumes)
    page.wait_for_selector("[data-ready=yes] >> nth=1")
    assert not wrong
    assert [u for u in asked if not u.startswith("data:")] == [volumes.as_uri()]
    x, y, z = np.mgrid[:24, :30, :12]
    top = np.quantile(2 * x + 3 * y + 9 * z, 0.999)  # where the window ends

    def gray(x, y, z, made=0):
        return min(255, 255 * (2 * x + 3 * y + 9 * z + made) / top)

    def planes(x, y, z):
        for figure, made in ((0, 0), (1, 7)):
            axial, coronal, sagittal = (canvas(page, figure, p) for p in range(3))
            assert axial[4][10] == pytest.approx(gray(10, 4, z, made), abs=2.5)
            assert coronal[0][10] == pytest.approx(gray(10, y, 11, made), abs=2.5)  # the top is above
            assert sagittal[11][5] == pytest.approx(gray(x, 5, 0, made), abs=2.5)

    planes(12, 15, 6)
    first = page.locator(".sliders input").first
    first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    planes(0, 14, 8)
    assert first.get_attribute("aria-valuetext") == "Axial slice 9 of 12"
    assert page.locator(".sliders label").first.inner_text() == "Axial slice 9 of 12"
    box = page.locator(".volume canvas").nth(1).bounding_box()
    assert box["width"] / box["height"] == pytest.approx(24 / (12 * 3), rel=0.03)  # true proportions
    page.close()


def test_without_a_script_there_are_stills(browser, volumes):
    page, _, _ = shown(browser, volumes, java_script_enabled=False)
    assert page.locator(".still").first.is_visible()
    page.close()


def test_outlines_come_off(browser, slices):
    page, _, _ = shown(browser, slices)
    edge = page.locator(".outline").first
    assert edge.is_visible()
    page.locator("#outlines").focus()
    page.keyboard.press("Space")
    assert not edge.is_visible()
    page.close()


@pytest.mark.parametrize("width", [1280, 800, 390])
def test_it_fits_the_window(browser, slices, width):
    page, _, _ = shown(browser, slices)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = """[...document.querySelectorAll("h1,h2,h3,p,figcaption,dd,li")].filter(e => e.offsetParent &&
             e.getBoundingClientRect().right > innerWidth + 1).map(e => e.textContent.slice(0, 40))"""
    assert page.evaluate(cut) == []
    page.close()


def test_no_label_leaves_its_plot(browser, slices):
    page, _, _ = shown(browser, slices)
    cut = """[...document.querySelectorAll("svg.plot text, svg.key text")].filter(t => {
      const b = t.getBBox(), v = t.ownerSVGElement.viewBox.baseVal;
      return b.x < -0.5 || b.x + b.width > v.width + 0.5 || b.y < -0.5 || b.y + b.height > v.height + 2.5;
    }).map(t => t.textContent)"""
    assert page.evaluate("document.querySelectorAll('svg.plot text').length") > 50
    assert page.evaluate(cut) == []
    page.close()


def test_text_is_legible(browser, slices):
    page, _, _ = shown(browser, slices)
    assert page.evaluate(CONTRAST) == []
    page.close()


def test_it_prints(browser, slices, tmp_path):
    """No controls on paper, no wider than a page, and a PDF of a few pages."""
    page, _, _ = shown(browser, slices)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 690, "height": 900})  # A4 less its margins
    for gone in ("nav", ".control", ".more"):
        assert not page.locator(gone).first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    wide = "[...document.querySelectorAll('table')].filter(t => t.scrollWidth > t.parentElement.clientWidth + 1).length"
    assert page.evaluate(wide) == 0
    pdf = page.pdf(format="A4", prefer_css_page_size=True)
    (tmp_path / "report.pdf").write_bytes(pdf)
    assert pdf.startswith(b"%PDF")
    assert 5 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 14
    page.close()
