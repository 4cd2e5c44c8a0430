"""A run's samples as they would have been drafted for: with another k, or by lookup that never ran.

What a draft proposes depends on the tokens before it alone, so a token that a draft got right, or
wrong, is right or wrong in a draft of another length too. Open is only the token after a draft that
was kept whole: nobody proposed it. It is drawn, by the acceptance of its position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import polars as pl

from advisor.evidence.gather import Evidence
from advisor.evidence.keys import decoder_of, sampling_of
from advisor.evidence.runs import ProblemRun, RecordedRun, Sample
from advisor.what_if.drafts.draft_acceptance import AcceptanceModel, Chances, Kept
from advisor.what_if.drafts.published import KNOWN, published
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig, Speculative
from traces.schema.formats import percent
from traces.schema.tts.policy import Policy
from traces.statistics import Ints
from traces.summary.speculation.acceptance import PHASES
from traces.summary.speculation.ngram import PromptLookup, lookup_of

DRAWS: Final = 8  # of what is open
DRAFTS: Final = (1, 2, 4)  # tokens of drafts that are offered by a published acceptance
WRONG, RIGHT, OPEN, NO_DRAFT = 0, 1, -1, -2  # what is known of a token


@dataclass(frozen=True, kw_only=True)
class Redrafted:
    """Runs with drawn drafts, one per draw, and what to say of them.

    `extrapolated`: the drafts are longer than any recorded.
    """

    runs: tuple[RecordedRun, ...]
    note: str
    extrapolated: bool


def redraft(
    evidence: Evidence,
    recordings: Sequence[Recording],
    engine: EngineConfig,
    policy: Policy,
    acceptance: Sequence[float] = (),
) -> Redrafted | None:
    """Return the engine's samples from a run with other drafts; None where none can tell them.

    That is a run of the same model and sampling with drafts of the same kind and another k or,
    for n-gram lookup, any run whose recording counted what lookup with this window would have done;
    first those with drafts as long as the asked ones. Last comes what was published. With an
    `acceptance` (`read_acceptance`) that alone says what is kept.
    """
    wanted = engine.speculative
    if wanted is None:
        return None
    alike = [
        run
        for run in evidence.runs
        if decoder_of(run.engine)[:-1] == decoder_of(engine)[:-1]
        and sampling_of(run.policy) == sampling_of(policy)
    ]
    alike.sort(key=lambda run: -run.policy.n)
    plain = [run for run in alike if run.engine.speculative is None]
    if acceptance:
        return next((_drawn_by(run, engine, _given(acceptance)) for run in plain or alike), None)
    longer = None
    for redrafted in filter(None, _told(evidence, recordings, wanted, engine, alike)):
        if not redrafted.extrapolated:
            return redrafted
        longer = longer or redrafted
    return longer


def _told(
    evidence: Evidence,
    recordings: Sequence[Recording],
    wanted: Speculative,
    engine: EngineConfig,
    alike: Sequence[RecordedRun],
) -> Iterator[Redrafted | None]:
    """Yield what runs tell: those that ran with such drafts, then those that counted lookup."""
    for run in alike:
        before = run.engine.speculative
        if before is not None and same_drafter(before, wanted):
            yield _from_steps(evidence, run, before, wanted, engine)
    if (lookup := lookup_of(wanted)) is not None:
        named = {each.name: each for each in recordings}
        for run in alike:
            yield _from_counts(run, named[run.recording], engine, lookup)
    for run in [run for run in alike if run.engine.speculative is None][:1]:
        yield _from_published(run, wanted, engine)


def read_acceptance(text: str) -> tuple[float, ...]:
    """Read shares of drafts whose token is kept, by its position: `.58,.31,.12`.

    These are what `show` prints and vLLM counts (`num_accepted_tokens_per_pos` over `num_drafts`).
    Raises UsageError for what cannot be.
    """
    try:
        shares = tuple(float(each) for each in text.split(","))
    except ValueError:
        raise UsageError(
            f"--acceptance {text}: give the share kept at each position, such as .58,.31,.12"
        ) from None
    for place, (before, share) in enumerate(pairwise((1.0, *shares)), 1):
        if not 0 <= share <= 1:
            raise UsageError(
                f"--acceptance {text}: position {place} has {share:g}, and shares are from 0 to 1"
            )
        if share > before:
            raise UsageError(
                f"--acceptance {text}: position {place} has {share:g}, more than the {before:g} "
                "before it. A token is kept where those before it are, so that shares never rise"
            )
    return shares


def same_drafter(one: Speculative, other: Speculative) -> bool:
    """Whether two settings propose the same tokens, but for how many."""
    ours, theirs = (each.fixed(1) for each in (one, other))
    if lookup_of(ours) is not None:
        return lookup_of(ours) == lookup_of(theirs)
    return ours == theirs


def with_published(evidence: Evidence) -> Evidence:
    """Return the evidence with runs of drafters whose acceptance was published, for any GPU.

    Of models that ran without drafts, and with none of the drafter's. Their recording has no name.
    """
    drafted = {run.engine.model for run in evidence.runs if run.engine.speculative is not None}
    more = []
    for run in evidence.runs:
        for drafter in KNOWN if run.engine.model not in drafted else ():
            for k in DRAFTS if drafter.model.search(run.engine.model) else ():
                wanted = Speculative(method=drafter.methods[0], num_speculative_tokens=k)
                engine = dataclasses.replace(run.engine, speculative=wanted)
                redrafted = _from_published(run, wanted, engine)
                if redrafted is not None:
                    more.append(dataclasses.replace(redrafted.runs[0], recording=""))
    return dataclasses.replace(evidence, runs=(*evidence.runs, *more)) if more else evidence


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What says how many tokens are kept, other than a recording, of so many `positions`."""

    chances: Chances
    positions: int
    what: str


