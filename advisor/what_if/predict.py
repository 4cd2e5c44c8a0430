"""A recorded run under another configuration: what the replay says of it, with intervals.

The samples are those recorded, so lengths and answers are real. What is predicted is when they
would have come. A fresh run differs by how fast the machine happens to be that day (the spread of
the step-time law), and at a temperature above 0 by other draws of its samples, of other lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from advisor.evidence.gather import NAMED_BY, UNNAMED, Evidence, gather
from advisor.evidence.keys import decoder_of, law_key, sampling_of
from advisor.evidence.live.drafts import with_lengths
from advisor.evidence.live.histograms import MOST_DRAWN
from advisor.evidence.live.passes import as_inferred
from advisor.evidence.live.servers import (
    as_metrics_say,
    as_one,
    run_with_length,
    servers_of,
    time_bounds,
)
from advisor.evidence.runs import RecordedRun, clients_wait, cut_at, limited
from advisor.evidence.unrecorded import DECODING, SHOWN, differences, recording_of, what_differs
from advisor.forecast.agents import Agents
from advisor.forecast.stream import STEADY
from advisor.replay.limits import check_startable
from advisor.replay.recording import write_recording
from advisor.replay.replay import PLACED, Replicas
from advisor.replay.waiting import Waited
from advisor.step_time.draft_law import draft_law
from advisor.step_time.fit import StepTimeModel, learned
from advisor.step_time.law import StepLaw
from advisor.step_time.operators.files import Operators, read_operators
from advisor.step_time.pace import Pace, pace_of_run
from advisor.step_time.power.law import power_laws
from advisor.step_time.power.prior import PowerAsked, lengths_of
from advisor.step_time.prior.defaults import (
    Device,
    Memory,
    assumed_note,
    blocks_note,
    memory_of,
    with_blocks,
)
from advisor.step_time.prior.drafting import drafter_in, drafts_with_a_model, verify_step
from advisor.step_time.prior.offers import PRICED, device_of, memory_on
from advisor.step_time.prior.recalibration import UNTAUGHT, PriorTimes
from advisor.step_time.prior.relatives import read_gpu
from advisor.what_if.drafts.redrafting import Redrafted, redraft
from advisor.what_if.latency_spread import latency_scatter, latency_spread
from advisor.what_if.measured.beside import ComparedTime, beside
from advisor.what_if.measured.correction import corrected
from advisor.what_if.measured.points import (
    MeasuredPoint,
    gpus_of,
    imported_point,
    of_forwards,
    said_points,
    said_watts,
)
from advisor.what_if.pace import AtPace, pace_in
from advisor.what_if.question import Question, by_replica
from advisor.what_if.replayed import Replays
from advisor.what_if.rollouts.batch import BatchRun
from traces.errors import UsageError
from traces.foreign.values import UNKNOWN_MODEL
from traces.live.numbers import Bounds
from traces.notes import Decisive, Differing, Telling, by_weight
from traces.recording.manifest import Manifest
from traces.recording.reader import Held, Recording, told_apart
from traces.schema.engine import RANKS, EngineConfig, ModelFacts
from traces.schema.estimate import Predicted, with_intervals
from traces.schema.formats import counted, number, percent, with_interval
from traces.schema.tts.policy import AS_SENT
from traces.schema.tts.routes import table_for
from traces.summary.comparison import RUN_TO_RUN, assumed_words, lies_off
from traces.summary.metrics import estimate_of
from traces.summary.run import Printed, Run

_TTFT: Final = Differing(
    "recorded TTFT starts when a sample reached the engine in this process. Replayed TTFT starts "
    "at its draw, so it includes tokenising and vLLM's input processing"
)


@dataclass(frozen=True, kw_only=True)
class FarOff:
    """Which numbers of the run as it was a replay does not give, by their tags, and how far.

    `words` say how far, and `text` also what to make of it.
    """

    tags: tuple[str, ...]
    words: str

    @property
    def text(self) -> str:
        return f"{self.words}. Do not rely on a change from a replay that is so far off"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A run as recorded, as replayed, and as predicted under the question's configuration.

    `replayed` is None where no step was recorded, as in imports, whose times of a client stand in
    `compared` beside those predicted. `far_off` says that the replay does not give what was
    recorded, None where it does. `pace` is what is predicted at the machine's own, where that is
    known. `batch` is the asked one on the engine as it was and as predicted, `agents` what is
    predicted of those. `waits` are the predicted run's problems that queued longest. `drawn` is the
    predicted run as a recording, with its `tables` and `manifest`.
    """

    recorded: Run
    replayed: Run | None
    predicted: Run
    waits: tuple[Waited, ...]
    notes: tuple[str, ...]
    drawn: Held
    compared: tuple[ComparedTime, ...] = ()
    far_off: FarOff | None = None
    pace: AtPace | None = None
    batch: tuple[BatchRun | None, BatchRun] | None = None
    agents: Agents | None = None

    @property
    def tables(self) -> Mapping[str, pl.DataFrame]:
        return self.drawn.tables

    @property
    def manifest(self) -> Manifest:
        return self.drawn.manifest

    def which(self, of: Predicted) -> Prediction:
        """Return the same prediction with the ends of one of its intervals."""
        replayed = None if self.replayed is None else with_intervals(self.replayed, of)
        return replace(self, predicted=with_intervals(self.predicted, of), replayed=replayed)

    @property
    def kept(self) -> Held:
        """The predicted run as a recording, with the numbers that are printed of it."""
        replayed = self.manifest.provenance["replayed"]
        printed = {"printed": Printed.of(self.predicted).to_json()}
        manifest = replace(self.manifest, provenance={"replayed": replayed | printed})
        return replace(self.drawn, manifest=manifest)

    def write(self, folder: Path) -> None:
        """Write the predicted run as a recording. Raises RecordingError where one exists."""
        write_recording(folder, self.kept.manifest, self.tables)


