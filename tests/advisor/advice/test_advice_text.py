import dataclasses
import json
import shlex

import pytest
import yaml

from advisor.advice.advisor import Advisor
from advisor.advice.measure_next.experiments import experiment_of, sweep_plan
from advisor.advice.reasons import name_of
from advisor.advice.sensitivity import turnings
from advisor.search.budget import is_given, parse_budget
from profiler.sweep.plan import load_plan
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.errors import UsageError
from traces.schema.advice import Measured
from traces.schema.engine import in_words
from traces.schema.estimate import Estimate
from tui.text.advice import SHORT_LINES, advice_json, advice_lines, against, verdict

BUDGETS = [
    {},
    {"min_accuracy": "0.75"},
    {"min_accuracy": "0.75", "optimise": "cost", "price": 3.0},
    {"max_latency": "100ms", "percentile": 90, "optimise": "accuracy"},
    {"max_latency": "1us", "min_accuracy": "99%", "gpus": 1},
    {"rate": "2/s", "min_accuracy": "0.5"},
    {"rate": "100000/s"},
]


@pytest.mark.parametrize("given", BUDGETS)
@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_width(advisor, given, width):
    lines = advice_lines(advisor.recommend(parse_budget(given)), width=width)
    assert max(map(len, lines)) <= width
    heads = ("Run ", "Nothing fits ") if is_given(given) else "No limit was given"
    assert lines[0].startswith(heads)


def test_the_answer_in_short_says_that_there_is_more(advisor):
    """It is as long as headline, numbers and command need, and then as short as it is said to be.

    The lists come whole with --explain, and none of their sentences is lost.
    """
    answer = advisor.recommend(parse_budget({"min_accuracy": "0.75"}))
    short, whole = advice_lines(answer), advice_lines(answer, explain=True)
    assert short[-1].startswith("More ") and "--explain" in short[-1]
    told = sum(line.startswith(("Why ", "Changes ", "Next ")) for line in short)
    assert len(short) < len(whole)
    assert len(short) <= SHORT_LINES + 1 or told == 1
    sentences = [*answer.reasons, *answer.measure_next, *answer.sensitivity, "the count"]
    assert f"({len(sentences) - told} sentences)" in short[-1]
    text = " ".join(" ".join(whole).split()).casefold()
    for each in answer.reasons:
        assert each.casefold() in text


def test_what_to_measure_next_is_told_however_many_alternatives_there_are(advisor):
    answer = advisor.recommend(parse_budget({"min_accuracy": "0.75"}))
    answer = dataclasses.replace(answer, measure_next=("run it once more",))
    for times in (1, 60):
        other = " ".join(["small costs the same"] * times)
        lines = advice_lines(dataclasses.replace(answer, alternatives=(other,)), width=120)
        assert any(line.startswith("Next ") for line in lines)
        assert other in " ".join(" ".join(lines).split())
        assert len(lines) <= SHORT_LINES + 20 * times / 100 + 1


@pytest.mark.parametrize(("times", "at_load", "told"), [(1, True, 0), (2, True, 1), (2, False, 0)])
def test_a_pick_whose_run_took_another_time_is_not_to_be_relied_on(advisor, times, at_load, told):
    answer = advisor.recommend(parse_budget({"min_accuracy": "0.75"}))
    pick = answer.system_optimal
    was = {"latency_s": pick.estimates["latency_s"].scaled(times, "s")}
    run = Measured(
        recording="r", problems=9, concurrency=4, rate_per_s=None, estimates=was, at_load=at_load
    )
    answer = dataclasses.replace(answer, system_optimal=dataclasses.replace(pick, measured=run))
    text = " ".join(" ".join(advice_lines(answer)).split())
    assert text.count("Its run r had a mean latency of") == told
    assert text.count("Do not rely on a prediction that is so far off.") == told


