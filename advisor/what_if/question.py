"""What a replay is asked, and where its step times come from: recordings, or operator tables."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advisor.replay.replay import Replicas
from advisor.step_time.cost import linear_cost, table_cost
from advisor.step_time.law import StepLaw, StepTimes, StepTotals, largest
from advisor.step_time.operators.files import Operators
from traces.errors import UsageError
from traces.plain_yaml import plain_yaml
from traces.recording.reader import Recording
from traces.schema.engine import EXPERTS, EngineConfig, ModelFacts
from traces.schema.record import misfit
from traces.schema.tts.policy import AS_SENT, Policy
from traces.statistics import Floats

if TYPE_CHECKING:
    from advisor.step_time.operators.communication import Communication
    from advisor.step_time.prior.defaults import Device
    from traces.summary.run import Run


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked: an engine, a policy and a load.

    Without a load the recorded one is meant: so many problems in flight, or the recorded arrivals.
    Arrivals at `rate_per_s` are drawn several times, with `arrivals_sent` only those of the seed.
    With `operators`, a folder of operator tables of a GPU, step times are theirs, for a model of
    `num_hidden_layers` (that of `model_facts`, or of the recorded model, if not given), and the
    all-reduces, which tables leave out, are those of `collectives`
    (`communication.measured_messages`). With `gpu`, the name of a system of the prior
    (prior/tables.py), they are that system's, for a model of `model_facts` (the recorded one
    if not given), as what was `measured` there corrects them (measured/points.py), with boards that
    may draw `power_cap_w`. `assumed` are
    fields of the engine that nobody set, which have vLLM's defaults. With `pace_of` the machine is
    as fast as it was in that recording of the engine that is asked about. With an `acceptance`, the
    share kept of each position of a draft, that says how drafts go. A `batch` of so many problems
    is looked at too, all sent at once, or `concurrency` of them at a time. So are so many `agents`
    at work, and with `max_turn_s` the most of them of which a p95 turn takes no longer.
    """

    engine: EngineConfig
    policy: Policy
    concurrency: int | None = None
    rate_per_s: float | None = None
    arrivals_sent: bool = False
    replicas: Replicas = field(default_factory=Replicas)
    seed: int = 0
    operators: Path | None = None
    num_hidden_layers: int | None = None
    collectives: Path | None = None
    gpu: str | None = None
    model_facts: ModelFacts | None = None
    measured: tuple[str, ...] = ()
    power_cap_w: float | None = None
    assumed: tuple[str, ...] = ()
    pace_of: Recording | None = None
    acceptance: tuple[float, ...] = ()
    batch: int | None = None
    agents: tuple[int, ...] = ()
    max_turn_s: float | None = None


def by_replica(question: Question) -> Question:
    """Return the question with a replica for each data-parallel rank, as in advice.

    Ranks that wait for one another, as those of mixtures of experts do, are not replayed.
    """
    engine, replicas = question.engine, question.replicas
    if engine.data_parallel_size == 1:
        return question
    by_rank = Replicas.of(engine)
    if replicas.count == 1:
        by_rank = replace(by_rank, together=by_rank.together or replicas.together)
    else:
        by_rank = replace(replicas, count=by_rank.count * replicas.count)
    return replace(question, engine=engine.one_replica(), replicas=by_rank)


def learned(law: StepLaw) -> StepTimes:
    """Return the step times of recorded steps."""
    return StepTimes(
        cost=linear_cost(law.seconds, law.reads, law.most),
        sigma=(law.sigma, law.sigma_outside),
        runs=law.runs,
        within=law.within,
        beyond=law.beyond,
        smaller=law.smaller,
        fewest=law.fewest,
        repeats=(law.repeats, law.repeats_outside),
        coarse=law.coarse,
        others=()
        if law.ends is None
        else tuple(linear_cost(e, law.reads, law.most) for e in law.ends),
    )


