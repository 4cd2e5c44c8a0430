"""One setting of a pick changed: both replayed from the recordings, and the difference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from advisor.search.budget import Prices
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.advice import Budget, Pick
from traces.schema.engine import EngineConfig
from traces.schema.formats import interval, value_of
from traces.schema.quantities import quantity
from traces.summary.metrics import estimate_of
from traces.summary.run import at_price
from tui.screens.advice.rows import pick_title
from tui.screens.entries import Entry, with_frames
from tui.screens.library import words_of
from tui.text.layout import align
from tui.text.replay import change_words

TAGS = (
    "accuracy",
    "tokens_per_problem",
    "latency_s.mean",
    "latency_s.p95",
    "throughput_tokens_per_s",
    "device_s_per_problem",
    "cost_usd_per_problem",
)


def examples(pick: Pick) -> str:
    """Return changes that can be asked of a pick, as they are typed."""
    seqs = pick.engine.max_num_seqs
    changes = [f"engine.max_num_seqs={8 if seqs is None or seqs > 8 else max(seqs // 2, 1)}"]
    if pick.policy.n > 1:
        changes.append(f"policy.n={pick.policy.n // 2}")
    return " or ".join(changes)


def what_if(
    entries: Sequence[Entry], pick: Pick, changes: str, budget: Budget | None = None
) -> list[str]:
    """Return what a change such as `engine.max_num_seqs=8` makes of a pick, at a budget's rate.

    Costs are at the budget's prices, else the recorded one. Raises UsageError for what cannot be
    asked or answered from the recordings, and RecordingError when they hold nothing to replay.
    """
    from advisor.what_if.predict import predict
    from advisor.what_if.question import Question, changed, device_asked

    words = words_of(changes)
    entries = [each for each in entries if each.run is None or each.run.replay_of is None]
    # Of what was measured: nothing is learned from a prediction.
    base = with_frames(_base(entries, pick))
    if base.recording is None or base.run is None or base.run.sample_rows is None:
        raise UsageError("what-if: none of the recordings can be replayed")
    as_pick = dataclasses.replace(base.run, engine=pick.engine, policy=pick.policy)
    engine, policy, _ = changed(as_pick, words, device=device_asked(None, pick.prior))
    others = [
        each.recording for each in entries if each.recording and each.recording != base.recording
    ]
    engine = _of_servers(pick.engine, engine, [base.recording, *others])
    budget = budget or Budget()
    rate = budget.rate_per_s
    arrivals = base.recording.problems["arrival"].count()
    in_flight = None if arrivals or rate is not None else 1  # as in the advice on such an import
    recorded = base.recording.manifest.price_usd_per_device_hour
    prices = Prices(budget, recorded, frozenset({base.run.engine.gpu}))
    before, after = (
        at_price(
            predict(
                base.recording,
                base.run,
                Question(
                    engine=e,
                    policy=p,
                    gpu=pick.prior,
                    rate_per_s=rate,
                    concurrency=in_flight,
                ),
                others,
            ).predicted,
            prices.of(e),
            rate,
        )
        for e, p in ((pick.engine, pick.policy), (engine, policy))
    )
    accuracy = pick.estimates.get("accuracy")
    if policy == pick.policy and accuracy is not None:  # an engine changes no answer
        before, after = (dataclasses.replace(run, accuracy=accuracy) for run in (before, after))
    table: list[Sequence[str]] = [("", "pick", "changed", "90 % interval", "change")]
    for tag in TAGS:
        one, two = estimate_of(before, tag), estimate_of(after, tag)
        if one is None and two is None:
            continue
        table.append(
            (
                quantity(tag).title,
                value_of(one),
                value_of(two),
                interval(two),
                change_words(tag, one, two),
            )
        )
    load_told = "" if rate is None else f", at {rate:g} problems/s"
    return [f"{pick_title(pick)}, {changes.strip()}{load_told}", *align(table, right=(1, 2, 4))]


def _of_servers(
    pick: EngineConfig, engine: EngineConfig, recordings: Sequence[Recording]
) -> EngineConfig:
    """Return an engine of a changed size: of a mixture as servers with the ranks of the pick's.

    Raises UsageError where these cannot have so many ranks together.
    """
    size, ranks = engine.data_parallel_size, pick.ranks
    known = (each.manifest.models.get(engine.model) for each in recordings)
    facts = next((each for each in known if each is not None), None)
    if ranks is None or size == pick.data_parallel_size or facts is None or not facts.num_experts:
        return engine
    if size % ranks:
        raise UsageError(
            f"engine.data_parallel_size={size}: a server of this mixture has {ranks} data-parallel "
            f"ranks. Ask for {ranks}, {2 * ranks} or another multiple"
        )
    return engine.of_servers(ranks)


def _base(entries: Sequence[Entry], pick: Pick) -> Entry:
    """Return the recording nearest to a pick: the same, else of its model with most samples."""
    able = [each for each in entries if each.run is not None and each.run.policy is not None]
    same = [
        each
        for each in able
        if each.run and each.run.engine == pick.engine and each.run.policy == pick.policy
    ]
    model = [each for each in able if each.run and each.run.engine.model == pick.engine.model]
    model.sort(key=lambda each: -(each.run.policy.n if each.run and each.run.policy else 0))
    if not (same or model):
        raise UsageError(f"what-if: no recording of {pick.engine.model}")
    return [*same, *model][0]
