"""`ttscope replay --agents`: the table, the document, and what is refused in one line."""

import json

import pytest

from tests.tui.model_config import llama_config
from tui.verbs.demo import SHIPPED

SESSIONS = SHIPPED.parent / "sessions"
VOTES = SHIPPED / "demo-s-tp1-seqs64-maj@16-t0.8-a1b9005e"


@pytest.fixture
def asked(run, tmp_path, prior):
    """Imported sessions, and a GPU and a model whose times they are replayed with."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(llama_config()))
    run.ok("import", SESSIONS / "session-1.json", "-o", tmp_path / "agents")
    return ("replay", tmp_path / "agents", "--gpu", "test_gpu", "--model-config", config)


def test_a_row_for_each_number_of_agents_and_the_most_within_a_limit(run, asked):
    out = run.ok(*asked, "--agents", "2,16", "--max-turn-latency", "20s")
    rows = [line for line in out.splitlines() if line.strip().startswith(("2 ", "16 "))]
    assert len(rows) == 2 and all(" of " in row and "[" in row for row in rows)
    assert "agents at work on 1 recorded session of 27 turns" in out
    assert "agents at once have p95 turns within 20.0 s (" in " ".join(out.split())


def test_the_document_has_more_than_the_table(run, asked):
    document = json.loads(run.ok(*asked, "--agents", "16,2,2", "--json"))
    agents = document["agents"]
    few, many = agents["by_agents"]
    assert agents["asked"] == [few["agents"], many["agents"]] == [2, 16]
    assert agents["most"] is None
    assert few["turn_s"]["p95"]["value"] < many["turn_s"]["p95"]["value"]
    assert few["turn_s"]["mean"]["fresh"]["low"] < few["turn_s"]["mean"]["value"]
    assert few["tools_share"]["value"] > 0.8
    assert many["tokens_per_s"]["value"] > 6 * few["tokens_per_s"]["value"]
    plain = json.loads(run.ok(*asked, "--json"))
    assert plain["agents"] is None
    assert plain["predicted"] == document["predicted"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--agents", "0"), "give numbers from 1 to 10,000, such as 8,16,32"),
        (("--agents", "8,x"), "give numbers from 1 to 10,000"),
        (("--agents", ""), "give numbers from 1 to 10,000"),
        (("--agents", "8", "--rate", "2/s"), "--agents and --rate: give one"),
        (("--max-turn-latency", "5s", "--batch", "9"), "--agents and --batch: give one"),
        (("--agents", "8"), "holds no sessions"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(run, options, words):
    assert words in run.refused("replay", VOTES, *options)
