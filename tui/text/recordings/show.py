"""`ttscope show`: what happened in a recording, as plain lines of at most 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import polars as pl

from traces.foreign.values import UNKNOWN_MODEL
from traces.live.watched import ONLY_WATCHED, only_watched
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.formats import (
    ABSENT,
    OUTSIDE,
    compact,
    counted,
    interval,
    intervals_of,
    number,
    percent,
    value_of,
    with_interval,
)
from traces.schema.quantities import quantity
from traces.schema.tts.methods import METHODS
from traces.schema.tts.policy import AS_SENT, Policy
from traces.statistics import mean
from traces.summary.comparison import Difference, RunSpread, assumed_words, by_problems
from traces.summary.energy import NOT_RECORDED
from traces.summary.metrics import estimate_of
from traces.summary.problems import mostly_told
from traces.summary.run import Run
from traces.summary.votes import PolicyOutcome, judged_both_ways
from tui.text.layout import align, chart_line, clock, labelled, wrap
from tui.text.recordings.kernels import acceptance_lines, kernel_lines, what_if_lines
from tui.text.recordings.series import series

if TYPE_CHECKING:
    from advisor.accuracy.counterfactual import Comparison, Counterfactuals

INDENT = 10
MOST_SETS = 6  # of problems, named
_TAGS = (
    "accuracy",
    "tokens_per_problem",
    "flops_per_problem",
    "latency_s.mean",
    "latency_s.p50",
    "latency_s.p95",
    "sample_latency_s.p50",
    "sample_latency_s.p95",
    "ttft_s.p50",
    "ttft_s.p95",
    "tpot_s.p50",
    "tpot_s.p95",
    "throughput_tokens_per_s",
    "device_s_per_problem",
    "cost_usd_per_problem",
    "energy_j.per_problem",
    "cost_per_token_device_s",
)


def show_json(runs: Sequence[Run], compared: Difference | None = None) -> dict[str, Any]:
    """Return the document of `ttscope show --json`."""
    document: dict[str, Any] = {"runs": [run.to_json() for run in runs]}
    return document if compared is None else document | {"difference": compared.to_json()}


def show_lines(
    runs: Sequence[Run], compared: Difference | None = None, *, width: int = 80
) -> list[str]:
    """Return what happened in one run, or in several side by side with what differs."""
    if len(runs) == 1:
        return _one_run(runs[0], width)
    if all(run.policy is None and not run.problems for run in runs):  # imported traces
        return [line for run in runs for line in (*_one_run(run, width), "")][:-1]
    lines: list[str] = []
    for index, run in enumerate(runs, 1):
        lines += wrap(f"{index}", run.recording, width=width, indent=3)
        lines += [f"   {line}" for line in _head(run, width - 3)]
    apart = _other_problems(runs, width)
    lines += ["", *apart, *_side_by_side(runs, width)]
    if compared is not None and apart:
        lines += ["", *config_lines(compared, width)]
    elif compared is not None:
        lines += ["", *difference_lines(compared, width=width)]
    return lines


def _other_problems(runs: Sequence[Run], width: int) -> list[str]:
    """Say which runs are not known to be of the same problems, nothing where all are.

    Traffic of others poses none.
    """
    sets = by_problems(runs)
    if len(sets) < 2 or all(run.policy is None for run in runs):
        return []
    sets_named = []
    for places in sets[:MOST_SETS]:
        workload = runs[places[0]].workload
        name = "" if workload is None else f" ({workload.name})"
        sets_named.append(f"{', '.join(str(place + 1) for place in places)}{name}")
    sets_named += [f"{len(sets) - MOST_SETS:,} sets more"] if len(sets) > MOST_SETS else []
    text = (
        f"not known to be of the same problems: {' | '.join(sets_named)}. Only numbers of the same "
        "problems can be compared, so no difference is shown"
    )
    return wrap("!", text, width=width, indent=2)


def engine_text(engine: EngineConfig) -> str:
    """Return the engine in a few words: model, label, what is on, version, device."""
    parts = [engine.model, engine.label()]
    parts += [text for text in (engine.dtype, engine.quantization) if text]
    if engine.enforce_eager:
        parts.append("eager")
    if engine.enable_prefix_caching:
        parts.append("prefix caching")
    if engine.vllm_version:
        parts.append(f"vLLM {engine.vllm_version}")
    if engine.gpu:
        parts.append(f"{engine.num_devices} x {engine.gpu}")
    return ", ".join(parts)


def imported_text(run: Run) -> str:
    """Return what an import tells of the engine: the model's name at most."""
    return f"{run.engine.model}, settings not known"