def test_what_is_less_has_a_share_without_a_sign(advisor):
    answer = advisor.recommend(parse_budget({"min_accuracy": "0.75"}))
    pick = answer.system_optimal
    other = next(each for each in answer.pareto if each.policy != pick.policy)
    ours = pick.estimates["latency_s"].value
    for share, told in ((-0.75, " (75.0 %)"), (0.5, " (+50.0 %)")):
        ends = {"low": share * 1.1 * ours, "high": share * 0.9 * ours}
        regret = Estimate(value=share * ours, unit="s", **ends)
        changed = dataclasses.replace(answer, compute_optimal=other, regret={"latency_s": regret})
        _, size, tail = against(changed)
        assert size.endswith(told) and (" less " if share < 0 else " more ") in tail


@pytest.mark.parametrize("times", [-0.75, 0.0, 0.5])
@pytest.mark.parametrize(
    ("accuracy", "opening"), [(1.01, "Its accuracy is higher, but it"), (0.9, "It")]
)
def test_a_more_accurate_one_beside_the_pick_is_not_sure_enough(advisor, times, accuracy, opening):
    answer = advisor.recommend(parse_budget({"min_accuracy": "0.75"}))
    pick = answer.system_optimal
    other = next(each for each in answer.pareto if each.policy != pick.policy)
    ours, right = pick.estimates["latency_s"].value, pick.estimates["accuracy"].value
    told = {"accuracy": Estimate(value=right * accuracy, unit="1")}
    other = dataclasses.replace(
        other, estimates=other.estimates | told, probability_within_budget=0.884
    )
    regret = Estimate(
        value=times * ours, low=(times - 0.1) * ours, high=(times + 0.1) * ours, unit="s"
    )
    changed = dataclasses.replace(answer, compute_optimal=other, regret={"latency_s": regret})
    said = "".join(against(changed))
    assert said.endswith(f". {opening} is 88 % sure of the limits, and 90 % are wanted.")
    sure = dataclasses.replace(other, probability_within_budget=0.9)
    assert "are wanted" not in "".join(against(dataclasses.replace(changed, compute_optimal=sure)))


@pytest.mark.parametrize("given", [{"min_accuracy": "0.75"}, {"max_latency": "1us"}])
def test_the_answer_says_how_many_problems_are_in_flight(advisor, given):
    in_flight = advisor.evidence.load[0]
    answer = advisor.recommend(parse_budget(given))
    assert f"{in_flight} problems in flight" in " ".join(verdict(answer))
    assert advice_json(answer)["load"] == {"concurrency": in_flight, "rate_per_s": None}
    at_rate = advisor.recommend(parse_budget(given | {"rate": "2/s"}))
    assert "in flight" not in " ".join(verdict(at_rate))


def test_within_a_limit_alone_the_most_accurate_is_best_unless_another_goal_is_said(advisor):
    alone = advisor.recommend(parse_budget({"max_latency": "10s", "optimise": "latency"}))
    best = advisor.recommend(parse_budget({"max_latency": "10s"}))
    assert best.budget.optimise == "accuracy" and "highest accuracy" in " ".join(verdict(best))
    assert best == advisor.recommend(parse_budget({"max_latency": "10s", "optimise": "accuracy"}))
    most = best.system_optimal.estimates["accuracy"].value
    ours = alone.system_optimal.estimates["accuracy"].value
    assert most > ours + 0.05
    (said,) = [each for each in verdict(alone) if "Nothing was asked of accuracy" in each]
    assert f"which is {ours:.3f}. Within the same limits {most:.3f} can be had" in said
    asked = [{"min_accuracy": "0.5"}, {"max_latency": "10s", "optimise": "accuracy"}]
    for given in asked:
        assert "Nothing was asked" not in " ".join(verdict(advisor.recommend(parse_budget(given))))


def test_the_command_can_be_pasted(advisor):
    answer = advisor.recommend(parse_budget({"min_accuracy": "0.75"}))
    lines = advice_lines(answer)
    command = answer.system_optimal.command
    start = next(i for i, line in enumerate(lines) if line.startswith(command[:12]))
    stop = next(i for i in range(start, len(lines)) if not lines[i].endswith("\\"))
    pasted = "\n".join(lines[start : stop + 1]).replace("\\\n", " ")
    assert shlex.split(pasted) == shlex.split(command)


