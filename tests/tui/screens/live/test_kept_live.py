"""The Live screen as it was kept: before a server is watched, and recordings of one and of many."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tui.kept_screens import is_kept
from tests.tui.live_recordings import write_watched
from tests.tui.pilot import opened, press, settle
from traces.live.numbers import Times
from traces.live.verdict import Finding, Unseen, Verdict
from traces.recording.reader import Recording
from traces.schema.estimate import Estimate
from traces.summary.run import summarise
from tui.app.app import TtscopeApp
from tui.screens.live.panels import read_recorded, recorded_panels
from tui.screens.live.views import server_spreads, verdict_text


@pytest.mark.slow
async def test_states(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_watched(Path("runs/one"), spans=True, steps=True)
    write_watched(Path("runs/five"), spans=False, engines=5)
    async with opened(TtscopeApp([Path("runs")], screen="live")) as (app, pilot):
        await is_kept(pilot, "live-none")
        for name in ("one", "five"):
            await press(pilot, "1")
            app.open_run(next(each for each in app.entries if each.path.name == name))
            await settle(pilot)
            await is_kept(pilot, f"live-{name}")


NAMES = {f"e{at}": f"http://h:{at}" for at in range(6)}
UNSEEN = (Unseen(kind="launch-bound", needs="kernel windows"),)


def of(*kinds):
    """Return verdicts of engines e0, e1, ... with what was found of each."""
    return [
        Verdict(
            engine=f"e{at}",
            found=(Finding(kind=kind, evidence=f"{kind} here"),) if kind else (),
            unseen=UNSEEN,
        )
        for at, kind in enumerate(kinds)
    ]


def test_engines_of_one_verdict_share_a_headline():
    def told(*kinds, **options):
        given = {"width": 60, "unseen": False} | options
        names = {key: url for key, url in NAMES.items() if int(key[1:]) < len(kinds)}
        return verdict_text(of(*kinds), names, **given).plain.splitlines()

    assert told("queueing")[0] == "engine http://h:0"
    assert told(None, None, None)[0] == "all 3 engines"
    lines = told(None, "queueing", None, "queueing")
    assert lines[:2] == ["engines http://h:1, http://h:3", "VERDICT   QUEUEING  queueing here"]
    assert lines[2] == "engines http://h:0, http://h:2"
    many = told(None, *["queueing"] * 5, width=40)
    assert many[0] == "engines http://h:1 and 4 more"
    each = told("a", "b", "c", None, most=2)
    assert each[-1] == "2 engines with other verdicts: below"
    assert told("a", "b", "c", unseen=True, most=1)[-1].endswith("press d")


def test_servers_are_rows_the_slowest_first(tmp_path):
    write_watched(tmp_path / "live", spans=False, engines=3)
    recording = Recording.open(tmp_path / "live")
    recorded = read_recorded(recording, summarise(recording)[0])
    assert "Latency, slowest server first" in [each.title for each in recorded_panels(recorded)]
    numbers = recorded.engines[0]

    def lasting(seconds):
        mean = None if seconds is None else Estimate(value=seconds, low=seconds, high=seconds,
                                                     unit="s")  # fmt: skip
        return replace(numbers, e2e_s=Times(mean=mean), queue_s=Times())

    servers = [(f"h:{n}", lasting(s), None) for n, s in enumerate((1.0, None, 3.0, 2.0))]
    lines = server_spreads(servers)
    assert lines[0].split() == ["means", "TTFT", "ITL", "queue", "request"]
    assert [line.split()[0] for line in lines[1:]] == ["h:2", "h:3", "h:0", "h:1"]
    assert lines[4].split()[-2:] == ["-", "-"]
    assert server_spreads(servers, 2)[-1] == "2 other servers below"
    assert server_spreads(servers, 4) == lines
