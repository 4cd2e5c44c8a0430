"""What happened in a recording: every number, its unit and its formula.

`summarise` recomputes everything from the raw tables. What was not measured is None. Intervals
hold 90 %: Jeffreys for accuracy, ranks for quantiles, the bootstrap over problems for the rest
(traces/statistics.py).
The table of metrics (tag, header, unit, formula) is traces/summary/metrics.py.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import polars as pl

from traces.clock import KIND
from traces.errors import RecordingError
from traces.recording.manifest import Manifest, WorkloadFacts
from traces.recording.reader import Recording
from traces.recording.tables import STEP_INTERVAL
from traces.recording.window_cost import WindowCost
from traces.schema.advice import Load
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.formats import percent
from traces.schema.record import Record
from traces.schema.tts.policy import Policy
from traces.schema.tts.published import PublishedCurve
from traces.statistics import mean, quantile, ratio, spread
from traces.summary.energy import Energy, Window, attribute_energy, run_window
from traces.summary.kernels import (
    Collective,
    DeviceTime,
    FamilyTime,
    KernelTime,
    WindowTimes,
    collectives,
    device_time,
    time_by_family,
    top_kernels,
)
from traces.summary.problems import (
    ENDED,
    Lost,
    busy_seconds,
    engine_steps,
    engine_windows,
    lost_problems,
    mostly_told,
    problem_rows,
    run_keys,
    samples_with_shares,
    unanswered,
    voting_samples,
    without_timed_out,
)
from traces.summary.speculation.acceptance import Acceptance, acceptance
from traces.summary.speculation.lookup import NgramWhatIf, ngram_what_if
from traces.summary.votes import PolicyOutcome, accuracy, policies_within, published_votes

MOST_OF_ALL = 0.9  # of a server's busy time, from which on traced requests stand for all
Spread = Mapping[str, Estimate | None]
NOTHING: Spread = {"mean": None, "p50": None, "p95": None}


@dataclass(frozen=True, kw_only=True)
class ErrorPart(Record):
    """What of the log spread (sd) of predicted numbers has one cause, by the numbers' tags.

    Where two runs have a part of one `name` both are off by it together.
    """

    name: str
    sd: Mapping[str, float]


def day_of(started_ns: int) -> str:
    """Return the name of what a recording is off by because of the machine's state in it."""
    return f"run {started_ns}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One engine and one policy of a recording; `to_json` is the documented contract.

    `replay_of` names the recording that a replay predicted the run from. `problems` counts the
    decided ones, on which every mean rests, `problems_in_flight` those cut off by the recording's
    end, `problems_failed` those that ended without a decision, or whose requests all failed.
    `sample_latency_s` is of imported samples, whose latency is known without a clock.

    Not in the JSON: `printed` (a replay printed the numbers, and the frames are one draw), `errors`
    (what these may be off by), `right` (by problem the share of right answers where a replay does
    not tell it, or of several draws), `cut` (why it is not complete), `started_ns` (when the
    recording began), `seconds` (where the wall time went), `notes` (what a reader must know),
    `workload`,
    `conditions` (load and machine, which repeats share), `load`, `price_usd_per_device_hour` (of
    the cost), `imported` (the format of imported outcomes, whose engine is known by name alone),
    `failed_problems` (of an import), `curve` (published averages). `rows` has one row per problem
    (problems.py), `sample_rows` and `step_rows` the run's samples and its engine's steps
    (`STEP_TIMES`), `windows` what the profiler's cost these.
    """

    recording: str
    replay_of: str | None = None
    printed: bool = False
    complete: bool
    cut: str | None = None
    engine: EngineConfig
    policy: Policy | None
    problems: int = 0
    problems_in_flight: int = 0
    problems_failed: int = 0
    accuracy: Estimate | None = None
    latency_s: Spread = field(default_factory=lambda: NOTHING)
    ttft_s: Spread = field(default_factory=lambda: NOTHING)
    tpot_s: Spread = field(default_factory=lambda: NOTHING)
    sample_latency_s: Spread = field(default_factory=lambda: NOTHING)
    tokens_per_problem: Estimate | None = None
    flops_per_problem: Estimate | None = None
    throughput_tokens_per_s: Estimate | None = None
    device_s_per_problem: Estimate | None = None
    cost_per_token_device_s: Estimate | None = None
    cost_usd_per_problem: Estimate | None = None
    steps: int | None = None
    step_time: Mapping[str, Estimate | None] = field(
        default_factory=lambda: {"prefill_s": None, "decode_s": None, "mixed_s": None}
    )
    time_by_family: tuple[FamilyTime, ...] | None = None
    collectives: tuple[Collective, ...] | None = None
    top_kernels: tuple[KernelTime, ...] | None = None
    device_time: DeviceTime | None = None
    acceptance: Acceptance | None = None
    ngram_what_if: tuple[NgramWhatIf, ...] | None = None
    energy_j: Energy = field(default_factory=Energy)
    policies: tuple[PolicyOutcome, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    workload: WorkloadFacts | None = None
    conditions: tuple[Hashable, ...] = ()
    load: Load | None = None
    price_usd_per_device_hour: float | None = None
    imported: str | None = None
    identities: str | None = field(default=None, repr=False, compare=False)
    failed_problems: int = 0
    curve: PublishedCurve | None = None
    rows: pl.DataFrame | None = field(default=None, repr=False, compare=False)
    sample_rows: pl.DataFrame | None = field(default=None, repr=False, compare=False)
    step_rows: pl.DataFrame | None = field(default=None, repr=False, compare=False)
    windows: WindowCost | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = ()
    errors: tuple[ErrorPart, ...] = ()
    right: Mapping[str, float] = field(default_factory=dict, repr=False)
    started_ns: int = 0

    def among(self, problem_ids: Collection[str]) -> Run:
        """Return the run of some of its problems: what is measured of each by itself.

        Throughput, cost per token and energy, which all problems share, are not known then.
        """
        if self.rows is None or self.sample_rows is None or self.windows is None:
            return self
        rows = self.rows.filter(pl.col("problem_id").is_in(list(problem_ids)))
        if rows.height == self.rows.height:
            return self
        kept = replace(
            self,
            rows=rows,
            printed=False,
            throughput_tokens_per_s=None,
            cost_per_token_device_s=None,
            energy_j=Energy(),
        )
        decided = rows.filter(pl.col("state") == "decided")
        return replace(kept, **_of_each(decided, self.sample_rows, self.windows))

    def to_json(self) -> dict[str, Any]:
        """Return the run's document; estimates are {value, low, high, unit, extrapolated}."""
        frames = {"rows", "sample_rows", "step_rows", "windows"}
        hidden = {"engine", "policy", "seconds", "notes", "workload", "conditions", "imported"}
        hidden |= frames | {"cut", "identities", "curve", "failed_problems"}
        hidden |= {"load", "price_usd_per_device_hour", "printed", "errors", "right", "started_ns"}
        plain = {name: to_plain(value) for name, value in vars(self).items() if name not in hidden}
        engine = to_plain(self.engine)
        if self.imported is not None:
            engine = dict.fromkeys(engine) | {"model": self.engine.model}
        config = {"engine": engine, "policy": to_plain(self.policy)}
        head = {name: plain.pop(name) for name in ("recording", "replay_of", "complete")}
        return {**head, "config": config, **plain}