def _from_published(
    run: RecordedRun, wanted: Speculative, engine: EngineConfig
) -> Redrafted | None:
    """Return the samples with drafts drawn by a published acceptance."""
    drafter = published(engine.model, wanted)
    if drafter is None:
        return None
    what = f"the acceptance that was published for {drafter.name}, on other prompts"
    return _drawn_by(run, engine, _Told(chances=drafter.chances, positions=0, what=what))


def _given(acceptance: Sequence[float]) -> _Told:
    chances = [share / before if before else 0.0 for before, share in pairwise((1.0, *acceptance))]
    told = Chances(by_cell={}, pooled=np.array(chances))
    return _Told(chances=told, positions=len(acceptance), what="the acceptance that was given")


def _drawn_by(run: RecordedRun, engine: EngineConfig, told: _Told) -> Redrafted:
    """Return the samples with drafts that are kept by the given chances.

    The run's own drafts say nothing of others, and are left out.
    """
    assert engine.speculative is not None
    k, runs = engine.speculative.num_speculative_tokens, []
    for number in range(DRAWS):
        rng = np.random.default_rng([7, number])
        runs.append(_with_drafts(_without_drafts(run), engine, k, told.chances, None, rng)[0])
    note = f"drafts never ran: how many are kept is drawn by {told.what}"
    return Redrafted(runs=tuple(runs), note=note, extrapolated=k > told.positions)


def _without_drafts(run: RecordedRun) -> RecordedRun:
    if run.engine.speculative is None:
        return run
    problems = {
        name: dataclasses.replace(
            problem,
            samples=tuple(
                dataclasses.replace(each, scheduled=None, advance=None) for each in problem.samples
            ),
        )
        for name, problem in run.problems.items()
    }
    return dataclasses.replace(run, problems=problems)


def _with_drafts(
    run: RecordedRun,
    engine: EngineConfig,
    k: int,
    chances: Chances,
    temperature: float | None,
    rng: np.random.Generator,
) -> tuple[RecordedRun, int]:
    """Return a run whose samples have drafts of `k`, and how many tokens had to be drawn."""
    problems, drawn = {}, 0
    for name, problem in run.problems.items():
        made = [_redrafted(each, k, chances, temperature, rng) for each in problem.samples]
        drawn += sum(some for _, some in made)
        problems[name] = dataclasses.replace(problem, samples=tuple(each for each, _ in made))
    return dataclasses.replace(run, engine=engine, problems=problems), drawn


# -- from the recorded steps of samples ------------------------------------------------------------


