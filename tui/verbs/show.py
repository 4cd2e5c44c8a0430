"""`ttscope show`: what happened in a recording, or what differs between two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from traces.errors import TtscopeError, UsageError
from traces.recording.reader import Recording
from tui.options import OPTIONS, Json, argument, check_price, option, takes
from tui.terminal import say_all, say_json
from tui.text.commands import next_lines
from tui.text.layout import wrap

if TYPE_CHECKING:
    from advisor.accuracy.counterfactual import Counterfactuals


@dataclass(frozen=True, kw_only=True)
class Show:
    """One recording, or two to compare."""

    recording: Path = argument("A recording.")
    other: Path | None = argument("Another, to compare with.", default=None)
    policies: bool = option(False, "Show accuracy and tokens of policies that were not run.")
    k: str | None = option(None, "--policies: for these numbers of samples.", metavar="3,5,7")
    max_tokens: int | None = option(None, "--policies: with this limit of tokens per sample.")
    fail_on: list[str] | None = option(
        None, "Exit 3 when OTHER breaks this limit: p95>+5%.", metavar="LIMIT"
    )
    price: float | None = option(None, "USD per device-hour.")
    as_json: Json = False


@takes(Show, panels={"policies": "Policies that were never run", "fail_on": OPTIONS})
def show(asked: Show) -> int:
    """Summarise a recording, or compare two."""
    from traces.summary.comparison import parse_limit

    limits = [parse_limit(text).text for text in asked.fail_on or ()]
    if asked.policies:
        if asked.other is not None or limits:
            raise UsageError("--policies judges one recording. Give it alone")
        print_policies(asked)
        return 0
    if asked.k is not None or asked.max_tokens is not None:
        raise UsageError("--k and --max-tokens go with --policies")
    if limits and asked.other is None:
        raise UsageError("--fail-on compares: give two recordings, the one to judge last")
    paths = [asked.recording] if asked.other is None else [asked.recording, asked.other]
    code = print_show(paths, price=asked.price, limits=limits, as_json=asked.as_json)
    if not asked.as_json:
        say_all(after_show(paths))
    return code


def after_show(paths: Sequence[Path]) -> list[str]:
    """Return what to run after a summary: what its samples or its steps would tell next."""
    recording = Recording.open(paths[0])
    policies = [p for p in recording.manifest.policies.values() if not p.spec.of_others]
    if len(paths) > 1 or not policies or recording.replay_of is not None:
        return next_lines("tui", *paths)
    if any(each.n > 1 and each.all_samples_end for each in policies):
        return next_lines("show", paths[0], "--policies")
    if recording.rows("steps"):
        return next_lines("replay", paths[0], "--set", "engine.max_num_seqs=32")
    files = recording.manifest.provenance.get("imported", {}).get("files", [])
    if files and "requests" in files[0]:
        given = ("--gpu", "h100_sxm", "--model-config", "config.json")
        return next_lines("replay", paths[0], *given)
    return next_lines("tui", *paths)


def print_show(
    paths: Sequence[Path],
    *,
    price: float | None,
    as_json: bool,
    limits: Sequence[str] = (),
    out: TextIO | None = None,
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Print the summary of recordings, side by side when there are two.

    `extra` goes into the JSON document. Returns the exit code: 3 when a limit on the difference is
    broken.
    """
    from traces.deployment.checks import against_baseline
    from traces.live.watched import runs_and_servers
    from traces.summary.comparison import beside, compare
    from tui.text.recordings.gate import checks_lines
    from tui.text.recordings.live import watched_lines
    from tui.text.recordings.show import show_json, show_lines

    check_price(price)
    recordings = [Recording.open(path) for path in paths]
    both = [runs_and_servers(recording, price) for recording in recordings]
    of_each = [runs for runs, _ in both]
    runs = [run for each in of_each for run in each]
    watched = [server for _, servers in both for server in servers]
    compared = None
    if list(map(len, of_each)) == [1, 1]:
        compared = compare(runs[0], runs[1], beside(recordings))
    if limits and compared is None:
        held = "no run of problems" if not all(of_each) else "more than one"
        raise UsageError(f"--fail-on compares two runs. A recording here holds {held}")
    gate = None
    if compared is not None and limits:
        gate = against_baseline(limits, compared, runs[0], runs[1])
        if not gate.broken and (why := gate.not_judged) is not None:
            raise TtscopeError(f"--fail-on cannot be judged: {why}")
    if as_json:
        document = show_json(runs, compared)
        for plain, run in zip(document["runs"], runs, strict=True):
            plain["notes"] = list(run.notes)
        if gate is not None:
            document["gate"] = gate.to_json()
        if watched:
            document["watched"] = [each.to_json() for each in watched]
        say_json(document | dict(extra or {}), file=out)
    else:
        lines = show_lines(runs, compared) if runs else []
        lines += [] if gate is None else ["", *checks_lines(gate)]
        for each in watched:
            lines += [*([""] if lines else []), *watched_lines(each)]
        say_all(lines, file=out)
    return 3 if gate is not None and gate.broken else 0


def _counts(text: str | None) -> list[int] | None:
    """Return the numbers of `--k`. Raises UsageError for what is none."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise UsageError(f"--k {text}: give whole numbers from 1 up, as 3,5,7")
    return [int(part) for part in parts]


def print_policies(asked: Show) -> None:
    """Print the accuracy and tokens of policies that a recording's samples contain."""
    from traces.summary.run import summarise
    from tui.text.recordings.show import (
        judged_policies,
        policies_lines,
        show_json,
        show_policies_head,
    )
    from tui.verbs.progress import progress_bar

    counts = _counts(asked.k)
    check_price(asked.price)
    recording = Recording.open(asked.recording)
    runs = summarise(recording, price_usd_per_device_hour=asked.price)
    judged: list[Counterfactuals | str] = []
    with progress_bar() as bar:
        task = bar.add_task("judging policies", total=len(runs))
        for run in runs:
            judged.append(
                judged_policies(recording, run, counts=counts, max_tokens=asked.max_tokens)
            )
            bar.advance(task)
    if asked.as_json:
        documents = [
            replace(run, policies=() if isinstance(each, str) else each.outcomes)
            for run, each in zip(runs, judged, strict=True)
        ]
        document = show_json(documents)
        for plain, each in zip(document["runs"], judged, strict=True):
            plain["policy_notes"] = [each] if isinstance(each, str) else list(each.notes)
        say_json(document)
        return
    for run, each in zip(runs, judged, strict=True):
        say_all((*show_policies_head(run), "", *policies_lines(run, each)))
    most = max((run.policy.n for run in runs if run.policy is not None), default=1)
    if most > 1 and len(runs) == 1:
        say_all(_after_policies(recording, most))


def _after_policies(recording: Recording, n: int) -> list[str]:
    """Return what to run next: a replay where steps were recorded, else what would give times."""
    if recording.rows("steps"):
        return next_lines("replay", recording.path, "--set", f"policy.n={n // 2}")
    if recording.manifest.models:
        limit = ("--gpu", "h100_sxm", "--min-accuracy", "0.8")
        return next_lines("advise", recording.path, *limit)
    if "imported" in recording.manifest.provenance:
        text = "for times, import again with --model, --model-config and --prompt-tokens"
        return ["", *wrap("next", text, width=80, indent=10)]
    return next_lines("tui", recording.path)