def to_plain(value: Any) -> Any:
    """Return JSON's own types; an estimate without the count of runs it rests on."""
    if isinstance(value, Estimate):
        return {name: item for name, item in value.to_json().items() if name != "runs"}
    if isinstance(value, Record):
        return {name: to_plain(getattr(value, name)) for name in value.to_json()}
    if isinstance(value, Mapping):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class Printed(Record):
    """What a replay printed, by tag: means over all draws. Its recording's tables are one draw."""

    estimates: Mapping[str, Estimate]
    policies: tuple[PolicyOutcome, ...] = ()
    steps: int | None = None
    errors: tuple[ErrorPart, ...] = ()
    right: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> Printed:
        """Return what was printed of a run."""
        values = {name: getattr(run, name) for name in _MEANS}
        for name in _SPREADS:
            values |= {f"{name}.{part}": each for part, each in getattr(run, name).items()}
        energy = run.energy_j if run.energy_j.method == "law" else Energy()
        values |= {f"energy_j.{name}": getattr(energy, name) for name in _JOULES}
        estimates = {tag: each for tag, each in values.items() if each is not None}
        return cls(
            estimates=estimates,
            policies=run.policies,
            steps=run.steps,
            errors=run.errors,
            right=run.right,
        )

    @classmethod
    def told(cls, recording: Recording) -> Printed | None:
        """Return what a replay printed, None if untold. Raises RecordingError if damaged."""
        replayed = recording.manifest.provenance.get("replayed")
        data = replayed.get("printed") if isinstance(replayed, Mapping) else None
        try:
            return None if data is None else msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise RecordingError(
                f"{recording.path}: what its replay printed is damaged ({error}). Replay it again"
            ) from None

    def on(self, run: Run) -> Run:
        """Return a run with these numbers; its cost is that of the device time at its price."""
        estimates, price = self.estimates, run.price_usd_per_device_hour
        device, energy = estimates.get("device_s_per_problem"), run.energy_j
        joules: dict[str, Any] = {name: estimates.get(f"energy_j.{name}") for name in _JOULES}
        if any(joules.values()):
            energy = Energy(**joules, method="law")
        numbers: dict[str, Any] = {name: estimates.get(name) for name in _MEANS}
        for name in _SPREADS:
            numbers[name] = {part: estimates.get(f"{name}.{part}") for part in NOTHING}
        cost = None
        if price is not None and device is not None:
            cost = device.scaled(price / 3600, "USD")
        return replace(
            run,
            printed=True,
            **numbers,
            cost_usd_per_problem=cost,
            energy_j=energy,
            policies=self.policies,
            steps=self.steps,
            errors=self.errors,
            right=self.right,
        )


