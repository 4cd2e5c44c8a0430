import pytest

from advisor.advice.advisor import Advisor
from tests.advisor.synthetic import GREEDY, NGRAM, VOTE16, engine_of, record


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Two models, greedy and voting, plain and speculative, and one repeat."""
    folder = tmp_path_factory.mktemp("recordings")
    plan = [
        ("small", {}, GREEDY, 0.02),
        ("small", {}, VOTE16, -0.02),
        ("small", {"speculative": NGRAM}, VOTE16, 0.01),
        ("large", {}, GREEDY, -0.01),
        ("large", {}, VOTE16, 0.03),
        ("large", {}, VOTE16, -0.03),
        ("large", {"tensor_parallel_size": 2}, VOTE16, 0.0),
    ]
    return [
        record(folder / f"run{number}", engine_of(model, **changes), policy, drift=drift)
        for number, (model, changes, policy, drift) in enumerate(plan)
    ]


@pytest.fixture(scope="session")
def advisor(recordings):
    return Advisor.fit(recordings)


@pytest.fixture(scope="session")
def fresh(advisor):
    """An advisor that has replayed only what it was asked for."""
    return Advisor.of(advisor.evidence, model=advisor.model)


@pytest.fixture(scope="session")
def fresh_advisor(fresh):
    """Make advisors that have replayed nothing, from what was learned once."""
    return lambda: Advisor.of(fresh.evidence, model=fresh.model)


@pytest.fixture(scope="session")
def two_models(tmp_path_factory):
    """An advisor of few draws, from one run of votes of each model."""
    folder = tmp_path_factory.mktemp("models")
    runs = [
        record(folder / model, engine_of(model), VOTE16, problems=20)
        for model in ("small", "large")
    ]
    return Advisor.fit(runs, draws=100)