def policy_text(policy: Policy | None) -> str:
    """Return the policy in a few words."""
    if policy is None:
        return "-"
    if policy == AS_SENT:
        return "as sent (traffic of others)"
    temperature = ABSENT if policy.temperature is None else f"{policy.temperature:g}"
    label = policy.label()
    parts = [label, *([] if " T=" in label else [f"temperature {temperature}"])]
    if policy.top_p is not None and policy.top_p < 1:
        parts.append(f"top_p {policy.top_p:g}")
    if policy.thinking_token_budget is not None:
        parts.append(f"thinking budget {policy.thinking_token_budget:,}")
    if policy.max_tokens is not None:
        parts.append(f"max_tokens {policy.max_tokens:,}")
    for name, value in policy.rule:
        parts.append(f"{name} {value!r}" if isinstance(value, str) else f"{name} {value:g}")
    return ", ".join(parts)


def _head(run: Run, width: int) -> list[str]:
    if run.policy is None and not run.problems and run.engine.mode != "server":
        device = f"{run.engine.num_devices} x {run.engine.gpu}" if run.engine.gpu else ABSENT
        return wrap("device", device, width=width, indent=INDENT) + warning_lines(run, width)
    engine = engine_text(run.engine) if run.imported is None else imported_text(run)
    unnamed = run.policy is None and run.engine.model == UNKNOWN_MODEL
    lines = wrap("engine", ABSENT if unnamed else engine, width=width, indent=INDENT)
    if run.policy is None and run.engine.place:  # which of several servers it is
        lines += wrap("server", run.engine.place, width=width, indent=INDENT)
    policy = "- (traffic of others)" if run.policy is None else policy_text(run.policy)
    lines += wrap("policy", policy, width=width, indent=INDENT)
    if unnamed:  # its records are of steps alone
        return lines + warning_lines(run, width)
    decided = f"{run.problems:,} completed"
    if run.curve is not None:
        decided = f"{run.curve.problems:,} behind a published curve"
        decided += "" if run.workload is None else f", {run.workload.name}"
    elif run.workload is not None:
        decided += f" of {run.workload.problems:,}, workload {run.workload.name}"
    lines += wrap("problems", decided, width=width, indent=INDENT)
    return lines + warning_lines(run, width)


def warnings_of(run: Run) -> list[str]:
    """Return what a reader must know before the numbers."""
    lost = f"left out: {run.problems_in_flight:,}"
    if not run.complete:
        cut = f"incomplete: {run.cut} (problems in flight, {lost})"
        return [cut, *run.notes]
    if run.problems_in_flight:
        return [f"problems that never ended, {lost}", *run.notes]
    return list(run.notes)


def warning_lines(run: Run, width: int = 80) -> list[str]:
    """Return the warnings in lines marked `!`."""
    return labelled((("!", text) for text in warnings_of(run)), width=width, indent=2)


def show_policies_head(run: Run) -> list[str]:
    """Return what stands over a table of policies: the recording, its engine and its policy."""
    return [run.recording[:80], *_head(run, 80)]


def _one_run(run: Run, width: int) -> list[str]:
    lines = [run.recording[:width], *_head(run, width)]
    if run.policy is None and not run.problems:  # an imported trace: nothing is known of problems
        times = time_lines(run, width)  # none of a profiler's trace, whose steps are slowed
        shown = (_charts(run, width) if times else [], times, kernel_lines(run, width))
        body = [line for part in shown if part for line in ("", *part)]
        return [*lines, *(body or ["", "no kernels"])]
    lines += ["", *_metrics(run)]
    parts = (_charts(run, width), time_lines(run, width), energy_lines(run, width))
    drafts = (
        acceptance_lines(run.acceptance, width),
        what_if_lines(run.ngram_what_if, width),
    )
    for part in (*parts, *drafts, kernel_lines(run, width)):
        lines += ["", *part] if part else []
    table = policy_lines(run, width)
    lines += ["", *table] if table else []
    if any(OUTSIDE in line for line in lines):
        lines.append(f"{OUTSIDE} outside what was measured")
    return lines