_MEANS = (
    "accuracy",
    "tokens_per_problem",
    "flops_per_problem",
    "throughput_tokens_per_s",
    "device_s_per_problem",
    "cost_per_token_device_s",
)
_SPREADS = ("latency_s", "ttft_s", "tpot_s")
_JOULES = ("total", "per_token", "per_problem")


def summarise(recording: Recording, price_usd_per_device_hour: float | None = None) -> list[Run]:
    """Return a run per engine and policy found, usually one.

    The price overrides the recording's own. That of a replay has the numbers that it printed.
    Raises RecordingError when a part is corrupt.
    """
    price = price_usd_per_device_hour
    if price is None:
        price = recording.manifest.price_usd_per_device_hour
    pairs = run_keys(recording)
    runs = [_run(recording, engine, policy, price, len(pairs)) for engine, policy in pairs]
    printed = Printed.told(recording) if len(runs) == 1 else None
    return runs if printed is None else [printed.on(runs[0])]


def _run(
    recording: Recording, engine_key: str, policy_key: str, price: float | None, runs: int
) -> Run:
    manifest = recording.manifest
    engine, policy = manifest.engines[engine_key], manifest.policies.get(policy_key)
    import_facts = manifest.provenance.get("imported", {})
    imported = None if policy is None else import_facts.get("format")
    votes = policy is not None and policy.all_samples_end and policy.n > 1
    steps = engine_steps(recording, engine_key)
    samples = samples_with_shares(recording, engine_key, policy_key)
    windows = engine_windows(recording, engine_key)
    rows = problem_rows(recording, engine_key, policy_key, samples, windows)
    devices = engine.num_devices
    device_s = pl.col("busy_s") * devices
    usd = pl.lit(None, pl.Float64) if price is None else device_s * price / 3600
    rows = rows.with_columns(device_s=device_s, cost_usd=usd)
    decided = rows.filter(pl.col("state") == "decided")
    states = dict(rows["state"].value_counts().iter_rows())
    curve = PublishedCurve.told(manifest.provenance)
    published = () if curve is None else published_votes(curve)
    judged = rows.filter(pl.col("state") != "in_flight")
    latency, tokens = _numbers(decided, "latency_s"), _told(decided, "tokens")
    window = run_window(rows, samples)
    window_times = WindowTimes(rows=decided, windows=windows)
    of_each = _of_each(decided, samples, windows)
    if published:
        of_each["tokens_per_problem"] = published[-1].tokens_per_problem
    energy, samples, rows = attribute_energy(
        recording,
        engine_key,
        window,
        alone=runs == 1,
        asked=policy is not None,
        steps=steps,
        samples=samples,
        rows=rows,
    )
    in_flight = states.get("in_flight", 0)
    made = None if in_flight else _generated(samples, imported="imported" in manifest.provenance)
    left_out = int(import_facts.get("failed_problems") or 0)
    lost = _lost(samples, rows, left_out, imported=imported is not None) if votes else None
    told_of = None if policy is not None else _told_of(steps, samples, window)
    if policy is None and (told_of or 0.0) < MOST_OF_ALL and recording.rows("scrapes"):
        made = None  # /metrics tells it of all, and spans of what was traced
    kernels = recording.frame("kernels").filter(pl.col("engine") == engine_key)
    kernels = kernels.clear() if runs > 1 else kernels  # windows do not say of which run they are
    return Run(
        recording=recording.name,
        replay_of=recording.replay_of,
        complete=recording.complete,
        cut=recording.cut,
        engine=engine,
        policy=policy,
        **of_each,
        problems_in_flight=in_flight,
        problems_failed=states.get("failed", 0),
        accuracy=published[-1].accuracy if published else accuracy(_numbers(judged, "correct")),
        sample_latency_s=_imported_latency(samples),
        throughput_tokens_per_s=window_times.throughput(made, window),
        cost_per_token_device_s=None  # an import does not tell on how many devices
        if imported is not None or not tokens.size
        else window_times.estimate(ratio(latency * devices, tokens, "device-s/token")),
        steps=steps.height or None,
        step_time=step_times(steps),
        time_by_family=time_by_family(kernels),
        collectives=collectives(kernels),
        top_kernels=top_kernels(kernels),
        device_time=None
        if runs > 1
        else device_time(
            recording.frame("events"), engine_key, manifest.kernel_windows_cost, kernels
        ),
        acceptance=acceptance(engine, steps, samples),
        ngram_what_if=ngram_what_if(
            recording.frame("drafts").filter(engine=engine_key, policy=policy_key)
        ),
        energy_j=energy,
        policies=published or _policies(samples, rows, policy, lost),
        seconds=seconds_by_kind(steps, samples),
        workload=manifest.workload,
        conditions=conditions(manifest),
        load=Load(concurrency=manifest.concurrency, rate_per_s=manifest.rate_per_s),
        price_usd_per_device_hour=price,
        imported=imported,
        identities=import_facts.get("identities"),
        failed_problems=left_out,
        curve=curve,
        rows=rows,
        sample_rows=samples,
        step_rows=steps,
        windows=windows,
        started_ns=manifest.clock_start.unix_ns,
        notes=tuple(
            _notes(recording, engine_key, policy, samples, rows, lost, window_times, told_of)
        ),
    )


