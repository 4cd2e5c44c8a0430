"""`ttscope replay`: a recorded run under a configuration that was never run."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.errors import UsageError
from traces.recording import Recording, measured
from traces.schema import EngineConfig, ModelFacts, Policy
from tui.terminal_text import say

if TYPE_CHECKING:
    from advisor.gpu_defaults import Device
    from traces.summary import Run

# What else decides how many KV blocks a GPU has room for.
RESIZING = {"block_size", "dtype", "gpu_memory_utilization", "kv_cache_dtype", "quantization"}


def run_replay(
    path: Path,
    *,
    changes: Sequence[str],
    learn: Sequence[Path],
    run: int,
    rate: str | None,
    concurrency: int | None,
    replicas: int,
    routing: str,
    together: bool,
    seed: int,
    operators: Path | None,
    num_hidden_layers: int | None,
    collectives: Path | None,
    gpus: Sequence[str],
    model_config: Path | None,
    against: str | None,
    workload: str | None,
    raw_prompts: bool,
    api_key_env: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Print a run as recorded, as replayed, and as predicted; write the last with `output`."""
    from advisor.budget import parse_rate
    from advisor.predict import predict
    from advisor.replay import ROUTINGS, Replicas
    from advisor.step_times import Question
    from traces.summary import summarise
    from tui.read_verbs import open_all, print_document
    from tui.replay_text import replay_json, replay_lines

    if concurrency is not None and rate is not None:
        raise UsageError("--concurrency and --rate: give one, problems in flight or arriving")
    for name, value in (("--concurrency", concurrency), ("--replicas", replicas)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    if routing not in ROUTINGS:
        raise UsageError(f"--routing {routing}: one of {', '.join(ROUTINGS)}")
    if len(gpus) > 1:
        raise UsageError(f"--gpu {', '.join(gpus)}: a replay is of one; give one at a time")
    gpu = next(iter(gpus), None)
    _check_sources(operators, num_hidden_layers, collectives, gpu, model_config)
    if against is None and (workload is not None or raw_prompts or api_key_env is not None):
        raise UsageError("--workload, --raw-prompts and --api-key-env go with --against URL")
    base = Recording.open(path)
    measured([base])
    others = measured(open_all(learn))
    recorded = _chosen(summarise(base), run, base.name)
    engine, policy, assumed = changed(recorded, changes, device=device_asked(operators, gpu))
    question = Question(
        engine=engine,
        policy=policy,
        assumed=assumed,
        concurrency=concurrency,
        rate_per_s=None if rate is None else parse_rate(rate),
        replicas=Replicas(count=replicas, routing=routing, together=together),
        seed=seed,
        operators=operators,
        num_hidden_layers=num_hidden_layers,
        collectives=collectives,
        gpu=gpu,
        model_facts=None if model_config is None else _facts(model_config),
    )
    if against is not None:
        from tui.against_verb import Sending, run_against

        sending = Sending(
            url=against,
            workload=workload,
            raw_prompts=raw_prompts,
            api_key_env=api_key_env,
            given=frozenset(text.partition("=")[0].strip() for text in changes),
        )
        run_against(base, recorded, question, others, sending, output=output, as_json=as_json)
        return
    found = predict(base, recorded, question, others)
    if output is not None:
        found.write(output)
    if as_json:
        print_document(replay_json(found))
        return
    for line in replay_lines(found, question):
        say(line)
    if output is not None:
        say()
        say(f"written  {output}")


def _check_sources(
    operators: Path | None,
    num_hidden_layers: int | None,
    collectives: Path | None,
    gpu: str | None,
    model_config: Path | None,
) -> None:
    """Raise UsageError where options that say where step times come from do not go together."""
    if gpu is not None and (operators is not None or num_hidden_layers is not None):
        raise UsageError("--gpu excludes --operators and --num-hidden-layers: the prior's or yours")
    if model_config is not None and gpu is None and operators is None:
        raise UsageError("--model-config goes with --gpu or --operators, whose times are a model's")
    if collectives is not None and operators is None:
        raise UsageError("--collectives goes with --operators, whose tables leave them out")


def device_asked(operators: Path | None, gpu: str | None) -> Device | None:
    """Return the GPU that step times are asked for, None where they are of recordings."""
    if gpu is not None:
        from advisor.gpu_engines import device_of
        from advisor.models.prior_tables import read_prior

        return device_of(read_prior(gpu))
    if operators is not None:
        from advisor.gpu_defaults import Device
        from advisor.models.operator_files import gpu_of

        return Device.named(gpu_of(operators))
    return None


def _facts(path: Path) -> ModelFacts:
    """Return a model's facts from its config. Raises UsageError for one that is none."""
    from profiler.model_facts import facts_from_file

    try:
        return facts_from_file(path)
    except UsageError as error:
        raise UsageError(f"--model-config {error}") from None


def _chosen(runs: Sequence[Run], number: int, name: str) -> Run:
    if not runs:
        raise UsageError(f"{name}: holds no run to replay")
    if number == 0 and all(run.policy is None for run in runs):
        return runs[0]  # which says that none has a policy
    if number == 0 and len(runs) > 1:
        labels = ", ".join(
            f"{i} {run.engine.label()} {run.policy.label() if run.policy else '-'}"
            for i, run in enumerate(runs, 1)
        )
        raise UsageError(f"{name}: holds {len(runs)} runs, choose one with --run: {labels}")
    if number > len(runs):
        raise UsageError(f"--run {number}: {name} holds {len(runs)}")
    return runs[max(number, 1) - 1]


def changed(
    recorded: Run, changes: Sequence[str], *, device: Device | None = None
) -> tuple[EngineConfig, Policy, tuple[str, ...]]:
    """Return the engine and the policy with what `--set` changes, and the fields that are defaults.

    With operator tables or a prior the steps will be those of a GPU, the device: what nobody set
    is vLLM's default there (`gpu_defaults.as_on`). Raises UsageError for a name or value that
    there is not.
    """
    from profiler.policies.rules import lowered, make_policy

    if recorded.policy is None:
        raise UsageError(
            f"{recorded.recording}: has no policy, so there is nothing to replay; record a workload"
        )
    parts: dict[str, dict[str, Any]] = {"engine": {}, "policy": {}}
    for text in changes:
        name, mark, value = text.partition("=")
        part, dot, field = name.strip().partition(".")
        if not (mark and dot and field and part in parts):
            raise UsageError(f"--set {text}: give engine.FIELD=VALUE or policy.FIELD=VALUE")
        parts[part][field] = _value(text, value)
    plain = recorded.policy.to_json()
    rule = dict(plain.pop("rule"))
    if "method" in parts["policy"]:  # its parameters are those of the method it had
        rule = {}
    _check_values("policy", Policy, parts["policy"])
    if rule and isinstance(parts["policy"].get("n"), int):
        rule = lowered(recorded.policy, parts["policy"]["n"])
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
    from advisor.gpu_defaults import as_on

    if parts["engine"].keys() & RESIZING and "num_gpu_blocks" not in parts["engine"]:
        engine = dataclasses.replace(engine, num_gpu_blocks=None)
    engine, assumed = as_on(device, engine, recorded.engine, parts["engine"])
    if engine.num_gpus is not None and "num_gpus" not in parts["engine"]:
        engine = dataclasses.replace(engine, num_gpus=None)
    return engine, policy, assumed


def _value(text: str, value: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {text}: the value cannot be read") from None


_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a text"),
}


def _check_values(
    part: str, config: type[EngineConfig | Policy], changes: Mapping[str, Any]
) -> None:
    """Raise UsageError where `--set` gives a field of a kind that it is not.

    What is no field is left to the caller, as the parameters of a policy are none.
    """
    known = {field.name: str(field.type) for field in dataclasses.fields(config)}
    for name, value in changes.items():
        option = f"--set {part}.{name}={value}"
        if name == "rule":
            raise UsageError(f"{option}: give its parameters by name, as policy.window=4")
        kind, _, absent = known.get(name, "").partition(" | ")
        if kind not in _KINDS or (value is None and absent):
            continue
        types, words = _KINDS[kind]
        fits = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
        if not fits or (kind == "float" and not math.isfinite(value)):
            raise UsageError(f"{option}: give {words}")


def _engine(engine: EngineConfig, changes: Mapping[str, Any]) -> EngineConfig:
    from profiler.policies.rules import meant

    plain = engine.to_json()
    known = [field.name for field in dataclasses.fields(EngineConfig) if field.name != "other"]
    for name in changes:
        if name not in known:
            raise UsageError(f"--set engine.{name}: no such field; {meant(name, known)}")
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
    if "tensor_parallel_size" in changes and "num_gpus" not in changes:
        changed = dataclasses.replace(changed, num_gpus=None)  # as many as are then needed
        if engine.num_gpus is not None:  # as the recorded ones of that size tell
            changed = dataclasses.replace(changed, num_gpus=changed.num_devices)
    if changes.keys() & {"model", "tensor_parallel_size"} and "num_gpu_blocks" not in changes:
        changed = dataclasses.replace(changed, num_gpu_blocks=None)  # that of the recorded engine
    return changed
