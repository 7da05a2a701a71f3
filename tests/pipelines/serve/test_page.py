"""The page in a real browser: open, draw, fill, compare, download, at every width, by keyboard."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import draw_image
from model_helpers import save_small_model
from PIL import Image
from serve_helpers import serving

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None or DRIVER is None,
        reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
    ),
]
PATIENCE_S = 60


class Page:
    """A browser on the page; a class because it is handed on as a whole."""

    def __init__(self, driver: "webdriver.Chrome") -> None:
        self.driver = driver

    def find(self, selector: str) -> "webdriver.remote.webelement.WebElement":
        return self.driver.find_element("css selector", selector)

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, (self.text("#status"), self.text("#error"))
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)

    def open(self, photo: Path) -> None:
        self.find("#file").send_keys(str(photo))
        self.wait(lambda: self.text("#status").startswith(photo.name))

    def draw(self, *moves: tuple[int, int], start: tuple[int, int] = (0, 0)) -> None:
        view = self.find("#viewport")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", view)
        chain = webdriver.ActionChains(self.driver)
        chain.move_to_element_with_offset(view, *start).click_and_hold()
        for move in moves:
            chain.move_by_offset(*move)
        chain.release().perform()

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def fill(self) -> None:
        self.click("#fill")
        self.wait(lambda: self.text("#status").startswith("Filled"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    with serving(f"small={save_small_model(folder / 'small')}", store=folder) as (url, _):
        yield url


@pytest.fixture
def page(service: str, tmp_path: Path) -> Iterator[Page]:
    yield from open_page(service, tmp_path, 1280)


@pytest.fixture
def phone(service: str, tmp_path: Path) -> Iterator[Page]:
    yield from open_page(service, tmp_path, 390)


def open_page(url: str, folder: Path, width: int) -> Iterator[Page]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        # A window is never narrower than 500 px, a screen may be.
        screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        driver.get(url)
        page = Page(driver)
        page.wait(lambda: len(driver.find_elements("css selector", "#model option")) > 1)
        yield page
        severe = [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]
        assert [line for line in severe if "/fill" not in line["message"]] == []
    finally:
        driver.quit()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(draw_image(5, 300, 400)).save(tmp_path / "my photo.png")
    return tmp_path / "my photo.png"


def test_what_is_painted_is_filled_and_nothing_else(
    page: Page, photo: Path, tmp_path: Path
) -> None:
    page.open(photo)
    assert not page.find("#fill").is_enabled()
    page.draw((60, 0), (0, 40))
    page.fill()
    page.click("#download")
    saved = tmp_path / "filled.png"
    page.wait(saved.exists)
    before, after = np.asarray(Image.open(photo)), np.asarray(Image.open(saved))
    changed = (before != after).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert before.shape == after.shape and 500 < changed.sum() < 20_000
    assert 120 < rows.min() and rows.max() < 220 and 170 < columns.min() and columns.max() < 270
    page.click("#beside")
    page.wait(lambda: page.text("#status").startswith("The same hole"))
    assert len(page.driver.find_elements("css selector", "#gallery canvas")) == 4


def hidden_pixels(page: Page) -> int:
    script = (
        "const mask = document.getElementById('mask');"
        "const data = mask.getContext('2d').getImageData(0, 0, mask.width, mask.height).data;"
        "let count = 0; for (let at = 3; at < data.length; at += 4) count += data[at] > 0;"
        "return count;"
    )
    return int(page.driver.execute_script(script))


def test_brush_eraser_box_undo_and_clear(page: Page, photo: Path) -> None:
    page.open(photo)
    page.click("[data-tool=box]")
    page.draw((80, 50))
    box = hidden_pixels(page)
    assert box > 1000
    page.click("[data-tool=eraser]")
    page.draw((40, 0))
    erased = hidden_pixels(page)
    assert 0 < erased < box
    page.click("#undo")
    assert hidden_pixels(page) == box
    page.click("#redo")
    assert hidden_pixels(page) == erased
    page.click("#clear")
    assert hidden_pixels(page) == 0 and not page.find("#fill").is_enabled()


def test_the_keyboard_does_it_all(page: Page, photo: Path) -> None:
    page.open(photo)
    keys = webdriver.Keys
    page.find("#viewport").send_keys(keys.ARROW_RIGHT, keys.ENTER)
    once = hidden_pixels(page)
    assert once > 100
    page.find("#viewport").send_keys("]", "]", keys.ENTER)
    assert hidden_pixels(page) > once
    page.find("body").send_keys(keys.CONTROL, "z")
    assert hidden_pixels(page) == once
    page.click("summary")
    page.find("[name=left]").send_keys("5")
    page.find("#numbers button").click()
    assert hidden_pixels(page) == once + 64 * 64
    page.fill()


def test_a_hole_of_a_strategy_and_a_sample(page: Page) -> None:
    page.find("#sample option[value=coffee]").click()
    page.wait(lambda: page.text("#status").startswith("coffee"))
    page.click("#draw-hole")
    page.wait(lambda: page.text("#status").startswith("A hole of the strategy"))
    assert hidden_pixels(page) > 20_000


def test_a_wrong_file_is_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    page.find("#file").send_keys(str(tmp_path / "notes.txt"))
    page.wait(lambda: "notes.txt is not an image" in page.text("#error"))


def test_a_phone_scrolls_in_one_direction_only(phone: Page, photo: Path) -> None:
    phone.open(photo)
    phone.draw((40, 10))
    phone.fill()
    width = phone.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= 390
    small = phone.driver.execute_script(
        "return [...document.querySelectorAll('button, select, .button, input[type=range]')]"
        ".filter((e) => e.offsetParent && e.getBoundingClientRect().height < 40)"
        ".map((e) => e.id || e.textContent)"
    )
    assert small == []


def test_everything_has_a_name_for_a_screen_reader(page: Page, photo: Path) -> None:
    page.open(photo)
    page.draw((40, 10))
    page.fill()
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    wanted = {"button", "radio", "slider", "combobox", "spinbutton", "link", "application", "image"}
    nameless = [
        node["role"]["value"]
        for node in tree
        if not node.get("ignored")
        and node.get("role", {}).get("value") in wanted
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
