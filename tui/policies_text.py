"""`ttscope show --policies`: accuracy against tokens of policies that were never run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import polars as pl

from advisor.choice import MARGIN, Comparison, cheapest_as_good
from advisor.counterfactual import Counterfactuals, evaluate
from advisor.replayed_order import replayed_order
from traces.recording import Recording
from traces.statistics import mean
from traces.summary import Run
from traces.votes import PolicyOutcome
from traces.watched import ONLY_WATCHED, only_watched
from tui.formats import ABSENT, align, compact, counted, interval, percent, value_of, wrap

_SHORT = {"majority": "maj", "pass_at_k": "pass", "best_of_n": "best"}
_VARIANTS = ("keep", "window", "threshold")  # a policy per value, one below the other
_HOW = {
    "finish_order": "ended",
    "replayed_order": "replayed",
    "checkpoints": "forced",
    "model": "model",
}
_LEGEND = (
    ("+-.", "mean over random orders of the samples; this is its standard error"),
    ("ended", "in the order in which the samples ended; tokens of cancelled ones by their pace"),
    ("replayed", "the same, in the order in which so few would have ended, by replay"),
    ("forced", "answers forced at a budget of thought; `between` two budgets; `at least` a bound"),
    ("model", "more samples than were recorded, extrapolated"),
)


def policy_table(found: Counterfactuals, best: Comparison | None, *, width: int = 80) -> list[str]:
    """Return the table in lines of at most 80 columns, with what must be known of it."""
    title = (
        f"{counted(found.problems, 'problem')} of {counted(found.n, 'sample')}. interval: 90 % for "
        "the mean over all problems like these. fresh run: 90 % for another run on these"
    )
    lines = wrap("", title, width=width, indent=0)
    rows: list[Sequence[str]] = [("policy", "accuracy", "interval", "tokens", "how", "fresh run")]
    order = sorted(found.outcomes, key=_place)
    for _, group in groupby(order, key=lambda each: (each.method, each.budget_tokens is None)):
        rows += [_row(each) for each in group]
    lines += ["", *align(rows, right=(1, 3))]
    shown = {row[4] for row in rows}
    for mark, text in _LEGEND:
        if any(cell.startswith(mark) for cell in shown) or (
            mark == "forced" and shown & {"between", "at least"}
        ):
            lines += wrap(mark.rstrip("."), text, width=width, indent=8)
    lines += ["", *best_lines(best, width=width)]
    for note in found.notes:
        lines += wrap("!", note, width=width, indent=2)
    return lines


def best_lines(best: Comparison | None, *, width: int = 80) -> list[str]:
    """Return the verdict: the cheapest policy that loses little, and how sure that is."""
    if best is None:
        lost = f"{MARGIN * 100:.1f} points of accuracy"
        text = f"no cheaper policy is shown to lose at most {lost} against the vote of all"
        return wrap("", text, width=width, indent=2)
    share = None if best.tokens_share is None else best.tokens_share.value
    shown = "" if best.all_equal else f" {interval(best.difference, sign=True)}"
    text = (
        f"{label(best.policy)} takes {percent(share)} of the tokens of {label(best.reference)}; "
        f"accuracy {value_of(best.difference, sign=True)}{shown}, paired, on "
        f"{best.problems:,} problems that did not choose it"
    )
    if best.all_equal:
        text += ": no problem is judged otherwise"
    elif not best.told_apart:
        text += ": cannot be told apart with these problems"
        if best.problems_to_tell is not None:
            text += f", about {best.problems_to_tell - best.problems:,} more would do"
    return wrap("", text, width=width, indent=2)


def label(outcome: PolicyOutcome) -> str:
    """Return a policy in a few characters: maj@16, conf .5@16, esc 4/16, asc .95 1/16."""
    n, rule = outcome.n, outcome.rule
    if outcome.method == "early_stopping":
        return f"esc {rule['window']:g}/{n}"
    if outcome.method == "adaptive":
        return f"asc {rule['threshold']:g} {rule['in_flight']:g}/{n}".replace("0.", ".")
    if outcome.method == "confidence":
        return f"conf {rule['keep']:g}@{n}"
    if outcome.method in ("agreement", "first_finish", "weighted") and rule:
        name, value = next(iter(rule.items()))
        return f"weighted@{n} settled" if name == "settled" else f"{name} {value:g}/{n}"
    name = f"{_SHORT.get(outcome.method, outcome.method)}@{n}"
    return name if outcome.budget_tokens is None else f"{name} think {outcome.budget_tokens}"


def _place(outcome: PolicyOutcome) -> tuple[bool, int, tuple[tuple[str, bool], ...], int, int]:
    methods = ("majority", "pass_at_k", "best_of_n", "weighted", "confidence")
    known = methods.index(outcome.method) if outcome.method in methods else len(methods)
    rule = tuple(
        (f"{name} {value:g}" if name in _VARIANTS else name, value == 1)
        for name, value in outcome.rule.items()
    )
    return (
        outcome.budget_tokens is not None,
        known,
        ((outcome.method, False), *rule),
        outcome.n,
        outcome.budget_tokens or 0,
    )


def _row(outcome: PolicyOutcome) -> tuple[str, ...]:
    tokens = outcome.tokens_per_problem
    cells: Sequence[str] = (
        label(outcome),
        value_of(outcome.accuracy),
        interval(outcome.accuracy),
        ABSENT if tokens is None else compact(tokens.value),
        _how(outcome),
        interval(outcome.fresh_run),
    )
    return tuple(cells)


def _how(outcome: PolicyOutcome) -> str:
    if outcome.bound is not None:
        return "at least" if outcome.bound == "lower" else "between"
    if outcome.error is not None:
        return f"+-{outcome.error:.4f}".replace("0.", ".")
    return _HOW.get(outcome.basis, "exact")


def judged_policies(recording: Recording | None, run: Run) -> Counterfactuals | str:
    """Return a run's policies, or of the traffic of others why there are none.

    Raises RecordingError when the run cannot say.
    """
    if run.policy is None:
        watched = recording is None or only_watched(recording)
        return ONLY_WATCHED if watched else "no policy: the recording holds no problems"
    answers = None if recording is None else own_answers(recording, run)
    order = None if recording is None else replayed_order(recording, run)
    return evaluate(run, answers, order=order)


def policies_lines(run: Run, found: Counterfactuals | str, *, width: int = 80) -> list[str]:
    """Return the table of a run's policies, or what was sent and why there is none."""
    if not isinstance(found, str):
        return policy_table(found, cheapest_as_good(found), width=width)
    return [*sent_lines(run), *wrap("!", f"no policies: {found}", width=width, indent=2)]