def _metrics(run: Run) -> list[str]:
    rows = [("", "value", "interval")]
    for tag in _TAGS:
        estimate = estimate_of(run, tag)
        if estimate is not None or not tag.startswith("sample_latency_s"):  # of imports alone
            rows.append((quantity(tag).title, value_of(estimate), interval(estimate)))
        if tag == "accuracy" and estimate is not None and estimate.others is not None:
            others = interval(estimate.which("others"))
            rows.append((f"  {f'on {run.problems:,} others'}", "", others))
    head = intervals_of(estimate_of(run, tag) for tag in _TAGS)
    return [*([head, ""] if head else ()), *align(rows, right=(1,))]


def _charts(run: Run, width: int) -> list[str]:
    if run.step_rows is None:
        return []
    bins = series(run.step_rows, run.engine.num_gpu_blocks, width - 26)
    if bins is None:
        return []
    seconds = (bins.edges_ns[-1] - bins.edges_ns[0]) / 1e9
    rows = (
        ("batch", bins.batch, ""),
        ("waiting", bins.waiting, ""),
        ("KV cache", bins.kv_share * 100, " %"),
        ("tok/s", bins.tokens_per_s, ""),
        *((("pace", bins.pace, " x"),) if bins.uneven else ()),
    )
    lines = []
    for name, values, unit in rows:
        lines += chart_line(name, values.tolist(), unit)
    scale = f"{'':<{INDENT}}{'highest':>8} 0:00{'-' * (width - 35)} {clock(seconds)}"
    return [*lines, scale[:width]]


def time_lines(run: Run, width: int) -> list[str]:
    """Return how long steps take, if that is known, and which share of the time each kind takes."""
    steps = run.step_time
    text = ", ".join(
        f"{kind} {with_interval(steps[f'{kind}_s'])}"
        for kind in ("prefill", "decode", "mixed")
        if steps.get(f"{kind}_s") is not None
    )
    lines = []
    if text:
        lines = wrap("step time", f"{run.steps:,} steps: {text}", width=width, indent=INDENT)
    total = sum(run.seconds.values())
    if total > run.seconds.get("idle", 0.0):
        shares = [f"{name} {percent(part / total)}" for name, part in run.seconds.items()]
        where = f"{number(total, 's')} = {', '.join(shares)}"
        lines += wrap("time", where, width=width, indent=INDENT)
    return lines


def energy_lines(run: Run, width: int) -> list[str]:
    """Return what the devices drew in all, or why it is not known; empty where nothing is."""
    energy = run.energy_j
    if energy.total is None:
        reason = energy.reason if energy.reason and energy.reason != NOT_RECORDED else None
        return wrap("energy", f"- {reason}", width=width, indent=INDENT) if reason else []
    source = {"nvml": "GPUs", "rapl": "processor packages"}.get(energy.kind or "", "devices")
    share = None if energy.idle_share is None else energy.idle_share.value
    text = (
        f"{value_of(energy.total)} of the {source}, by {energy.method}: idle {percent(share)}, "
        f"mean {value_of(energy.mean_w)}, highest {value_of(energy.max_w)}"
    )
    lines = wrap("energy", text, width=width, indent=INDENT)
    if energy.per_token is not None:
        right = with_interval(energy.per_correct)
        per = f"per token {with_interval(energy.per_token)}, per right answer {right}"
        lines += wrap("", per, width=width, indent=INDENT)
    return lines


