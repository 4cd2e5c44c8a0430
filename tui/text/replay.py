"""`ttscope replay`: recorded, replayed and predicted beside each other, in at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from traces.schema.estimate import Estimate
from traces.schema.policy import AS_SENT
from traces.summary.metrics import estimate_of
from traces.summary.run import Run, to_plain
from tui.text.formats import ABSENT, align, interval, number, value_of, wrap
from tui.text.show import engine_text, imported_text, policy_text

if TYPE_CHECKING:
    from advisor.what_if.predict import Prediction
    from advisor.what_if.question import Question

ROWS = (
    ("accuracy", "accuracy"),
    ("tokens_per_problem", "tokens/problem"),
    ("latency_s.mean", "latency mean"),
    ("latency_s.p50", "latency p50"),
    ("latency_s.p95", "latency p95"),
    ("ttft_s.p50", "TTFT p50"),
    ("ttft_s.p95", "TTFT p95"),
    ("tpot_s.p50", "TPOT p50"),
    ("throughput_tokens_per_s", "throughput"),
    ("device_s_per_problem", "device-s/problem"),
    ("cost_usd_per_problem", "cost/problem"),
    ("energy_j.per_problem", "energy/problem"),
)


def replay_json(found: Prediction) -> dict[str, Any]:
    """Return the document of `ttscope replay --json`."""
    return {
        "recorded": found.recorded.to_json(),
        "replayed": None if found.replayed is None else found.replayed.to_json(),
        "predicted": found.predicted.to_json(),
        "changes": {
            tag: {
                "recorded": to_plain(estimate_of(found.recorded, tag)),
                "replayed": to_plain(estimate_of(found.replayed, tag)),
                "predicted": to_plain(estimate_of(found.predicted, tag)),
                "relative": _relative(found, tag),
            }
            for tag, _ in ROWS
        },
        "waits": [to_plain(each) for each in found.waits],
        "notes": list(found.notes),
    }


def replay_lines(found: Prediction, question: Question, *, width: int = 80) -> Iterator[str]:
    """Return the lines of a prediction."""
    recorded, predicted = found.recorded, found.predicted
    yield recorded.recording
    engine = engine_text(recorded.engine) if recorded.imported is None else imported_text(recorded)
    yield from wrap("recorded", engine, width=width, indent=10)
    yield from wrap("", policy_text(recorded.policy or AS_SENT), width=width, indent=10)
    changed = _changes(recorded, question, predicted)
    yield from wrap("asked", "; ".join(changed) or "as recorded", width=width, indent=10)
    yield ""
    rows = [["", "recorded", "replayed", "predicted", "90 % interval", "change"]]
    for tag, name in ROWS:
        estimate = estimate_of(predicted, tag)
        if estimate is None and estimate_of(recorded, tag) is None:
            continue
        rows.append(
            [
                name,
                value_of(estimate_of(recorded, tag)),
                value_of(estimate_of(found.replayed, tag)),
                value_of(estimate),
                interval(estimate),
                _change(found, tag),
            ]
        )
    three = (recorded, found.replayed, predicted)
    steps = [ABSENT if run is None or not run.steps else f"{run.steps:,}" for run in three]
    rows.append(["steps", *steps, "", ""])
    yield from align(rows, right=(1, 2, 3, 5), gap=1)
    yield ""
    if found.replayed is not None:
        yield from wrap("", "change: predicted against replayed, so that the replay's own error "
                        "drops out", width=width, indent=0)  # fmt: skip
        yield ""
    if found.waits:
        yield from _waits(found)
    for note in found.notes:
        yield from wrap("note", note, width=width, indent=10)


def _waits(found: Prediction) -> Iterator[str]:
    rows = [["who waited", "latency", "queued", "prefill", "decoded", "most behind (slot-s)"]]
    for each in found.waits:
        behind = ", ".join(f"{name[:12]} {number(sec, 's')}" for name, sec in each.behind[:1])
        rows.append(
            [
                each.problem_id[:12],
                *(number(v, "s") for v in (each.latency_s, each.queued_s, each.prefill_s)),
                number(each.decode_s, "s"),
                behind or ABSENT,
            ]
        )
    yield from align(rows, right=(1, 2, 3, 4))


def _changes(recorded: Run, question: Question, predicted: Run) -> list[str]:
    before = {"engine": recorded.engine.to_json()}
    after = {"engine": question.engine.to_json(), "policy": question.policy.to_json()}
    after["engine"]["num_gpu_blocks"] = predicted.engine.num_gpu_blocks  # as the GPU has room
    before["policy"] = (recorded.policy or AS_SENT).to_json()
    found = [
        f"{part}.{name} {_short(before[part].get(name))} -> {_short(value)}"
        for part, fields in after.items()
        for name, value in fields.items()
        if before[part].get(name) != value
    ]
    if question.rate_per_s is not None:
        found.append(f"arrivals at {question.rate_per_s:g}/s")
    if question.concurrency is not None:
        found.append(f"{question.concurrency} problems in flight")
    if question.operators is not None:
        layers, together = question.num_hidden_layers, question.collectives
        found.append(
            f"steps of the tables in {question.operators.name}"
            + ("" if layers is None else f", {layers} layers")
            + ("" if together is None else f", all-reduces of {together.name}")
        )
    if question.gpu is not None:
        facts = question.model_facts
        found.append(
            f"steps of the prior of {question.gpu}" + ("" if facts is None else f", {facts.name}")
        )
    if question.replicas.count > 1:
        how = ", samples together" if question.replicas.together else ""
        found.append(f"{question.replicas.count} replicas, {question.replicas.routing}{how}")
    return found


def _short(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, dict):
        return " ".join(str(each) for each in value.values() if each is not None)
    if isinstance(value, list):
        return " ".join(f"{name}={each}" for name, each in value) or ABSENT
    return str(value)


def _relative(found: Prediction, tag: str) -> float | None:
    return relative(estimate_of(found.replayed, tag), estimate_of(found.predicted, tag))


def _change(found: Prediction, tag: str) -> str:
    """Return predicted against replayed: a share of it, of accuracy a difference in points."""
    share = _relative(found, tag)
    if share is None:
        return ABSENT
    if tag != "accuracy":
        return f"{share * 100:+.1f} %"
    replayed, predicted = estimate_of(found.replayed, tag), estimate_of(found.predicted, tag)
    assert replayed is not None
    assert predicted is not None
    return number(predicted.value - replayed.value, "1", sign=True).replace("points", "pts")


def relative(before: Estimate | None, after: Estimate | None) -> float | None:
    """Return by what share one number is above another, None where either is not known."""
    if before is None or after is None or not before.value:
        return None
    return after.value / before.value - 1