def predict(
    base: Recording,
    recorded: Run,
    question: Question,
    others: Sequence[Recording] = (),
    *,
    solver: Any = None,
) -> Prediction:
    """Replay a recorded run as it was and as asked.

    `recorded` is one of the base's runs; `others` are recordings that teach step times and, where
    they are of the same problems, samples of another model. `solver` is another regression for step
    times (`StepTimeRegression`). Raises UsageError for what the
    recordings cannot answer, and RecordingError when they hold nothing to replay.
    """
    base, recorded, question = _with_length(base, recorded, question)
    base, *given = told_apart([base, *map(with_lengths, others)])
    others = [each for each in given if each.path != base.path]
    ranks, asked = _ranks(question.engine, recorded.engine), question
    prior, question = _prior(base, others, question, ranks)
    operators = None if question.operators is None else read_operators(question.operators)
    on_tables = prior is not None or operators is not None
    alike = [base, *(each for each in others if _hash(each) == _hash(base))]
    rest = [] if on_tables else [each for each in others if each not in alike]
    evidence = gather(alike, judged=False, timed=not on_tables, others=rest)
    evidence, routed = _deployed(evidence, base, recorded)
    question = _of_servers(evidence, prior, question, asked.engine.data_parallel_size, ranks)
    question = routed.of(question) if routed.answers(asked) else question
    question, placed = _placed(question, prior, operators, evidence)
    model = learned(evidence.steps, solver=solver) if evidence.steps else None
    own = _own_run(evidence, base, recorded)
    drawn = tuple(run for run in evidence.runs if run.drawn and run.engine == own.engine)
    redrafted, law, law_note = None, None, None
    sampled = _sampled(question, own, on_tables=on_tables)
    if question.policy.efforts is None and (
        question.acceptance or question.engine.speculative != own.engine.speculative
    ):
        redrafted = _redrafted(evidence, alike, sampled, own)
    sources = (_source(evidence, own, sampled),) if redrafted is None else redrafted.runs
    sources, recorded = drawn or sources, _of_replayed(base, recorded, own, routed)
    check_startable(
        question.engine,
        own.engine.one_replica(),
        sources,
        on_tables=on_tables,
        on_prior=prior is not None,
    )
    load = _measured_load(question, ranks)
    prior, untaught = _measured(prior, question, base, given, load, sources)
    if redrafted is not None and model is not None and not on_tables:
        law, law_note = draft_law(model, [base, *others], question.engine)
    same = routed.of(_as_it_was(question, own))
    replays = partial(
        Replays,
        base,
        evidence,
        model,
        own,
        beyond=latency_spread(evidence.runs, evidence.steps, model),
        scatter=latency_scatter(own, evidence.steps, model),
    )
    power = power_laws(evidence.power)
    own_law = None if model is None else model.laws_.get(law_key(own.engine))
    own_pace = pace_of_run(own, evidence.steps, own_law)
    before = (
        None
        if model is None
        else replays(
            drawn or (own,),
            same,
            power=power.get(law_key(same.engine)),
            routings=routed.others,
            pace=own_pace,
            own_pace=own_pace,
        )
    )
    after, longer = before, redrafted is not None and redrafted.extrapolated
    if after is None or same != question:
        after = replays(
            sources,
            question,
            prior,
            operators=operators,
            law=law,
            extrapolated=longer,
            power=power.get(law_key(question.engine))
            if prior is None
            else prior.power(question.engine),
            routings=routed.others if routed.answers(asked) else (),
            pace=_pace(question, model, law, own_pace),
            own_pace=own_pace,
        )
    notes = [*_time_notes(after, prior), *untaught, *placed, *_prefixes(base)]
    if before is None:
        notes.append("no step was recorded, so that the run cannot be replayed as it was")
    notes += [
        *map(Decisive, evidence.lost),
        *(routed.notes if routed.answers(asked) and operators is None else ()),
        *([] if on_tables else _unlike(evidence, own, model)),
        *_measured_notes(evidence, own, question, on_tables=on_tables),
    ]
    of_drafts = (
        None if redrafted is None else redrafted.note,
        law_note,
        None if prior is None else prior.pays(question.engine, sources),
    )
    notes += [each for each in of_drafts if each is not None]
    batch = _batch(question, before, after)
    notes += [*_outside(after, prior, longer, question), *_larger(after, batch)]
    predicted, replayed = after.summary, None if before is None else before.summary
    keys = routed.keys or [base.engine_key(recorded.engine)]
    off = far_off_of(recorded, replayed, time_bounds(base, keys) if own.drawn else {})
    notes += [
        *([] if off is None else [Decisive(off.text)]),
        *_ties(recorded, replayed or (predicted if question.policy == own.policy else None)),
        *(
            [_TTFT]
            if own.engine.mode == "in_process" and _ttft_differs(recorded, replayed or predicted)
            else []
        ),
    ]
    return Prediction(
        recorded=recorded,
        replayed=replayed,
        predicted=predicted,
        waits=tuple(after.waits()),
        notes=tuple(by_weight(notes)),
        drawn=after.recording,
        compared=beside(base, after.runs, on_tables=on_tables),
        far_off=off,
        pace=after.at_pace,
        batch=batch,
        agents=after.agents(question.agents, question.max_turn_s)
        if question.agents or question.max_turn_s is not None
        else None,
    )


def _batch(
    question: Question, before: Replays | None, after: Replays
) -> tuple[BatchRun | None, BatchRun] | None:
    """Return the asked batch on the engine as it was and as predicted; None where none is asked."""
    if question.batch is None:
        return None
    was = None if before is None else before.batch(question.batch, question.concurrency)
    return was, was if after is before and was else after.batch(
        question.batch, question.concurrency
    )