def policy_lines(run: Run, width: int = 80) -> list[str]:
    """Return the table of maj@k and pass@k that the recorded samples contain."""
    if not run.policies:
        return []
    counts = sorted({outcome.n for outcome in run.policies})
    by_key = {(outcome.method, outcome.n): outcome for outcome in run.policies}
    rows = [("k", "maj@k", "interval", "pass@k", "interval", "tokens")]
    for k in counts:
        majority, passed = by_key.get(("majority", k)), by_key.get(("pass_at_k", k))
        cells = [str(k)]
        for outcome in (majority, passed):
            accuracy = None if outcome is None else outcome.accuracy
            cells += [value_of(accuracy), interval(accuracy)]
        tokens = majority or passed
        rows.append(
            (*cells, value_of(None if tokens is None else tokens.tokens_per_problem))  # type: ignore[arg-type]
        )
    of = intervals_of(each.accuracy for each in run.policies)
    head = f"maj@k and pass@k of random subsets, ties shared equally, {of}"
    if run.curve is not None:
        head = "maj@k as published. show --policies has intervals and what lies between"
    return [
        *wrap("", head, width=width, indent=0),
        *_other_ties(run, by_key, width),
        "",
        *align(rows, right=(0, 1, 3, 5), width=width),
    ]


def _other_ties(run: Run, by_key: Mapping[tuple[str, int], PolicyOutcome], width: int) -> list[str]:
    """Return in words why accuracy is not maj@N, where ties are the reason."""
    if run.policy is None or run.accuracy is None or run.policy.method != "majority":
        return []
    voted = by_key.get(("majority", run.policy.n))
    if voted is None or voted.accuracy is None:
        return []
    accuracy, samples = run.accuracy, run.sample_rows
    if value_of(voted.accuracy) == value_of(accuracy) or samples is None:
        return []
    sizes = samples.filter(pl.col("role").fill_null("sample") == "sample").group_by("problem").len()
    if sizes.height < run.problems or (sizes["len"] != run.policy.n).any():
        return []  # not of the same problems
    text = (
        f"accuracy {value_of(accuracy)} gives a tie to the answer of the lowest sample number, "
        f"maj@{run.policy.n} {value_of(voted.accuracy)} shares it"
    )
    if judged_both_ways(samples):
        text = (
            f"answers are marked both right and wrong. accuracy {value_of(accuracy)} goes by most "
            f"samples of an answer, maj@{run.policy.n} {value_of(voted.accuracy)} by the share"
        )
    return wrap("", text, width=width, indent=0)


def _side_by_side(runs: Sequence[Run], width: int) -> list[str]:
    of = intervals_of(estimate_of(run, tag) for run in runs for tag in _TAGS)
    head = wrap("", of, width=width, indent=0) if of else []
    for columns in (len(runs), 3, 2, 1):
        lines: list[str] = []
        for start in range(0, len(runs), columns):
            some = runs[start : start + columns]
            header = [""]
            for index in range(start + 1, start + len(some) + 1):
                header += [str(index), ""]
            rows = [header]
            for tag in _TAGS:
                estimates = [estimate_of(run, tag) for run in some]
                if any(estimate is not None for estimate in estimates):
                    cells = [
                        text for each in estimates for text in (value_of(each), interval(each))
                    ]
                    rows.append([quantity(tag).title, *cells])
            lines += ([""] if lines else []) + align(rows, right=range(1, 2 * len(some), 2))
        if max(map(len, lines)) <= width:
            break
    return [*head, "", *lines] if head else lines


def difference_lines(compared: Difference, *, width: int = 80) -> list[str]:
    """Return the paired differences, and what differs in the configuration."""
    if compared.reason is not None:
        lines = wrap("", compared.reason, width=width, indent=0)
    else:
        of = intervals_of(change.difference for change in compared.changes)
        title = f"2 against 1: {compared.problems:,} problems, paired"
        title += f", {of}" if of else ""
        rows = [
            (
                f"  {change.metric.quantity.title}",
                value_of(change.difference, sign=True),
                interval(change.difference, sign=True),
                "equal in every problem" if change.all_equal else change.verdict,
            )
            for change in compared.changes
            if change.metric.tag in _TAGS
        ]
        head = wrap("", title, width=width, indent=0)
        lines = [*head, *_not_paired(compared, width), *align(rows, right=(1,))]
        lines += [*_of_fewer(compared, width), *_how_many_more(compared, width)]
        lines += _tied_lines(compared, width)
        lines += spread_lines(compared.run_to_run, width)
    return lines + config_lines(compared, width)


