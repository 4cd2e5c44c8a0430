"""Data-parallel ranks that share a mixture's experts, and servers that share nothing."""

import dataclasses
from types import SimpleNamespace

import polars as pl
import pytest

from advisor.advice.accounts.efforts import effort_map
from advisor.advice.advisor import Advisor
from advisor.advice.command import serve_command, servers_note
from advisor.advice.measure_next.experiments import write_plan
from advisor.advice.promise import expectations, write_config
from advisor.evidence.gather import gather
from advisor.evidence.live.ranks import ranks_in
from advisor.evidence.live.servers import replayable
from advisor.replay.recording import write_recording
from advisor.replay.replay import Replicas
from advisor.search.space import explore
from advisor.step_time.prior import tables as prior_tables
from advisor.step_time.prior.recalibration import recalibrate
from advisor.step_time.prior.tables import read_prior
from advisor.what_if import suggest as what_next
from advisor.what_if.predict import predict
from advisor.what_if.question import Question, changed
from advisor.what_if.suggest import suggest
from tests.advisor.asking import predicted
from tests.advisor.step_time.prior.kinds_files import layer, model, write_kinds
from tests.advisor.step_time.prior.prior_files import write_prior
from tests.advisor.synthetic import GREEDY, VOTE16, engine_of, record
from tests.advisor.watched import deployed
from traces.errors import UsageError
from traces.live.verdict import Remedy
from traces.recording.reader import Recording
from traces.schema.advice import Budget
from traces.schema.engine import RANKS
from traces.summary.run import summarise
from tui.report import verdict
from tui.screens.advice.rows import paste_text
from tui.text.advice import advice_json, advice_lines

