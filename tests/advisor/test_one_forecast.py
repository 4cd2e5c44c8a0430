"""`replay` and `advise` are asked the same, of the same recording, and say the same."""

import dataclasses

import pytest

from advisor.advice.advisor import Advisor
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.schema.tts.policy import Policy
from traces.summary.run import summarise

NAMES = (
    *("accuracy", "latency_s", "latency_p50_s", "latency_p95_s", "device_s", "tokens", "flops"),
    "energy_j",
)
MOST = 16
LIMITS = ({"max_num_seqs": 4}, {"max_num_seqs": 8}, {"max_num_batched_tokens": 256})


def vote(n):
    return dataclasses.replace(VOTE16, n=n)


def rule(method, n, **fields):
    return Policy(
        method=method, n=n, temperature=0.8, max_tokens=200, rule=tuple(sorted(fields.items()))
    )


ASKED = [
    *((vote(n), {}) for n in (1, 2, 3, 4, 5, 8, 12, 16)),
    *((VOTE16, limits) for limits in LIMITS),
    *((vote(4), limits) for limits in LIMITS),
    (rule("agreement", 6, agree=4.0, in_flight=6.0), {}),
    (rule("agreement", 16, agree=9.0, in_flight=16.0), {"max_num_seqs": 8}),
    (rule("first_finish", 4, first=2.0), {}),
    (rule("first_finish", 8, first=4.0), {}),
    (rule("first_finish", 16, first=12.0), {"max_num_seqs": 8}),
    (rule("adaptive", 8, in_flight=4.0, threshold=0.95), {}),
    (rule("adaptive", 16, in_flight=4.0, threshold=0.95), {"max_num_seqs": 4}),
    (rule("early_stopping", 16, window=4.0), {}),
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    return record(folder, engine_of(max_num_seqs=MOST), VOTE16, problems=64, watts=300.0)


@pytest.fixture(scope="module")
def advisor(recorded):
    return Advisor.fit([recorded], draws=400)


def replayed(recording, policy, limits, rate_per_s=None):
    (run,) = summarise(recording)
    engine = dataclasses.replace(run.engine, **limits)
    question = Question(engine=engine, policy=policy, rate_per_s=rate_per_s)
    found = predict(recording, run, question).predicted
    return {
        "accuracy": found.accuracy,
        "latency_s": found.latency_s["mean"],
        "latency_p50_s": found.latency_s["p50"],
        "latency_p95_s": found.latency_s["p95"],
        "device_s": found.device_s_per_problem,
        "tokens": found.tokens_per_problem,
        "flops": found.flops_per_problem,
        "energy_j": found.energy_j.per_problem,
    }


def advised(advisor, policy, limits, rate_per_s=None):
    (row,) = advisor.space.rows_of(engine_of(**{"max_num_seqs": MOST} | limits), policy)
    state = advisor.under(rate_per_s)
    state.replay([row])
    place = state.metrics.place[row]
    return {name: state.metrics.estimate(name, place, price=None) for name in NAMES}


def check_values(one, other, names, close):
    for name in names:
        near = close.get(name, 1e-6)
        assert one[name].value == pytest.approx(other[name].value, rel=near), name
        assert one[name].extrapolated == other[name].extrapolated, name


def check_intervals(one, other, names, *, apart):
    """Ends are the same, but for what draws leave to chance: so much `apart` of the width."""
    for name in names:
        for of in ("fresh", "others"):
            own, its = (getattr(each[name], of) for each in (one, other))
            near = max(0.05 * one[name].value, apart * (its.high - its.low))
            for end in ("low", "high"):
                assert getattr(own, end) == pytest.approx(getattr(its, end), abs=near), (name, of)


@pytest.mark.parametrize(
    ("policy", "limits"), ASKED, ids=[f"{p.label()} {list(c.values())}" for p, c in ASKED]
)
def test_replay_and_advise_say_the_same(recorded, advisor, policy, limits):
    one, other = replayed(recorded, policy, limits), advised(advisor, policy, limits)
    check_values(one, other, NAMES, {"energy_j": 1e-4})  # a law of power bends between the draws
    check_intervals(one, other, NAMES, apart=0.1)


@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.7, 0.85])
@pytest.mark.parametrize("policy", [VOTE16, vote(4), rule("first_finish", 8, first=4.0)])
def test_replay_and_advise_say_the_same_at_a_rate(recorded, advisor, policy, load):
    """Both have a stream of problems without end. Device time has two definitions there.

    FLOPs of a rule and energy differ by how the passes of the stream are summed. Near to what can
    be served advice foresees the ends of latency from two speeds, and a replay runs at them.
    """
    (row,) = advisor.space.rows_of(engine_of(max_num_seqs=MOST), policy)
    rate = load * advisor.replays.capacity_per_s(row)
    one, other = (
        say(of, policy, {}, rate) for say, of in ((replayed, recorded), (advised, advisor))
    )
    at_rate = [name for name in NAMES if name != "device_s"]
    check_values(one, other, at_rate, {"energy_j": 2e-3, "flops": 5e-3})
    if load < 0.5:
        check_intervals(one, other, ("accuracy", "latency_s", "tokens"), apart=0.2)
