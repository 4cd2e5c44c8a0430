"""The Recordings screen as it was kept, in each of its states."""

import json
from pathlib import Path

import pytest

from tests.traces.synthetic import engine_config, simulate, write_recording
from tests.tui.kept_screens import SIZES, is_kept
from tests.tui.live_recordings import write_watched
from tests.tui.pilot import opened, press
from tui.app.app import TtscopeApp
from tui.screens.entries import load
from tui.screens.library import import_into
from tui.screens.recordings.details import entry_lines

pytestmark = pytest.mark.slow


def outcomes(path, *, problems=12, samples=4):
    """Write outcomes of evaluations, a sample of every fourth problem failed."""
    rows = [
        {
            "problem_id": f"p{problem}",
            "sample_index": at,
            "output_tokens": 100 + 7 * ((problem + at) % 5),
            "answer": str((problem + at) % 3),
            "correct": (problem + at) % 3 == 1,
        }
        for problem in range(problems)
        for at in range(samples)
    ]
    for row in rows[samples - 1 :: 4 * samples]:
        row |= {"error": "out of memory", "answer": None, "correct": None}
    path.write_text("\n".join(map(json.dumps, rows)))


async def test_states(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with opened(TtscopeApp([Path("runs")])) as (_, pilot):
        await is_kept(pilot, "recordings-none")
    for seqs in (8, 2):
        rows = simulate(problems=12, n=4, seqs=seqs)
        write_recording(Path("runs") / f"vote{seqs}", rows, engine=engine_config(max_num_seqs=seqs))
    write_recording(Path("runs/cut"), simulate(problems=4, n=2), complete=False)
    write_watched(Path("runs/watched"), spans=False, engines=3)
    outcomes(Path("evals.jsonl"))
    import_into("evals.jsonl", Path("runs"))
    async with opened(TtscopeApp([Path("runs")])) as (_, pilot):
        await is_kept(pilot, "recordings", (*SIZES, (200, 60)))
        await press(pilot, "down", "space", "space")
        await is_kept(pilot, "recordings-compared")
        await press(pilot, "u", "slash", *"evals", "enter")
        await is_kept(pilot, "recordings-outcomes")


@pytest.mark.parametrize(
    ("engines", "spans", "told"),
    [
        (1, False, "live: a server that was watched, http://h:0"),
        (3, False, "live: 3 servers that were watched"),
        (
            3,
            True,
            "live: http://h:0, one of 3 servers that were watched, 19 problems seen by spans",
        ),
    ],
)
def test_which_servers_were_watched(tmp_path, engines, spans, told):
    write_watched(tmp_path / "live", spans=spans, engines=engines)
    entries = load(tmp_path / "live")
    lines = [entry_lines(entry, marked=0, width=100) for entry in entries]
    assert told in [line[0] for line in lines]
