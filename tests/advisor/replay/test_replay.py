import dataclasses
from functools import partial

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.evidence.features import ALL, Features, Reads
from advisor.evidence.runs import RecordedProblem, Sample, verify_steps
from advisor.replay.limits import Limits
from advisor.replay.recording import replayed_tables
from advisor.replay.replay import PLACED, Replicas, replay
from advisor.replay.simulation import loop
from advisor.replay.workload import ReplayWorkload, Turns
from advisor.step_time.cost import Most, linear_cost
from benchmarks.twin.replay_twin import naive_replay
from profiler.policies.parallel import ParallelVote
from traces.schema.tts.stop_rules import AGREE, FIRST, SAFE, WINDOWS, Stop

COST = np.array(
    Features(
        step=3e-3, prefill_step=1e-3, draft_step=7e-4, requests=2e-5, prefill_requests=1e-4,
        draft_requests=5e-5, tokens=4e-6, experts=8e-4, kv_tokens=3e-8, query_context=2e-9,
        window_tokens=5e-8, window_context=3e-9, problem_starts=4e-4, sample_starts=2e-4,
        sample_ends=1e-4,
    )
)  # fmt: skip


def plain(tokens: int) -> Sample:
    return Sample(output_tokens=tokens, answer="1", correct=True)


def problem(prompt: int, *samples: Sample, **more) -> RecordedProblem:
    return RecordedProblem(
        **{"prompt_tokens": prompt, "cached_tokens": 0, "samples": samples} | more
    )


def replayed(loads, limits, **how):
    return replay(ReplayWorkload.from_loads(loads), linear_cost(COST), limits, **how)


def drafted(tokens: int, k: int, rng: np.random.Generator, *, even: bool = False) -> Sample:
    accepted = []
    while even and 2 * len(accepted) < tokens - 1:
        accepted.append(1)
    while sum(accepted) + len(accepted) < tokens - 1:
        accepted.append(int(rng.integers(0, k + 1)))
    scheduled, advance = verify_steps(tokens, [k] * len(accepted), accepted)
    return Sample(
        output_tokens=tokens, answer="1", correct=True, scheduled=scheduled, advance=advance
    )


