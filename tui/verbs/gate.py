"""`ttscope gate`: a recording, or a server, against what was promised or an earlier recording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from traces.errors import TtscopeError, UsageError
from traces.recording.reader import Recording
from tui.options import (
    OPTIONS,
    Json,
    Output,
    Price,
    Problems,
    RawPrompts,
    RuleOptions,
    Sampling,
    SystemPrompt,
    argument,
    check_price,
    option,
    takes,
)
from tui.options import Verifier as VerifierOption
from tui.terminal import say_all, say_json, tell

if TYPE_CHECKING:
    from profiler.workload.problems import Workload
    from traces.deployment.checks import Gate
    from traces.deployment.documents import Expectations
    from traces.recording.manifest import WorkloadFacts
    from traces.schema.tts.policy import Policy
    from traces.summary.run import Run


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What is held against what, and how it is told."""

    against: Path = argument("The expect.json of ttscope advise -o, or a recording.")
    recording: Path | None = argument("The recording to judge, or else --endpoint.", default=None)
    fail_on: list[str] | None = option(
        None, "Limit against a recording, as in show: p95>+5%.", metavar="LIMIT"
    )
    junit: Path | None = option(None, "Also write JUnit XML.", metavar="FILE")
    markdown: Path | None = option(None, "Also append a Markdown summary.", metavar="FILE")
    endpoint: str | None = option(None, "Record this server now, and judge that.", metavar="URL")
    workload: str | None = option(None, "JSONL file of problems to send, if not the demo's.")
    problems: Problems = None
    verifier: VerifierOption = None
    raw_prompts: RawPrompts = False
    system_prompt: SystemPrompt = None
    api_key_env: str | None = option(None, "Environment variable that holds the server's key.")
    price: Price = None
    output: Output = None
    as_json: Json = False


@takes(GateOptions, panels={"endpoint": "Record a server now", "as_json": OPTIONS})
def gate(asked: GateOptions) -> int:
    """Check a recording or a server against a promise or an earlier recording, for CI."""
    from traces.deployment.reports import junit, markdown
    from traces.files import whole_file
    from tui.text.commands import next_lines
    from tui.text.recordings.gate import gate_lines

    found = judged(asked)
    # Written before a limit that cannot be judged ends it: CI shows what there is.
    if asked.junit is not None:
        with whole_file(asked.junit) as partial:
            partial.write_bytes(junit(found))
    if asked.markdown is not None:
        _append(asked.markdown, markdown(found))
    if asked.as_json:
        say_json(found.to_json())
    else:
        say_all(gate_lines(found))
        if asked.recording is not None:
            base = [asked.against] if asked.against.is_dir() else []
            say_all(next_lines("show", *base, asked.recording))
    if found.broken:
        return 3
    if (why := found.not_judged) is not None:
        raise TtscopeError(why)
    return 0