def _larger(after: Replays, batch: tuple[BatchRun | None, BatchRun] | None) -> list[str]:
    """Say that steps of a batch alone lie outside what was recorded."""
    if after.outside or not any(each and each.end_s.extrapolated for each in batch or ()):
        return []
    return [Telling("steps of the batch are larger than those recorded (marked *)")]


def _with_length(
    base: Recording, recorded: Run, question: Question
) -> tuple[Recording, Run, Question]:
    """Return what was recorded and asked, with how far ahead the engine drafts."""
    base, completed = run_with_length(base, recorded)
    speculative = completed.engine.speculative
    if completed.engine != recorded.engine and question.engine.speculative is None:
        question = replace(question, engine=replace(question.engine, speculative=speculative))
    return base, completed, question


def _as_it_was(question: Question, own: RecordedRun) -> Question:
    """Return the question of what was recorded."""
    seed, sent = question.seed, question.arrivals_sent
    same = Question(engine=own.engine, policy=own.policy, seed=seed, arrivals_sent=sent)
    return by_replica(same)


@dataclass(frozen=True, kw_only=True)
class _Routed:
    """How requests come to the `count` engines of servers that were watched together.

    Without a `routing` there are not several. Each of `others` may have been the router's way too.
    `keys` are the engines' in the recording.
    """

    count: int = 0
    keys: tuple[str, ...] = ()
    routing: str | None = None
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def answers(self, asked: Question) -> bool:
        """Whether a question leaves the servers as many as they were."""
        return asked.engine.data_parallel_size == self.count and asked.replicas == Replicas()

    def of(self, question: Question) -> Question:
        if self.routing is None:
            return question
        return replace(question, replicas=replace(question.replicas, routing=self.routing))


def _deployed(evidence: Evidence, base: Recording, recorded: Run) -> tuple[Evidence, _Routed]:
    """Return the evidence with the servers of a run as one engine, and who served whom."""
    servers = next((each for each in servers_of(base) if each.engine == recorded.engine), None)
    engines = {run.engine for run in evidence.runs if run.recording == base.name}
    if servers is None or recorded.engine in engines:
        return evidence, _Routed()
    evidence, placing = as_one(evidence, base, servers)
    count = servers.replicas
    if count == 1:
        return evidence, _Routed()
    routed = _Routed(count=count, keys=tuple(servers.members))
    opening = f"the {count} servers that were watched are replayed as replicas of one another"
    if placing.told and count == len(servers.members):
        note = f"{opening}, each request on the one that had it"
        return evidence, replace(routed, routing=PLACED, notes=(note,))
    ways = ["least-outstanding", "round-robin"]
    if count == len(servers.members):  # by the shares of the requests that ended on each
        ways.insert(2 if placing.even else 0, PLACED)
    note = (
        f"{opening}. It is not known on which of them a request was, so the interval holds what "
        f"routers of {len(ways)} kinds would do: to the one with the fewest requests, in turn"
        + (", and by each server's share of what ended" if PLACED in ways else "")
    )
    others = tuple(ways[1:])
    return evidence, replace(routed, routing=ways[0], others=others, notes=(Telling(note),))


UNEVEN: Final = 1.25  # the slowest over the fastest of nine in ten moments, that is said
UNLIKE: Final = 1.1  # times as long as by another's steps, from which servers differ


def _unlike(evidence: Evidence, own: RecordedRun, model: StepTimeModel | None) -> list[str]:
    """Say that servers which are taken for one another are not as fast as one another."""
    tables = [t for t in evidence.steps if (t.recording, t.engine) == (own.recording, own.engine)]
    law = None if model is None else model.laws_.get(law_key(own.engine))
    if law is None or len(tables) < 2:
        return []
    off = [float(t.seconds.sum() / law.predict(t.composition).sum()) for t in tables]
    if max(off) < UNLIKE * min(off):
        return []
    apart = (
        f"the slowest of the servers takes {max(off) / min(off):.1f} times as long as the fastest "
        "for the same steps. The replay has their mean, and intervals as wide"
    )
    return [Telling(apart)]


def _placed(
    question: Question,
    prior: PriorTimes | None,
    operators: Operators | None,
    evidence: Evidence,
) -> tuple[Question, list[str]]:
    """Return the question with the KV blocks of its GPU, and what to say of them and of defaults.

    Raises UsageError where the model does not fit in the memory.
    """
    engine = question.engine
    facts: ModelFacts | None
    memory: Memory | None = None
    if prior is not None:
        device, facts = device_of(prior.tables), prior.facts
        memory = memory_on(prior.tables, prior.shared(engine), prior.facts, prior.models)
    elif operators is not None:
        device = Device.named(operators.gpu)
        facts = question.model_facts or evidence.models.get(engine.model)
        if facts is not None:
            memory = memory_of(device, engine, facts)
            with suppress(UsageError):  # of a drafter that is not known the model's stays
                drafter = drafter_in(engine, facts, evidence.models)
                memory = memory_of(device, engine, facts, drafter=drafter) or memory
    else:
        return question, []
    notes = [] if not question.assumed else [assumed_note(device, engine, question.assumed)]
    given = engine.num_gpu_blocks is not None
    if memory is not None and facts is not None:
        engine = with_blocks(memory, engine, facts)
        notes += [] if given else [blocks_note(memory, engine)]
        if not given and not memory.drafter and drafts_with_a_model(engine):
            less = "what drafts is not known, so those blocks are without its weights"
            notes.append(Decisive(less))
    elif not given:
        lacks = "the GPU's memory" if device.memory_bytes is None else "what the model weighs"
        limitless = (
            f"KV blocks without limit, as {lacks} is not known. Set engine.num_gpu_blocks to the "
            "engine's own"
        )
        notes.append(Decisive(limitless))
    return replace(question, engine=engine), notes


