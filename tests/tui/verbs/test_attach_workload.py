"""`ttscope attach --workload`: what of the server is recorded beside the run."""

import time

from tests.tui.chat_server import chat_server
from traces.recording.reader import Recording

AWAITED_S = 1.5


def test_the_polls_end_with_the_workload_and_not_with_the_last_spans(run, monkeypatch):
    """The rates of /metrics are over the polls, and the wait for spans is idle time."""
    monkeypatch.setattr(
        "profiler.attach.receiver.incoming.Incoming._hear_spans_out",
        lambda incoming, ended: time.sleep(AWAITED_S),
    )
    asked = ("--problems", "4", "--n", "2", "--concurrency", "2", "--listen", "0", "-o", "r")
    with chat_server(token_s=0.05) as url:
        run.ok("attach", url, "--workload", "demo", *asked)
    recording = Recording.open("r")
    polls, ended = recording.frame("scrapes")["time"], recording.problems["end"].max()
    assert polls.max() >= ended
    assert (polls.max() - ended) / 1e9 < AWAITED_S / 3