def sent_lines(run: Run) -> list[str]:
    """Return how many samples problems had as sent, and their tokens; none without samples."""
    rows, samples = run.rows, run.sample_rows
    if rows is None or samples is None or not samples.height:
        return []
    own = samples.filter(pl.col("role").fill_null("sample") == "sample")
    sizes = own.group_by("problem").len("samples")
    decided = rows.filter(pl.col("state") == "decided").join(
        sizes, on="problem", maintain_order="left"
    )
    lines: list[Sequence[str]] = [("samples as sent", "problems", "accuracy", "tokens", "interval")]
    for count in decided["samples"].unique().sort():
        each = decided.filter(pl.col("samples") == count)
        tokens = mean(each["tokens"].cast(pl.Float64).fill_null(float("nan")).to_numpy(), "tokens")
        cells = (f"{each.height:,}", ABSENT, value_of(tokens), interval(tokens))
        lines.append((f"{count:,}", *cells))
    return [*align(lines, right=(0, 1, 2, 3)), ""]


def own_answers(recording: Recording, run: Run) -> pl.DataFrame:
    """Return the forced answers of a run, as several share a recording."""
    assert run.policy is not None
    answers, engine = recording.frame("answers"), recording.engine_key(run.engine)
    mine = (answers["engine"] == engine) & (answers["policy"] == run.policy.key())
    return answers.filter(mine.fill_null(True))