def loads_of(
    seed: int, problems: int, n: int, k: int = 0, *, longest: int = 40, even: bool = False
) -> list[RecordedProblem]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(problems):
        prompt = int(rng.integers(1, 60))
        lengths = [int(length) for length in rng.integers(1, longest, n)]
        if even:
            lengths = [2 * (length // 2) + 1 for length in lengths]
        samples = tuple(drafted(t, k, rng, even=even) if k else plain(t) for t in lengths)
        samples = tuple(
            dataclasses.replace(
                sample,
                answer=None if rng.random() < 0.1 else str(rng.integers(3)),
                by_length=bool(rng.integers(2)),
            )
            for sample in samples
        )
        cached = min(int(rng.integers(0, 3)) * 8, (prompt - 1) // 8 * 8)
        found.append(problem(prompt, *samples, cached_tokens=cached))
    return found


def lockstep_loads(seed: int, problems: int, n: int) -> list[RecordedProblem]:
    """Return problems whose samples end together: one length, one of two, or one a problem."""
    rng = np.random.default_rng(seed)
    found = []
    length, prompt = int(rng.choice([1, 2, 3, 12, 17])), int(rng.integers(1, 60))
    kind, silent, by_length = rng.integers(3), rng.choice([0, 0.2, 1]), rng.choice([0, 0.5, 1])
    for _ in range(problems):
        if kind == 1:
            length, prompt = int(rng.choice([1, 2, 12, 17])), int(rng.integers(1, 60))
        lengths = rng.choice([length, 2 * length], n) if kind == 2 else [length] * n
        samples = tuple(
            dataclasses.replace(
                plain(int(tokens)),
                answer=None if rng.random() < silent else str(rng.integers(2)),
                by_length=bool(rng.random() < by_length),
            )
            for tokens in lengths
        )
        cached = min(int(rng.integers(0, 3)) * 8, (prompt - 1) // 8 * 8)
        found.append(problem(prompt, *samples, cached_tokens=cached))
    return found


def named_loads(seed: int, problems: int, n: int, tokens: int) -> list[RecordedProblem]:
    """Return problems whose prompts grow on one tree of blocks, as chats with a common start do."""
    rng = np.random.default_rng(seed)
    found: list[RecordedProblem] = []
    for load in loads_of(seed, problems, n):
        before = found[int(rng.integers(len(found)))].prompt_blocks if found else ()
        kept = before[: int(rng.integers(0, len(before) + 1))]
        count = -(-load.prompt_tokens // tokens)
        fresh = rng.integers(0, 3, count).tolist()  # the same name elsewhere is another prefix
        names = (*kept, *fresh)[: count if rng.random() < 0.8 else count // 2]
        found.append(dataclasses.replace(load, cached_tokens=0, prompt_blocks=names))
    return found


def keys_of_names(loads, tokens: int, size: int):
    """Name each whole block of the cache by all names of the prompt up to its end."""
    found = []
    for p, load in enumerate(loads):
        ends = [min((i + 1) * tokens, load.prompt_tokens) for i in range(len(load.prompt_blocks))]
        named = list(zip(load.prompt_blocks, ends, strict=True))
        keys = []
        for b in range((load.prompt_tokens - 1) // size):  # the last token is always computed
            end = (b + 1) * size
            told = bool(ends) and end <= ends[-1]
            keys.append((b, *named[: -(-end // tokens)]) if told else ("problem", p, b))
        found.append(keys)
    return found


def assert_twins(
    loads, limits, *, arrivals=None, concurrency=None, stop=None, tokens=None, reads=ALL,
    turns=None, **how,
):  # fmt: skip
    """Compare with the naive twin; `tokens` is the size of the blocks that the loads name."""
    replicas = Replicas(**how) if how else None
    keys = None if tokens is None else keys_of_names(loads, tokens, limits.block_size)
    twin = {("replicas" if name == "count" else name): value for name, value in how.items()}
    workload = ReplayWorkload.from_loads(loads, arrivals, prompt_block_tokens=tokens)
    ours = replay(
        dataclasses.replace(workload, turns=turns),
        linear_cost(COST, reads, MOST),
        limits,
        concurrency=concurrency,
        stop=stop,
        replicas=replicas,
        log=True,
    )
    naive = naive_replay(
        loads,
        COST,
        limits,
        arrivals=arrivals,
        concurrency=concurrency,
        policy=None if stop is None else partial(ParallelVote, stop=stop),
        keys=keys,
        reads=reads,
        recorded=MOST,
        turns=turns,
        **twin,
    )
    assert ours.steps == naive["steps"]
    assert ours.preemptions == naive["preemptions"]
    near = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(ours.latency_s, naive["latency"], **near)
    np.testing.assert_allclose(ours.ttft_s, naive["ttft"], **near)
    np.testing.assert_allclose(ours.end_s, naive["ends"], **near)
    np.testing.assert_allclose(ours.busy_share_s, naive["share"], **near)
    np.testing.assert_allclose(ours.makespan_s, naive["makespan"], **near)
    np.testing.assert_allclose(ours.busy_share_s.sum(), ours.busy_s, rtol=1e-9)
    np.testing.assert_allclose(ours.totals @ COST, ours.busy_s, rtol=1e-9)
    np.testing.assert_allclose(ours.beyond_s, naive["beyond"], **near)
    np.testing.assert_array_equal(ours.generated_tokens, naive["generated"])
    np.testing.assert_array_equal(ours.cached_tokens, naive["cached"])
    np.testing.assert_allclose(ours.log["seconds"].sum(), ours.busy_s, rtol=1e-9)
    return ours


MOST = Most(requests=3.5, tokens=24.5, kv_tokens=90.5)  # of steps as those recorded
LIMITS = {
    "max_num_seqs": st.sampled_from([None, 1, 2, 5]),
    "max_num_batched_tokens": st.sampled_from([None, 24, 64]),
    "num_blocks": st.sampled_from([None, 14, 30]),
    "prefix_caching": st.booleans(),
    "async_scheduling": st.booleans(),
}
REPLICAS = st.sampled_from(
    [
        {},
        {"count": 2},
        {"count": 2, "together": True},
        {"count": 3, "routing": "least-outstanding"},
        {"count": 2, "routing": "least-outstanding", "together": True},
    ]
)
READS = st.sampled_from(
    [
        ALL, Reads(experts=0.25), Reads(window=20.0), Reads(0.1, 7.0),
        Reads(window=16.0, chunked=True),
    ]
)  # fmt: skip
STOPS = {
    "none": lambda n: None,
    "first": lambda n: Stop(rule=FIRST, value=(n + 1) // 2),
    "asc": lambda n: Stop(rule=SAFE, value=0.8, drawn_first=min(2, n)),
    "asc, all at once": lambda n: Stop(rule=SAFE, value=0.7),
    "agree": lambda n: Stop(rule=AGREE, value=min(2, n), drawn_first=min(3, n)),
    "esc": lambda n: Stop(rule=WINDOWS, value=2, drawn_first=2),
}


@pytest.mark.slow
@settings(max_examples=250)
@given(
    seed=st.integers(0, 10_000), problems=st.integers(1, 8), n=st.integers(1, 6),
    limits=st.fixed_dictionaries(LIMITS), stop=st.sampled_from(list(STOPS)), how=REPLICAS,
    concurrency=st.integers(1, 4), rate=st.sampled_from([None, 3.0, 50.0]), reads=READS,
)  # fmt: skip
def test_the_replay_equals_its_naive_twin(
    seed, problems, n, limits, stop, how, concurrency, rate, reads
):
    loads = loads_of(seed, problems, n)
    if how and (rate is None or not how.get("together")):
        # Engines in lock-step end steps at the same time; then either order is right, so here they
        # must not touch each other.
        stop, rate = "none", rate or 3.0
    rule = STOPS[stop](n)
    arrivals = None
    if rate is not None:
        gaps = np.random.default_rng(seed).exponential(1 / rate, problems)
        arrivals, concurrency = np.cumsum(gaps), None
    assert_twins(
        loads, Limits(block_size=8, **limits), arrivals=arrivals, concurrency=concurrency,
        stop=rule, reads=reads, **how,
    )  # fmt: skip


def turns_of(seed: int, problems: int, sessions: int) -> Turns:
    """Return problems that are turns of so many sessions, after any turn before them."""
    rng = np.random.default_rng([seed, 7])
    session = np.concatenate([np.arange(sessions), rng.integers(0, sessions, problems - sessions)])
    after = np.full(problems, -1)
    for turn in range(sessions, problems):
        after[turn] = rng.choice(np.flatnonzero(session[:turn] == session[turn]))
    return Turns(
        sessions=sessions,
        session=session,
        after=after,
        beside=rng.random(problems) < 0.2,
        after_s=rng.exponential(0.05, problems),
    )


@pytest.mark.slow
@settings(max_examples=200)
@given(
    seed=st.integers(0, 10_000), problems=st.integers(1, 12), sessions=st.integers(1, 4),
    n=st.integers(1, 3), limits=st.fixed_dictionaries(LIMITS), stop=st.sampled_from(list(STOPS)),
    concurrency=st.integers(1, 4), rate=st.sampled_from([None, 3.0, 50.0]),
)  # fmt: skip
def test_turns_that_wait_for_answers_equal_the_naive_twin(
    seed, problems, sessions, n, limits, stop, concurrency, rate
):
    sessions = min(sessions, problems)
    arrivals = None
    if rate is not None:
        gaps = np.random.default_rng(seed).exponential(1 / rate, sessions)
        arrivals, concurrency = np.cumsum(gaps), None
    turns = turns_of(seed, problems, sessions)
    found = assert_twins(
        loads_of(seed, problems, n), Limits(block_size=8, **limits), arrivals=arrivals,
        concurrency=concurrency, stop=STOPS[stop](n), turns=turns,
    )  # fmt: skip
    later = np.arange(sessions, problems)
    before, beside = turns.after[later], turns.beside[later]
    since = found.arrival_s[before] + np.where(beside, 0.0, found.latency_s[before])
    np.testing.assert_array_less(since + turns.after_s[later] - 1e-9, found.arrival_s[later])


def rule_of(name: str, value: int, in_flight: int):
    """Return a rule of `STOPS` with its value."""
    certain = (0.6, 0.8, 0.95)[value % 3]
    return {
        "none": None,
        "first": Stop(rule=FIRST, value=value),
        "asc": Stop(rule=SAFE, value=certain, drawn_first=in_flight),
        "agree": Stop(rule=AGREE, value=value, drawn_first=in_flight),
        "esc": Stop(rule=WINDOWS, value=value, drawn_first=value),
    }[name]


LOCKSTEP = {
    "seed": st.integers(0, 10_000),
    "problems": st.integers(1, 12),
    "n": st.integers(1, 8),
    "limits": st.fixed_dictionaries(LIMITS),
    "name": st.sampled_from(["none", "first", "asc", "agree", "esc"]),
    "value": st.integers(1, 8),
    "in_flight": st.integers(1, 9),
    "concurrency": st.sampled_from([1, 2, 4, 12, None]),
    "bursts": st.integers(1, 3),
}


def arrivals_of(problems: int, concurrency: int | None, bursts: int):
    """Return arrivals that coincide, where the number in flight does not say when."""
    return None if concurrency else np.sort(np.arange(problems) % bursts / 64)


@pytest.mark.slow
@settings(max_examples=300)
@given(**LOCKSTEP)
def test_samples_that_end_together_equal_the_naive_twin(
    seed, problems, n, limits, name, value, in_flight, concurrency, bursts
):
    rule = rule_of(name, value, in_flight)
    assert_twins(
        lockstep_loads(seed, problems, n),
        Limits(block_size=8, **limits),
        arrivals=arrivals_of(problems, concurrency, bursts),
        concurrency=concurrency,
        stop=rule,
    )


@pytest.mark.slow
@settings(max_examples=120)
@given(how=REPLICAS, **LOCKSTEP)
def test_engines_in_lockstep_decide_every_problem(
    seed, problems, n, limits, name, value, in_flight, concurrency, bursts, how
):
    # Which of two engines comes first is open, so that there may be two right answers.
    loads = lockstep_loads(seed, problems, n)
    workload = ReplayWorkload.from_loads(loads, arrivals_of(problems, concurrency, bursts))
    got = replay(
        workload, linear_cost(COST), Limits(block_size=8, **limits), concurrency=concurrency,
        stop=rule_of(name, value, in_flight), replicas=Replicas(**how) if how else None,
    )  # fmt: skip
    assert np.isfinite(got.latency_s).all()
    sent = np.isfinite(got.queued_s)
    assert np.isfinite(got.end_s[sent]).all()
    whole = sent & ~got.cancelled
    np.testing.assert_array_equal(got.generated_tokens[whole], workload.output_tokens[whole])
    assert not got.generated_tokens[~sent].any()
    np.testing.assert_allclose(got.busy_share_s.sum(), got.busy_s, rtol=1e-9)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("concurrency", "seqs"), [(1, 1), (2, 1), (4, 2)])
def test_who_comes_first_does_not_hang_on_a_last_digit(concurrency, seqs, asynchronous):
    """Replicas end the same steps at the same time, one after a long sample, one after two."""
    limits = Limits(block_size=8, max_num_seqs=seqs, async_scheduling=asynchronous)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        lengths = rng.choice([10, 11, 12, 30], (12, 8)).tolist()
        loads = [problem(20, *map(plain, each)) for each in lengths]
        first, again = (
            replay(
                ReplayWorkload.from_loads(loads), linear_cost(cost), limits,
                concurrency=concurrency, stop=Stop(rule=FIRST, value=4),
                replicas=Replicas(count=8, routing="least-outstanding"),
            )
            for cost in (COST, COST * (1 + 1e-12 * rng.uniform(-1, 1, COST.shape)))
        )  # fmt: skip
        np.testing.assert_array_equal(again.engine, first.engine)
        np.testing.assert_array_equal(again.generated_tokens, first.generated_tokens)
        np.testing.assert_allclose(again.end_s, first.end_s, rtol=1e-8)


@pytest.mark.parametrize("name", ["none", "first", "asc", "agree", "esc"])
@pytest.mark.parametrize("in_flight", [1, 2, 4, 8])
@pytest.mark.parametrize("concurrency", [1, 4, 12])
def test_equal_lengths_under_every_rule(name, in_flight, concurrency):
    # Four problems with four samples in flight that end in one step ask for 16 more of 12 problems.
    answers = (None, "1", None, "2", None, "1", None, "2")
    samples = (dataclasses.replace(plain(12), answer=each) for each in answers)
    loads, rule = [problem(10, *samples)] * 12, rule_of(name, 2, in_flight)
    assert_twins(loads, Limits(block_size=8), concurrency=concurrency, stop=rule)


def test_a_rule_of_a_whole_number_is_compiled_as_any_other():
    loads, known = [problem(10, *[plain(5)] * 2)], []
    for value in (1.0, 1):
        assert_twins(loads, Limits(block_size=8), concurrency=1, stop=Stop(rule=FIRST, value=value))
        known.append(len(loop.run.signatures))
    assert known[0] == known[1]


def test_a_draw_is_not_sent_once_its_problem_is_decided():
    # Both end in one step: the first asks for a third sample, the second agrees with it.
    loads, rule = [problem(10, *[plain(5)] * 4)], rule_of("agree", 2, 2)
    got = assert_twins(loads, Limits(block_size=8), concurrency=1, stop=rule)
    assert got.generated_tokens.tolist() == [5, 5, 0, 0]


@pytest.mark.slow
@settings(max_examples=120)
@given(
    seed=st.integers(0, 10_000), problems=st.integers(1, 10), n=st.integers(1, 3),
    tokens=st.sampled_from([8, 12, 16, 24]), limits=st.fixed_dictionaries(LIMITS),
    rate=st.sampled_from([3.0, 50.0]),
)  # fmt: skip
def test_named_prefixes_are_shared_as_by_the_naive_twin(seed, problems, n, tokens, limits, rate):
    loads = named_loads(seed, problems, n, tokens)
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, problems))
    assert_twins(loads, Limits(block_size=8, **limits), arrivals=arrivals, tokens=tokens)


def test_a_prompt_that_others_begin_with_is_found():
    names = [(7, 8, 9), (7, 8, 9), (7, 8, 4), (5, 8, 9)]
    loads = [problem(40, plain(4), prompt_blocks=each) for each in names]
    arrivals = [0.0, 10.0, 20.0, 30.0]
    found = assert_twins(loads, Limits(block_size=8), arrivals=arrivals, tokens=16)
    # The third block has 8 of its 16 tokens, and the last token of a prompt is always computed.
    assert found.cached_tokens.tolist() == [0, 32, 32, 0]


@pytest.mark.slow
@settings(max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    limits=st.fixed_dictionaries(LIMITS),
    concurrency=st.integers(1, 4),
    reads=READS,
)
def test_drafts_that_are_kept_evenly_replay_exactly(seed, limits, concurrency, reads):
    loads = loads_of(seed, 6, 4, 3, even=True)
    limits = Limits(block_size=8, speculative=True, **limits)
    assert_twins(loads, limits, concurrency=concurrency, reads=reads)


def test_drafts_replay_in_distribution():
    ratios = []
    for seed in range(12):
        loads = loads_of(seed, 12, 4, 3, longest=80)
        limits = Limits(block_size=8, num_blocks=60, max_num_seqs=12, speculative=True)
        ours = replayed(loads, limits, concurrency=4)
        naive = naive_replay(loads, COST, limits, concurrency=4)
        ratios.append(
            [
                ours.latency_s.mean() / naive["latency"].mean(),
                ours.makespan_s / naive["makespan"],
                ours.steps / naive["steps"],
            ]
        )
    assert np.abs(np.mean(ratios, axis=0) - 1).max() < 0.01
    assert np.abs(np.array(ratios) - 1).max() < 0.08


@pytest.mark.parametrize("asynchronous", [False, True])
def test_preemption_happens_and_is_the_same(asynchronous):
    limits = Limits(block_size=8, num_blocks=20, async_scheduling=asynchronous)
    assert assert_twins(loads_of(3, 6, 4), limits, concurrency=4).preemptions > 0


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("engines", [1, 3])
def test_a_reserve_keeps_engines_full_until_no_problem_is_left(engines, asynchronous):
    rng = np.random.default_rng(3)
    loads = [problem(20, *map(plain, rng.integers(20, 60, 2).tolist())) for _ in range(60)]
    found = replayed(
        loads,
        Limits(max_num_seqs=4, max_num_batched_tokens=256, async_scheduling=asynchronous),
        reserve=3,
        replicas=Replicas(count=engines, routing="least-outstanding"),
        log=True,
    )
    begun = found.arrival_s
    assert (np.diff(begun) >= 0).all() and begun[0] == 0 < begun[-1]
    full = found.log[found.log["begun"] > np.nanmin(begun + found.latency_s)]
    assert len(full) > 10 and (full["running"] == 4).mean() > 0.9 and (full["waiting"] >= 1).all()
    undecided = np.isnan(found.latency_s)
    assert undecided.any() and not undecided[: len(loads) // 2].any()
    assert found.makespan_s >= np.nanmax(begun + found.latency_s)


def test_a_sample_that_cannot_fit_is_refused():
    limits = Limits(block_size=8, num_blocks=10)
    with pytest.raises(ValueError, match="14 blocks"):
        replayed([problem(50, plain(60))], limits, concurrency=1)


def test_siblings_share_whole_blocks_of_the_prompt():
    # 136-token prompt, block size 32, 8 samples: 136 + 7 * (136 - 128) = 192 tokens computed.
    limits = Limits(block_size=32, max_num_batched_tokens=512)
    got = replayed([problem(136, *[plain(1)] * 8)], limits, concurrency=1)
    assert Features(*got.totals).tokens == 192
    assert got.steps == 1


def test_one_sample_by_hand():
    got = replayed([problem(10, plain(3))], Limits(block_size=16), concurrency=1)
    cost = Features(*COST)
    start = cost.problem_starts + cost.sample_starts
    first = cost.step + cost.requests + cost.prefill_step + cost.prefill_requests
    first += cost.tokens * 10 + cost.kv_tokens * 10 + cost.query_context * 55
    later = 2 * (cost.step + cost.requests + cost.tokens)
    later += (cost.kv_tokens + cost.query_context) * (11 + 12)
    assert got.ttft_s[0] == pytest.approx(start + first, rel=1e-12)
    assert got.latency_s[0] == pytest.approx(start + first + later + cost.sample_ends, rel=1e-12)


def test_many_cached_lengths_are_found_again_without_long_paths():
    """All levels below its own are in each prompt's path, which went with the square."""
    loads = [problem(8000, plain(1), cached_tokens=16 * (place % 400)) for place in range(4000)]
    made = ReplayWorkload.from_loads(loads, np.arange(4000.0))
    assert len(made.path) <= 21 * len(loads)
    found = replay(made, linear_cost(COST), Limits(block_size=16))
    assert found.cached_tokens.tolist() == [load.cached_tokens for load in loads]


def test_what_a_server_had_before_it_was_watched_is_found():
    """Each request finds what it found: of a warm system prompt, and of a chat's earlier turn."""
    found = [300, 304, 300, 0, 640, 300, 0, 300]
    loads = [
        problem(700, plain(4), cached_tokens=each, shared_tokens=300 if each == 300 else 0)
        for each in found
    ]
    arrivals = [float(place) for place in range(len(loads))]
    warm = assert_twins(loads, Limits(block_size=4), arrivals=arrivals)
    assert warm.cached_tokens.tolist() == found
    larger = assert_twins(loads, Limits(block_size=16), arrivals=arrivals)
    assert larger.cached_tokens.tolist() == [each // 16 * 16 for each in found]
    without = Limits(block_size=4, prefix_caching=False)
    assert not assert_twins(loads, without, arrivals=arrivals).cached_tokens.any()
    # A cache of one request's size gives a common beginning to the next request's own blocks.
    own = [problem(700, plain(4), cached_tokens=300 * (p % 2), shared_tokens=300 * (p % 2))
           for p in range(8)]  # fmt: skip
    roomy, tight = (
        assert_twins(own, Limits(block_size=4, num_blocks=blocks), arrivals=arrivals)
        for blocks in (None, 176)
    )
    assert roomy.cached_tokens.sum() == 4 * 300 and tight.cached_tokens.sum() == 300


def test_a_beginning_that_a_recorded_request_computed_is_computed_once():
    loads = [problem(700, plain(4), cached_tokens=300 * bool(p), shared_tokens=300)
             for p in range(8)]  # fmt: skip
    ours = assert_twins(loads, Limits(block_size=4), arrivals=np.arange(8.0))
    assert ours.cached_tokens.tolist() == [0, *[300] * 7]


def test_a_sample_that_is_drawn_later_arrives_then_in_the_recording():
    loads = loads_of(1, 3, 4)
    stop = Stop(rule=FIRST, value=4, drawn_first=1)
    got = replayed(loads, Limits(block_size=16), concurrency=1, stop=stop, log=True)
    tables = replayed_tables(
        got, loads, ["a", "b", "c"], linear_cost(COST), keys=("e", "p"), start_ns=0,
        speculative=False,
    )  # fmt: skip
    samples = tables["samples"]
    arrival = samples["arrival"].to_numpy() / 1e9
    assert arrival == pytest.approx(got.queued_s, abs=1e-8)
    assert len(np.unique(arrival)) == 12  # each after the one before


def test_the_steps_of_a_recording_say_how_many_were_preempted():
    loads, limits = loads_of(3, 6, 4), Limits(block_size=8, num_blocks=20)
    count = Replicas(count=2)
    workload = ReplayWorkload.from_loads(loads, [0.0] * len(loads))
    got = replay(workload, linear_cost(COST), limits, replicas=count, log=True)
    tables = replayed_tables(
        got, loads, [f"{each}" for each in range(len(loads))], linear_cost(COST), keys=("e", "p"),
        start_ns=0, speculative=False, replicas=2,
    )  # fmt: skip
    of = tables["steps"].group_by("engine").agg(pl.col("preempted").sum(), pl.len())
    assert tables["steps"]["preempted"].min() == 0
    assert of["preempted"].sum() == got.preemptions == tables["samples"]["preemptions"].sum() > 0
    assert of.height == 2 and of["preempted"].min() > 0


def test_verify_steps_keep_what_the_sample_kept():
    scheduled, advance = verify_steps(8, [3, 3, 3], [3, 0, 3])
    assert advance.tolist() == [4, 1, 2]
    assert scheduled.tolist() == [4, 4, 4]
    scheduled, advance = verify_steps(8, [2, 2], [2, 1])
    # Two steps drafted nothing; where they were is not recorded.
    assert advance.tolist() == [1, 3, 1, 2]
    assert scheduled.tolist() == [1, 3, 1, 3]
    assert [steps.tolist() for steps in verify_steps(3, [], [])] == [[1, 1], [1, 1]]
    assert verify_steps(8, None, None) == (None, None)


def test_each_problem_goes_to_the_engine_that_it_is_told_to_be_on():
    loads = [problem(50, *[plain(20 + at)] * 2, server=at) for at in (1, 1, 0, 1)]
    limits, arrivals = Limits(max_num_seqs=3), [0.0, 0.0, 0.01, 0.02]
    ours = assert_twins(loads, limits, arrivals=arrivals, count=2, routing=PLACED)
    assert ours.engine.tolist() == [1, 1, 1, 1, 0, 0, 1, 1]
    for known, count in (([1, 1, 0, None], 2), ([1, 1, 0, 1], 1)):
        unclear = [
            dataclasses.replace(each, server=at) for each, at in zip(loads, known, strict=True)
        ]
        with pytest.raises(ValueError, match="an engine to go to"):
            replay(
                ReplayWorkload.from_loads(unclear, arrivals), linear_cost(COST), limits,
                replicas=Replicas(count=count, routing=PLACED),
            )  # fmt: skip