def _ranks(asked: EngineConfig, recorded: EngineConfig) -> int | None:
    """Return the data-parallel ranks of each server that is asked about; None where they differ.

    The recorded engine may be several servers in one, whose number is then what is asked about.
    """
    engine = asked if RANKS in dict(asked.other) else recorded
    size, ranks = asked.data_parallel_size, engine.ranks
    if not {RANKS, "urls"} & dict(engine.other).keys():
        return size
    return None if ranks is None or size % ranks else ranks


def _of_servers(
    evidence: Evidence, prior: PriorTimes | None, question: Question, size: int, ranks: int | None
) -> Question:
    """Return the question of an engine of so many replicas, which tells how many share experts.

    Raises UsageError where the recorded steps do not tell what so many `ranks` take.
    """
    facts = evidence.models.get(question.engine.model) if prior is None else prior.facts
    if facts is None or not facts.num_experts:
        return question
    has_ranks = prior is None and law_key(question.engine) in evidence.ranks
    ran = (evidence.ranks_of(question.engine) if has_ranks else ranks) or 1
    if has_ranks and ran != ranks:
        instead = f"--replicas {size // ran} asks for servers that share nothing"
        if size % ran:
            instead = (
                f"Ask for {ran} ranks. --replicas N asks for N such servers, which share nothing"
            )
        raise UsageError(
            f"engine.data_parallel_size={size}: the recorded steps are of a server of "
            f"{counted(ran, 'data-parallel rank')}, and the ranks of one share the experts of "
            f"{facts.name}. {instead}"
        )
    if ranks is None or question.replicas.count == ranks:
        return question
    return replace(question, engine=question.engine.of_servers(ranks))


def _measured_load(question: Question, ranks: int | None) -> tuple[Replicas, list[str]]:
    """Return which engines take a measured load together, and whose load that is said to be.

    They are a server with its ranks. Where servers have different ranks, the load is that of all
    replicas.
    """
    if ranks is None:
        routing = question.replicas.routing.replace(PLACED, "least-outstanding")
        together = replace(question.replicas, routing=routing)
        return together, [f"all {together.count} replicas together"]
    servers = question.replicas.count // ranks
    whose = [f"{ranks} data-parallel ranks together"] if ranks > 1 else []
    whose += [f"one server of the {servers}"] if servers > 1 else []
    return Replicas(count=ranks, routing="least-outstanding"), whose


def _measured(
    prior: PriorTimes | None,
    question: Question,
    base: Recording,
    given: Sequence[Recording],
    load: tuple[Replicas, Sequence[str]],
    sources: Sequence[RecordedRun],
) -> tuple[PriorTimes | None, list[str]]:
    """Return the prior as measured times correct it, and what teaches nothing and why.

    These are what `--measured` says and the imports of `given`, which whoever names them with
    `--with` says to be of this engine, under the `load` of these engines, said to be whose. Their
    drafts go as those of `sources`. Raises UsageError for times that cannot be.
    """
    names = [question.engine.model] if prior is None else [question.engine.model, prior.facts.name]
    case_notes = _cases_untaught(prior, [each for each in given if of_forwards(each)])
    read = {each.name: imported_point(each, names) for each in given}
    if prior is None:
        why = "it has no steps. With --gpu its requests correct the prior"
        return None, [
            *case_notes,
            *(_untaught(name, why) for name, point in read.items() if point is not None),
        ]
    lengths = lengths_of(sources, question.engine.model)
    prior = replace(prior, asked=replace(prior.asked, lengths=lengths))
    untaught = case_notes + [
        _untaught(name, why) for name, why in read.items() if isinstance(why, str)
    ]
    points = [point for point in read.values() if isinstance(point, MeasuredPoint)]
    points += said_points(question.measured, base)
    if not points:
        return prior, untaught
    step = verify_step(sources)
    if question.engine.speculative is not None:
        if step is None:
            raise UsageError(
                f"--measured: {base.name} does not say how many tokens of a draft are kept. Set "
                "engine.speculative=null, or measure without drafts"
            )
        points = [point.drafted(step) for point in points]
    correction = corrected(prior, question.engine, points, load[0])
    notes = correction.notes()
    if step is not None and question.engine.speculative is not None:
        notes.append(f"measured with drafts that give {step.kept:.2f} tokens a step, as replayed")
    notes += [f"what was measured is the load of {whose}" for whose in load[1]]
    return replace(prior, measured=correction.measured, told=tuple(notes)), untaught


def _cases_untaught(prior: PriorTimes | None, cases: Sequence[Recording]) -> list[str]:
    """Say which recordings of the forward alone teach nothing, and why."""
    if prior is None:
        why = "its cases are of the forward alone. With --gpu they correct kernels"
        return [_untaught(each.name, why) for each in cases]
    recalibration = prior.found
    reasons = {} if recalibration is None else recalibration.untaught
    used = () if recalibration is None else recalibration.recordings
    other = [
        _untaught(each.name, f"its cases are of {', '.join(gpus_of(each))}")
        for each in cases
        if each.name not in {*reasons, *used}
    ]
    return [*(f"{name} {what}" for name, what in reasons.items()), *other]


def _untaught(name: str, why: str) -> str:
    return Decisive(f"{name} {UNTAUGHT} {why}")


UNTOLD: Final = Telling(
    "the recorded steps do not show what each request adds to a step. The interval holds steps "
    "that grow little and much with them. A recording with other numbers of samples or problems in "
    "flight shows it (--with)"
)


def _pace(
    question: Question, model: StepTimeModel | None, law: StepLaw | None, own: Pace | None
) -> Pace | None:
    """Return the pace that a question is answered at, None for that of the law."""
    if question.gpu is not None or question.operators is not None or model is None:
        return None
    if question.pace_of is not None:
        return pace_in(question.pace_of, law or model.law(question.engine), question.engine)
    return None if question.concurrency is not None else own