def _check(asked: GateOptions) -> None:
    if (asked.recording is None) == (asked.endpoint is None):
        raise UsageError("name a recording to judge, or a server with --endpoint, and not both")
    check_price(asked.price)
    if asked.fail_on and asked.against.is_file():
        raise UsageError(
            f"--fail-on compares recordings. The promises of {asked.against} are its limits"
        )
    if asked.endpoint is None:
        names = ("workload", "problems", "verifier", "system_prompt", "api_key_env", "output")
        for name in names:
            if getattr(asked, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for --endpoint. Give both")


def judged(asked: GateOptions) -> Gate:
    """Return what a recording or a server holds. Raises UsageError, and TtscopeError as a gate."""
    from traces.deployment.checks import against_baseline, against_promises
    from traces.deployment.documents import read_expectations
    from traces.summary.comparison import beside, compare

    _check(asked)
    if not asked.against.is_dir():
        expected = read_expectations(asked.against)
        load = (expected.concurrency, expected.rate_per_s)
        path = asked.recording or _record(
            asked, expected.policy, expected.workload, load, names=expected.problem_names
        )
        new = Recording.open(path)
        price = asked.price or new.manifest.price_usd_per_device_hour
        run, others = _only(new, asked.price or _promised_price(expected, new), expected.policy)
        gate_result = against_promises(
            expected, run, asked.against.name, beside([new]), price_usd_per_device_hour=price
        )
        return replace(gate_result, differs=(*others, *gate_result.differs))
    if asked.recording is not None and asked.recording.is_file():
        raise UsageError(
            f"{asked.recording}: is a file, and what is judged is a recording. Name expect.json "
            f"first: ttscope gate {asked.recording} {asked.against}"
        )
    base = Recording.open(asked.against)
    (baseline, _), manifest = _only(base, asked.price), base.manifest
    if asked.endpoint is not None and baseline.workload is None:
        raise UsageError(
            f"{asked.against}: does not say which problems were asked, so that no run can be "
            "compared with it. Name a recording of ttscope record, or expect.json"
        )
    load = (manifest.concurrency, manifest.rate_per_s)
    path = asked.recording or _record(asked, baseline.policy, baseline.workload, load)
    new = Recording.open(path)
    run, others = _only(new, asked.price, baseline.policy)
    compared = compare(baseline, run, beside([base, new]))
    gate_result = against_baseline(asked.fail_on or (), compared, baseline, run)
    return replace(gate_result, differs=(*others, *gate_result.differs))


def _promised_price(expected: Expectations, recording: Recording) -> float | None:
    """Return USD per device-hour that costs were promised at, None where nobody gave a price."""
    gpus = {each.gpu for each in recording.manifest.engines.values()} - {None}
    return expected.budget.price_of(gpus.pop() if len(gpus) == 1 else expected.engine.gpu)


def _record(
    asked: GateOptions,
    policy: Policy | None,
    told: WorkloadFacts | None,
    load: tuple[int | None, float | None],
    *,
    names: str | None = None,
) -> Path:
    """Record the server under the policy, the load and the problems that it is held to.

    The load is so many problems in flight, or arriving a second. `names` is the `names_hash` of the
    problems where these are known by name alone.
    """
    from traces.deployment.documents import check_runnable
    from tui.verbs.record import Ask, Keep, run_workload

    if policy is None or policy.spec.of_others:
        raise UsageError(f"{asked.against}: has no policy that can be run. Give a recording")
    check_runnable(asked.against, policy)
    demo = told is not None and told.name.partition(":")[0] == "demo"
    workload = asked.workload or (told.name if told is not None and demo else None)
    if workload is None:
        named = "the workload" if told is None else told.name
        raise UsageError(f"--endpoint needs the problems to ask: --workload FILE ({named})")
    judged = None if told is None or demo or "+" in (told.verifier or "+") else told.verifier
    concurrency, rate = load
    if load == (None, None):
        tell("no number in flight was promised, so 8 are. Times are not judged")
    return run_workload(
        Ask(
            endpoint=asked.endpoint,
            workload=workload,
            problems=asked.problems or (None if told is None else told.problems),
            seed=0 if told is None else told.seed or 0,
            concurrency=concurrency or 8,
        ),
        Sampling(),
        RuleOptions(),
        Keep(
            verifier=asked.verifier or (None if workload.startswith("demo") else judged),
            raw_prompts=asked.raw_prompts,
            system_prompt=asked.system_prompt,
            api_key_env=asked.api_key_env,
            price=asked.price,
            output=asked.output,
        ),
        policy=policy,
        rate_per_s=rate,
        check=lambda loaded: _check_problems(asked, told, names, loaded),
        may_fail=True,
    )


def _check_problems(
    asked: GateOptions, told: WorkloadFacts | None, names: str | None, loaded: Workload
) -> None:
    """Raise UsageError where problems are not those that a server is held to."""
    from traces.deployment.documents import names_hash

    if told is None:
        return
    alike = loaded.facts(None).hash == told.hash
    if names is not None:
        alike = names_hash(each.problem_id for each in loaded.problems) == names
    if not alike:
        raise UsageError(
            f"--workload {loaded.name}: these are not the {told.problems:,} problems of "
            f"{asked.against} ({told.name}). Give them as there: the file, --problems, "
            "--verifier and --system-prompt"
        )


def _only(
    recording: Recording, price: float | None, policy: Policy | None = None
) -> tuple[Run, list[str]]:
    """Return the run that is judged, and what is left out beside it.

    Of several it is the one of the policy, else the only one that was not cut off altogether.
    """
    from traces.deployment.checks import all_cut_off, policy_changes
    from traces.summary.run import summarise

    runs = [run for run in summarise(recording, price) if run.problems or run.problems_failed]
    same = runs
    if policy is not None and len(runs) > 1:
        same = [run for run in runs if run.policy and not policy_changes(policy, run.policy)]
    answered = [run for run in runs if not all_cut_off(run)]
    if len(same) != 1 and len(answered) == 1:
        same = answered
    if len(same) != 1:
        held = "no run of problems" if not runs else f"{len(runs)} runs"
        if same != runs:
            held += f", {len(same) or 'none'} of the policy that it is held to"
        raise UsageError(f"{recording.path}: a gate judges one run. This recording holds {held}")
    left, judged = _problems([run for run in runs if run is not same[0]]), _problems(same)
    left_out = (
        f"judged {judged:,} problems of this policy, not {left:,} of {len(runs) - 1} other runs"
    )
    return same[0], [left_out] if left else []


def _problems(runs: Iterable[Run]) -> int:
    return sum(run.problems + run.problems_failed for run in runs)


def _append(path: Path, text: str) -> None:
    """Add a summary to a file, which may be that of a CI job ($GITHUB_STEP_SUMMARY)."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"--markdown {path}: cannot be written ({error.strerror})") from None