MIXTURE = model(
    layer(), name="small", total_parameters=10**9, experts_per_token=2, kv_bytes_per_token=4096
)
URLS = (("urls", "http://a http://b http://c http://d"),)
REPLICA = Remedy(arguments=("--replicas", "2"), told="add a replica", why="requests wait")
PLACED = ("engine.max_num_seqs=64", "engine.max_num_batched_tokens=2048",
          "engine.vllm_version=0.9.0")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def systems(tmp_path_factory):
    folder = write_kinds(write_prior(tmp_path_factory.mktemp("kinds") / "systems"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior_tables, "tables_folder", lambda: folder)
        yield folder


def mixture_of(recording):
    facts = {"small": MIXTURE}
    dataclasses.replace(recording.manifest, models=facts).write(recording.path)
    return Recording.open(recording.path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Return a run of a mixture on an engine of some ranks, made once."""
    folder, kept = tmp_path_factory.mktemp("ran"), {}

    def of(ranks=1, policy=GREEDY, **changes):
        name = f"{ranks} {policy.n} {changes}"
        if name not in kept:
            engine = engine_of(data_parallel_size=ranks, **changes)
            kept[name] = mixture_of(
                record(folder / str(len(kept)), engine, policy, problems=16, concurrency=16)
            )
        return kept[name]

    return of


def asked(recording, *changes, gpu=None, **more):
    placed = () if gpu is None else PLACED
    return predicted(recording, *changes, *placed, gpu=gpu, **more)


def sharing(found):
    return [note for note in found.notes if "experts are shared" in note]


def step_s(found):
    return found.predicted.tpot_s["mean"].value


@pytest.mark.slow
def test_servers_of_a_mixture_that_took_problems_in_turn_share_no_experts(ran):
    alone, ranks = (asked(ran(count), gpu="test_gpu", concurrency=count) for count in (1, 4))
    servers = asked(ran(4, mode="server", other=URLS), gpu="test_gpu", concurrency=4)
    assert sharing(alone) == sharing(servers) == []
    (note,) = sharing(ranks)
    assert "experts are shared by the 4 data-parallel ranks of a server" in note
    # Each has about one request at a time: the same step, where ranks gather what all of them have.
    assert step_s(servers) == pytest.approx(step_s(alone), rel=0.02)
    assert abs(step_s(ranks) / step_s(alone) - 1) > 0.04


@pytest.mark.slow
def test_the_number_of_servers_may_be_asked_for_and_their_ranks_stay(ran):
    recording = ran(4, mode="server", other=((RANKS, "2"), URLS[0]))
    for change, count in ((), 4), (("engine.data_parallel_size=8",), 8):
        found = asked(recording, *change, gpu="test_gpu")
        assert "by the 2 data-parallel ranks" in sharing(found)[0]
        assert found.predicted.engine.by_server() == (count // 2, 2)
    with pytest.raises(UsageError, match="7 ranks are not as many on each of these servers"):
        asked(recording, "engine.data_parallel_size=7", gpu="test_gpu")
    uneven = ran(6, mode="server", other=((RANKS, "2 4"), URLS[0]))
    with pytest.raises(UsageError, match="6 ranks are not as many on each of these servers"):
        asked(uneven, gpu="test_gpu")
    with pytest.raises(UsageError, match="had different numbers of ranks"):
        asked(uneven)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "size", "instead"),
    [(1, 4, "--replicas 4"), (4, 8, "--replicas 2"), (4, 2, "Ask for 4 ranks. --replicas N")],
)
def test_recorded_steps_do_not_tell_what_other_ranks_of_a_mixture_take(ran, ranks, size, instead):
    with pytest.raises(UsageError, match=f"data_parallel_size={size}: .* {instead} asks for"):
        asked(ran(ranks), f"engine.data_parallel_size={size}")


@pytest.mark.slow
def test_servers_that_a_replay_adds_are_no_ranks_of_one(ran, tmp_path):
    found = asked(ran(), replicas=Replicas(count=4))
    assert found.predicted.engine.by_server() == (4, 1)
    assert found.predicted.engine.words().startswith("4 devices, 4 servers, ")
    found.write(tmp_path / "kept")
    engines = Recording.open(tmp_path / "kept").manifest.engines.values()
    assert set(ranks_in(engines).values()) == {1}


@pytest.mark.slow
def test_steps_of_other_ranks_of_a_mixture_are_not_learned_together(ran):
    with pytest.raises(UsageError, match="had different numbers of ranks"):
        asked(ran(1), others=[ran(4)])
    assert asked(ran(1), others=[ran(4)], gpu="test_gpu").predicted.problems == 16
    with pytest.raises(UsageError, match="had different numbers of ranks"):
        Advisor.fit([ran(1), ran(4)])


@pytest.mark.slow
@pytest.mark.parametrize(("named", "ranks"), [("url", 1), ("engine", 2)])
def test_ranks_that_were_watched_share_experts_and_servers_do_not(
    tmp_path, monkeypatch, named, ranks
):
    base = record(tmp_path / "base", engine_of(), GREEDY, problems=40)
    truth = predicted(base, rate_per_s=100.0)
    seen = mixture_of(deployed([truth, truth], tmp_path, named=named, spans=None))
    (whole,) = replayable(seen)
    assert (whole.engine.ranks, whole.engine.data_parallel_size) == (ranks, 2)
    found = asked(seen, gpu="test_gpu")
    assert [f"the {ranks} data-parallel" in note for note in sharing(found)] == [True] * (ranks - 1)
    assert {r for s in gather([seen]).ranks.values() for r in s} == {ranks}
    (note,) = [each for each in found.notes if "has experts" in each]
    assert ("those of a rank" in note) == (ranks == 2)
    if named == "url":
        assert asked(seen, "engine.data_parallel_size=3").predicted.engine.by_server() == (3, 1)
    else:
        with pytest.raises(UsageError, match="--replicas N asks for"):
            asked(seen, "engine.data_parallel_size=3")
    monkeypatch.setattr(what_next, "change_for", lambda *_: REPLICA)
    proposed = suggest(seen)
    more, count = proposed.arguments, proposed.prediction.predicted.engine.data_parallel_size
    if named == "url":  # one server more, else as many ranks on a second server
        assert (more, count) == (("--set", "engine.data_parallel_size=3"), 3)
    else:
        assert (more, count) == (REPLICA.arguments, 4)


@pytest.mark.slow
def test_ranks_that_were_recorded_recalibrate_the_prior_as_ranks(ran, tmp_path):
    truth = asked(ran(4), gpu="test_gpu")
    (key, *ranks), (whole, *each) = truth.manifest.engines, truth.manifest.engines.values()
    each = [dataclasses.replace(e, other=(("engine", str(at)),)) for at, e in enumerate(each)]
    engines = {engine.key(): engine for engine in (whole, *each)}
    names = dict(zip((key, *ranks), engines, strict=True))
    tables = {
        name: table.with_columns(engine=pl.col("engine").replace(names))
        for name, table in truth.tables.items()
    }
    tables["steps"] = tables["steps"].with_columns(source=pl.lit("measured"))
    manifest = dataclasses.replace(truth.manifest, engines=engines, provenance={})
    write_recording(tmp_path / "r", manifest, tables)
    made = mixture_of(Recording.open(tmp_path / "r"))
    found = recalibrate(read_prior("test_gpu"), [made])
    assert found.step == pytest.approx(1.0, abs=0.02)


def test_which_ranks_are_of_one_server():
    def on(**other):
        return engine_of(mode="server", other=tuple(other.items()))

    ranks = [on(engine=rank, url=at) for at, count in (("a", "012"), ("b", "0")) for rank in count]
    workers = [on(dp_rank=rank, url="c", worker=name) for name in "xy" for rank in "01"]
    engines = [on(url="a"), *ranks, *workers, on(url="d")]
    assert list(ranks_in(engines).values()) == [3, 3, 3, 1, 2, 2, 2, 2, 1]
    replayed = engine_of(data_parallel_size=4)
    assert ranks_in([replayed, replayed.one_replica()]) == {replayed: 4}


BUDGET = Budget(optimise="latency", max_gpus=8)


@pytest.fixture(scope="module")
def advised(ran):
    advisor = Advisor.fit([ran(1, VOTE16)])
    return advisor, advisor.recommend(BUDGET)


@pytest.mark.slow
def test_replicas_of_a_mixture_are_servers_of_their_own_in_every_word(advised, tmp_path):
    advisor, answer = advised
    pick = answer.system_optimal
    assert pick.engine.by_server() == (8, 1)
    assert "data-parallel" not in pick.command
    note = servers_note(pick.engine)
    mapped = effort_map(advisor, BUDGET, pick, {})
    assert (mapped.command, mapped.servers) == (pick.command, note)
    assert note.startswith("The command starts one server. 8 of them run, each on 1 device of its")
    (run,) = [line for line in answer.measure_next if "ttscope attach" in line]
    assert (
        "ttscope attach URL1 URL2 " in run
        and " URL8 --listen 4318 --model small --workload " in run
    )
    assert "--endpoint" not in "".join(answer.measure_next)
    shown = " ".join(" ".join(advice_lines(answer)).split())
    assert note in shown and "on 8 devices, 8 servers" in shown
    assert note in paste_text(pick) and "servers8" in pick.engine.label()
    assert note in "".join(map(str, verdict._answer(answer)))
    document = advice_json(answer)
    assert any("8 of them run" in each for each in document["reasons"])
    assert [RANKS, "1"] in document["system_optimal"]["engine"]["other"]
    write_config(tmp_path, answer, advisor)
    script = (tmp_path / "serve.sh").read_text()
    assert f"# {note}\n" in script and "data-parallel" not in script
    assert expectations(answer, advisor).engine == pick.engine
    write_plan(tmp_path / "plan.yaml", answer, advisor.evidence)
    assert "# one of 8 servers, for " in (tmp_path / "plan.yaml").read_text()
    (row,) = advisor.space.rows_of(pick.engine, pick.policy)
    assert advisor.space.candidate(row).engine == pick.engine


def test_replicas_of_a_dense_model_are_those_of_one_command(tmp_path):
    space = explore(gather([record(tmp_path / "r", engine_of(), VOTE16, problems=4)]))
    engines = [space.candidate(row).engine for row in range(len(space))]
    assert {engine.data_parallel_size for engine in engines} == {1, 2, 4, 8}
    for engine in engines:
        size = engine.data_parallel_size
        command = serve_command(engine, model_path="m")
        assert (f"--data-parallel-size {size}" in command) == (size > 1)
        assert engine.other == () and servers_note(engine) == ""


@pytest.mark.slow
def test_a_server_whose_ranks_share_experts_is_offered_as_such(ran, tmp_path):
    advisor = Advisor.fit([ran(4, VOTE16)])
    alone, most = (advisor.recommend(dataclasses.replace(BUDGET, max_gpus=n)) for n in (None, 8))
    assert alone.system_optimal.engine.by_server() == (1, 4)
    assert "--data-parallel-size 4" in alone.system_optimal.command
    assert "on 4 devices, 4 data-parallel ranks" in " ".join(advice_lines(alone))
    assert most.system_optimal.engine.by_server() == (2, 4)
    assert "2 of them run, each on 4 devices" in servers_note(most.system_optimal.engine)
    with pytest.raises(UsageError, match="--plan: ttscope sweep starts one data-parallel rank"):
        write_plan(tmp_path / "plan.yaml", alone, advisor.evidence)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 4])
def test_what_is_offered_on_a_gpu_is_priced_with_the_ranks_that_share_experts(ran, ranks):
    recording = ran(ranks, VOTE16)
    advisor = Advisor.fit([recording], gpus=["test_gpu"])
    (row,) = [
        row
        for row in range(len(advisor.space))
        if (c := advisor.space.candidate(row)).prior is not None
        and c.engine.tensor_parallel_size == 1
        and c.policy == VOTE16
        and (c.engine.max_num_seqs, c.engine.max_num_batched_tokens) == (32, 512)
        and c.engine.by_server() == (1, ranks)
    ]
    answer = advisor.recommend(dataclasses.replace(BUDGET, max_gpus=4))
    assert answer.system_optimal.prior == "test_gpu"
    short = [line for line in answer.measure_next if "a short run" in line]
    assert bool(short) == (ranks == 1)  # which a run in this process has
    candidate = advisor.space.candidate(row)
    mine = advisor.replays.of(row, concurrency=16, rate_per_s=None)
    (run,) = summarise(recording)
    engine = dataclasses.replace(candidate.engine, max_model_len=1024)
    question = Question(engine=engine, policy=VOTE16, gpu="test_gpu")
    told = predict(recording, run, question)
    assert len(sharing(told)) == (ranks > 1)
    assert mine.latency_s.mean() == pytest.approx(told.predicted.latency_s["mean"].value, rel=2e-3)
    # Of a row of the app the same is asked with other settings.
    (more, _, _) = changed(
        SimpleNamespace(engine=engine, policy=VOTE16, recording="r"),
        [f"engine.data_parallel_size={2 * ranks}"],
    )
    found = predict(recording, run, dataclasses.replace(question, engine=more))
    assert found.predicted.engine.by_server() == ((2, 4) if ranks == 4 else (1, 2))