def _of_each(decided: pl.DataFrame, samples: pl.DataFrame, windows: WindowCost) -> dict[str, Any]:
    """Return the fields of a `Run` that are of its decided problems, each by itself."""
    measured = decided.filter(pl.col("latency_s").is_not_null())  # not slowed by the profiler
    latency = _numbers(decided, "latency_s")
    window_times = WindowTimes(rows=decided, windows=windows)
    times = window_times.of_samples(samples)

    def of_samples(name: str, unit: str) -> Spread:
        estimates = spread(times[f"{name}_s"], unit, times["problem"])
        return window_times.spread(estimates, times[f"{name}_sd_s"])

    return {
        "problems": decided.height,
        "latency_s": window_times.spread(spread(latency, "s"), _numbers(measured, "cost_sd_s")),
        "ttft_s": of_samples("ttft", "s"),
        "tpot_s": of_samples("tpot", "s/token"),
        "tokens_per_problem": mean(_told(decided, "tokens"), "tokens"),
        "flops_per_problem": mean(_told(decided, "flops"), "FLOP"),
        "device_s_per_problem": window_times.estimate(
            mean(_told(measured, "device_s"), "device-s")
        ),
        "cost_usd_per_problem": window_times.estimate(mean(_told(measured, "cost_usd"), "USD")),
    }


def at_price(run: Run, price: float | None, rate_per_s: float | None = None) -> Run:
    """Return a run whose cost is that of its device time at a price, in USD per device-hour.

    At a rate the devices are paid for while they idle: device time is at least devices / rate.
    """
    device = run.device_s_per_problem
    if rate_per_s is not None:
        floor = run.engine.num_devices / rate_per_s
        paid = Estimate(value=floor, unit="device-s")
        device = paid if device is None else device.at_least(floor)
    elif price == run.price_usd_per_device_hour:
        return run
    cost = None if device is None or price is None else device.scaled(price / 3600, "USD")
    return replace(
        run,
        device_s_per_problem=device,
        cost_usd_per_problem=cost,
        price_usd_per_device_hour=price,
    )


