"""The report of a run in Chromium, which Debian's package installs where it is missing.

Playwright drives it; its own browsers are not needed.
"""

import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

PAGES = (("light", 1200), ("dark", 1200), ("light", 390))  # color scheme, width


@pytest.fixture(scope="module")
def chromium():
    if shutil.which("chromium") is None:
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "chromium"]):
            subprocess.run(
                ["apt-get", "-qq", *words], check=True, env=os.environ | quiet
            )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox"],  # root has none
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory, fmjax):
    """A report with all sections."""
    folder = tmp_path_factory.mktemp("report")
    run_dir = folder / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (60, 200, 3), np.uint8)
    Image.fromarray(noise).save(run_dir / "pictures" / "reconstructions_000160.png")
    written = fmjax("report", run_dir, "--out", folder / "report.html")
    assert written.returncode == 0, written.stderr
    return folder / "report.html"


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), PAGES)
def test_the_page_is_whole_in_a_browser(chromium, report, scheme, width, tmp_path):
    # Playwright's own evaluations pass where the page's policy forbids scripts.
    page = chromium.new_page(
        color_scheme=scheme, viewport={"width": width, "height": 900}
    )
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())

    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    plots = page.locator("#curves svg")
    assert plots.count() >= 5
    for plot in plots.all():
        box = plot.bounding_box()
        assert box["width"] > 250
        assert box["height"] > 100
        pixels = screenshot(plot, tmp_path / "plot.png")
        # A curve has a color of its own; all else in a plot is gray.
        colored = np.ptp(pixels.astype(int), axis=-1) > 60
        assert colored.sum() > 50
        assert colored.any(0).mean() > 0.5
    sizes = page.eval_on_selector("img", "i => [i.naturalWidth, i.clientWidth]")
    assert sizes[0] == 200
    assert sizes[1] > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for section in ("results", "time", "samples", "events", "environment", "config"):
        assert page.locator(f"#{section}").bounding_box()["height"] > 50
    hidden = page.get_by_text("# The whole experiment")
    assert not hidden.is_visible()
    page.get_by_text("config.gin", exact=True).click()
    assert hidden.is_visible()

    whole = screenshot(page, tmp_path / "page.png", full_page=True)
    corner = whole[:5, :5].mean()
    assert corner < 60 if scheme == "dark" else corner > 220
    page.close()


def screenshot(of, file, **how) -> np.ndarray:
    """uint8 [H, W, 3]"""
    of.screenshot(path=file, **how)
    return np.asarray(Image.open(file).convert("RGB"))
