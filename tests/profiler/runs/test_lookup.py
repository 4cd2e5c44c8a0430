"""Prompt lookup counted at capture: counts are kept, token ids are not."""

import dataclasses

import polars as pl

from benchmarks.made.stub import StubEngine
from profiler.engines.interface import SampleResult
from profiler.engines.vllm.draft_steps import accounts_for, draft_steps
from profiler.engines.vllm.probes.draft_timer import DraftTimer, install_draft_timer
from profiler.runs import lookup as what_if
from profiler.runs.lookup import NgramRecorder
from profiler.runs.record import record
from profiler.workload.problems import Problem, Workload
from profiler.workload.verifiers import ByText
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig, Speculative
from traces.schema.tts.policy import Policy
from traces.summary.speculation.ngram import STANDARD

NGRAM = Speculative(
    method="ngram", num_speculative_tokens=3, prompt_lookup_min=2, prompt_lookup_max=4
)
DRAFT = Speculative(method="draft_model", num_speculative_tokens=3)
PROMPT, OUTPUT = [1, 2, 3, 4], [1, 2, 3, 4, 1, 9, 8]  # the rule drafts 0, 3, 0 and keeps 0, 3, 0


class SilentEngine(StubEngine):
    """A stub that does not tell its prompts' token ids."""

    def _result(self, made, reason):
        return dataclasses.replace(super()._result(made, reason), prompt_token_ids=None)


def run(folder, engine, **options):
    problems = [Problem(problem_id=f"p{i}", prompt=f"{i}+1", expected="12") for i in range(4)]
    workload = Workload(name="own", problems=problems, verifier=ByText(answer_of=lambda text: text))
    policy = Policy(method="majority", n=3, temperature=0.8)
    return Recording.open(record(workload, policy, engine, folder, **options))


def test_counts_are_kept_without_token_ids(tmp_path):
    recording = run(tmp_path / "r", StubEngine(lengths=(8, 20)))
    drafts = recording.frame("drafts")
    assert not recording.manifest.text_recorded
    assert recording.samples["token_ids"].null_count() == 12
    assert drafts.select("problem_id", "sample_index").unique().height == 12
    assert drafts.filter(phase="thinking").height == 12 * len(STANDARD)
    setting = ("prompt_lookup_max", "num_speculative_tokens")
    sums = drafts.group_by("problem_id", "sample_index", *setting).agg(pl.col("tokens").sum())
    joined = sums.join(recording.samples, on=("problem_id", "sample_index"))
    assert joined.height == 12 * len(STANDARD)
    assert (joined["tokens"] == joined["output_tokens"] - 1).all()
    assert "note" not in recording.frame("events")["kind"].to_list()


def test_an_engine_that_tells_no_prompts_has_no_counts(tmp_path):
    assert run(tmp_path / "r", SilentEngine()).frame("drafts").height == 0


def test_an_engines_notes_are_kept(tmp_path):
    engine = StubEngine()
    engine.notes = ("mended",)
    events = run(tmp_path / "r", engine).frame("events")
    assert events.filter(kind="note")["detail"].to_list() == ["mended"]


def result(**changes):
    fields = {"request_id": "r", "text": "", "finish_reason": "stop", "end": 0}
    return SampleResult(**(fields | changes))


def test_work_waits_for_the_end_of_the_run(monkeypatch):
    config = EngineConfig(model="m", speculative=NGRAM)
    counted = NgramRecorder(config, "p")
    whole = result(prompt_token_ids=tuple(PROMPT), token_ids=tuple(OUTPUT))
    counted.add("a", 0, whole)
    assert counted.drain() == []
    counted.add("b", 1, whole)
    monkeypatch.setattr(what_if, "TOKENS_KEPT", 12)  # until too many tokens wait
    assert {row["problem_id"] for row in counted.drain()} == {"a"}
    counted.finish()
    rows = counted.drain()
    assert {row["problem_id"] for row in rows} == {"b"} and counted.drain() == []
    assert len(rows) == len(STANDARD)  # the engine's own setting is one of them
    own = EngineConfig(model="m", speculative=Speculative(method="ngram", num_speculative_tokens=2))
    more = NgramRecorder(own, "p")
    more.add("a", 0, whole)
    more.finish()
    assert len(more.drain()) == len(STANDARD) + 1


def test_samples_without_tokens_are_left_out():
    counted = NgramRecorder(EngineConfig(model="m"), "p")
    counted.add("a", 0, result(error="HTTP 500", prompt_token_ids=(1,), token_ids=(1, 2)))
    counted.add("a", 1, result(prompt_token_ids=(1,), token_ids=(1,)))
    counted.add("a", 2, result(token_ids=(1, 2)))
    counted.finish()
    assert counted.drain() == []


def steps_of(drafted, accepted, speculative=NGRAM, cached=0):
    return draft_steps(
        drafted, accepted, speculative=speculative, prompt=PROMPT, output=OUTPUT,
        cached_tokens=cached, max_model_len=None,
    )  # fmt: skip


def test_steps_without_a_draft_are_put_back():
    assert steps_of([3], [3]) == ((0, 3, 0), (0, 3, 0))
    assert accounts_for((0, 3, 0), len(OUTPUT))
    assert steps_of([3], [2]) == ((3,), (2,))  # not what the rule says: left as it is
    assert not accounts_for((2,), len(OUTPUT))
    assert steps_of([], []) == ((), ())


def test_padding_is_no_draft():
    assert steps_of([3, 3], [0, 3], cached=3) == ((0, 3, 0), (0, 3, 0))
    assert steps_of([3, 3, 3], [0, 3, 1], DRAFT, cached=3) == ((3, 3), (3, 1))
    assert steps_of([3, 3, 3], [0, 3, 1], DRAFT, cached=2) == ((3, 3, 3), (0, 3, 1))


def test_accounts_for():
    assert accounts_for((), 1) and accounts_for((3,), 5) and accounts_for((3,), 2)
    assert not accounts_for((3,), 6) and not accounts_for((3, 0), 5) and not accounts_for((), 2)


class Runner:
    class device:
        type = "cpu"

    drafter = object()
    drafts = True

    def execute_model(self, *args):
        if self.drafts:
            self.propose_draft_token_ids(*args)
        return args

    def propose_draft_token_ids(self, *args):
        return [list(args)]


class Engine:
    """The way from an LLMEngine to its model runner."""

    def __init__(self, runner):
        self.engine_core = self.model_executor = self.driver_worker = self.worker = self
        self.model_runner = runner


def test_draft_timer_tells_of_the_last_step():
    runner = Runner()
    timer = install_draft_timer(Engine(runner))
    assert timer == DraftTimer(last_ns=None)
    assert runner.execute_model(1, 2) == (1, 2) and timer.last_ns > 0
    runner.drafts = False
    runner.execute_model()
    assert timer.last_ns is None


def test_draft_timer_is_null_where_it_cannot_be_told():
    class NoDrafts(Runner):
        drafter = property()

    class Gpu(Runner):
        class device:
            type = "cuda"

    for runner in (NoDrafts(), Gpu(), object()):
        assert install_draft_timer(Engine(runner)) is None
    assert install_draft_timer(object()) is None