def latency_percentile(run: Run, percentile: int) -> Estimate | None:
    """Return any percentile of a run's latencies, as its p50 and p95 are made."""
    if run.rows is None or run.windows is None or not 0 < percentile < 100:
        return None
    decided = run.rows.filter(pl.col("state") == "decided")
    measured = decided.filter(pl.col("latency_s").is_not_null())
    estimate = quantile(_numbers(measured, "latency_s"), percentile / 100, "s")
    window_times = WindowTimes(rows=decided, windows=run.windows)
    return window_times.spread({"": estimate}, _numbers(measured, "cost_sd_s"))[""]


def conditions(manifest: Manifest) -> tuple[Hashable, ...]:
    """Return the load and the kind of machine of a recording."""
    provenance = manifest.provenance
    machine = tuple(str(provenance.get(name)) for name in ("cpu", "cpus", "gpu"))
    return (manifest.concurrency, manifest.rate_per_s, *machine)


def _policies(
    samples: pl.DataFrame, rows: pl.DataFrame, policy: Policy | None, lost: Lost | None
) -> tuple[PolicyOutcome, ...]:
    """Return maj@k and pass@k of what was recorded, nothing where too many problems are `lost`."""
    if policy is None or lost is None or lost.too_many:
        return ()
    voting = voting_samples(without_timed_out(samples, rows))
    over = pl.when(ENDED, pl.col("error").is_null()).then(pl.coalesce("end", 0))
    return policies_within(voting.with_columns(end=over), policy.n)


def _lost(samples: pl.DataFrame, rows: pl.DataFrame, left_out: int, *, imported: bool) -> Lost:
    """Return of which problems not all samples came: failed is one of which any sample did.

    An import leaves out samples that failed, and says of how many problems (`left_out`).
    """
    failed = samples.filter(pl.col("error").is_not_null())["problem"].unique()
    with_failed = pl.col("problem").is_in(failed.implode())
    error = pl.when(with_failed).then(pl.lit("samples failed")).otherwise("error")
    lost = lost_problems(rows.with_columns(error=error), imported=imported)
    all_lost = replace(lost, failed=max(lost.failed, left_out))
    return all_lost if all_lost.too_many else lost  # a problem that has n others is not lost


def _generated(samples: pl.DataFrame, *, imported: bool) -> float | None:
    """Return the tokens that samples generated, None where one does not tell.

    A request that failed before its first token gave none. Those that failed are in none of the
    tools' throughputs that an import has them from.
    """
    nothing = pl.lit(imported) | (
        pl.col("first_token").is_null() & pl.col("output_tokens").is_null()
    )
    tokens = samples.filter(pl.col("error").is_null() | ~nothing)["output_tokens"]
    return None if not tokens.len() or tokens.null_count() else float(tokens.sum())


def _told_of(steps: pl.DataFrame, samples: pl.DataFrame, window: Window | None) -> float | None:
    """Return the part of the busy time in a window that its samples had, None where not known."""
    if window is None or not samples["busy_s"].count():
        return None
    inside = steps["end"].is_between(*window).fill_null(False).to_numpy()
    busy = float(busy_seconds(steps, samples)[inside].sum())
    return float(samples["busy_s"].sum()) / busy if busy else None


