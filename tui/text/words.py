"""Configurations, budgets and policies in words: the one voice of command line, app and report."""

from __future__ import annotations

from advisor.advice.command import policy_request
from traces.schema.advice import Budget, Recommendation
from traces.schema.engine import EngineConfig, model_words
from traces.schema.formats import counted, written
from traces.schema.quantities import LIMITS, Quantity, latency, limited, objective
from traces.schema.tts.policy import Policy
from traces.schema.tts.routes import first_of, tables_in_words, write_routes


def policy_words(policy: Policy | None) -> str:
    """Return what a policy does, such as `8 samples, majority vote`."""
    return "policy not known" if policy is None else policy.words()


def engine_words(engine: EngineConfig, *, imported: bool = False, prior: str | None = None) -> str:
    """Return how an engine is started, as `EngineConfig.words` does."""
    return "engine not known" if imported else engine.words(prior=prior)


def plain(
    engine: EngineConfig,
    policy: Policy | None,
    *,
    imported: bool = False,
    prior: str | None = None,
) -> str:
    """Return a configuration in one line of text."""
    how = engine_words(engine, imported=imported, prior=prior)
    return f"{model_words(engine.model)}: {policy_words(policy)}, {how}"


def limit_words(field: str, value: float, percentile: int | None = None) -> str:
    """Return a limit, such as `accuracy of at least 0.75`."""
    subject = limited(field, percentile)
    bound = "least" if LIMITS[field].at_least else "most"
    if subject.noun == subject.unit:  # such as devices
        return f"at {bound} {counted(round(value), subject.noun.removesuffix('s'))}"
    return f"{subject.noun} of at {bound} {written(value, subject.unit)}"


def budget_words(budget: Budget, *, beside: str | None = None) -> str:
    """Return every limit of a budget but for that of the field `beside`; empty without one."""
    return ", ".join(
        limit_words(field, value, budget.latency_percentile)
        for field, value in given_limits(budget).items()
        if field != beside
    )


def given_words(answer: Recommendation, *, beside: str | None = None) -> str:
    """Return every limit of an answer's budget and the load that it holds for, which may be one.

    The limit of the field `beside` is left out, which stands elsewhere.
    """
    load, budget = answer.load, answer.budget
    limits = budget_words(budget, beside=beside)
    if load is None or budget.rate_per_s is not None:
        return " and ".join(filter(None, limits.rpartition(", ")[::2]))
    recorded = ", the recorded rate" if load.rate_per_s is not None else ""
    return " and ".join(filter(None, (limits, f"{load.words()}{recorded}")))


def goal_within(answer: Recommendation) -> str:
    """Return what is best in a pick and under which limits, as `lowest mean latency with ...`.

    A limit on what is optimised stands beside it: `lowest mean latency (at most 5 s)`.
    """
    budget = answer.budget
    goal = objective(budget.goal, budget.latency_percentile)
    own = [field for field in budget.limits() if limited(field, budget.latency_percentile) == goal]
    words = goal_words(budget)
    for field in own:
        bound = "least" if LIMITS[field].at_least else "most"
        words += f" (at {bound} {written(budget.limits()[field], goal.unit)})"
    given = given_words(answer, beside=own[0] if own else None)
    return words + (f" with {given}" if given else "")


def given_limits(budget: Budget) -> dict[str, float]:
    """Return what is limited, by field; the rate that must be kept up with is a limit too."""
    rate = {} if budget.rate_per_s is None else {"rate": budget.rate_per_s}
    return budget.limits() | rate


def goal_words(budget: Budget) -> str:
    """Return what is optimised, such as `lowest p95 latency` or `highest accuracy`."""
    return _best(objective(budget.goal, budget.latency_percentile))


def front_goal(budget: Budget) -> Quantity:
    """Return what the system-optimal front is best in, for each accuracy.

    Where accuracy is optimised that is the mean latency, whichever latency is limited.
    """
    if budget.goal == "accuracy":
        return latency()
    return objective(budget.goal, budget.latency_percentile)


def own_axes(budget: Budget) -> tuple[str, str]:
    """Return against what a line joins the system-optimal and the compute-optimal front.

    On another axis a front turns back and forth.
    """
    return front_goal(budget).name, "flops"


def front_words(budget: Budget) -> str:
    """Return what the system-optimal front is best in, such as `lowest mean latency`."""
    return _best(front_goal(budget))


def _best(goal: Quantity) -> str:
    return f"{'highest' if goal.higher_is_better else 'lowest'} {goal.noun}"


def request_words(policy: Policy) -> tuple[str, str, str]:
    """Return how many requests a policy sends a problem, what each holds, and which answer wins.

    The three make one sentence. What each holds is empty where it is not known.
    """
    request = policy_request(policy)
    count, at_a_time = request["requests"], request["at_a_time"]
    slowly = f", {at_a_time} at a time" if at_a_time < count else ""
    sent, winner = f"send {counted(count, 'request')} a problem{slowly}", request["answer"]
    if policy.routes is not None:
        tables = policy.routes.values()
        table = tables_in_words(write_routes(policy.routes, policy.efforts))
        first = " or ".join(counted(each, "request") for each in sorted(set(map(first_of, tables))))
        sent = (
            f"send {first} a problem, and when they have ended as many more as the table gives "
            f"({table})"
        )
        if len(tables) > 1 and all(set(each) == {first_of(each)} for each in tables):
            sent = f"send as many requests a problem as its class has ({table})"
        winner = "the most frequent answer"
    usual = {"n": 1, "top_p": 1.0}  # what an API takes where nothing is said
    fields = (item for item in request["body"].items() if item not in usual.items())
    body = ", ".join(f"{name} {value}" for name, value in fields)
    wins = "" if winner == "the only answer" else f", and {winner} wins"
    cancel = ". Cancel the rest then" if request["cancel_the_rest"] else ""
    unknown = [] if policy.temperature is not None else ["temperature"]
    unknown += [] if policy.max_tokens is not None or body else ["max_tokens"]
    names, are = " and ".join(unknown), "are" if len(unknown) > 1 else "is"
    missing = f" with the {names} of the samples, which {are} not known" if unknown else ""
    if not body:
        return sent + missing, body, f"{wins}{cancel}."
    rest = f" and the {names} of the samples, which {are} not known" if unknown else ""
    each = ", each with " if count > 1 else " with "
    return f"{sent}{each}", body, f"{rest}{wins}{cancel}."


def strange_questions(model: str | None, workload: str) -> str | None:
    """Return what is to know where a bundled reasoner is asked other questions, None elsewhere."""
    if model is None or not model.startswith("demo/") or workload.startswith("demo"):
        return None
    return (
        f"{model} knows the demo's sums alone. Its accuracy on other questions is about 0, "
        "and only its times can be used"
    )
