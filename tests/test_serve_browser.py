"""The page in a real browser, without a window: strokes of a mouse and keys, on the true network."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import driver, selenium

from xcnn import nn
from xcnn.devices import device
from xcnn.errors import XcnnError
from xcnn.runs import Checkpoint, Config, Restored, restore, save_checkpoint, train
from xcnn.serve.server import Server
from xcnn.serve.session import Session, View

for package in ("starlette", "uvicorn"):
    pytest.importorskip(package, reason=f"{package} is not installed (extra serve)")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

FLAGS = "--window-size=1400,1000", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
WAIT = 10  # seconds, for slow machines
READY = "document.querySelectorAll('#classes button').length > 0"


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Server, Session]]:
    """The page of lenet5, trained on 24,000 images of MNIST, or without MNIST of a network for the digits."""
    try:
        data = request.getfixturevalue("shared_data")
        config = Config(dataset="mnist", data_dir=data, model="lenet5", epochs=2, validation=0.8)
    except pytest.skip.Exception:
        config = Config(dataset="digits", augment=("rotate",))
    folder = train(config, tmp_path_factory.mktemp("run") / "run", test=False).folder
    session = Session(restore(folder))
    with Server(session, 0) as running:
        yield running, session


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chrome = driver(tmp_path_factory.mktemp("chromium"), *FLAGS)
    yield chrome
    chrome.quit()


class Browser:
    """The page, and what a user does with it."""

    def __init__(self, driver: Any, session: Session) -> None:
        self.driver, self.session = driver, session

    def find(self, selector: str, place: int = 0) -> Any:
        return self.driver.find_elements("css selector", selector)[place]

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def wait(self, told: Callable[[], Any], wanted: Callable[[Any], bool] = bool) -> Any:
        """Return what a function returns as soon as it is as wanted."""
        end = time.monotonic() + WAIT
        while not wanted(came := told()):
            assert time.monotonic() < end, came
            time.sleep(0.02)
        return came

    def actions(self) -> Any:
        return selenium.ActionChains(self.driver, duration=20)

    def draw_seven(self) -> None:
        moves = self.actions().move_to_element_with_offset(self.find("#pad"), -50, -60).click_and_hold()
        for step in [(10, 0)] * 10 + [(-4, 10)] * 12:
            moves.move_by_offset(*step)
        moves.release().perform()

    def said(self, text: str) -> str:
        return str(self.wait(lambda: self.find("#said").text, lambda came: came.startswith(text)))

    def label(self, part: str) -> str:
        """Return the text for the first map as soon as it contains a part."""
        return str(self.wait(lambda: self.find("#rows .map").get_attribute("aria-label"), lambda came: part in came))

    def neuron(self) -> str:
        return str(self.find("#neuron").text)

    def picture(self, selector: str) -> list[int]:
        """Return the pixels of a canvas."""
        return list(
            self.run(
                "(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])"
                "(document.querySelectorAll(arguments[0])[0])",
                selector,
            )
        )

    def array(self, kind: str, layer: int | None = None, view: View | None = None) -> np.ndarray:
        """Return an array of the session."""
        found = self.session.look(view or View({} if layer is None else {layer: 1000}))[1]
        return next(array for what, array in found if what["kind"] == kind and what.get("layer") == layer)


@pytest.fixture
def browser(chrome: Any, server: tuple[Server, Session]) -> Iterator[Browser]:
    """The page, freshly loaded; afterwards nothing is in the console, and all requests went to its server."""
    running, session = server
    session.reset(View())
    session.ink(np.zeros((112, 112), np.uint8), View())
    chrome.get_log("performance")
    chrome.get_log("browser")
    chrome.get(running.url)
    made = Browser(chrome, session)
    made.wait(lambda: made.run(READY))
    yield made
    said = [entry for entry in chrome.get_log("browser") if "readback operations" not in entry["message"]]  # `picture`
    assert said == []
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert sent
    assert [url for url in sent if not url.startswith(running.url)] == []


def test_a_drawn_seven_is_a_seven(browser: Browser) -> None:
    assert browser.said("Draw") == "Draw something."
    browser.draw_seven()
    browser.said("7, ")
    assert browser.find("#name").text == "your drawing"
    share = browser.array("probabilities")[7]
    assert browser.find("#classes button .share", 7).text == f"{100 * share:.1f} %"
    browser.find("#clear").click()
    browser.said("Draw something.")


def test_the_maps_are_drawn_from_the_arrays(browser: Browser) -> None:
    browser.draw_seven()
    browser.said("7, ")
    maps = browser.array("y", 0)
    wanted = np.rint(maps[0] / np.abs(maps).max() * 255)  # of the layer's largest number
    script = """(() => {
      const style = getComputedStyle(document.documentElement);
      return ['--zero', '--positive', '--negative'].map((name) => style.getPropertyValue(name).trim());
    })()"""
    palette = [
        [int((hex if len(hex) == 6 else "".join(2 * digit for digit in hex))[at : at + 2], 16) for at in (0, 2, 4)]
        for hex in (name.strip()[1:] for name in browser.run(script))
    ]
    zero, positive, negative = map(np.asarray, palette)
    share = np.abs(wanted)[..., None] / 255
    colours = np.where(wanted[..., None] > 0, positive, negative)
    pixels = np.reshape(browser.picture("#rows .map canvas"), (*wanted.shape, 4))
    assert np.abs(pixels[..., :3] - (zero + (colours - zero) * share)).max() <= 2
    label = browser.label("from")
    low, high = map(float, re.fullmatch(r"0 Conv2d, channel 0, \d+ by \d+, from (.*) to (.*)", label).groups())
    assert [low, high] == pytest.approx([maps[0].min(), maps[0].max()], rel=1e-2)


def test_a_neuron_shows_its_receptive_field_and_what_feeds_it(browser: Browser) -> None:
    browser.draw_seven()
    browser.said("7, ")
    row = next(k for k, layer in enumerate(browser.session.about()["layers"]) if k and layer["kind"] == "Conv2d")
    canvas = browser.find(f"#rows li[data-place='{row}'] .map canvas")
    browser.actions().move_to_element(canvas).perform()
    text = browser.wait(browser.neuron)
    _, h, w = browser.array("y", row).shape
    y, x = map(int, re.search(r"channel 0, row (\d+), column (\d+)", text).groups())
    assert max(abs(y - h // 2), abs(x - w // 2)) <= 1  # the middle may be between two
    value = browser.array("y", row)[0, y, x]
    assert f"{value:.4g}".replace("-", "−")[:5] in text
    assert "products together are" in text
    found = browser.session.neuron(row, (0, y, x))[0]["field"]
    assert f"rows {found[0][0]} to {found[0][1] - 1} and columns {found[1][0]} to {found[1][1] - 1}" in text
    frame = browser.run("document.querySelector('#field').getBoundingClientRect().toJSON()")
    picture = browser.run("document.querySelector('#input canvas').getBoundingClientRect().toJSON()")
    scale = picture["width"] / browser.session.shape[2]
    assert frame["left"] - picture["left"] == pytest.approx(found[1][0] * scale, abs=1)
    assert frame["bottom"] - picture["top"] == pytest.approx(found[0][1] * scale, abs=1)


def test_a_class_lets_its_gradient_flow_back(browser: Browser) -> None:
    browser.draw_seven()
    browser.said("7, ")
    outputs = browser.picture("#rows .map canvas")
    browser.find("#classes button", 7).click()
    assert browser.run(CONTRAST) == []  # while the rows light up
    browser.wait(lambda: browser.run("!document.querySelector('#over').hidden"))
    dx = browser.array("dx", view=View({}, 7)).sum(axis=0)
    shade = np.reshape(browser.picture("#over"), (*dx.shape, 4))
    strong = np.abs(dx) > 0.3 * np.abs(dx).max()
    assert (shade[strong][:, 0] > shade[strong][:, 2]).tolist() == (dx[strong] > 0).tolist()  # red is for
    np.testing.assert_allclose(shade[..., 3], np.abs(dx) / np.abs(dx).max() * 255, atol=1)
    assert browser.picture("#rows .map canvas") != outputs
    browser.label("gradient of 0 Conv2d, channel 0, ")
    for why in ("grad_cam", "occlusion"):
        before = browser.picture("#over")
        browser.find(f"[name=why][value={why}]").click()
        browser.wait(lambda: browser.picture("#over"), lambda came, before=before: came != before)
    assert browser.picture("#rows .map canvas") == outputs
    browser.find("#classes button", 7).click()
    browser.wait(lambda: browser.run("document.querySelector('#over').hidden"))


def test_a_step_lowers_the_loss_and_can_be_undone(browser: Browser) -> None:
    browser.draw_seven()
    browser.said("7, ")
    trained = browser.session.model.state_dict()
    browser.find("#label option", 3).click()
    browser.find("#step button").click()
    text = browser.wait(lambda: browser.find("#losses").text, lambda came: "→" in came)
    before, after = browser.session.losses
    assert after < before
    assert text.startswith(
        f"Loss {before:.3g} → {after:.3g} for this picture as 3: {100 * (1 - after / before):.1f} % lower"
    )
    assert "weights are changed" in browser.find("#changes").text
    browser.find("#reset").send_keys(Keys.ENTER)
    browser.wait(lambda: browser.find("#changes").text, lambda came: came == "")
    assert browser.run("document.activeElement.id") == "pad"
    assert browser.find("#losses").text.startswith("A step changes every weight a little")
    now = browser.session.model.state_dict()
    assert all(np.array_equal(now[name], trained[name]) for name in trained)


def test_weights_are_edited_and_channels_switched_off(browser: Browser) -> None:
    browser.find("#random").click()
    browser.wait(lambda: browser.find("#name").text, lambda came: came.startswith("test image"))
    browser.find("#rows .map").click()
    browser.wait(browser.neuron)
    field = browser.find("#neuron td input")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("2,5", Keys.ENTER)  # a comma for a point
    browser.wait(lambda: browser.session.edited)
    assert next(iter(browser.session.model.parameters())).data[0, 0, 0, 0] == 2.5
    browser.find("#off").click()
    browser.wait(lambda: browser.find("#rows .map").get_attribute("class"), lambda came: "off" in came)
    assert browser.session.off == {"0": {0}}
    browser.label("switched off")
    assert "weights are changed, 1 channel is off" in browser.find("#changes").text
    assert browser.run("document.activeElement.id") == "off"
    assert "that would be the value if it were on" in browser.neuron()


def test_everything_works_by_keyboard(browser: Browser) -> None:
    def focused() -> str:
        return str(browser.run("document.activeElement.id || document.activeElement.className"))

    def press(*keys: str) -> None:
        chain = browser.actions()
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def tab_to(wanted: str) -> None:
        for _ in range(60):
            if focused() == wanted:
                return
            press(Keys.TAB)
        raise AssertionError(f"{wanted} is not reached, the focus is on {focused()}")

    tab_to("pad")
    outline = browser.run("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    press(*[Keys.ARROW_LEFT] * 8, " ", *[Keys.ARROW_RIGHT] * 14)  # the bar of a 7, and its stem
    for _ in range(9):
        press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    browser.said("7, ")
    tab_to("random")
    press(Keys.ENTER)
    browser.wait(lambda: browser.find("#name").text, lambda came: came.startswith("test image"))
    tab_to("index")
    press(Keys.ARROW_UP)
    browser.wait(lambda: browser.find("#name").text, lambda came: came.startswith("test image 1 "))
    tab_to("map")
    press(Keys.ARROW_RIGHT)
    assert "channel 1" in browser.run("document.activeElement.ariaLabel")
    press(Keys.ENTER, Keys.ARROW_UP)
    _, h, w = browser.array("y", 0).shape
    where = f"channel 1, row {(h - 1) // 2 - 1}, column {(w - 1) // 2}"
    browser.wait(browser.neuron, lambda came: where in came)
    press(Keys.ENTER)  # on to the panel, and to a button that keeps the focus
    tab_to("off")
    press(Keys.ENTER)
    browser.wait(lambda: browser.find("#off").get_attribute("aria-pressed"), lambda came: came == "true")
    assert focused() == "off"
    press(Keys.ESCAPE)
    assert browser.run("document.activeElement.ariaLabel").startswith("0 Conv2d, channel 1")
    press(Keys.ENTER)  # into the map again, where it was
    browser.wait(lambda: browser.run("document.activeElement.className"), lambda came: "inside" in came)
    assert where in browser.neuron()
    press(Keys.ESCAPE, Keys.ARROW_DOWN)
    assert browser.run("document.activeElement.ariaLabel").startswith("1 ReLU, channel 1")


def test_a_photo_and_the_camera(browser: Browser, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.tile(np.arange(0, 200, 2, dtype=np.uint8), (80, 1))).save(tmp_path / "ramp.png")
    browser.find("#photo").send_keys(str(tmp_path / "ramp.png"))
    browser.wait(lambda: browser.find("#name").text, lambda came: came.startswith("your photo"))
    (tmp_path / "no.png").write_text("no image")
    browser.find("#photo").send_keys(str(tmp_path / "no.png"))
    error = browser.wait(lambda: browser.find("#error").text)
    assert error.startswith("the photo cannot be read as an image")
    browser.driver.get_log("browser")  # Chromium notes the status 400
    before = browser.picture("#input canvas")
    browser.find("#camera").click()
    browser.wait(lambda: browser.find("#snap").is_displayed())
    browser.wait(lambda: browser.run("document.querySelector('#video').readyState"), lambda came: came >= 2)
    browser.find("#snap").click()
    browser.wait(lambda: browser.picture("#input canvas"), lambda came: came != before)
    assert not browser.find("#viewfinder").is_displayed()


def test_a_test_image_is_chosen_by_its_number_and_brings_its_class(browser: Browser) -> None:
    field, test = browser.find("#index"), browser.session.test
    for number, other in ((7, "-1"), (11, str(len(test)))):
        field.clear()
        field.send_keys(str(number), Keys.ENTER)
        browser.wait(
            lambda: browser.find("#label").get_attribute("value"), lambda came, k=number: came == str(test.y[k])
        )
        field.clear()
        field.send_keys(other, Keys.ENTER)
        browser.wait(lambda: browser.find("#error").text, lambda came: str(len(test) - 1) in came)
        assert f"test image {number} " in browser.find("#name").text


def test_maps_have_the_shape_of_their_numbers(browser: Browser) -> None:
    for canvas in browser.driver.find_elements("css selector", ".map canvas")[:60]:
        h, w = (int(canvas.get_attribute(side)) for side in ("height", "width"))
        assert abs(canvas.size["height"] / canvas.size["width"] * w / h - 1) < 0.1, (canvas.size, h, w)


@pytest.mark.parametrize("width", [390, 1024, 1920])
def test_nothing_is_cut_off_and_all_can_be_read(browser: Browser, width: int) -> None:
    browser.draw_seven()
    browser.said("7, ")
    browser.find("#rows .map").click()
    browser.wait(browser.neuron)
    try:
        for scheme in ("light", "dark"):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run(CONTRAST) == []
            unnamed = "[...document.querySelectorAll('button, input, select')].filter((e) => e.offsetParent && "
            unnamed += "!(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"
            assert browser.run(unnamed) == []
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_requests_are_sent_in_order_and_the_newest_drawing_wins(browser: Browser) -> None:
    sent = browser.driver.execute_async_script("""
      const [done] = arguments;
      (async () => {
        const { Server } = await import("./server.js");
        const sent = [];
        let busy = 1;
        window.fetch = async (url, { body }) => {
          sent.push(`${url.slice(4)}${body[0] ?? ""}`.replace("{", ""));
          await new Promise((go) => setTimeout(go, 20));
          return new Response('{"error": "x"}', { status: url.endsWith("edit") && busy-- > 0 ? 503 : 400 });
        };
        const server = new Server(() => "", () => {}, () => {}, () => {});
        for (const k of [1, 2, 3]) server.draw(new Uint8Array([k]), 0);
        server.change("step", {}); // on the drawing before it
        server.draw(new Uint8Array([4]), 0);
        server.change("example", {}); // takes its place
        server.change("edit", {}); // is not lost if the server is busy
        setTimeout(() => done(sent), 1500);
      })();
    """)
    assert sent == ["ink1", "ink3", "step", "example", "edit", "edit"]


class Missing(nn.Module):
    """A layer whose output is not finite."""

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        return x * np.float32("nan"), lambda dy, need_dx: dy * np.float32("nan")


def none(part: str, size: int | None) -> Any:
    raise XcnnError("there are no test images")


@pytest.mark.parametrize(("last", "said"), [(nn.Identity(), ""), (Missing(), "The scores are not finite.")])
def test_networks_without_maps_or_finite_scores(chrome: Any, last: nn.Module, said: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), last)
    about = Checkpoint("", (1, 8, 8), tuple("0123456789"), "digits")
    session = Session(Restored(about, model, device("cpu"), "", "", none))
    with Server(session, 0) as running:
        chrome.get(running.url)
        page = Browser(chrome, session)
        page.wait(lambda: page.run(READY))
        page.said("Draw")
        page.find("[name=why][value=grad_cam]").click()
        page.find("#classes button", 7).click()
        page.wait(lambda: page.find("#why-text").text, lambda came: "no layer with maps" in came)
        page.draw_seven()
        page.wait(lambda: page.find("#name").text, lambda came: came == "your drawing")
        assert page.find("#error").text == ""
        page.said(said)


def test_the_names_of_a_file_are_only_text(chrome: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24))
    hostile = "<img src=x onerror=window.ran=1>", "</script><script>window.ran=1</script>", "a\u202eb", "x" * 300
    about = Checkpoint("", (1, 8, 8), (*hostile, *map(str, range(20))))
    session = Session(restore(save_checkpoint(tmp_path / "a.safetensors", model, about)))
    with Server(session, 0) as running:
        chrome.get(running.url)
        page = Browser(chrome, session)
        page.wait(lambda: page.run(READY))
        assert page.run("[window.ran ?? 0, document.images.length, document.scripts.length]") == [0, 0, 1]
        assert len(page.driver.find_elements("css selector", "#classes button")) == 10  # of 24, the most probable
        assert page.run("[...document.querySelectorAll('#label option')].map((e) => e.text)")[:2] == list(hostile[:2])
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        last = page.find("#classes .name", 9).text
        page.find("#classes button", 9).click()
        page.draw_seven()
        page.wait(lambda: page.find("#name").text, lambda came: came == "your drawing")
        pressed = page.find("#classes button[aria-pressed=true] .name")  # stays in the list, whatever its score is
        assert pressed.text == last


CONTRAST = """(() => {
  const light = (color) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.match(/[0-9.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const back = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(back)) return back;
    }
    return 'rgb(255, 255, 255)';
  };
  const texts = [...document.querySelectorAll('body *')].filter((e) => e.offsetParent
    && !e.matches(':disabled, .hidden, option') && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  return texts.filter((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) < 4.5;
  }).map((e) => e.outerHTML.slice(0, 200));
})()"""
"""The elements with text whose contrast is below 4.5, as WCAG's level AA wants it."""
