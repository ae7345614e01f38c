"""The pages of `xcnn.pages` in a real browser, without a window: widths, colours, and that nothing is loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import driver
from page_check import HOSTILE, hostile

from xcnn import pages
from xcnn.runs import restore

CONTRAST = """
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
const behind = element => {
  const all = [];
  for (let e = element; e; e = e.parentElement) all.unshift(numbers(getComputedStyle(e).backgroundColor));
  return all.reduce((out, c) => out.map((v, k) => v * (1 - (c[3] ?? 1)) + c[k] * (c[3] ?? 1)), [255, 255, 255]);
};
let least = [21, ''];
for (const e of document.querySelectorAll('body *')) {
  if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
  const [low, high] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => a - b);
  const ratio = (high + 0.05) / (low + 0.05);
  if (ratio < least[0]) least = [ratio, e.tagName + ' ' + e.textContent.slice(0, 40)];
}
return least;
"""


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chrome = driver(tmp_path_factory.mktemp("chromium"))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def written(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both pages, of a run as it is and with hostile names."""
    folder, restored = tmp_path_factory.mktemp("pages"), restore(checkpoint.parent)
    for name, one in (("plain", restored), ("hostile", hostile(restored))):
        pages.report(one, checkpoint.parent, folder / f"{name}-report.html")
        pages.explanation(one, folder / f"{name}-explain.html", indices=[3, 4], source=HOSTILE[1])
    return sorted(folder.iterdir())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1024, 1920])
def test_pages_fit_and_are_readable(chrome, written, width, scheme):
    chrome.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for path in written:
        chrome.get(path.as_uri())
        chrome.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
        inner, outer = chrome.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert inner <= outer == width, path.name
        least, where = chrome.execute_script(CONTRAST)
        assert least >= 4.5, (path.name, where)


def test_pages_load_nothing_and_run_nothing(chrome, written):
    chrome.get_log("performance")
    for path in written:
        chrome.get(path.as_uri())
        for script in ("document.images.length > 0", "[...document.images].every(one => one.naturalWidth > 0)"):
            assert chrome.execute_script(f"return {script}"), (path.name, script)
        assert chrome.get_log("browser") == []  # such as what the policy has refused
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:image/png;base64,")} == {path.as_uri() for path in written}


def test_boxes_that_scroll_are_reached_by_keyboard(chrome, written):
    """Every box that is wider than its content can be focused, and moves with the arrow keys."""
    size = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for path in written:
        chrome.get(path.as_uri())
        boxes = "[...document.querySelectorAll('body *')].filter(e => e.scrollWidth > e.clientWidth + 1 && " \
            "getComputedStyle(e).overflowX === 'auto')"  # fmt: skip
        assert chrome.execute_script(f"return {boxes}.every(e => e.tabIndex === 0)"), path.name
