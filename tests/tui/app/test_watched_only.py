"""Recordings of traffic that was only watched have no policy: every verb and screen is of use."""

import json

import pytest

from tests.tui.app.test_stale_panels import open_named
from tests.tui.live_recordings import write_watched
from tests.tui.pilot import opened, press, settle, text_of
from traces.live.numbers import Bounds
from tui.app.app import TtscopeApp
from tui.text.recordings.live import bounds_text

DEPTHS = {
    "metrics": {"spans": False},
    "spans": {"spans": True},
    "steps": {"spans": True, "steps": True},
    "two": {"spans": True, "engines": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    for name, given in DEPTHS.items():
        write_watched(folder / name, **given)
    return folder


@pytest.mark.parametrize("name", DEPTHS)
def test_policies_show_what_was_sent(run, folder, name):
    out = run.clean("show", folder / name, "--policies")
    text = " ".join(out.split())
    assert "the traffic of others, whose policy and right answers are not known" in text
    assert out.count("samples as sent") == {"metrics": 0, "two": 2}.get(name, 1)
    if name != "metrics":
        assert "1 19 - 100" in text
    assert max(map(len, out.splitlines())) <= 80
    _, out, _ = run("show", folder / name, "--policies", "--json")
    for each in json.loads(out)["runs"]:
        assert each["policies"] == []
        assert "the traffic of others" in each["policy_notes"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics", "two"])
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("replay {} --run 1", 1, "too little of the server was seen"),
        ("replay {} --run 1 --set policy.n=2", 2, "is replayed as it was sent"),
        ("advise {} --max-latency 5s", 1, "too little of the server was seen"),
        ("show {} {} --fail-on p95>+5%", None, "--fail-on"),
        ("show {} {}", 0, ""),
        ("show {}", 0, ""),
        ("report {} -o {}.html", 0, "nothing stands out"),
        ("export {} -o {}.trace.json", None, ""),
    ],
)
def test_verbs_are_of_use_or_one_line(run, folder, name, words, code, told):
    arguments = [each.format(folder / name) for each in words.split()]
    got, out, err = run(*arguments)
    assert told in " ".join((out + err).split())
    assert got == code or (code is None and got in (0, 1, 2))
    if got:
        assert len(err.splitlines()) == 1 and not out
    if words.startswith("export"):
        assert got == (1 if name == "metrics" else 0)
        assert ("holds no problem, step, kernel or power" in err) == (name == "metrics")


def test_two_servers_are_told_apart(run, folder):
    _, out, _ = run("show", folder / "two")
    assert out.count("server    http://h:0") == out.count("server    http://h:1") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("metrics", (80, 24)), ("steps", (160, 40))])
async def test_every_page_of_the_run_screen(folder, name, size):
    async with opened(TtscopeApp([folder]), size) as (app, pilot):
        await open_named(pilot, name)
        found = text_of(app, "#title") + text_of(app, "#text")
        assert ("VERDICT" in found) == (name == "metrics")
        pages = []
        for _ in range(3):
            await press(pilot, "k")
            pages.append(text_of(app, "#text"))
        assert "no kernels were profiled" in pages[0]
        assert "the traffic of others" in " ".join(pages[1].split())
        assert "v replays" in pages[2]
        await pilot.press("k", "v")
        app.screen.query_one("#ask").value = "policy.n=2"
        await press(pilot, "enter")
        assert "as it was sent" in text_of(app, "#message")
        await pilot.press(
            "escape", "space", "right", "full_stop", "r", "w", "z", "0", "right_square_bracket"
        )
        await settle(pilot)


@pytest.mark.slow
async def test_other_screens_with_nothing_else(folder):
    async with opened(TtscopeApp([folder])) as (app, pilot):
        assert "enter: open it on screen 3" in text_of(app, "#detail")
        await press(pilot, "4")
        assert "too little of the server" in " ".join(text_of(app, "#message").split())


def test_one_output_has_one_ttft(run, folder):
    """Spans are preferred, and are what the run above has; else bounds, and no point in them."""
    _, out, _ = run("show", folder / "spans")
    table = {line.split()[0]: line for line in out.splitlines() if line.endswith(("spans", "s"))}
    assert table["TTFT"].endswith("spans") and table["request"].endswith("spans")
    assert table["ITL"].endswith("/metrics")
    (above,) = (line for line in out.splitlines() if line.startswith("TTFT p95"))
    assert " ".join(above.split()[2:4]) in table["TTFT"]
    assert "19 samples, by their spans" in out
    _, out, _ = run("show", folder / "spans", "--json")
    document = json.loads(out)
    (watched,) = document["watched"]
    for name in ("mean", "p50", "p95"):
        assert watched["requests"]["ttft_s"][name] == document["runs"][0]["ttft_s"][name]
    told = watched["numbers"]["ttft_s"]
    assert told["mean"]["value"] == pytest.approx(sum((0.3, 0.3, 5.9) * 6, 0.3) / 19)
    assert set(told["p95"]) == {"value", "low", "high", "unit", "extrapolated"}
    assert told["p95"]["value"] is None
    assert 5.0 <= told["p95"]["low"] <= 5.9 <= told["p95"]["high"] <= 5.901


def test_of_histograms_bounds_are_shown(run, tmp_path):
    write_watched(tmp_path / "busy", spans=False, seconds=(0.3, 0.3, 5.9), each=20)
    _, out, _ = run("show", tmp_path / "busy")
    (line,) = (line for line in out.splitlines() if line.startswith("TTFT"))
    assert "0.250 to 0.500 s" not in line  # in the unit of the upper bound
    assert "250 to 500 ms" in line and "5.00 to 10.0 s" in line and line.endswith("/metrics")
    assert "a quantile lies between two bounds" in " ".join(out.split())
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (5.0, 10.0, "5.00 to 10.0 s"), (0.0, 0.01, "up to 10.0 ms"), (60.0, None, "over 60.0 s"),
        (5.919, 5.921, "5.92 s"), (0.75, 1.0, "0.750 to 1.00 s"), (5e-5, 0.3, "0.0500 to 300 ms"),
    ],
)  # fmt: skip
def test_bounds_in_words(low, high, text):
    assert bounds_text(Bounds(low=low, high=high, unit="s")) == text