def _hour_notes(after: Replays) -> list[str]:
    """Say how clients send, and at which pace of the machine a prediction is."""
    recorded_load = after.concurrency is None and not after.arrivals_asked
    if after.at_once is not None and recorded_load:
        return [clients_wait(after.at_once), *_of_pace(after)]
    return _of_pace(after)


def _of_pace(after: Replays) -> list[str]:
    if after.pace is None:
        return []
    if after.question.pace_of is not None:
        paced = (
            f"all is predicted at the pace of {after.question.pace_of.name}, where steps took "
            f"{after.pace.mean:.2f} times as long as the law has it. The interval is of a run at "
            f"that pace, with an error of {RUN_TO_RUN * 100:g} % for the law"
        )
        return [Decisive(paced)]
    at = after.at_pace
    if at is None:
        return []
    low, high, mean = at.low, at.high, at.latency_s["mean"]
    if high < UNEVEN * low:
        return _near_saturation(at)
    varied = (
        f"the machine was not always as fast: steps took from {low:.2f} to {high:.2f} times as "
        "long as the law has it. At the pace of these hours mean latency is "
        f"{with_interval(mean)}. The intervals in the table are of another run, whose steps may "
        f"all take from {at.run_low:.2f} to {at.run_high:.2f} times as long"
    )
    weight = Decisive if at.run_high > UNEVEN else Telling
    return [weight(varied), *_near_saturation(at)]


NEAR: Final = 0.8  # of what can be served, from which pace decides latency


def _near_saturation(at: AtPace) -> list[str]:
    """Say that pace decides latency where nearly as much comes as can be served."""
    if at.share is None or at.arriving_per_s is None or at.share < NEAR:
        return []
    near = (
        f"{at.arriving_per_s:.3g} problems a second come and some {at.capacity_per_s:.3g} can be "
        f"served ({percent(at.share)}), so that a slightly slower machine has much longer "
        "latencies. Judge by what can be served"
    )
    return [Decisive(near)]


def _time_notes(after: Replays, prior: PriorTimes | None) -> list[str]:
    """Say where step times come from."""
    runs = after.times.runs
    if prior is not None:
        notes = prior.notes(after.engine)
        first = after.runs[0]
        requests, step_s = int(first.peak["requests"]), first.busy_s / max(first.steps, 1)
        other = prior.other_versions(after.engine, requests, step_s)
        sorts = prior.untold_sort(after.engine, after.question.policy, requests, step_s)
        notes += [each for each in (other, sorts) if each is not None]
        if after.engine.dtype not in PRICED:
            notes.insert(
                0,
                Decisive(
                    f"the samples were recorded in {after.engine.dtype}. The steps are priced in "
                    "bfloat16, the only dtype of the tables: a server in bfloat16 may answer "
                    "otherwise"
                ),
            )
    elif runs is None:
        notes = [
            Decisive(
                "step times are of operator tables. No run of yours has checked them, so there is "
                "no interval"
            )
        ]
    else:
        notes = [f"step times were learned from {runs} recorded run{'s' if runs > 1 else ''}"]
        if after.times.repeats is not None:
            left_out = after.times.repeats[int(after.outside)]
            inside, outside = after.times.sigma or (0.0, 0.0)
            spread = assumed_words([inside], runs, unsteady=not after.times.coarse)
            if left_out:
                spread = f"measured by predicting {left_out} recordings from the others"
            elif after.outside and outside > inside:
                spread += ". Outside, how far its larger batches lie off smaller ones is added"
            notes.append(Telling(f"the run-to-run spread in the intervals is {spread}"))
        if after.others:
            notes.append(UNTOLD)
        notes += _hour_notes(after)
    return [*notes, *after.times.notes]


def _outside(
    after: Replays, prior: PriorTimes | None, longer: bool, question: Question
) -> list[str]:
    """Say what lies outside what was recorded, and what was drawn of it."""
    notes: list[str] = []
    if longer:
        notes.append(Decisive("outside what was recorded: drafts are longer (marked *)"))
    elif after.outside and not after.crowded:
        what = "what was recorded" if prior is None else "what the tables measured"
        larger = after.larger()
        more = larger or "batches or contexts are larger"
        notes.append(Decisive(f"outside {what}: {more} (marked *)"))
    if after.limits.several_kinds:
        notes.append(
            "the KV cache has blocks of several kinds, which are counted as the mean request holds "
            f"them{'. It nearly fills, so that results are marked *' if after.crowded else ''}"
        )
    if not after.as_sent and after.drawn < after.recorded:
        times = "once" if len(after.runs) == 1 else f"{len(after.runs)} times"
        notes.append(f"{counted(after.drawn, 'recorded sample')} of each problem drawn {times}")
    if after.evenly is not None:
        notes.append(
            Decisive(
                "TTFT is not determined: requests of one length in a closed loop come together or "
                "apart, as the client happens to send them. Its interval holds both, lock-step and "
                "arrivals that are spread evenly"
            )
        )
    rate = question.rate_per_s
    if rate is not None and rate > (capacity := after.capacity_per_s):
        served = float(f"{capacity:.3g}")
        notes.append(
            Decisive(
                f"cannot keep up: {rate:,g} problems/s arrive and some {served:,g} can be served, "
                "so that the queue grows with every problem: latencies hold for this number alone"
            )
        )
    elif after.stream is not None and not after.stream.below(STEADY):
        share = percent(after.stream.rate_per_s / after.capacity_per_s)
        notes.append(
            Decisive(
                f"{share} of what can be served arrives: waits go on growing for long, so that a "
                "server that runs for hours has longer ones"
            )
        )
    if question.concurrency is not None and question.concurrency > len(after.ids):
        notes.append(
            Decisive(
                f"{question.concurrency:,} problems are never in flight: the recording has "
                f"{len(after.ids):,}. They all start at once, so that throughput is that of a run "
                "whose batches only shrink"
            )
        )
    if after.tables["steps"].is_empty():
        notes.append(
            f"{after.runs[0].steps:,} steps are more than a recording keeps: with -o it has the "
            "problems and samples alone"
        )
    notes += _arrival_notes(after, question)
    if after.uncapped:
        notes.append(
            Telling(
                "what the devices may draw at most is not known, so that no limit bounds the "
                "energy of larger batches than recorded"
            )
        )
    return notes