def _from_steps(
    evidence: Evidence,
    run: RecordedRun,
    before: Speculative,
    wanted: Speculative,
    engine: EngineConfig,
) -> Redrafted | None:
    if run.drafts_untold:
        return None
    k, recorded = wanted.num_speculative_tokens, before.num_speculative_tokens
    counts: list[Kept] = []
    for other in evidence.runs:
        drafter = other.engine.speculative
        if drafter is not None and same_drafter(drafter, before):
            counts += _counts_of(other)
    try:
        model = AcceptanceModel().fit(counts)
    except ValueError:
        return None
    drawn, runs = 0, []
    for number in range(DRAWS):
        rng = np.random.default_rng([7, number])
        made, some = _with_drafts(run, engine, k, model.draw(rng), run.policy.temperature, rng)
        drawn += some
        runs.append(made)
    tokens = DRAWS * sum(sample.output_tokens for sample in run.samples)
    note = (
        f"drafts of {k} are made of the recorded ones of {recorded}, token by token, and "
        f"{percent(drawn / max(tokens, 1))} of the tokens followed a whole kept draft and were "
        "drawn"
    )
    return Redrafted(runs=tuple(runs), note=note, extrapolated=k > recorded)


def known_tokens(sample: Sample) -> Ints:
    """Return of each output token what recorded drafts say of it; the first is OPEN.

    All are where nothing was drafted.
    """
    outcomes = np.full(sample.output_tokens + 1, OPEN, dtype=np.int64)
    if sample.scheduled is None or sample.advance is None:
        return outcomes[: sample.output_tokens]
    start = 1
    for forwarded, kept in zip(sample.scheduled.tolist(), sample.advance.tolist(), strict=True):
        if forwarded == 1:
            outcomes[start] = NO_DRAFT
        else:
            outcomes[start : start + kept - 1] = RIGHT
            outcomes[start + kept - 1] = WRONG if kept < forwarded else OPEN
        start += kept
    return outcomes[: sample.output_tokens]


def _redrafted(
    sample: Sample,
    k: int,
    chances: Chances,
    temperature: float | None,
    rng: np.random.Generator,
) -> tuple[Sample, int]:
    """Return the sample with drafts of `k`, and how many tokens had to be drawn."""
    outcomes = known_tokens(sample)
    scheduled, advance = [], []
    place, drawn, end = 1, 0, sample.output_tokens
    while place < end:
        if outcomes[place] == NO_DRAFT:
            scheduled.append(1)
            advance.append(1)
            place += 1
            continue
        kept = 0
        while kept < k and place + kept < end:
            right = outcomes[place + kept]
            if right < 0:
                cell = (temperature, phase_of(sample, place + kept))
                right = rng.random() < chances.at(cell, kept)
                drawn += 1
            if not right:
                break
            kept += 1
        emitted = min(kept + 1, end - place)
        scheduled.append(k + 1)
        advance.append(emitted)
        place += emitted
    made = dataclasses.replace(
        sample,
        scheduled=np.array(scheduled, dtype=np.int64),
        advance=np.array(advance, dtype=np.int64),
    )
    return made, drawn


def phase_of(sample: Sample, place: int) -> str | None:
    """Return the phase of an output token; the mark that ends thinking belongs to thinking."""
    if sample.think_tokens is None:
        return None
    return PHASES[0] if place <= sample.think_tokens else PHASES[1]


def _counts_of(run: RecordedRun) -> Iterable[Kept]:
    """Yield what recorded drafts kept: those of one length count for their positions alone."""
    for name, problem in run.problems.items():
        tallies: dict[tuple[str | None, int], Ints] = {}
        for sample in problem.samples:
            if sample.scheduled is None or sample.advance is None:
                continue
            start = 1
            steps = zip(sample.scheduled.tolist(), sample.advance.tolist(), strict=True)
            for forwarded, kept in steps:
                cell = (phase_of(sample, start), forwarded - 1)
                tally = tallies.setdefault(cell, np.zeros(forwarded, dtype=np.int64))
                if forwarded > 1 and start + kept < sample.output_tokens:  # the last step is cut
                    tally[:kept] += 1
                start += kept
        for (phase, _), tally in tallies.items():
            yield Kept(
                problem=name,
                temperature=run.policy.temperature,
                phase=phase,
                drafts=int(tally[0]),
                kept=tuple(tally[1:].tolist()),
            )


# -- from counts of lookup that was not run --------------------------------------------------------