def _tied_lines(compared: Difference, width: int) -> list[str]:
    """Say how tied votes are compared, which a run and its replay print otherwise."""
    if not compared.tied:
        return []
    ties = "1 vote is" if compared.tied == 1 else f"{compared.tied:,} votes are"
    text = (
        f"{ties} tied: the run gave them to the answer that came first, its replay shares them. "
        "The accuracy printed above differs by that alone, and is compared with them shared"
    )
    return wrap("", text, width=width, indent=2)


def _not_paired(compared: Difference, width: int) -> list[str]:
    """Return how many problems are not paired, and why."""
    parts = ", ".join(f"{count:,} {why}" for why, count in compared.unpaired.items())
    return wrap("", f"problems left out: {parts}", width=width, indent=2) if parts else []


def _of_fewer(compared: Difference, width: int) -> list[str]:
    """Return which differences are of fewer problems than both runs decided."""
    by_count: dict[int, list[str]] = {}
    for change in compared.changes:
        if change.problems < compared.problems:
            by_count.setdefault(change.problems, []).append(change.metric.quantity.noun)
    lines = []
    for count, names in by_count.items():
        text = f"{', '.join(names)}: of the {count:,} of them that have it in both"
        lines += wrap("", text, width=width, indent=2)
    return lines


def _how_many_more(compared: Difference, width: int) -> list[str]:
    """Return how many problems would settle the accuracy, the number that needs most."""
    for change in compared.changes:
        if change.metric.tag == "accuracy" and change.times_as_many:
            many = f"some {change.times_as_many:,} times as many problems would separate"
            size = number(abs(change.difference.value), "1", sign=True).removeprefix("+")
            return wrap("", f"{many} a true {size} of accuracy", width=width, indent=2)
    return []


def spread_lines(spread: RunSpread, width: int) -> list[str]:
    """Return which spread from run to run the intervals of times hold, and what measured it."""
    if spread.recordings:
        spreads = ", ".join(
            f"{quantity(tag).noun} {percent(spread.measured[tag])}"
            for tag in ("latency_s.mean", "latency_s.p95")
            if tag in spread.measured
        )
        text = f"measured by {spread.recordings} recordings: {spreads} (one standard deviation)"
        text += f". Taken as repeats: {', '.join(spread.repeats)}"
    elif not spread.assumed:  # of two replays
        text = f"what each of them printed{_but_for(spread.shared)}"
        return wrap("", f"spread of times, in the intervals: {text}", width=width, indent=2)
    else:
        text = assumed_words(spread.assumed, len(spread.assumed))
        again = "each" if len(spread.assumed) > 1 else "it"
        if spread.repeatable:
            text += f". Record {again} again into the same folder to measure it"
        else:
            text += ". Nothing says that others are of the same requests, so that none measures it"
    if spread.printed:
        text += f". The replay {' and '.join(spread.printed)} has the spread that it printed"
        text += _but_for(spread.shared)
    return wrap("", f"run-to-run spread of times, in the intervals: {text}", width=width, indent=2)


def _but_for(shared: Sequence[str]) -> str:
    """Say what two runs are off by together, which is left out of their difference."""
    if not shared:
        return ""
    *most, last = shared
    listed = f"{', '.join(most)} and {last}" if most else last
    return f", but for what both are off by together: {listed}"


def config_lines(compared: Difference, width: int) -> list[str]:
    """Return the fields that differ, with both values, and what is not known to be the same."""
    parts = changed_fields(compared.config)
    lines = wrap("differ in", ",  ".join(parts), width=width, indent=INDENT) if parts else []
    same = [name for name in ("engine", "policy") if name not in compared.not_told]
    if same and not parts:
        lines.append(f"same {' and '.join(same)}")
    if compared.not_told:
        names, several = " and ".join(compared.not_told), len(compared.not_told) > 1
        asked = f"whether {names} {'are' if several else 'is'} the same"
        if parts:
            asked = f"what else differs in {names}"
        text = (
            f"not known: {asked} (the recordings do not have all of {'them' if several else 'it'})"
        )
        lines += wrap("", text, width=width, indent=2)
    return lines