def _arrival_notes(after: Replays, question: Question) -> list[str]:
    """Say when problems come at an asked rate."""
    rate = question.rate_per_s
    if rate is None or question.arrivals_sent:
        return []
    if after.hours is not None:
        return [
            f"requests come as they did when recorded, {after.hours.faster:.3g} times as "
            "fast. The machine's pace changes as much faster"
        ]
    if after.stream is not None:
        return [
            "problems come at random, again and again, as with advise --rate: "
            f"{len(after.runs)} passes over them were replayed"
        ]
    if after.times.sigma is not None:
        return [f"arrivals drawn {len(after.runs)} times: the interval is that of one draw more"]
    return ["arrivals are one draw, and another --seed gives others"]


_GIVEN: Final = {  # what a replay is held against, and what it is called
    "latency_s.mean": "a mean latency",
    "latency_s.p50": "a median latency",
    "latency_s.p95": "a p95 latency",
    "ttft_s.mean": "a mean TTFT",
    "ttft_s.p50": "a median TTFT",
    "ttft_s.p95": "a p95 TTFT",
    "throughput_tokens_per_s": "a throughput",
}
_OF_LATENCY: Final = 0.1  # of the mean latency, by which a TTFT is off at least to be far off
_MOST_NAMED: Final = 3  # numbers, those that are furthest off


def far_off_of(recorded: Run, replayed: Run | None, bounds: Mapping[str, Bounds]) -> FarOff | None:
    """Say that the replay does not give what was recorded, where that is so.

    Of a quantile that is not known by itself the `bounds` of /metrics are held against it.
    """
    by_tag: dict[str, tuple[float, str]] = {}
    latency = recorded.latency_s["mean"]
    for tag, name in _GIVEN.items():
        was, estimate = estimate_of(recorded, tag), estimate_of(replayed, tag) if replayed else None
        seen = bounds.get(tag)
        if was is not None:
            seen = Bounds(low=was.value, high=was.value, unit=was.unit)
        if estimate is None or estimate.value <= 0 or seen is None or seen.high == 0:
            continue
        low, high = seen.low, seen.high or np.inf
        apart, little = max(low - estimate.value, estimate.value - high), 0.0
        if tag.startswith("ttft_s") and latency is not None:
            little = _OF_LATENCY * latency.value
        if apart >= little and lies_off(estimate, low, high):
            value = number(estimate.value, estimate.unit)
            times = max(low / estimate.value, estimate.value / high)
            told = f"{name} of {value} in the replay, and {seen.words()} as recorded"
            by_tag[tag] = times, told
    if not by_tag:
        return None
    named = sorted(by_tag, key=lambda tag: -by_tag[tag][0])[:_MOST_NAMED]
    words = ". It has ".join(told for tag, (_, told) in by_tag.items() if tag in named)
    return FarOff(tags=tuple(by_tag), words=f"the run as it was has {words}")


def _ties(recorded: Run, replayed: Run | None) -> list[str]:
    """Say why the accuracy of the same samples differs: it is no error of the replay."""
    was, again = recorded.accuracy, None if replayed is None else replayed.accuracy
    plain = recorded.policy is not None and recorded.policy.method == "majority"
    if not plain or was is None or again is None or abs(was.value - again.value) < 0.0005:
        return []
    shared = (
        f"accuracy {was.value:.3f} recorded and {again.value:.3f} replayed are of the same "
        "samples: the run gave a tied vote to the answer whose sample came first, the replay "
        "shares it equally among those that lead"
    )
    return [Differing(shared)]


def _ttft_differs(recorded: Run, replayed: Run) -> bool:
    """Whether a table shows another TTFT of a replay than of the recorded run."""
    each = [(recorded.ttft_s[tag], replayed.ttft_s[tag]) for tag in ("p50", "p95")]
    return any(
        was is not None and again is not None and number(was.value, "s") != number(again.value, "s")
        for was, again in each
    )


def _front_end(own: RecordedRun) -> str:
    """Say what a server's front end takes of a request, where that is known."""
    took = np.array([problem.front_end_s for problem in own.problems.values()])
    if not took.any():
        return Decisive(
            "a server's latency has what its front end takes (HTTP, tokenising). The replay has "
            "the engine's part alone"
        )
    what = "what the server's front end takes (HTTP, tokenising) is in TTFT and latency"
    if own.drawn:
        return f"{what}: {number(float(took.mean()), 's')} on average, as /metrics says"
    p50, p95 = (number(float(each), "s") for each in np.quantile(took, (0.5, 0.95)))
    return (
        f"{what}: {p50} at the median and {p95} at p95, as the spans of "
        f"{counted(len(took), 'problem')} say. It is taken as recorded, whatever the load"
    )


