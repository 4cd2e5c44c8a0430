"""The Live screen attached to a real vLLM server, at every depth that a CPU has."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from contextlib import contextmanager

import httpx
import polars as pl
import pytest
from textual.widgets import Static

from benchmarks.servers.vllm_server import ROOT, entry_point, free_port, running, telling
from tests.tui.pilot import press, settle, text_of
from tests.tui.screens.live.test_live_screen import attach_to, on_live, wait_for
from traces.live.watched import watched_engines
from traces.recording.reader import Recording
from tui.screens.live.screen import LiveScreen
from tui.screens.run.screen import RunScreen
from tui.widgets.panel import PanelView

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

CANARY = "canary 31415"
SAMPLES = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with n-gram drafts, spans, the plugin and vLLM's profiler; told where they go."""
    folder = tmp_path_factory.mktemp("server")
    entry_point(folder / "site")
    port, traces = free_port(), folder / "traces"
    spans, variables = telling(port)
    profiler = {"profiler": "torch", "torch_profiler_dir": str(traces), "ignore_frontend": True}
    drafts = {"method": "ngram", "num_speculative_tokens": 3}
    drafts |= {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
    with running(
        folder / "one",
        *spans,
        *("--profiler-config", json.dumps(profiler)),
        *("--speculative-config", json.dumps(drafts)),
        "--enable-logging-iteration-details",
        **variables,
        OTEL_BSP_SCHEDULE_DELAY="1000",
        NUMBA_NUM_THREADS="1",  # lookups in more threads end vLLM's worker
        PYTHONPATH=f"{ROOT}:{folder / 'site'}",
    ) as one:
        traces.mkdir(exist_ok=True)
        yield one.url, port, traces


@contextmanager
def problems_posed(url):
    """Have problems of four samples posed, each with a parent of its own, one after another."""
    stop, posed = threading.Event(), []

    def pose():
        with httpx.Client(timeout=60) as client:
            while not stop.wait(0.2):
                number = len(posed) + 1
                body = {"prompt": f"{CANARY} {number}", "temperature": 0}
                body |= {"max_tokens": 60, "ignore_eos": True}
                parent = {"traceparent": f"00-{number:032x}-{number:016x}-01"}
                for _ in range(SAMPLES):
                    answer = client.post(f"{url}/v1/completions", json=body, headers=parent)
                    answer.raise_for_status()
                posed.append(number)

    thread = threading.Thread(target=pose)
    thread.start()
    try:
        yield posed
    finally:
        stop.set()
        thread.join()


async def until(true, seconds=300):
    for _ in range(seconds * 20):
        if true():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come to be")


async def test_attach_at_every_depth_stop_and_open(server, tmp_path, monkeypatch):
    url, port, traces = server
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("profiler.attach.kernel_windows.FIRST_S", 1.0)
    async with on_live(tmp_path) as (app, pilot, seen):
        with problems_posed(url) as posed:
            asked = f"{url} --listen {port} --kernels {traces} --kernel-windows 4/10s"
            await attach_to(pilot, asked)
            await pilot.pause()
            assert "profiler windows of 4 steps" in str(app.screen.query_one(Static).render())
            await pilot.press("y")

            def snapshot():
                found = [each.snapshot for each in seen if isinstance(each, LiveScreen.Ticked)]
                return found[-1] if found else None

            def at_every_depth():
                last = snapshot()
                if not (last and last.steps and last.problems_seen and last.families):
                    return False
                # A tick may come between the rows of a problem and those of its samples.
                return SAMPLES in last.problems["samples"].to_list()

            await until(at_every_depth)
            await pilot.pause()
            (numbers,) = snapshot().numbers.values()
            assert numbers.generated_tokens_per_s > 0
            assert numbers.acceptance_length >= 1
            sees = text_of(app, "#sees")
            assert "metrics yes" in sees
            assert "speculation yes" in sees
            assert re.search(r"\b[1-9]\d* windows", sees)  # another may have opened meanwhile
            assert "kernels " in " ".join(sees.splitlines()[-2:])
            assert "VERDICT" in text_of(app, "#verdict")
            shown = [each for each in app.screen.query(PanelView) if each.display]
            titles = [str(each.border_title) for each in shown]
            assert "Engine steps, last minute" in titles
            assert any(each.startswith("Latency") for each in titles)
            assert "kept by position" in "".join(str(each.render()) for each in shown)
            rows = [line.split() for line in text_of(app, "#text").splitlines()[2:]]
            assert str(SAMPLES) in {row[1] for row in rows}
            await pilot.press("d")
            told = text_of(app, "#text")
            assert "yes spans" in told
            assert "yes profiler" in told
        await pilot.press("s")
        await wait_for(pilot, seen, LiveScreen.Ended)
        assert "It is on screen 1 now" in text_of(app, "#message")
        await settle(pilot)
        (entry,) = (each for each in app.entries if each.path != tmp_path)
        kept = Recording.open(entry.path)
        assert kept.complete
        # Its spans, its steps and its /metrics count the same tokens, but those under way.
        (watched,) = watched_engines(kept)
        samples, steps = kept.samples, kept.steps
        assert 0 < samples.height <= SAMPLES * (len(posed) + 1)  # the last one is cut short
        assert set(samples["output_tokens"]) == {60}
        assert steps["step"].is_unique().all()
        assert steps["decode_tokens"].sum() >= samples["output_tokens"].sum() - samples.height
        assert watched.numbers.drafts > 0
        text = (entry.path / "recording.json").read_text()
        assert CANARY not in text + "".join(
            pl.read_parquet(part).write_ndjson() for part in entry.path.glob("*.parquet")
        )
        app.open_run(entry)
        await settle(pilot)
        assert isinstance(app.screen, LiveScreen)  # where it was seen
        assert "VERDICT" in text_of(app, "#verdict")
        await press(pilot, "2")
        assert isinstance(app.screen, RunScreen)
        assert "step" in text_of(app, "#step")
