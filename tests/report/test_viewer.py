"""The report in a browser: headless Chromium opens it from disk and draws by software."""

import base64
import io
import shutil
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from partialseg.data.cards import read_card
from partialseg.evaluation import evaluate
from partialseg.report import NetworkResult, write_report
from partialseg.report.viewer import label_colours, niivue_script

FLAGS = (
    "--headless=new --no-sandbox --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-angle=swiftshader --enable-unsafe-swiftshader "
    "--window-size=500,560"
)


def save(path, array_zyx):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_zyx.T, np.diag([3.0, 3.0, 3.0, 1.0])), path)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two cases of MSD liver and one network, which finds the liver of the one and misses that of the other."""
    folder = tmp_path_factory.mktemp("viewer")
    generator = np.random.default_rng(0)
    for case, found in ((0, True), (1, False)):
        truth = np.zeros((20, 24, 28), np.uint8)
        truth[5 + case : 15, 6:18, 8 + 2 * case : 22] = 1
        image = generator.normal(100 * truth, 20).astype(np.int16)
        save(folder / f"raw/msd_liver/imagesTr/liver_{case}.nii.gz", image)
        save(folder / f"raw/msd_liver/labelsTr/liver_{case}.nii.gz", truth)
        save(folder / f"predictions/liver_{case}.nii.gz", np.roll(truth, 2, 2) * found)
    result = evaluate(
        folder / "predictions", folder / "raw", read_card("msd_liver"), folder / "scores", classes="card"
    )
    return write_report(folder / "report.html", "Title", {"F alone": NetworkResult(result.scores)})


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One browser for all tests of the module."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Chromium or its driver is not installed (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With the path of the driver selenium looks for none, and downloads none.
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    started.set_script_timeout(150)
    yield started
    started.quit()


@pytest.fixture
def page(chromium, report):
    """The report, just opened; a test fails if the console has errors or something was fetched."""
    chromium.get_log("browser"), chromium.get_log("performance")
    chromium.get(report.as_uri())
    yield Page(chromium)
    assert [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
    fetched = [entry["message"] for entry in chromium.get_log("performance")]
    sent = [message for message in fetched if '"Network.requestWillBeSent"' in message]
    assert sent, "opening the file itself is a request"
    assert [message for message in sent if '"url":"http' in message or '"url":"ws' in message] == []


class Page:
    def __init__(self, driver):
        self.driver = driver

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def row(self, case):
        return self.driver.find_element("xpath", f"//table[@id='case-table']//tr[contains(., '{case}')]")

    def texts(self, selector):
        return [found.text for found in self.driver.find_elements("css selector", selector) if found.text]

    def settle(self):
        """Wait until the viewer has drawn, or has said that it cannot."""
        state = self.driver.execute_async_script(
            "const done = arguments[0], viewer = document.getElementById('viewer');"
            "const look = () => ['shown', 'failed'].includes(viewer.dataset.state)"
            " ? requestAnimationFrame(() => requestAnimationFrame(() => done(viewer.dataset.state)))"
            " : setTimeout(look, 20); look();"
        )
        return SimpleNamespace(state=state, title=self.find("#viewer-title").text)

    def pixels(self):
        canvas = self.find(".stage canvas")
        scroll = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
        self.driver.execute_script(scroll, canvas)  # what is outside the window would be cut off
        png = canvas.screenshot_as_png
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    def click(self, selector):
        self.driver.execute_script("document.querySelector(arguments[0]).click()", selector)


def reds(pixels):
    return np.count_nonzero((pixels[..., 0] > pixels[..., 1] + 60) & (pixels[..., 0] > pixels[..., 2] + 60))


def test_a_report_opens_without_starting_the_viewer(page):
    assert page.find("#viewer").is_displayed()
    assert page.driver.find_elements("css selector", "canvas") == []
    behind = page.find(".viewer .start img").get_attribute("src")
    number = page.find(".viewer .start button").get_attribute("data-shown")
    assert behind in page.driver.execute_script(
        "return Array.from(document.querySelectorAll('figure:has([data-shown=\"' + arguments[0] + '\"]) img'),"
        " (image) => image.src)",
        number,
    )


def test_the_scores_of_one_network_fit_a_page(page):
    widths = page.driver.execute_script(
        "return Array.from(document.querySelectorAll('#scores table'), (table) => table.rows[0].cells.length)"
    )
    assert widths[0] < 10 < widths[1], "in brief, and all metrics folded"
    assert page.find("#scores details").get_attribute("open") is None
    assert "95 % CI" not in page.find("#scores details").get_attribute("textContent"), (
        "of two cases there is none"
    )


def test_a_click_on_a_row_shows_that_case(page):
    page.row("liver_0").click()
    shown = page.settle()
    assert (shown.state, shown.title) == ("shown", "msd_liver, liver_0")
    found = page.pixels()
    assert found.std() > 10, "the picture is of one colour"
    assert reds(found) > 0.02 * found[..., 0].size, "the predicted liver is filled"
    page.row("liver_1").click()
    assert page.settle().title == "msd_liver, liver_1"
    missed = page.pixels()
    assert np.abs(found - missed).mean() > 1
    assert 0 < reds(missed) < 0.7 * reds(found), "of a missed liver the edge of the truth alone is there"
    assert "Truth: liver · F alone: background" in page.find("#viewer output").text


def test_enter_on_a_row_shows_that_case_and_keys_move_on(page):
    page.row("liver_1").send_keys("\ue007")
    assert page.settle().title == "msd_liver, liver_1"
    assert page.row("liver_1").get_attribute("aria-current") == "true"
    page.find(".stage canvas").send_keys("n")
    assert page.settle().title == "msd_liver, liver_0"
    before = page.find("#viewer output").text
    page.find(".stage canvas").send_keys("\ue013")  # arrow up
    assert page.find("#viewer output").text != before


def test_layers_are_shown_and_hidden_and_3d_comes_and_goes(page):
    page.row("liver_0").click()
    page.settle()
    both = page.pixels()
    page.click("#viewer [name=scan]")
    page.settle()
    assert page.pixels().mean() < both.mean()
    page.click("#viewer [name=scan]")
    page.click("#viewer [value=solid]")
    assert page.settle().state == "shown"
    solid = page.pixels()
    assert reds(solid) > 100
    assert np.abs(solid - both).mean() > 1
    page.click("#viewer [value=slices]")
    page.settle()
    np.testing.assert_allclose(page.pixels(), both, atol=3)
    page.click("#viewer [name=errors]")
    page.settle()
    assert "F alone: too " in page.find("#viewer output").text
    assert reds(page.pixels()) < reds(both)
    page.click("#viewer-networks input")
    page.settle()
    assert "F alone" not in page.find("#viewer output").text


def test_the_table_is_sorted_by_a_click_on_a_heading_and_filtered(page):
    cases = "#case-table tbody td:first-child"
    assert page.texts(cases) == ["liver_1", "liver_0"], "the worst first"
    page.click("#case-table th:nth-child(4) button")
    assert page.texts(cases) == ["liver_0", "liver_1"]
    assert page.find("#case-table th:nth-child(4)").get_attribute("aria-sort") == "descending"
    page.find("#filter").send_keys("missed")
    assert page.texts(cases) == ["liver_1"]


def test_a_browser_without_webgl_is_told_to_look_at_the_pictures(page):
    page.driver.execute_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.click("button[data-shown]")
    assert page.settle().state == "failed"
    assert "it has no WebGL2. The pictures below show the same cases" in page.find(".viewer .start").text


def test_a_case_that_cannot_be_shown_hides_no_other_and_is_shown_once_it_can(page):
    replace = (
        "const file = document.getElementById('volume-0-prediction-0'), text = file.textContent;"
        "file.textContent = arguments[0]; return text"
    )
    kept = page.driver.execute_script(replace, base64.b64encode(b"no NIfTI").decode())
    number = page.row("liver_0").get_attribute("data-shown")
    broken, sound = ("liver_0", "liver_1") if number == "0" else ("liver_1", "liver_0")
    page.row(broken).click()
    assert page.settle().state == "failed"
    said = page.find(".viewer .start").text
    assert said.startswith("This cannot be shown: ")
    assert "browser" not in said
    page.row(sound).click()
    assert page.settle().state == "shown"
    assert not page.find(".viewer .start").is_displayed()
    assert page.pixels().std() > 10
    page.row(broken).click()
    assert page.settle().state == "failed"
    told = [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert all('"niivue-error"' in message for message in told)
    page.driver.execute_script(replace, kept)
    page.row(broken).click()
    assert page.settle().state == "shown"
    assert page.pixels().std() > 10
    assert "F alone: " in page.find("#viewer output").text


def test_niivue_comes_from_the_wheel_without_importing_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipyniivue", raising=False)
    assert 1_000_000 < len(niivue_script.__wrapped__()) < 4_000_000
    assert "ipyniivue" not in sys.modules


def test_the_truth_is_drawn_in_a_lighter_tone():
    assert label_colours(("spleen",), light=0.2)[4:8] == [255, 255, 51, 255]