def _from_counts(
    run: RecordedRun, recording: Recording, engine: EngineConfig, lookup: PromptLookup
) -> Redrafted | None:
    rows = recording.frame("drafts").filter(
        pl.col("method") == "ngram",
        pl.col("engine") == recording.engine_key(run.engine),
        pl.col("policy") == run.policy.key(),
        pl.col("prompt_lookup_min") == lookup.prompt_lookup_min,
        pl.col("prompt_lookup_max") == lookup.prompt_lookup_max,
    )
    sizes = rows["num_speculative_tokens"].unique().sort().to_list()
    if not sizes:
        return None
    k = lookup.num_speculative_tokens
    recorded = k if k in sizes else next((s for s in sizes if s > k), sizes[-1])
    rows = rows.filter(pl.col("num_speculative_tokens") == recorded)
    by_sample: dict[tuple[str, int], list[dict[str, Any]]] = {}
    counts = []
    for row in rows.iter_rows(named=True):
        by_sample.setdefault((row["problem_id"], row["sample_index"]), []).append(row)
        counts.append(
            Kept(
                problem=row["problem_id"],
                temperature=run.policy.temperature,
                phase=row["phase"],
                drafts=row["drafted"][0],
                kept=tuple(row["accepted"]),
            )
        )
    chances: list[Chances | None] = [None]
    if k > recorded:
        try:
            model = AcceptanceModel().fit(counts)
        except ValueError:
            return None
        chances = [model.draw(np.random.default_rng([7, number])) for number in range(DRAWS)]
    runs = []
    for chance in chances:
        problems: dict[str, ProblemRun] = {}
        for name, problem in run.problems.items():
            made = _counted(name, problem, by_sample, k, chance, run.policy.temperature)
            if made is not None:
                problems[name] = made
        runs.append(dataclasses.replace(run, engine=engine, problems=problems))
    if not runs[0].problems:
        return None
    how = "counted" if k == recorded else f"estimated from those counted for drafts of {recorded}"
    note = f"lookup never ran: each sample's verify steps are {how}"
    return Redrafted(runs=tuple(runs), note=note, extrapolated=k > recorded)


def _counted(
    name: str,
    problem: ProblemRun,
    by_sample: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
    k: int,
    chances: Chances | None,
    temperature: float | None,
) -> ProblemRun | None:
    samples = []
    for index, sample in zip(problem.indices, problem.samples, strict=True):
        rows = by_sample.get((name, index), ())
        tokens = sample.output_tokens - 1
        if tokens == 0:
            steps, drafted = 0, 0
        elif sum(row["tokens"] for row in rows) != tokens:
            return None
        else:
            steps, drafted = steps_with(rows, k, chances, temperature)
        scheduled = spread(steps + drafted, steps)
        samples.append(
            dataclasses.replace(sample, scheduled=scheduled, advance=spread(tokens, steps))
        )
    return dataclasses.replace(problem, samples=tuple(samples))


def steps_with(
    rows: Sequence[Mapping[str, Any]], k: int, chances: Chances | None, temperature: float | None
) -> tuple[int, int]:
    """Return the decode steps of a sample and the tokens drafted in them, with drafts of `k`.

    Rows are those of the `drafts` table for its phases. Exact where they are of drafts of `k`;
    else its tokens by what a step gives: one, and for each position up to k the share of its steps
    that kept that one. Positions that were not counted go on with the chances.
    """
    steps = sum(row["steps"] for row in rows)
    if all(len(row["drafted"]) == k for row in rows):
        return steps, sum(sum(row["drafted"]) for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    kept = drafted = 0.0
    for row in rows:
        recorded = len(row["drafted"])
        kept += sum(row["accepted"][:k])
        drafted += sum(row["drafted"][:k])
        last = row["accepted"][-1]
        for position in range(recorded, k):
            assert chances is not None
            last *= chances.at((temperature, row["phase"]), position)
            kept += last
            drafted += row["drafted"][-1]
    fewest = -(-tokens // (k + 1))
    decode_steps = min(max(round(tokens / (1 + kept / steps)), fewest, 1), tokens)
    return decode_steps, round(drafted / steps * decode_steps)


def spread(total: int, parts: int) -> Ints:
    """Return `parts` whole numbers that are as equal as can be and sum to `total`."""
    ends = np.arange(1, parts + 1) * total // max(parts, 1)
    return np.diff(ends, prepend=0).astype(np.int64)
