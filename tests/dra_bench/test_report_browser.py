"""The page in a real browser: no error, no request, nothing beside the screen, light and dark, on paper."""

import base64

import numpy as np
import pytest
from PIL import Image

from dra_bench.report import more_sections, sections
from dra_bench.report.browser import chromium, installed_chromium
from dra_bench.report.build import page_from_run
from dra_bench.report.changed import changed_pictures
from dra_bench.report.page import Plot
from dra_bench.report.render import render_html
from dra_bench.report.run_folder import read_run
from dra_bench.shown import answer, choose
from dra_train.data import load_cirr

SIZES = (390, 1280)  #: a phone's width and a screen's
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser():
    path = installed_chromium()
    if path is None:
        pytest.skip("no chromium, chromium-browser or google-chrome, and none of Playwright's own")
    with chromium(path) as started:
        yield started


def written_page(run, squares, folder):
    data = load_cirr(squares, "val")
    shown = answer(choose(data.queries, 4, 0), data, lambda query: sorted(data.images))
    found = read_run(run)
    page = page_from_run(found, shown, "the rule", "0.1.0", changed_pictures(found.recall["splits"], [data]))
    path = folder / "report.html"
    path.write_text(render_html(page), encoding="utf-8")
    return path


def opened(browser, path, width, scheme):
    """Open a page; returns it, and whatever went wrong and was asked for meanwhile."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    wrong, asked = [], []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url[:80]}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    return page, wrong, [url for url in asked if not url.startswith("data:")]


def assert_page_is_whole(browser, path, width, scheme):
    page, wrong, asked = opened(browser, path, width, scheme)
    assert wrong == []
    assert asked == [path.as_uri()]
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    across = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert across[0] == across[1] == width
    # Whatever is wider than its place must stand in a box that scrolls.
    outside = """(width) => [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll'))
        .filter(e => { const box = e.getBoundingClientRect(); return box.right > width + 1 || box.left < -1; })
        .map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(outside, width) == []
    broken = "[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.alt)"
    assert page.evaluate(broken) == []
    luminance = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    assert (page.evaluate(luminance) > 382) == (scheme == "light")
    return page


def test_the_page_opens_on_a_phone_without_any_request(browser, full_run, squares, tmp_path, monkeypatch):
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 420 290'/>"
    nothing = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    for module in (sections, more_sections):  # drawing them takes longer than all else; the slow test does
        monkeypatch.setattr(module, "both_schemes", lambda draw, names, alt: Plot(nothing, nothing, alt))
    assert_page_is_whole(browser, written_page(full_run, squares, tmp_path), 390, "dark").close()


@pytest.mark.slow
def test_the_page_with_its_plots_is_whole_everywhere(browser, full_run, squares, tmp_path):
    path = written_page(full_run, squares, tmp_path)
    for width in SIZES:
        for scheme in SCHEMES:
            assert_page_is_whole(browser, path, width, scheme).close()


@pytest.mark.slow
def test_the_page_can_be_seen_and_printed(browser, full_run, squares, tmp_path):
    path = written_page(full_run, squares, tmp_path)
    pictures = []
    for scheme in SCHEMES:
        page = assert_page_is_whole(browser, path, 1280, scheme)
        page.screenshot(path=tmp_path / f"{scheme}.png")
        pictures.append(np.asarray(Image.open(tmp_path / f"{scheme}.png").convert("L"), dtype=np.float64))
    assert pictures[0].mean() > 180
    assert pictures[1].mean() < 75
    assert min(picture.std() for picture in pictures) > 10  # there is something on it
    pdf = page.pdf(format="A4")  # printed from the dark page
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 12
