"""The HTML page in a real browser, headless Chromium, offline: charts are drawn, nothing is asked of a network, tables
sort by keyboard, numbers are the records', and nothing is wider than a phone."""

import json
import shutil
import subprocess
from functools import partial

import pytest
from support.pages import made, throughput, training
from support.paths import ROOT

from tdn_bench.records import write_record
from tdn_bench.reporting import html_path, write_report
from tdn_bench.reporting import report as report_module

FLAGS = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
FLAGS += "disable-component-update disable-sync"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium: apt-get install chromium chromium-driver"
)
HOSTILE = "</script><img src=https://example.org/x onerror=alert(1)>"
DARK = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}


def records():
    """One of every kind, with names that are no markup."""
    for name, ms, engine in (("eager", 20.0, "eager"), ("onnx", 8.0, "onnx"), (HOSTILE, 100.0, "compile")):
        yield throughput(name, ms, engine=engine)
    yield throughput("void", 1.0, status="void", status_reasons=("foreign load",))
    yield throughput("onnx", 9.0, engine="onnx", day=2)
    classes = [HOSTILE, "x" * 200, "c"]
    yield training("tdn", [[3, 1, 0], [0, 4, 0], [1, 0, 3]], classes)
    yield training("tsn", [[1, 3, 0], [1, 3, 0], [0, 4, 0]], classes, model="tsn_resnet50")
    latencies = {"latency_ms": [float(i) for i in range(1, 40)]}
    yield made("scenario", "single", {"queries": 39, "p50_latency_ms": 20.0}, samples=latencies)
    yield made(HOSTILE, HOSTILE, {"a_ms": 1.0})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for record in records():
        write_record(record, folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_stages", "plot_confusion"):
            patch.setattr(report_module, name, lambda records, path: path.write_bytes(b"x"))
        write_report(folder)
    return html_path(folder)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(driver, page, width=1280, height=900, dark=False):
    """The page in a window of that size, once all is drawn; returns what the console said and what was asked for."""
    from selenium.webdriver.support.wait import WebDriverWait

    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.get("about:blank")
    driver.get_log("performance")
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK if dark else {"features": []})
    driver.get(page.as_uri())
    WebDriverWait(driver, 120).until(partial(_drawn))
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [entry["message"] for entry in driver.get_log("browser")], asked


def _drawn(driver):
    return driver.execute_script("return document.documentElement.dataset.drawn")


SHAPES = {
    "desktop": (1280, 900, False),
    "phone": (390, 844, False),
    "dark": (1280, 900, True),
    "dark phone": (390, 844, True),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_draws_everything_says_nothing_asks_for_nothing_and_fits(chromium, page, shape):
    said, asked = opened(chromium, page, *shape)
    assert said == []
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {page.as_uri()}
    charts = chromium.execute_script(
        "return [...document.querySelectorAll('.chart')].map(c => [c.querySelectorAll('svg.marks').length,"
        " c.querySelector('svg.marks')?.getBoundingClientRect().width ?? 0, c.getBoundingClientRect().width,"
        " c.querySelectorAll('svg.marks path, svg.marks rect').length])"
    )
    assert len(charts) >= 9
    assert [c for c in charts if c[0] != 1 or not 100 < c[1] <= c[2] + 1 or c[3] < 3] == []
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= shape[0]
    assert chromium.execute_script("return document.querySelectorAll('img, main script').length") == 0
    script = "return [...document.querySelectorAll('.chart svg.marks')].map("
    script += "s => s.ariaLabel || s.querySelector('[aria-label]')?.ariaLabel)"
    labels = chromium.execute_script(script)
    assert all(labels)


def test_dark_is_dark_and_its_text_can_be_read(chromium, page):
    opened(chromium, page, dark=True)
    colours = chromium.execute_script(
        "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        " document.querySelector('.chart svg.marks text').getAttribute('fill')]"
    )
    back, text = (sum(map(int, colour[4:-1].split(", "))) for colour in colours[:2])
    assert back < 120
    assert text > 600
    assert colours[2] in ("#a3abb8", "#e4e7ec")
    opened(chromium, page)
    assert chromium.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


