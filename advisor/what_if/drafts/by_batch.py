"""How many tokens to draft at which batch, as `num_speculative_tokens_per_batch_size` has it.

With drafts of k tokens each request gives L(k) tokens a step in the mean, and a step of B requests
takes T(k, B) seconds. So drafts speed B requests up by L(k) T(0, B) / T(k, B). L is what recorded
drafts, counted lookup, or an acceptance says of each k (redrafting.py). T is the law of recorded
steps, or a prior (arXiv 2406.14066 has the same goodput).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from advisor.evidence.gather import Evidence, gather
from advisor.evidence.keys import law_key, sampling_of
from advisor.evidence.runs import RecordedRun
from advisor.step_time.cost import StepCost, drafts_speed, linear_cost
from advisor.step_time.draft_law import ONE_BY_ONE, draft_law
from advisor.step_time.fit import StepTimeModel, learned
from advisor.step_time.power.prior import PowerAsked
from advisor.step_time.prior.defaults import as_on
from advisor.step_time.prior.drafting import mean_context
from advisor.step_time.prior.offers import PRICED, device_of
from advisor.step_time.prior.recalibration import PriorTimes
from advisor.step_time.prior.relatives import read_gpu
from advisor.what_if.drafts.redrafting import Redrafted, redraft, same_drafter
from traces.errors import TtscopeError, UsageError
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig, Speculative
from traces.schema.estimate import Estimate
from traces.schema.record import Record
from traces.statistics import Z95, Floats, Ints

ALIKE: Final = 0.99  # of the best speed, up to which a length is kept that is in force
WORTH: Final = 1.01  # times as fast as without drafts, from which drafts are worth their work
MOST_POSITIONS: Final = 32  # of a draft that is looked at
TO_COME: Final = 64  # requests, up to which drafts are looked at where no limit is known


@dataclass(frozen=True, kw_only=True)
class DraftRange(Record):
    """From `low` to `high` requests in a step, drafts of so many tokens are best.

    They give `tokens_per_step` tokens of each request, and are so many times as fast as no drafts
    (`gain`), at `low` and at `high` requests.
    """

    low: int
    high: int
    num_speculative_tokens: int
    tokens_per_step: Estimate
    gain: tuple[Estimate, Estimate]


@dataclass(frozen=True, kw_only=True)
class DraftsByBatch(Record):
    """The best drafts of an engine by batch, at contexts of so many tokens.

    `stops_paying_at` is the batch from which no draft pays, None where some pay at all.
    """

    engine: EngineConfig
    speculative: Speculative
    context_tokens: float
    ranges: tuple[DraftRange, ...]
    stops_paying_at: int | None
    notes: tuple[str, ...] = ()

    @property
    def schedule(self) -> list[list[int]]:
        """`num_speculative_tokens_per_batch_size` as vLLM takes it."""
        return [[each.low, each.high, each.num_speculative_tokens] for each in self.ranges]

    @property
    def served(self) -> EngineConfig:
        """The engine that drafts so, without drafts where none pay."""
        most = max(each.num_speculative_tokens for each in self.ranges)
        if not most:
            return replace(self.engine, speculative=None)
        ranges = tuple((low, high, k) for low, high, k in self.schedule)
        drafts = self.speculative.fixed(most)
        if len(ranges) > 1:
            drafts = replace(drafts, num_speculative_tokens_per_batch_size=ranges)
        return replace(self.engine, speculative=drafts)


@dataclass(frozen=True, kw_only=True)
class StepsOf:
    """What steps of an engine cost as it is started, and the spread (sd) of the log of their time.

    Steps of more than `most` requests are beyond what was recorded or measured, and lie `farther`.
    """

    engine: EngineConfig
    cost: StepCost
    sigma: float
    most: float
    farther: float
    note: str | None = None


Steps = Callable[[EngineConfig], StepsOf]


def all_drafts_by_batch(
    recordings: Sequence[Recording],
    *,
    speculative: Speculative | None = None,
    acceptance: Sequence[float] = (),
    gpu: str | None = None,
    power_cap_w: float | None = None,
) -> tuple[list[DraftsByBatch], list[str]]:
    """Return the best drafts by batch of each recorded engine and drafter, and why some have none.

    Drafters are those that were recorded or, of lookup, counted, and `speculative` where that is
    given. With a `gpu`, the name of a system of the prior, steps are that GPU's, whose boards may
    draw `power_cap_w`. Raises UsageError where nothing has any.
    """
    evidence = gather(recordings, judged=False, timed=gpu is None)
    model = learned(evidence.steps) if gpu is None and evidence.steps else None
    found, without = [], []
    for key in dict.fromkeys(map(_plain, evidence.runs)):
        for drafter in [speculative] if speculative else _drafters(evidence, key):
            run = _run_for(evidence, key, drafter)
            try:
                steps_of = (
                    _recorded(model, recordings)
                    if gpu is None
                    else _of_gpu(gpu, run, recordings, power_cap_w)
                )
                drafts = drafts_by_batch(
                    evidence, recordings, run, drafter, steps_of, acceptance=acceptance,
                    recorded=_lengths(evidence, key, drafter) if gpu is None else None,
                )  # fmt: skip
            except TtscopeError as error:
                without.append(f"{key.model} with {drafter.method}: {error}")
            else:
                found.append(drafts)
    if not found:
        raise UsageError(
            next(iter(without), None)
            or "no draft was recorded or counted. Record a few problems with --speculative, or say "
            'what drafts: --speculative \'{"method": "eagle3", "num_speculative_tokens": 3}\' '
            "--acceptance .58,.31,.12"
        )
    return found, without


def _plain(run: RecordedRun) -> EngineConfig:
    """Return what the steps of a run's engine depend on, but for its drafts."""
    return law_key(replace(run.engine, speculative=None))