def changed_fields(config: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return fields that differ with both values: `engine.max_num_seqs 64 -> 8`."""
    return [f"{name} {_setting(a)} -> {_setting(b)}" for name, (a, b) in config.items()]


def _setting(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, list):  # of pairs
        return _setting(dict(value))
    if isinstance(value, dict):
        items = [f"{name}={_setting(item)}" for name, item in value.items() if item is not None]
        return ",".join(items) or ABSENT
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


# `ttscope show --policies`: accuracy against tokens of policies that were never run.


_VARIANTS = ("keep", "window", "threshold")  # a policy per value, one below the other
_HOW = {
    "finish_order": "ended",
    "replayed_order": "replayed",
    "token_order": "length",
    "checkpoints": "forced",
    "model": "model",
    "published": "published",
}
_LEGEND = (
    ("exact", "expectation over all subsets of the samples"),
    ("+-.", "mean over random orders of the samples, with its standard error"),
    ("ended", "in the order in which the samples ended, tokens of cancelled ones by their pace"),
    ("replayed", "in the order that n samples alone would end in, by replay"),
    ("length", "as if samples ended in the order of their tokens, for no times are recorded"),
    ("forced", "answers forced at a budget of thought"),
    ("between", "interpolated between two such budgets"),
    ("at least", "a lower bound"),
    ("model", "more samples than were recorded, extrapolated"),
)
_OF_CURVE = (
    ("published", "as published"),
    ("model", "between the published points or beyond them"),
)


def policy_table(judged: Counterfactuals, best: Comparison | None, *, width: int = 80) -> list[str]:
    """Return the table in lines of at most 80 columns, with what must be known of it."""
    of_curve = not judged.columns
    meaning = "interval: 90 % for the mean over all problems like these"
    title = (
        f"{counted(judged.problems, 'problem')} of {counted(judged.n, 'sample')}. {meaning}. "
        "fresh run: 90 % for another run on these"
    )
    if of_curve:
        title = f"published averages over {counted(judged.problems, 'problem')}. {meaning}"
    lines = wrap("", title, width=width, indent=0)
    rows: list[Sequence[str]] = [("policy", "accuracy", "interval", "tokens", "how", "fresh run")]
    order = sorted(judged.outcomes, key=_place)
    for _, group in groupby(order, key=lambda each: (each.method, each.budget_tokens is None)):
        rows += [_row(each, judged.max_tokens) for each in group]
    if of_curve:
        rows = [row[:-1] for row in rows]
    lines += ["", *align(rows, right=(1, 3), width=width)]
    forms = dict.fromkeys(form_of(each, judged.max_tokens) for each in order)
    indent = max(14, *(len(form) + 2 for form, _ in forms))
    for form, meaning in forms:
        lines += wrap(form, meaning, width=width, indent=indent)
    shown = {row[4] for row in rows}
    for mark, text in _OF_CURVE if of_curve else _LEGEND:
        if any(cell.startswith(mark) for cell in shown):
            lines += wrap(mark.rstrip("."), text, width=width, indent=10)
    verdict = [] if of_curve else best_lines(best, width=width)
    lines += ["", *_others_lines(judged, width), *verdict, *_by_difficulty(judged, width)]
    return lines + labelled((("!", note) for note in judged.notes), width=width, indent=2)


def _others_lines(judged: Counterfactuals, width: int) -> list[str]:
    """Return in what the accuracy on as many other problems falls, of single votes and whole."""
    ranges = [
        f"{label(each, judged.max_tokens)} {interval(each.other_problems)}"
        for each in sorted(judged.outcomes, key=_place)
        if each.method == "majority"
        and each.budget_tokens is None
        and each.max_tokens == judged.max_tokens
        and each.basis in ("subsets", "published")
        and each.n in {1, judged.n}
    ]
    text = f"{judged.problems:,} other problems like these, 90 %: {', '.join(ranges)}"
    return wrap("", text, width=width, indent=2) if ranges else []


def _by_difficulty(judged: Counterfactuals, width: int) -> list[str]:
    """Say who learns the method that has no row, where the recording is enough for that."""
    from advisor.search.routing import FEWEST, FEWEST_SAMPLES

    if not judged.columns or judged.problems < FEWEST or judged.n < FEWEST_SAMPLES:
        return []
    text = (
        "routed (samples by difficulty) has no row. ttscope advise learns its table, and offers "
        "it where problems that it was not learned from show a gain"
    )
    return wrap("", text, width=width, indent=2)


def best_lines(best: Comparison | None, *, width: int = 80) -> list[str]:
    """Return the verdict: the cheapest policy that loses little, and how sure that is."""
    from advisor.accuracy.counterfactual import MARGIN

    if best is None:
        lost = f"{MARGIN * 100:.1f} points of accuracy"
        text = f"no cheaper policy is shown to lose at most {lost} against the vote of all"
        return wrap("", text, width=width, indent=2)
    share = None if best.tokens_share is None else best.tokens_share.value
    limit = best.reference.max_tokens
    text = (
        f"{label(best.policy, limit)} takes {percent(share)} of the tokens of "
        f"{label(best.reference, limit)}, "
        f"accuracy {with_interval(best.difference, sign=True)}, paired, on "
        f"{best.problems:,} problems that did not choose it"
    )
    if best.all_equal:
        text += ": no problem's result changes"
    elif not best.told_apart:
        text += ": cannot be told apart with these problems"
        if best.problems_to_tell is not None:
            text += f", about {best.problems_to_tell - best.problems:,} more would do"
    return wrap("", text, width=width, indent=2)


def label(outcome: PolicyOutcome, limit: int | None = None) -> str:
    """Return a policy in a few characters: maj@16, conf .5@16, esc 4/16, asc .95 1/16.

    The limit of tokens that all policies are under is not named.
    """
    n, rule = outcome.n, outcome.rule
    if outcome.method == "pass_at_k":
        return f"pass@{n}"
    spec = METHODS[outcome.method]
    if "settled" in rule:
        return f"{spec.short}@{n} settled"
    if "threshold" in rule:  # judged with one sample in flight, and with all
        return f"{spec.short} {rule['threshold']:g} {rule['in_flight']:g}/{n}".replace("0.", ".")
    if spec.decisive in rule:
        mark = "@" if spec.all_samples_end else "/"
        return f"{spec.short} {rule[spec.decisive]:g}{mark}{n}"
    name = f"{spec.short}@{n}"
    if outcome.max_tokens not in (None, limit):
        return f"{name} max {outcome.max_tokens}"
    return name if outcome.budget_tokens is None else f"{name} think {outcome.budget_tokens}"


def form_of(outcome: PolicyOutcome, limit: int | None = None) -> tuple[str, str]:
    """Return how `label` writes such policies, and what they do: a legend line for all of them."""
    if outcome.method == "pass_at_k":
        return "pass@n", "whether any of n samples is right"
    spec, rule = METHODS[outcome.method], outcome.rule
    letters = dict.fromkeys(spec.parameters, "k") | {"threshold": "t"}
    form, words = f"{spec.short}@n", (spec.words or "one sample").format(n="n", **letters)
    if "settled" in rule:
        form, words = f"{form} settled", f"{words}, ended as soon as no sample left can change it"
    elif "threshold" in rule:
        form, words = f"{spec.short} t k/n", f"{words}, k at a time"
    elif spec.decisive in rule:
        form = f"{spec.short} k{'@' if spec.all_samples_end else '/'}n"
    elif outcome.max_tokens not in (None, limit):
        form, words = f"{form} max k", f"{words}, each of k tokens at most"
    elif outcome.budget_tokens is not None:
        form, words = f"{form} think k", f"{words}, each with k tokens of thought at most"
    return form, words


def _place(outcome: PolicyOutcome) -> tuple[bool, int, tuple[tuple[str, bool], ...], int, int]:
    methods = ("majority", "pass_at_k", "best_of_n", "weighted", "confidence")
    rank = methods.index(outcome.method) if outcome.method in methods else len(methods)
    rule = tuple(
        (f"{name} {value:g}" if name in _VARIANTS else name, name == "in_flight" and value == 1)
        for name, value in outcome.rule.items()
    )
    return (
        (outcome.budget_tokens or outcome.max_tokens) is not None,
        rank,
        ((outcome.method, False), *rule),
        outcome.n,
        outcome.budget_tokens or outcome.max_tokens or 0,
    )


def _row(outcome: PolicyOutcome, limit: int | None) -> tuple[str, ...]:
    tokens = outcome.tokens_per_problem
    return (
        label(outcome, limit),
        value_of(outcome.accuracy),
        interval(outcome.accuracy),
        compact(None if tokens is None else tokens.value),
        _how(outcome),
        interval(outcome.fresh_run),
    )


def _how(outcome: PolicyOutcome) -> str:
    if outcome.bound is not None:
        return "at least" if outcome.bound == "lower" else "between"
    if outcome.error is not None:
        return f"+-{outcome.error:.4f}".replace("0.", ".")
    return _HOW.get(outcome.basis, "exact")


def judged_policies(
    recording: Recording | None,
    run: Run,
    *,
    counts: Sequence[int] | None = None,
    max_tokens: int | None = None,
) -> Counterfactuals | str:
    """Return a run's policies, or of the traffic of others why there are none.

    `counts` and `max_tokens` as in `evaluate`. Raises RecordingError when the run cannot say,
    UsageError for counts and limits that it cannot answer for.
    """
    from advisor.accuracy.counterfactual import evaluate, evaluate_curve
    from advisor.accuracy.finish_order import replayed_order

    if run.curve is not None:
        return evaluate_curve(run, counts=counts, max_tokens=max_tokens)
    if run.policy is None:
        watched = recording is None or only_watched(recording)
        return ONLY_WATCHED if watched else "no policy: the recording holds no problems"
    answers = None if recording is None else own_answers(recording, run)
    order = None if recording is None else replayed_order(recording, run)
    return evaluate(run, answers, order=order, counts=counts, max_tokens=max_tokens)


def policies_lines(run: Run, judged: Counterfactuals | str, *, width: int = 80) -> list[str]:
    """Return the table of a run's policies, or what was sent and why there is none."""
    from advisor.accuracy.counterfactual import cheapest_as_good

    if not isinstance(judged, str):
        table = policy_table(judged, cheapest_as_good(judged), width=width)
        plain = [
            each
            for each in judged.outcomes
            if not each.rule and each.budget_tokens is each.max_tokens is None
        ]
        by_key = {(each.method, each.n): each for each in plain}
        return [*table, *_other_ties(run, by_key, width)]
    return [*sent_lines(run, width), *wrap("!", f"no policies: {judged}", width=width, indent=2)]


def sent_lines(run: Run, width: int = 80) -> list[str]:
    """Return how many samples problems had as sent, and their tokens; none without samples."""
    rows, samples = run.rows, run.sample_rows
    if rows is None or samples is None or not samples.height:
        return []
    answering = samples.filter(pl.col("role").fill_null("sample") == "sample")
    sizes = answering.group_by("problem").len("samples")
    decided = rows.filter(pl.col("state") == "decided").join(
        sizes, on="problem", maintain_order="left"
    )
    lines: list[Sequence[str]] = [("samples as sent", "problems", "accuracy", "tokens", "interval")]
    known: list[Estimate | None] = []
    for count in decided["samples"].unique().sort():
        each = decided.filter(pl.col("samples") == count)
        lengths = each["tokens"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        tokens = mean(lengths, "tokens") if mostly_told(lengths) else None
        known.append(tokens)
        cells = (f"{each.height:,}", ABSENT, value_of(tokens), interval(tokens))
        lines.append((f"{count:,}", *cells))
    of = intervals_of(known)
    head = [*wrap("", of, width=width, indent=0), ""] if of else []
    return [*head, *align(lines, right=(0, 1, 2, 3), width=width), ""]


def own_answers(recording: Recording, run: Run) -> pl.DataFrame:
    """Return the forced answers of a run, as several share a recording."""
    assert run.policy is not None
    answers, engine = recording.frame("answers"), recording.engine_key(run.engine)
    mine = (answers["engine"] == engine) & (answers["policy"] == run.policy.key())
    return answers.filter(mine.fill_null(True))
