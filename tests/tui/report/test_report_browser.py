"""The report in a browser: no console errors, the numbers in the DOM, both schemes, the tooltips.

Skipped where there is no Chromium.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tui.report.report_page import Page
from tui.report.material import gather_material
from tui.report.page import page
from tui.verbs.demo import SHIPPED
from tui.verbs.open_all import open_all

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed"),
]

# Run after the page's own script, in a copy that allows it: what a person would see.
PROBE = """
const seen = {};
const style = getComputedStyle(document.body);
seen.paper = style.backgroundColor;
seen.ink = style.color;
seen.wider = document.documentElement.scrollWidth > document.documentElement.clientWidth;
seen.pick = document.querySelectorAll("figure .mark.pick").length;
const number = document.querySelector('[data-key="system_optimal.estimates.latency_s"]');
number.focus();
seen.tip = document.getElementById("tip").textContent;
seen.described = number.getAttribute("aria-describedby");
document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
seen.hidden = document.getElementById("tip").hidden;
document.querySelector("figure .mark.pick").focus();
seen.point = document.getElementById("tip").textContent;
document.querySelector(".copy").click();
seen.copied = getSelection().toString();
document.getElementById("theme").click();
seen.turned = getComputedStyle(document.body).backgroundColor;
document.title = JSON.stringify(seen);
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    few = [path for path in sorted(SHIPPED.iterdir()) if "demo-s-" in path.name]
    source = page(gather_material(open_all(few), {"min_accuracy": "0.75"}, seed=0))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(source)
    return path


def browse(path: Path, *options: str) -> tuple[str, str]:
    """Return the DOM after the page's script, and what the console said."""
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            f"--user-data-dir={path.parent / 'profile'}", "--enable-logging=stderr",
            "--virtual-time-budget=3000", "--dump-dom", *options, path.as_uri(),
        ],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_the_page_opens_without_a_word_on_the_console(written):
    dom, console = browse(written)
    assert console == ""
    found, source = Page(dom), Page(written.read_text())
    assert found.values == source.values
    assert found.values["system_optimal.estimates.accuracy"] >= 0.75
    assert "Run demo/s with" in found.text
    # The script has run (it shows the button), so the policy's hash is that of the script.
    assert re.search(r'<button type="button" id="theme">', dom)


@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
@pytest.mark.parametrize("width", [400, 1280])
def test_both_schemes_the_tooltip_and_the_toggle(written, tmp_path, scheme, dark, width):
    source = written.read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', source)
    probe = tmp_path / "probe.html"
    probe.write_text(
        source.replace(policy[0], "").replace("</body>", f"<script>{PROBE}</script></body>")
    )
    frame = tmp_path / "frame.html"  # a window is never narrower than 500 pixels
    frame.write_text(
        f"<iframe id=f src=probe.html width={width} height=900></iframe><script>"
        "onload = () => document.title = document.getElementById('f').contentDocument.title"
        "</script>"
    )
    dom, console = browse(
        frame, f"--blink-settings=preferredColorScheme={scheme}", "--allow-file-access-from-files"
    )
    assert console == ""
    seen = json.loads(re.search(r"<title>(.*?)</title>", dom)[1].replace("&quot;", '"'))
    papers = {True: "rgb(20, 23, 26)", False: "rgb(255, 255, 255)"}
    assert (seen["paper"], seen["turned"]) == (papers[dark], papers[not dark])
    assert seen["ink"] != seen["paper"]
    assert not seen["wider"], "the page scrolls sideways"
    assert seen["pick"] == 4  # latency, device time, FLOPs, tokens; no energy was recorded
    assert seen["tip"].startswith("Seconds from a problem's arrival to its answer")
    assert "90 % interval" in seen["tip"]
    assert seen["described"] == "tip"
    assert seen["hidden"] is True
    command = Page(source).text.partition("Start it with")[2].partition("and send ")[0]
    assert seen["copied"].split() == command.split()  # a title has no two spaces in a row
    assert seen["copied"].count("\n") == command.count("\n") > 2
    assert seen["point"].startswith("System-optimal: demo/s")


def test_it_prints(written, tmp_path):
    pdf = tmp_path / "r.pdf"
    browse(written, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf.read_bytes()))
    assert 3 <= pages <= 12