def _drafters(evidence: Evidence, key: EngineConfig) -> list[Speculative]:
    """Return what drafted for an engine, each with the longest drafts that it made."""
    longest: dict[Speculative, int] = {}
    for run in evidence.runs:
        drafts = run.engine.speculative
        if drafts is not None and _plain(run) == key:
            of = drafts.fixed(1)
            longest[of] = max(longest.get(of, 0), drafts.num_speculative_tokens)
    return [of.fixed(k) for of, k in longest.items()]


def _lengths(evidence: Evidence, key: EngineConfig, drafter: Speculative) -> set[int] | None:
    """Return the lengths of drafts that an engine ran, None where any is priced by its tokens."""
    if drafter.method not in ONE_BY_ONE:
        return None
    ran = [run.engine.speculative for run in evidence.runs if _plain(run) == key]
    return {each.num_speculative_tokens for each in ran if each and same_drafter(each, drafter)}


def _run_for(evidence: Evidence, key: EngineConfig, drafter: Speculative) -> RecordedRun:
    """Return the run of an engine whose samples are drafted for: sampled as the drafter's was."""
    runs = [run for run in evidence.runs if _plain(run) == key]
    drafted = {
        sampling_of(run.policy)
        for run in runs
        if run.engine.speculative is not None and same_drafter(run.engine.speculative, drafter)
    }
    return max(
        runs,
        key=lambda run: (
            sampling_of(run.policy) in drafted,
            run.engine.speculative is None,
            len(run.problems) * run.policy.n,
        ),
    )


def _recorded(model: StepTimeModel | None, recordings: Sequence[Recording]) -> Steps:
    """Return what recorded steps tell of engines."""

    def steps_of(engine: EngineConfig) -> StepsOf:
        if model is None:
            raise UsageError("no steps were recorded. Give --gpu for those of a prior")
        law, _ = draft_law(model, recordings, engine)
        return StepsOf(
            engine=engine,
            cost=linear_cost(law.seconds, law.reads, law.most),
            sigma=law.sigma,
            most=float(law.most.requests),
            farther=law.sigma_outside,
        )

    return steps_of