def test_the_document_is_the_contract(advisor):
    answer = advisor.recommend(parse_budget({"min_accuracy": "0.75", "max_latency": "1s"}))
    document = json.loads(json.dumps(advice_json(answer), allow_nan=False))
    assert list(document) == [
        "budget", "system_optimal", "compute_optimal", "regret", "pareto", "compute_pareto",
        "reasons", "alternatives", "near_misses", "measure_next", "candidates", "infeasible",
        "equals", "sensitivity", "stages", "present", "experiments", "routings", "load", "notes",
        "warning",
    ]  # fmt: skip
    pick = document["system_optimal"]
    known = {
        "engine", "policy", "command", "estimates", "probability_within_budget", "prior", "beyond",
        "measured",
    }  # fmt: skip
    assert set(pick) == known
    assert pick["prior"] is None
    accuracy = pick["estimates"]["accuracy"]
    assert {*accuracy} == {"value", "low", "high", "unit", "extrapolated", "of", "fresh", "others"}
    assert pick["estimates"]["energy_j"] is None
    assert document["budget"]["max_latency_s"] == 1.0


@pytest.mark.slow
def test_what_would_change_the_answer_is_said(fresh):
    """Beyond the value at which the pick is said to drop out it does, and just before it does not.

    What is better at a looser value is better there, and something is by then.
    """
    budget = parse_budget({"min_accuracy": "0.75"})
    answer = fresh.recommend(budget)
    assert {each.direction for each in answer.sensitivity} == {"above", "below"}
    text = " ".join("\n".join(advice_lines(answer, explain=True)).split())
    for each in answer.sensitivity:
        assert f"--min-accuracy {each.direction} " in text
        step = 1e-6 if each.direction == "above" else -1e-6
        beyond = fresh.recommend(dataclasses.replace(budget, min_accuracy=each.value + step))
        within = fresh.recommend(dataclasses.replace(budget, min_accuracy=each.value - step))
        assert each.exact == (each.direction == "above")
        words = f"next best is {each.pick}" if each.exact else f"another is better: {each.pick}"
        assert words in text
        assert name_of_pick(beyond) == each.pick
        if each.exact:
            assert name_of_pick(within) == name_of_pick(answer)


@pytest.mark.slow
def test_rates_that_change_the_pick_start_from_it_and_name_another(fresh):
    """The closed form tells of rates only where its pick is the one that is printed."""
    budget = parse_budget({"min_accuracy": "0.5", "rate": "2/s"})
    answer = fresh.recommend(budget)
    check = fresh.check(budget)
    system = check.best()
    mine = name_of(check.metrics.replayed[system].candidate, limits=False)

    def rates(at_rate):
        return [each for each in turnings(check, system, at_rate) if each.name == "rate"]

    (above,) = rates(lambda rate: mine if rate < 5 else "another")
    assert above.direction == "above" and above.value == pytest.approx(5, rel=0.05)
    assert above.pick == "another" and not above.exact and not above.replayed
    assert not rates(lambda rate: "another" if rate < 5 else mine)
    told = dataclasses.replace(answer, sensitivity=(above,))
    text = " ".join(" ".join(advice_lines(told, explain=True)).split())
    assert f"--rate above about {above.value:.2f} problems/s the pick is another" in text


def name_of_pick(answer):
    pick = answer.system_optimal
    return in_words(pick.engine, pick.policy)


@pytest.mark.slow
def test_what_runs_today_may_have_any_number_of_replicas(tmp_path):
    """Nobody asks about several engines without --gpus, but three may be what runs."""
    three = engine_of(data_parallel_size=3)
    ran = [
        record(tmp_path / "one", engine_of(), VOTE16, problems=20),
        record(tmp_path / "three", three, VOTE16, problems=20),
    ]
    for gpus in (None, 8):
        budget = parse_budget({"max_latency": "1000s", "gpus": gpus})
        present = Advisor.fit(ran, draws=20).recommend(budget, present=(three, VOTE16)).present
        assert present.pick.engine.data_parallel_size == 3
        assert present.pick.probability_within_budget == 1.0