def _layers(question: Question, operators: Operators, facts: ModelFacts | None) -> int:
    """Return how many layers the model of the tables has.

    Raises UsageError where nothing says it, or what says it contradicts itself.
    """
    given = question.num_hidden_layers
    if facts is None:
        if given is None or given < 1:
            raise UsageError(
                "--operators: say how many layers the model has, --num-hidden-layers 32, or give "
                "its config.json with --model-config"
            )
        return given
    whose = "--model-config" if question.model_facts is not None else "the recorded model"
    if given not in (None, facts.num_hidden_layers):
        raise UsageError(
            f"--num-hidden-layers {given}: {whose} ({facts.name}) has {facts.num_hidden_layers}. "
            "Leave it out, or give the config.json of the tables' model with --model-config"
        )
    if not facts.reads_all(question.engine.max_model_len):
        raise UsageError(
            f"--operators: {whose} ({facts.name}) has {facts.other_layers()}, which is in no "
            "table. Give a model whose layers read the whole context"
        )
    operators.check_model(facts, question.engine)
    return facts.num_hidden_layers


def tabled(
    question: Question, operators: Operators, facts: ModelFacts | None, longest: int
) -> StepTimes:
    """Return the step times of operator tables.

    Raises UsageError when the number of layers is not known or the model is not the tables',
    TablesError for tables of tensor parallelism without collectives.
    """
    from advisor.step_time.operators.tables import captured_sizes, domain, step_tables

    engine, facts = question.engine, question.model_facts or facts
    layers = _layers(question, operators, facts)
    if engine.max_num_seqs is None or engine.max_num_batched_tokens is None:
        raise UsageError(
            "--operators: set engine.max_num_seqs and engine.max_num_batched_tokens, "
            "which this recording lacks"
        )
    measured = domain(operators)
    captured = captured_sizes(replace(engine, gpu=operators.gpu))
    version = operators.vllm_version or engine.vllm_version
    together = _all_reduces(question, facts, layers, captured, version)
    tables = step_tables(
        operators,
        num_hidden_layers=layers,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        capture_sizes=captured,
        tensor_parallel_size=engine.tensor_parallel_size,
        collectives=None if together is None else together.seconds,
    )

    def within(runs: Sequence[StepTotals]) -> bool:
        peaks = largest(runs)
        covered = together is None or peaks["tokens"] <= together.most_tokens
        return covered and measured.holds(peaks, longest)

    return StepTimes(
        cost=table_cost(tables),
        sigma=None,
        runs=None,
        within=within,
        notes=(operators.source, *(() if together is None else (together.note,))),
    )


@dataclass(frozen=True, kw_only=True)
class _AllReduces:
    """Seconds of a step's all-reduces by its tokens, of which so many at most were measured."""

    seconds: Callable[[Floats], Floats]
    most_tokens: float
    note: str


def _all_reduces(
    question: Question,
    facts: ModelFacts | None,
    layers: int,
    captured: Sequence[int],
    version: str | None,
) -> _AllReduces | None:
    """Return what the question's collectives say of its engine and model, None without any.

    Those of a system of the prior are of the version of vLLM nearest to `version`.
    """
    path, size = question.collectives, question.engine.tensor_parallel_size
    if path is None:
        return None
    if size == 1:
        raise UsageError("--collectives: one GPU has none. Set engine.tensor_parallel_size")
    if facts is None:
        raise UsageError(
            "--collectives: a message is as large as the model's hidden size says, which this "
            "recording lacks. Give the model's config.json with --model-config"
        )
    from advisor.step_time.operators.communication import (
        Communication,
        all_reduces,
        measured_messages,
    )
    from advisor.step_time.prior.tables import collectives_of

    named = [] if path.exists() else collectives_of(str(path), version)
    if not named and not path.exists():
        raise UsageError(
            f"--collectives {path}: no such file, and no GPU of the prior of that name has "
            "all-reduces. Give a CSV, a Parquet file, a recording, or a name such as h100_sxm"
        )
    fitted = Communication().fit(measured_messages(named[0] if named else path))
    eager, graph = (fitted.law("all_reduce", size, graph=each) for each in (False, True))
    whose = f"{path.name} (vLLM {named[0].parent.name})" if named else path.name
    note = (
        f"all-reduces of {size} are those of {whose}: {eager.sizes:,} sizes up to "
        f"{eager.high_bytes:,.0f} bytes"
    )
    if eager.left_out_error is not None:
        note += f", known to {eager.left_out_error:.1%} where they were left out"
    if captured and graph is eager:
        note += ", launched one by one, also where the engine runs in CUDA graphs"
    of_model, most = replace(facts, num_hidden_layers=layers), max(captured, default=0)

    def seconds(laws: Communication) -> Callable[[Floats], Floats]:
        each = (laws.law("all_reduce", size, graph=graph) for graph in (False, True))
        eager, graph = (law.seconds for law in each)
        return all_reduces(of_model, eager=eager, graph=graph, captured=most)

    return _AllReduces(
        seconds=seconds(fitted),
        most_tokens=eager.high_bytes / (2 * facts.hidden_size),
        note=f"{note}, without the gathering of logits"
        + "".join(_versions(named, size, lambda laws: float(seconds(laws)(USUAL)[0]))),
    )


