"""The report in a real browser: Chromium opens it from its folder, as a person does."""

import shutil
from pathlib import Path

import pytest
from small_report import HOSTILE, small_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return small_report(tmp_path_factory.mktemp("report"), images=60)


@pytest.fixture(params=["light", "dark"])
def page(browser, report, request):
    """The open report. At the end: no message of an error, and no request that left the folder."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=request.param)
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda failed: problems.append(f"failed: {failed.url}"))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    folder = report.parent.as_uri()
    page.on(
        "request", lambda sent: None if sent.url.startswith((folder, "data:", "blob:")) else problems.append(sent.url)
    )
    page.goto(report.as_uri())
    yield page
    page.close()
    assert problems == []


def accessible(page):
    from axe_playwright_python.sync_playwright import Axe

    # Without preload: axe would read the style sheets again, which a browser refuses from a folder.
    found = Axe().run(page, options={"preload": False})
    assert found.violations_count == 0, found.generate_report()


def first_cells(page, table, column):
    return page.locator(f"#{table} tbody tr > :nth-child({column})").all_inner_texts()


def test_a_table_is_sorted_and_filtered(page):
    values = first_cells(page, "comparisons-1", 3)
    assert len(values) == 1
    page.locator("#table3 thead th").nth(2).click()
    # The rows are sorted after the click has returned.
    page.locator("#table3 thead th[aria-sort=ascending]").wait_for()
    shown = [float(text.split()[0]) for text in first_cells(page, "table3", 3) if text[0].isdigit()]
    assert shown == sorted(shown)
    page.get_by_label("Filter").nth(1).fill("Grad CAM++")
    assert first_cells(page, "table1", 1)[0].startswith("Grad CAM++")


def test_maps_are_filtered_sorted_and_opened(page):
    assert page.locator("#gallery li").count() == 48
    page.get_by_role("button", name="Show more").click()
    assert page.locator("#gallery li").count() == 60
    page.locator("[name=class]").select_option(label=HOSTILE)
    assert page.locator("#gallery li").count() == 30
    assert page.locator("#gallery .label").first.inner_text().startswith(HOSTILE)
    page.locator("[name=class]").select_option(label="all classes")
    page.locator("[name=sort]").select_option("average_drop")
    assert page.locator("[name=order]").input_value() == "worst"
    # Ours rises with the number of the image and Grad-CAM falls: the last image is the worst.
    assert page.locator("#gallery .label").first.inner_text() == f"{HOSTILE}, image 59"
    page.locator("#gallery button").first.click()
    assert page.locator("#pair-title").inner_text() == f"{HOSTILE}, image 59"
    rows = page.locator("#pair-scores tbody tr")
    assert rows.count() == 4
    page.keyboard.press("ArrowRight")
    assert page.locator("#pair-title").inner_text() == "cat, image 58"
    page.keyboard.press("Escape")
    assert not page.locator("#pair").is_visible()


def test_it_is_accessible(page):
    accessible(page)
    page.locator("#gallery button").first.click()
    accessible(page)


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#gallery button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
