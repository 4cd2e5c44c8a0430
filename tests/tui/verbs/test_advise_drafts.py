"""`ttscope advise --drafts`: how many tokens to draft at which batch, at a terminal and as JSON."""

import json

import pytest

from tests.advisor.synthetic import GREEDY, engine_of, record
from traces.schema.engine import Speculative

DRAFT = Speculative(method="draft_model", model="small", num_speculative_tokens=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafts")
    for name, drafts in (("plain", None), ("drafts", DRAFT)):
        record(folder / name, engine_of("large", speculative=drafts), GREEDY, concurrency=16)
    return folder


def test_the_table_the_schedule_and_the_command_are_printed(run, folder):
    out = run.ok("advise", folder, "--drafts")
    assert max(map(len, out.splitlines())) <= 80
    assert "large, drafts by draft_model (small), at contexts of" in out
    (line,) = (each for each in out.splitlines() if each.startswith('"num_speculative'))
    schedule = json.loads("{" + line + "}")["num_speculative_tokens_per_batch_size"]
    assert schedule[0][0] == 1 and schedule[-1][1] == 32
    assert "vllm" in out and "--speculative-config" in out


def test_the_document_has_the_same(run, folder):
    document = json.loads(run.ok("advise", folder, "--drafts", "--json"))
    (drafts,) = document["drafts"]
    assert drafts["num_speculative_tokens_per_batch_size"][0][0] == 1
    assert drafts["ranges"][0]["gain"][0]["low"] < drafts["ranges"][0]["gain"][0]["value"]
    assert drafts["speculative"]["method"] == "draft_model"
    assert document["left_out"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--acceptance", ".5"), "--speculative and --acceptance go with --drafts"),
        (("--drafts", "--acceptance", ".5,.7"), "shares never rise"),
        (("--drafts", "--speculative", "ngram"), "--speculative: not JSON"),
        (("--drafts", "--gpu", "h100_sxm", "--gpu", "b200_sxm"), "one --gpu at a time"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(run, folder, options, words):
    assert words in run.refused("advise", folder, *options)