USUAL = np.array([32.0])  # requests of a step in which versions of all-reduces are compared


def _versions(
    files: Sequence[Path], size: int, step_s: Callable[[Communication], float]
) -> Iterator[str]:
    """Yield what the all-reduces of a step take by each version that measured such a group."""
    from advisor.step_time.operators.communication import Communication, measured_messages

    for place, path in enumerate(files if len(files) > 1 else ()):
        laws = Communication().fit(measured_messages(path))
        if any(kind.group_size == size for kind in laws.laws_):
            spent = f"{step_s(laws) * 1e3:.2f} ms"
            begun = f". Those of a step of {USUAL[0]:.0f} requests take {spent}"
            yield begun if place == 0 else f", in the tables of vLLM {path.parent.name} {spent}"


# What else decides how many KV blocks a GPU has room for.
RESIZING = {"block_size", "dtype", "gpu_memory_utilization", "kv_cache_dtype", "quantization"}


def device_asked(operators: Path | None, gpu: str | None) -> Device | None:
    """Return the GPU that step times are asked for, None where they are of recordings."""
    if gpu is not None:
        from advisor.step_time.prior.offers import device_of
        from advisor.step_time.prior.relatives import read_gpu

        return device_of(read_gpu(gpu))
    if operators is not None:
        from advisor.step_time.operators.files import gpu_of
        from advisor.step_time.prior.defaults import Device

        return Device.named(gpu_of(operators))
    return None


def changed(
    recorded: Run, changes: Sequence[str], *, device: Device | None = None
) -> tuple[EngineConfig, Policy, tuple[str, ...]]:
    """Return the engine and the policy with what `--set` changes, and the fields that are defaults.

    With operator tables or a prior the steps will be those of a GPU, the device: what nobody set
    is vLLM's default there (`defaults.as_on`). Raises UsageError for a name or value that
    there is not.
    """
    from traces.schema.tts.parameters import lowered, make_policy
    from traces.schema.tts.routes import read_efforts

    watched = recorded.policy is None and recorded.engine.mode == "server"
    sent = AS_SENT if watched else recorded.policy
    if sent is None:
        raise UsageError(
            f"{recorded.recording}: has no policy, so there is nothing to replay. Record a workload"
        )
    parts: dict[str, dict[str, Any]] = {"engine": {}, "policy": {}}
    for text in changes:
        name, mark, value = text.partition("=")
        part, dot, field = name.strip().partition(".")
        if not (mark and dot and field and part in parts):
            raise UsageError(f"--set {text}: give engine.FIELD=VALUE or policy.FIELD=VALUE")
        if another := _ANOTHER.search(value):
            first, second = text[: -len(value) + another.start()], value[another.start() + 1 :]
            raise UsageError(
                f"--set {text}: holds several. Repeat it: --set {first} --set {second.strip()}"
            )
        parts[part][field] = _value(text, value)
    if watched and parts["policy"]:
        raise UsageError(
            f"--set policy.{next(iter(parts['policy']))}: the traffic of others is replayed as it "
            "was sent. Pose problems to the server with ttscope attach URL --workload FILE"
        )
    plain = sent.to_json()
    rule = dict(plain.pop("rule"))
    if "method" in parts["policy"]:  # its parameters are those of the method it had
        rule = {}
    _check_values("policy", Policy, parts["policy"])
    if rule and isinstance(parts["policy"].get("n"), int):
        rule = lowered(sent, parts["policy"]["n"])
    if isinstance(route := parts["policy"].get("route"), str) and read_efforts(route):
        plain["reasoning_effort"] = None  # its classes have efforts of their own
    policy = make_policy({**plain, **rule, **parts["policy"]})
    # An import may not tell these, which a policy that is run must have.
    untold: dict[str, Any] = {
        name: None
        for name in ("temperature", "top_p")
        if plain[name] is None and name not in parts["policy"]
    }
    policy = dataclasses.replace(policy, **untold)
    engine = _engine(recorded.engine, parts["engine"])
    if device is None:
        return engine, policy, ()
    from advisor.step_time.prior.defaults import as_on

    if parts["engine"].keys() & RESIZING and "num_gpu_blocks" not in parts["engine"]:
        engine = dataclasses.replace(engine, num_gpu_blocks=None)
    engine, assumed = as_on(device, engine, recorded.engine, parts["engine"])
    if engine.num_gpus is not None and "num_gpus" not in parts["engine"]:
        engine = dataclasses.replace(engine, num_gpus=None)
    return engine, policy, assumed