def test_the_present_configuration_is_compared_or_already_best(fresh):
    budget = parse_budget({"min_accuracy": "0.75"})
    pick = fresh.recommend(budget).system_optimal
    best = fresh.recommend(budget, present=(pick.engine, pick.policy))
    assert best.present.best and "already best" in "\n".join(advice_lines(best))
    today = fresh.recommend(budget, present=(engine_of("large"), VOTE16)).present
    assert not today.best
    worse = today.pick.estimates["latency_s"].value - pick.estimates["latency_s"].value
    assert today.difference["latency_s"].value == pytest.approx(worse)
    with pytest.raises(UsageError, match="--present"):
        fresh.recommend(budget, present=(engine_of("absent"), VOTE16))


def test_what_to_measure_next_is_a_plan_that_the_sweep_reads(fresh, tmp_path):
    answer = fresh.recommend(parse_budget({"min_accuracy": "0.75"}))
    for each in answer.experiments:
        assert 0 <= each.regret_after < each.regret <= 1
    chosen = answer.experiments or (experiment_of(answer.system_optimal, "the pick"),)
    document = sweep_plan(chosen, fresh.evidence)
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(document))
    jobs = [(g.engine, job.policy) for g in load_plan(path) for job in g.jobs]
    assert [policy for _, policy in jobs] == [each.policy for each in chosen]
    for (options, _), each in zip(jobs, chosen, strict=True):
        assert options.model == each.engine.model
        assert options.max_num_seqs == each.engine.max_num_seqs


def test_a_plan_does_not_draw_at_another_temperature_than_outcomes_that_tell_none(fresh, tmp_path):
    answer = fresh.recommend(parse_budget({"min_accuracy": "0.75"}))
    run = experiment_of(answer.system_optimal, "the pick")
    unknown = dataclasses.replace(run, policy=dataclasses.replace(run.policy, temperature=None))
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(sweep_plan([unknown], fresh.evidence)))
    with pytest.raises(UsageError, match="temperature is not known"):
        load_plan(path)
    path.write_text(path.read_text().replace("temperature: null", "temperature: 0.6"))
    assert load_plan(path)[0].jobs[0].policy.temperature == 0.6


def test_replicas_stand_only_within_the_devices_that_are_given(fresh):
    alone = fresh.recommend(parse_budget({"min_accuracy": "0.75"}))
    several = fresh.recommend(parse_budget({"min_accuracy": "0.75", "gpus": 4}))
    assert alone.system_optimal.engine.data_parallel_size == 1
    assert several.candidates > alone.candidates
    engines = [pick.engine for pick in (several.system_optimal, *several.pareto)]
    assert all(engine.num_devices <= 4 for engine in engines)
    assert any(engine.data_parallel_size > 1 for engine in engines)
    assert "--data-parallel-size" in "".join(pick.command for pick in several.pareto)


@pytest.mark.parametrize(
    ("given", "goal"),
    [
        ({"min_accuracy": "0.5"}, "lowest mean latency"),
        (
            {"min_accuracy": "0.5", "max_latency": "9s", "percentile": 90},
            "lowest p90 latency (at most 9 s)",
        ),
        ({"optimise": "accuracy", "max_latency": "9s", "percentile": 90}, "highest accuracy"),
    ],
)
def test_the_verdict_names_the_latency_that_is_lowest(fresh, given, goal):
    answer = fresh.recommend(parse_budget(given))
    assert f"It has the {goal} with " in " ".join(advice_lines(answer)[:3])


def test_a_price_shows_dollars_and_none_does_not(advisor):
    goal = {"optimise": "latency"}
    plain = "\n".join(advice_lines(advisor.recommend(parse_budget(goal))))
    priced = "\n".join(advice_lines(advisor.recommend(parse_budget({**goal, "price": 3.0}))))
    assert "$" not in plain
    assert "cost " in priced and "$" in priced
