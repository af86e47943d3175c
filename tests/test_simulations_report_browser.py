"""The report in a real browser: six tasks of all kinds, fifty clients, laptop and phone."""

import base64
import csv
import io
import shutil
import time
from pathlib import Path

import pytest

from simulations.benchmarks.browser import find_browser, open_browser
from simulations.benchmarks.six_tasks import make_six_tasks
from simulations.evaluation.evaluate import evaluate
from simulations.evaluation.files import write_evaluation
from simulations.figure_files import sheet_of
from simulations.report import collect_figures, write_report
from simulations.simulate import simulate

PROGRAM = find_browser()
SCHEMES, WIDTHS = ("light", "dark"), (1280, 390)
SHOWN = """[...document.querySelectorAll('.chart')].every((chart) =>
    chart.querySelector('.main-svg') || !chart.checkVisibility())"""
# Chromium stops a page that downloads dozens of files: here they are kept in the page.
KEEP = """window.saved = {}; HTMLAnchorElement.prototype.click = async function () {
    const name = this.download, reader = new FileReader();
    reader.onload = () => { saved[name] = reader.result; };
    reader.readAsDataURL(await (await fetch(this.href)).blob());
}"""
SCROLL = """(async () => { for (let y = 0; y < document.body.scrollHeight; y += 600) {
    scrollTo(0, y); await new Promise((done) => setTimeout(done, 30)); } })()"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome on the path"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("six")
    simulate(make_six_tasks(folder, rounds=2), engine="loopback", out=folder / "run")
    write_evaluation(evaluate(folder / "run"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def page(run):
    return write_report(run)


@pytest.fixture
def browser():
    with open_browser(PROGRAM) as browser:
        yield browser


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_drawn_and_nobody_complains(browser, page, width, scheme):
    browser.look(width, 800, scheme, phone=width < 500)
    browser.open(page)
    browser.run(SCROLL)
    browser.until(SHOWN)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    browser.run(SCROLL)
    browser.until(SHOWN)
    count = browser.run("document.querySelectorAll('.chart .main-svg').length")
    assert count >= 50
    assert browser.complaints() == []
    assert browser.run("document.scrollingElement.scrollWidth") <= width


def test_a_complaint_would_be_heard(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<link rel='icon' href='data:,'><script>console.error('so'); nobody()</script>")
    browser.open(page)
    said = " ".join(browser.complaints())
    assert "so" in said
    assert "nobody is not defined" in said


def test_on_a_phone_parts_start_closed_but_for_the_first_of_a_section(browser, page):
    browser.look(390, 800, phone=True)
    browser.open(page)
    opened = "[...document.querySelectorAll('details.part')].map((part) => part.open)"
    assert browser.run(opened) == [True, *[False] * 5] * 2
    browser.look(1280, 800)
    browser.open(page)
    assert browser.run(opened) == [True] * 12


def test_figures_follow_the_readers_theme(browser, page):
    browser.look(1280, 800, "light")
    browser.open(page)
    browser.until("document.querySelector('.chart .main-svg text') !== null")
    ink = "getComputedStyle(document.querySelector('.chart .ytick text')).fill"
    assert browser.run(ink) == "rgb(27, 31, 36)"
    browser.look(1280, 800, "dark")
    browser.until(f"{ink} === 'rgb(231, 234, 238)'")


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_can_be_saved(browser, run, page, width):
    figures = collect_figures(run)
    browser.look(width, 800, "dark", phone=width < 500)
    browser.open(page)
    browser.run(KEEP)
    browser.run("document.querySelectorAll('[data-save]').forEach((button) => button.click())")
    browser.until(f"Object.keys(saved).length === {3 * len(figures)}")
    saved = browser.run("saved")
    for name, chart in figures.items():
        assert saved[f"{name}.svg"].startswith("data:image/svg+xml")
        assert saved[f"{name}.png"].startswith("data:image/png")
        assert rows_of(content_of(saved[f"{name}.csv"])) == plain(sheet_of(chart))
    shown = content_of(saved["ink-validation-r2.svg"])
    assert "ink: Validation r2" in shown
    assert "rgb(231, 234, 238)" not in shown  # on white, whatever the reader's theme
    assert browser.complaints() == []


@pytest.mark.parametrize("form", ["svg", "png", "csv"])
def test_a_figure_lands_among_the_downloads(browser, page, tmp_path, form):
    browser.look(390, 800, phone=True)
    browser.open(page)
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.run(f"document.querySelector('[data-save={form}]').click()")
    end = time.monotonic() + 60
    while not [path for path in tmp_path.iterdir() if path.suffix == f".{form}"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def content_of(url):
    return base64.b64decode(url.partition(",")[2]).decode()


def rows_of(text):
    return plain(csv.reader(io.StringIO(text, newline="")))


def plain(rows):
    """Numbers as numbers, however they are written; nothing as an empty text."""
    return [[number(cell) for cell in row] for row in rows]


def number(cell):
    try:
        return pytest.approx(float(cell), rel=1e-9)
    except (TypeError, ValueError):
        return "" if cell is None else str(cell)


def test_an_evaluation_page_opens_without_complaint(browser, run, tmp_path):
    page = shutil.copy(run / "evaluation.html", tmp_path)
    browser.look(390, 800, phone=True)
    browser.open(Path(page))
    browser.run(SCROLL)
    browser.until(SHOWN)
    assert browser.complaints() == []
    assert browser.run("document.scrollingElement.scrollWidth") <= 390