_ANOTHER = re.compile(r",\s*(?:engine|policy)\.\w+=")


def _value(text: str, value: str) -> Any:
    try:
        return plain_yaml(value)
    except ValueError:
        raise UsageError(f"--set {text}: the value cannot be read") from None


def _check_values(
    part: str, config: type[EngineConfig | Policy], changes: Mapping[str, Any]
) -> None:
    """Raise UsageError where `--set` gives a field of a kind that it is not.

    What is no field is left to the caller, as the parameters of a policy are none.
    """
    for name, value in changes.items():
        option = f"--set {part}.{name}={value}"
        if name == "rule":
            raise UsageError(f"{option}: give its parameters by name, as policy.window=4")
        if (words := misfit(config, name, value)) is not None:
            raise UsageError(f"{option}: give {words}")


def _engine(engine: EngineConfig, changes: Mapping[str, Any]) -> EngineConfig:
    from traces.schema.tts.parameters import meant

    plain, changes = engine.to_json(), dict(changes)
    if EXPERTS in changes:
        if not isinstance(given := changes.pop(EXPERTS), bool):
            raise UsageError(f"--set engine.{EXPERTS}: give true or false")
        rest = [each for each in engine.other if each[0] != EXPERTS]
        plain["other"] = [*rest, *([(EXPERTS, "true")] if given else [])]
    fields = [field.name for field in dataclasses.fields(EngineConfig) if field.name != "other"]
    for name in changes:
        if name not in fields:
            raise UsageError(
                f"--set engine.{name}: no such field: {meant(name, [*fields, EXPERTS])}"
            )
    _check_values("engine", EngineConfig, changes)
    for name, value in changes.items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise UsageError(f"--set engine.{name}={value}: must be at least 1")
        plain[name] = value
    try:
        changed = EngineConfig.from_json(plain)
        if changed.speculative is not None:
            operator.index(changed.speculative.num_speculative_tokens)
    except (TypeError, AttributeError, ValueError):
        raise UsageError(
            "--set engine.speculative: give null or a mapping such as "
            "'{method: ngram, num_speculative_tokens: 3}'"
        ) from None
    sizes = changes.keys() & {"tensor_parallel_size", "pipeline_parallel_size"}
    resized = sizes or "data_parallel_size" in changes
    if resized and "num_gpus" not in changes and engine.num_gpus is not None:
        gpus = engine.one_replica().num_gpus or 1
        if sizes:  # as many as are then needed, as the recorded ones of that size tell
            gpus = changed.tensor_parallel_size * changed.pipeline_parallel_size
        changed = dataclasses.replace(changed, num_gpus=gpus * changed.data_parallel_size)
    if changes.keys() & {"model", "tensor_parallel_size"} and "num_gpu_blocks" not in changes:
        changed = dataclasses.replace(changed, num_gpu_blocks=None)  # that of the recorded engine
    return changed