def _of_gpu(
    gpu: str, run: RecordedRun, recordings: Sequence[Recording], cap_w: float | None
) -> Steps:
    """Return what the prior of a GPU tells of a run's model there."""
    tables, name = read_gpu(gpu), run.engine.model
    facts = next(
        (each.manifest.models[name] for each in recordings if name in each.manifest.models), None
    )
    if facts is None:
        raise UsageError(f"--gpu: no recording holds facts of the model {name}")
    prior = PriorTimes.of(
        tables, facts, recordings, truncated=run.policy.truncated, asked=PowerAsked(cap_w=cap_w)
    )
    device = device_of(tables)

    def steps_of(engine: EngineConfig) -> StepsOf:
        asked = replace(as_on(device, engine, run.engine)[0], gpu=tables.device)
        note = None
        if asked.dtype not in PRICED:
            note = (
                f"the samples were recorded in {asked.dtype}. The steps are priced in bfloat16: a "
                "server in bfloat16 may answer otherwise"
            )
            asked = replace(asked, dtype="bfloat16")
        times = prior.times(asked, TO_COME)
        assert times.sigma is not None
        sigma, farther = times.sigma
        most = prior.prior(asked).domain.batch
        return StepsOf(
            engine=asked, cost=times.cost, sigma=sigma, most=most, farther=farther, note=note
        )

    return steps_of