COLUMN = """
const table = [...document.querySelectorAll('table')].find(t => t.caption.textContent.startsWith('Engine ×'));
const at = [...table.tHead.rows[0].cells].findIndex(c => c.textContent.startsWith('ms/video'));
const button = table.tHead.rows[0].cells[at].querySelector('button');
"""


def test_tables_sort_by_keyboard_by_number_and_void_rows_stay_last(chromium, page):
    from selenium.webdriver.common.keys import Keys

    opened(chromium, page)
    read = f"{COLUMN} return [[...table.tBodies[0].rows].map(r => [+r.cells[at].dataset.value, r.className.trim()]),"
    read += " table.tHead.rows[0].cells[at].getAttribute('aria-sort'), document.getElementById('said').textContent]"
    button = chromium.execute_script(f"{COLUMN} return button")
    rows, sorted_by, _ = chromium.execute_script(read)
    assert sorted_by == "none"
    assert rows == [[9.0, "stable"], [20.0, "stable"], [100.0, "stable"], [1.0, "void"]]
    for key, wanted, values in (
        (Keys.ENTER, "ascending", [9.0, 20.0, 100.0, 1.0]),  # 100 is more than 20, as text it would be less
        (Keys.SPACE, "descending", [100.0, 20.0, 9.0, 1.0]),
        (Keys.SPACE, "ascending", [9.0, 20.0, 100.0, 1.0]),
    ):
        button.send_keys(key)
        rows, sorted_by, said = chromium.execute_script(read)
        assert ([value for value, _ in rows], sorted_by) == (values, wanted)
        assert said.endswith(wanted)
    chromium.execute_script("document.activeElement.blur()")
    chromium.execute_script(f"{COLUMN} table.tHead.rows[0].cells[0].querySelector('button').focus()")
    chromium.switch_to.active_element.send_keys(Keys.TAB)  # buttons are reached one after the other
    assert chromium.switch_to.active_element.text.startswith("status")


def test_text_sorts_as_text_and_equal_rows_keep_their_order(chromium, page):
    opened(chromium, page)
    before = chromium.execute_script(f"{COLUMN} return [...table.tBodies[0].rows].map(r => r.cells[0].textContent)")
    for _ in range(2):  # all networks are alike
        chromium.execute_script(
            f"{COLUMN} [...table.tHead.rows[0].cells].find(c => c.textContent.startsWith('network')).firstChild.click()"
        )
    assert before == chromium.execute_script(
        f"{COLUMN} return [...table.tBodies[0].rows].map(r => r.cells[0].textContent)"
    )
    chromium.execute_script(f"{COLUMN} table.tHead.rows[0].cells[0].firstChild.click()")
    after = chromium.execute_script(f"{COLUMN} return [...table.tBodies[0].rows].map(r => r.cells[0].textContent)")
    assert [name[:5] for name in after] == ["</scr", "eager", "onnx", "void"]


def test_marks_of_disturbed_runs_are_seen(chromium, page):
    opened(chromium, page)
    void, good = chromium.execute_script(
        f"{COLUMN} const at0 = s => getComputedStyle(table.querySelector(s)).textDecorationLine;"
        " return [at0('tr.void > th'), at0('tr.stable > th')]"
    )
    assert (void, good) == ("line-through", "none")


def test_folded_tables_open_from_their_link(chromium, page):
    opened(chromium, page)
    chromium.execute_script(
        "[...document.querySelectorAll('nav a')].find(a => a.textContent.startsWith('Table 3')).click()"
    )
    script = "return [...document.querySelectorAll('details.fold')].find(d => d.textContent.includes('Kinetics')).open"
    assert chromium.execute_async_script(
        f"const done = arguments[0]; setTimeout(() => done((() => {{ {script} }})()), 50)"
    )


def test_the_whole_of_results_is_one_small_page(chromium, tmp_path, monkeypatch):
    """All published records: under 3 MB, and without an error."""
    for name in ("plot_stages", "plot_confusion"):
        monkeypatch.setattr(report_module, name, lambda records, path: path.write_bytes(b"x"))
    folder = shutil.copytree(ROOT / "results", tmp_path / "results")
    subprocess.run(["git", "init", "-q", folder], check=True)
    write_report(folder)
    assert html_path(folder).stat().st_size < 3_000_000
    said, _ = opened(chromium, html_path(folder))
    assert said == []
    assert "Not shown" not in html_path(folder).read_text(encoding="utf-8")