def _numbers(frame: pl.DataFrame, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return frame[column].cast(pl.Float64).to_numpy()  # null is nan


def _told(frame: pl.DataFrame, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    numbers = _numbers(frame, column)
    return numbers if mostly_told(numbers) else numbers[:0]


def _imported_latency(samples: pl.DataFrame) -> Spread:
    """Return the latency per sample, as the imported file tells it."""
    timed = samples.drop_nulls("latency_ns")
    return spread(_numbers(timed, "latency_ns") / 1e9, "s", timed["problem"].to_numpy())


KINDS = ("other", "prefill", "decode", "mixed")  # of steps, by `_kind`


def _kind() -> pl.Expr:
    """Return the place in `KINDS`: a million texts would be dear."""
    prefill, decode = (
        (pl.coalesce(f"{name}_tokens", f"{name}_requests") > 0).fill_null(False).cast(pl.UInt8)
        for name in ("prefill", "decode")
    )
    return prefill + 2 * decode


def step_times(steps: pl.DataFrame) -> dict[str, Estimate | None]:
    """Return the mean time of steps with only prefill tokens, only decode tokens, or both.

    It is since the step before, as `seconds_by_kind` counts it (`step_ns`). The interval draws 40
    stretches of neighbouring steps, because neighbours are alike.
    """
    usual = ~pl.col("profiled").fill_null(False) & STEP_INTERVAL.is_not_null()
    timed = steps.lazy().filter(usual).select(took=STEP_INTERVAL, kind=_kind()).collect()
    took, kinds = timed["took"].to_numpy(), timed["kind"].to_numpy()
    means: dict[str, Estimate | None] = {}
    for kind in ("prefill", "decode", "mixed"):
        seconds = took[kinds == KINDS.index(kind)] / 1e9
        stretches = np.array_split(seconds, min(40, max(seconds.size, 1)))
        sums, counts = [part.sum() for part in stretches], [part.size for part in stretches]
        means[f"{kind}_s"] = ratio(sums, counts, "s")
    return means


def seconds_by_kind(steps: pl.DataFrame, samples: pl.DataFrame) -> dict[str, float]:
    """Return the busy seconds of prefill, decode and mixed steps, and the idle ones between.

    Idle is the time from the first step's start to the last one's end that no step accounts for;
    profiled steps are in none of them.
    """
    needed = (
        *("end", "interval_ns", "wall_ns", "profiled", "prefill_tokens", "decode_tokens"),
        *("prefill_requests", "decode_requests"),
    )
    ended = steps.select(needed).drop_nulls("end")
    if not ended.height:
        return {}
    kinds = ended.select(kind=_kind())["kind"].to_numpy()
    sums = np.bincount(kinds, weights=busy_seconds(ended, samples), minlength=len(KINDS))
    spent = {
        kind: float(sums[KINDS.index(kind)]) for kind in ("prefill", "decode", "mixed", "other")
    }
    span = (int(ended["end"][-1]) - int(ended["end"][0]) + int(ended["wall_ns"][0] or 0)) / 1e9
    profiled = ended.filter(pl.col("profiled").fill_null(False))
    aside = float(profiled.select(STEP_INTERVAL.sum()).item() or 0) / 1e9
    idle = span - aside - sum(spent.values())
    spent["idle"] = idle if idle > 1e-6 * span else 0.0  # below that it is rounding
    if not spent["other"]:
        del spent["other"]
    return spent


def _notes(
    recording: Recording,
    engine: str,
    policy: Policy | None,
    samples: pl.DataFrame,
    rows: pl.DataFrame,
    lost: Lost | None,
    known: WindowTimes,
    told_of: float | None,
) -> list[str]:
    manifest = recording.manifest
    events = recording.frame("events")
    details = events.filter(kind="note", engine=engine)["detail"]
    notes = [str(note) for note in details.drop_nulls().unique(maintain_order=True)]
    if recording.replay_of is not None:
        draws = "The numbers are of one draw of it, and it printed the mean of all"
        if Printed.told(recording) is not None:
            draws = (
                "The numbers are those that it printed. Problems, samples and steps are one draw"
            )
        predicted = f"predicted by replay of {recording.replay_of}. Its times are not measured"
        notes.insert(0, f"{predicted}. {draws}")
    notes += recording.losses
    notes += [str(each) for each in events.filter(kind=KIND)["detail"]]
    opened = events.filter(kind="window", engine=engine).height
    notes += known.notes(opened)
    if told_of is not None and told_of < MOST_OF_ALL:
        notes.append(
            f"traced requests took {percent(told_of)} of the server's time. The throughput is that "
            "of all requests, from /metrics"
        )
    failed = int((rows["state"] == "failed").sum())
    if failed:
        ended = f"problems that ended without a decision (timed out or failed): {failed:,}"
        unjudged = rows.filter(pl.col("state") == "failed", pl.col("correct").is_null()).height
        if unjudged and rows["correct"].is_not_null().any():
            ended += f". Accuracy is that of the others, without {unjudged:,} that failed"
        notes.append(ended)
    # Others' traffic is not read for answers, a step of beam search has none, and what a replay
    # lacks its recording lacks.
    has_answers = policy is not None and not policy.spec.in_steps
    asked = has_answers and not {"imported", "replayed"} & set(manifest.provenance)
    if asked and (text := unanswered(samples)) is not None:
        notes.append(text)
    if lost is not None and lost.too_many:
        notes.append(f"no table of maj@k and pass@k: {lost.why_not}")
    elif lost is not None and lost.count:
        errors = samples["error"].drop_nulls().mode().sort()  # one a sample, most often this one
        why = f" ({errors[0]})" if lost.failed and errors.len() else ""
        notes.append(f"left out of maj@k and pass@k: {lost.text}{why}")
    return notes