def drafts_by_batch(
    evidence: Evidence,
    recordings: Sequence[Recording],
    run: RecordedRun,
    speculative: Speculative,
    steps_of: Steps,
    *,
    acceptance: Sequence[float] = (),
    recorded: Collection[int] | None = None,
) -> DraftsByBatch:
    """Return the best drafts of a run's engine by batch, up to its `max_num_seqs`.

    Lengths are tried up to `num_speculative_tokens` of `speculative`, and no more than there are
    positions of a given `acceptance`. Of drafters that propose token after token, whose passes have
    a fixed part, `recorded` lengths alone are tried beside that one, where steps are recorded.
    `steps_of` gives what steps of an engine take. Errors of the steps with drafts and without are
    taken to have nothing in common. Raises UsageError where nothing says what is kept of such
    drafts, or what steps with them take.
    """
    plain = replace(run.engine, speculative=None)
    longest = min(speculative.num_speculative_tokens, len(acceptance) or MOST_POSITIONS)
    context = mean_context([run])
    high = max(
        problem.prompt_tokens + sample.output_tokens
        for problem in run.problems.values()
        for sample in problem.samples
    )
    without = steps_of(plain)
    batches = np.arange(1, (without.engine.max_num_seqs or TO_COME) + 1)
    kept, lengths, notes = [_Kept()], [without], []
    tried = [k for k in range(1, longest + 1) if recorded is None or k in {*recorded, longest}]
    for k in tried:
        engine = replace(plain, speculative=speculative.fixed(k))
        redrafted = redraft(evidence, recordings, engine, run.policy, acceptance)
        if redrafted is None:
            raise UsageError(
                f"nothing says how many tokens of {speculative.method} drafts are kept. Record "
                "some with --speculative, or give --acceptance .58,.31,.12"
            )
        kept.append(_kept(redrafted))
        lengths.append(steps_of(engine))
        notes.append(redrafted.note)
    gains = _gains(batches, context, kept, lengths)
    ranges = tuple(_ranges([0, *tried], batches, kept, gains, lengths))
    pays = [each.high for each in ranges if each.num_speculative_tokens]
    stops = None if pays and pays[-1] == batches[-1] else (pays[-1] + 1 if pays else 1)
    more = [note for note in (without.note, notes[-1]) if note is not None]
    if ranges[0].num_speculative_tokens == longest and not acceptance:
        more.append(
            f"drafts of {longest} are the longest that were looked at. Longer ones may be better: "
            f"record some with num_speculative_tokens {2 * longest}"
        )
    at_high = _best(_gains(batches, high, kept, lengths))
    if (moved := np.flatnonzero(at_high != _best(gains))).size:
        place = moved[len(moved) // 2]
        more.append(
            f"at contexts of {high:,.0f} tokens the best differs: "
            f"{[0, *tried][at_high[place]]} for {batches[place]:,} requests"
        )
    return DraftsByBatch(
        engine=without.engine,
        speculative=speculative,
        context_tokens=context,
        ranges=ranges,
        stops_paying_at=stops,
        notes=tuple(more),
    )


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Mean tokens that a step gives a request, the spread (sd) of that, and those it computes."""

    tokens: float = 1.0
    sd: float = 0.0
    computed: float = 1.0
    extrapolated: bool = False

    @property
    def estimate(self) -> Estimate:
        low, high = (self.tokens + sign * Z95 * self.sd for sign in (-1, 1))
        told = Estimate(value=self.tokens, low=low, high=high, unit="tokens")
        return replace(told, extrapolated=self.extrapolated)


def _kept(redrafted: Redrafted) -> _Kept:
    """Return what verify steps of draws of a run do.

    The spread is that of a ratio over problems, whose tokens are alike, and that between draws.
    """
    runs = redrafted.runs
    counts = np.zeros((len(runs), len(runs[0].problems), 3))
    for draw, run in enumerate(runs):
        for place, problem in enumerate(run.problems.values()):
            for sample in problem.samples:
                if sample.advance is not None and sample.scheduled is not None:
                    steps = len(sample.advance), sample.advance.sum(), sample.scheduled.sum()
                    counts[draw, place] += steps
    if not counts.any():
        raise UsageError(f"{runs[0].recording}: its samples are too short to be drafted for")
    steps, tokens, computed = counts.sum(axis=(0, 1))
    mean, problems = tokens / steps, counts.shape[1]
    off = (counts[..., 1] - mean * counts[..., 0]).sum(axis=0)
    between = np.square(off).sum() * problems / max(problems - 1, 1) / steps**2
    drawn = (counts[..., 1].sum(axis=1) / counts[..., 0].sum(axis=1)).var()
    return _Kept(
        tokens=float(mean),
        sd=float(np.sqrt(between + drawn)),
        computed=float(computed / steps),
        extrapolated=redrafted.extrapolated,
    )


def _gains(
    batches: Ints, context: float, kept: Sequence[_Kept], lengths: Sequence[StepsOf]
) -> Floats:
    """Return how many times as fast as without drafts each length is [lengths, batches]."""
    without = lengths[0].cost
    speeds = [
        drafts_speed(
            without,
            steps.cost,
            batches,
            computed=each.computed,
            kept=each.tokens,
            context=context,
        )
        for each, steps in zip(kept[1:], lengths[1:], strict=True)
    ]
    return np.array([np.ones(len(batches)), *speeds])


def _best(gains: Floats) -> Ints:
    """Return the best length of each batch [batches]; it changes where another is clearly better.

    None is best where the best is hardly faster than without drafts.
    """
    best = []
    now = -1
    for column in gains.T:
        top = int(column.argmax()) if column.max() >= WORTH else 0
        if now < 0 or column[now] < ALIKE * column[top] or (now and column[now] < WORTH):
            now = top
        best.append(now)
    return np.array(best)


def _ranges(
    tried: Sequence[int],
    batches: Ints,
    kept: Sequence[_Kept],
    gains: Floats,
    lengths: Sequence[StepsOf],
) -> Iterator[DraftRange]:
    best = _best(gains)
    starts = np.flatnonzero(np.diff(best, prepend=-1))
    for start, end in zip(starts, [*(starts[1:] - 1), len(batches) - 1], strict=True):
        at = int(best[start])
        ends = (
            _gain(float(gains[at, place]), kept[at], lengths[0], lengths[at], batches[place])
            for place in (start, end)
        )
        yield DraftRange(
            low=int(batches[start]),
            high=int(batches[end]),
            num_speculative_tokens=tried[at],
            tokens_per_step=kept[at].estimate,
            gain=(next(ends), next(ends)),
        )


def _gain(value: float, kept: _Kept, without: StepsOf, drafting: StepsOf, batch: int) -> Estimate:
    """Return how many times as fast drafts are at a batch, with what step times are off by."""
    if without is drafting:
        return Estimate(value=value, low=value, high=value, unit="1")
    beyond = bool(batch > min(without.most, drafting.most))
    of_steps = [each.farther if beyond else each.sigma for each in (without, drafting)]
    spread = float(np.linalg.norm([kept.sd / kept.tokens, *of_steps]))
    low, high = (value * float(np.exp(sign * Z95 * spread)) for sign in (-1, 1))
    return Estimate(
        value=value, low=low, high=high, unit="1", extrapolated=beyond or kept.extrapolated
    )