def _measured_notes(
    evidence: Evidence, own: RecordedRun, question: Question, *, on_tables: bool
) -> list[str]:
    """Say what the recorded times of an engine are, and what is not measured of a server."""
    requantised = _requantised(question, own) if on_tables else []
    if own.engine.mode == "in_process":
        return requantised
    if on_tables:
        has_front_end = any(problem.front_end_s for problem in own.problems.values())
        return [*([_front_end(own)] if has_front_end else []), *requantised]
    tables = [table for table in evidence.steps if table.engine == own.engine]
    notes = [_front_end(own)]
    if any(table.coarse for table in tables):
        notes.append(
            Telling(
                "steps are means between two polls of /metrics, so that the law is coarse. The "
                "plugin reports every step (docs/attach.md)"
            )
        )
    elif tables and not own.inferred:
        notes.append("which prompts were in a step is inferred from what the front end saw")
    if own.drawn and not own.inferred:
        notes.append(
            Telling(
                "no request was seen by itself: lengths are drawn from the histograms of /metrics, "
                "arrivals from its counters, where a request of several samples counts as several. "
                "Spans report them (docs/attach.md)"
            )
        )
        if len(own.problems) == MOST_DRAWN:
            notes.append(Decisive(f"of all requests the last {MOST_DRAWN:,} are replayed"))
        if own.spread_unknown:
            notes.append(
                Telling(
                    "/metrics has no histogram of lengths, so that their means alone are known. "
                    "They are drawn alike and far apart, and the interval holds both"
                )
            )
    return notes


def _of_replayed(base: Recording, recorded: Run, own: RecordedRun, routed: _Routed) -> Run:
    """Return what was recorded of the problems that are replayed."""
    if own.inferred and not base.rows("scrapes"):
        return as_inferred(recorded, own)
    if own.drawn:
        return as_metrics_say(recorded, base, routed.keys or [base.engine_key(recorded.engine)])
    return recorded.among(own.problems) if own.policy == AS_SENT else recorded


def _prefixes(base: Recording) -> list[str]:
    """Say what a replay of imported requests shares."""
    workload = base.manifest.workload
    if workload is not None and workload.prompt_block_tokens is not None:
        size = workload.prompt_block_tokens
        return [f"prompts share what their blocks of {size:,} tokens have in common"]
    samples, imported = base.samples, "imported" in base.manifest.provenance
    if imported and samples.height and not samples["cached_tokens"].count():
        return [Telling("which prompts begin alike is not known: no prefix is shared")]
    return []


def _prior(
    base: Recording, others: Sequence[Recording], question: Question, ranks: int | None
) -> tuple[PriorTimes | None, Question]:
    """Open the prior of the question's GPU, and what recordings of that GPU say of it.

    Servers have so many `ranks` each. Return the question of their replicas there too.
    """
    if question.gpu is None:
        return None, by_replica(question)
    tables = read_gpu(question.gpu)
    facts = question.model_facts
    for each in (base, *others):
        facts = facts or each.manifest.models.get(question.engine.model)
    if facts is None:
        model = question.engine.model
        named = "the model" if model == UNKNOWN_MODEL else f"the model {model}"
        raise UsageError(
            f"--gpu: no recording holds facts of {named}. Give its config.json with "
            f"--model-config ({SHOWN})"
        )
    if ranks is None and facts.num_experts:
        raise UsageError(
            f"--gpu: the data-parallel ranks of a server share the experts of {facts.name}, and "
            f"{question.engine.data_parallel_size} ranks are not as many on each of these servers"
        )
    prior = PriorTimes.of(
        tables,
        facts,
        [base, *others],
        ranks=ranks or 1,
        truncated=question.policy.truncated,
        asked=PowerAsked(cap_w=question.power_cap_w, measured=said_watts(question.measured)),
    )
    question = by_replica(question)
    return prior, replace(question, engine=replace(question.engine, gpu=tables.device))


def _hash(recording: Recording) -> str | None:
    workload = recording.manifest.workload
    return None if workload is None else workload.hash


def _own_run(evidence: Evidence, base: Recording, recorded: Run) -> RecordedRun:
    for run in evidence.runs:
        same = run.engine == recorded.engine and run.policy == (recorded.policy or AS_SENT)
        if run.recording == base.name and same:
            return run
    unnamed = next((each for each in evidence.lost if UNNAMED in each), None)
    if recorded.policy is None and unnamed is not None:
        raise UsageError(f"{unnamed}. {NAMED_BY}")
    method = None if recorded.policy is None else recorded.policy.label()
    raise UsageError(
        f"{base.name}: the samples of {method or 'a run without a policy'} cannot be replayed. "
        "They must all have run to their end, as with majority, best_of_n or greedy"
    )


def _sampled(question: Question, own: RecordedRun, *, on_tables: bool) -> Question:
    """Return the question as the samples were drawn: tables may price weights of other forms.

    The prior prices caches of other forms too, and sampling within top_p. Raises UsageError for a
    dtype that it does not have.
    """
    if not on_tables:
        return question
    was, asked = own.engine, question.engine
    engine = replace(asked, quantization=was.quantization)
    if question.gpu is not None:
        question = replace(question, policy=replace(question.policy, top_p=own.policy.top_p))
        if asked.dtype not in (was.dtype, *PRICED):
            raise UsageError(
                f"--gpu: engine.dtype={asked.dtype}: the tables are bfloat16's. Set "
                "engine.dtype=bfloat16"
            )
        engine = replace(engine, dtype=was.dtype, kv_cache_dtype=was.kv_cache_dtype)
    return replace(question, engine=engine)


def _requantised(question: Question, own: RecordedRun) -> list[str]:
    """Say that the samples are of weights or a cache of another form than those that are priced."""
    was, asked = own.engine, question.engine
    defaults = {} if was.dtype is None else {"quantization": "none"}  # else nobody said what it was
    forms = [
        (name, _form(was, name) or defaults.get(name), _form(asked, name) or usual)
        for name, usual in (
            ("quantization", "none"),
            ("dtype", None),
            ("kv_cache_dtype", asked.dtype or "auto"),
        )
        if getattr(was, name) != getattr(asked, name)
    ]
    top_p, asked_top_p = own.policy.top_p, question.policy.top_p
    if top_p is not None and asked_top_p is not None:
        forms.append(("top_p", f"{top_p:g}", f"{asked_top_p:g}"))
    changed = [(name, old, new) for name, old, new in forms if old and new and old != new]
    if not changed:
        return []
    recorded = ", ".join(f"{name} {old}" for name, old, _ in changed)
    priced = ", ".join(new for _, _, new in changed)
    otherwise = (
        f"the samples were recorded with {recorded} and the steps are those of {priced}: such a "
        "server may answer otherwise"
    )
    return [Decisive(otherwise)]


def _form(engine: EngineConfig, name: str) -> str | None:
    """Return the form of weights or of the cache, None where it is not known."""
    form: str | None = getattr(engine, name)
    return engine.dtype if name == "kv_cache_dtype" and form == "auto" else form


def _redrafted(
    evidence: Evidence, recordings: Sequence[Recording], question: Question, own: RecordedRun
) -> Redrafted | None:
    """Return samples with the asked drafts where none were recorded with them.

    Raises UsageError where no request was seen by itself.
    """
    drafts = question.engine.speculative
    if question.acceptance and drafts is None:
        raise UsageError(
            "--acceptance goes with drafts. Say which: --set 'engine.speculative={method: eagle3, "
            f"num_speculative_tokens: {len(question.acceptance)}}}'"
        )
    if drafts is not None and drafts.num_speculative_tokens_per_batch_size is not None:
        raise UsageError(
            "engine.speculative: drafts whose length goes by batch are replayed as recorded alone. "
            "Ask for one length, or for the best of each batch with ttscope advise --drafts"
        )
    if own.drawn and drafts is not None:
        raise UsageError(
            f"{own.recording}: no request was seen by itself, so that other drafts cannot be made "
            "of it. Watch with spans (docs/attach.md), or record"
        )
    wanted = (decoder_of(question.engine), sampling_of(question.policy))
    recorded = [(decoder_of(run.engine), sampling_of(run.policy)) for run in evidence.runs]
    if wanted in recorded and not question.acceptance:
        return None
    engine, policy = question.engine, question.policy
    redrafted = redraft(evidence, recordings, engine, policy, question.acceptance)
    if redrafted is None or redrafted.runs[0].policy.n < question.policy.n:
        return None
    return redrafted


def _source(evidence: Evidence, own: RecordedRun, question: Question) -> RecordedRun:
    """Return the run whose samples answer the question: the own one if it can."""
    if question.policy.efforts is not None:
        return _of_efforts(evidence, own, question)
    wanted = (decoder_of(question.engine), sampling_of(question.policy))
    most = question.policy.max_tokens
    changed = [] if most in (None, own.policy.max_tokens) else [own, *evidence.runs]
    fitting = [
        run
        for run in [
            own,
            *evidence.runs,
            *filter(None, (limited(each, most or 0) for each in changed)),
        ]
        if (decoder_of(run.engine), sampling_of(run.policy)) == wanted
    ]
    if not fitting:
        raise UsageError(_unanswered(evidence, own, question))
    enough = own in fitting and own.policy.n >= question.policy.n
    source = own if enough else max(fitting, key=lambda run: run.policy.n)
    if source.policy.n < question.policy.n:
        most = source.policy.n
        raise UsageError(
            f"policy.n={question.policy.n}: {counted(most, 'sample')} per problem "
            f"{'were' if most > 1 else 'was'} recorded. Record more, or ask for fewer"
        )
    common = set(own.problems) & set(source.problems)
    if not common:
        raise UsageError(f"{source.recording}: has no problem in common with {own.recording}")
    return source


def _of_efforts(evidence: Evidence, own: RecordedRun, question: Question) -> RecordedRun:
    """Return each problem with the samples of the reasoning effort that the table gives its class.

    They are of the run that answers for that effort.
    """
    policy, tables = question.policy, question.policy.routes or {}
    most: dict[str | None, int] = {}
    for problem in own.problems.values():
        effort = policy.effort_for(problem.group)
        most[effort] = max(most.get(effort, 1), *table_for(tables, problem.group))
    sources = {}
    for effort, n in most.items():
        plain = replace(sampling_of(policy), reasoning_effort=effort, n=n)
        sources[effort] = _source(evidence, own, replace(question, policy=plain))
    problems = {}
    for name, problem in own.problems.items():
        source = sources[policy.effort_for(problem.group)]
        if name in source.problems:
            problems[name] = replace(source.problems[name], group=problem.group)
    return replace(own, problems=problems, texts=all(each.texts for each in sources.values()))


def _unanswered(evidence: Evidence, own: RecordedRun, question: Question) -> str:
    engine, policy = question.engine, question.policy
    models = {run.engine.model for run in evidence.runs}
    if engine.model not in models:
        return f"no samples of {engine.model} were recorded. Add a recording of it with --with"
    if decoder_of(engine) not in {decoder_of(run.engine) for run in evidence.runs}:
        differing = differences(law_key(engine), [law_key(run.engine) for run in evidence.runs])
        fields = {name: values for name, values in differing.items() if name in DECODING}
        return (
            f"no samples of {engine.model} were recorded with {what_differs(fields)}, which may "
            f"change answers or drafts. Record the same problems: {recording_of(engine, differing)}"
            ", then add that recording with --with"
        )
    changed = [
        field.name
        for field in dataclasses.fields(policy)
        if field.name not in ("method", "n", "rule")
        and getattr(policy, field.name) != getattr(own.policy, field.name)
    ]
    what = ", ".join(f"policy.{name}={getattr(policy, name)}" for name in changed)
    if changed == ["max_tokens"] and engine.speculative is None:
        return (
            f"{what}: samples were cut at {cut_at(own):,}, and how they would have gone "
            "on is not known. Ask for less, or record them"
        )
    return f"no samples with {what} were recorded. Lengths and answers would differ, record them"
