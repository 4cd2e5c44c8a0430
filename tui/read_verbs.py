"""The verbs that read recordings: show, doctor and the terminal app."""

from __future__ import annotations

import json
import sys
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from traces.errors import UsageError
from traces.recording import Recording, find_recordings
from tui.formats import wrap
from tui.terminal_text import say, say_json

if TYPE_CHECKING:
    from traces.limits import Limit


def print_document(document: Any, out: TextIO | None = None) -> None:
    """Print one JSON document; null where a number is not finite."""
    say_json(document, file=out)


def open_all(paths: Sequence[Path]) -> list[Recording]:
    """Open recordings, and all recordings in folders; one given twice, or a copy, only once.

    What is left out is said on stderr. Raises RecordingError when a path is neither, or a recording
    cannot be read.
    """
    opened = [Recording.open(each) for path in paths for each in find_recordings(path) or [path]]
    found, copies = distinct(opened)
    for copy, first in copies:
        say(f"{copy.path}: the same recording as {first.path}; read once", file=sys.stderr)
    return found


def distinct(
    recordings: Sequence[Recording],
) -> tuple[list[Recording], list[tuple[Recording, Recording]]]:
    """Return the recordings without copies of one, and each copy with what it is one of."""
    first: dict[Hashable, Recording] = {}
    copies = []
    for each in recordings:
        known = first.setdefault(_identity(each), each)
        if known is not each:
            copies.append((each, known))
    return list(first.values()), copies


def _identity(recording: Recording) -> Hashable:
    """Return what two copies of a recording share, and no two runs: clocks, contents and sizes."""
    files = sorted((each.name, each.stat().st_size) for each in recording.path.iterdir())
    return json.dumps(recording.manifest.to_json(), sort_keys=True), tuple(files)


def run_show(
    recording: Path,
    other: Path | None,
    *,
    price: float | None,
    policies: bool = False,
    fail_on: Sequence[str] = (),
    as_json: bool,
) -> int:
    """Print what happened in one recording, or two and what differs; return the exit code."""
    from traces.limits import parse_limit

    limits = [parse_limit(text) for text in fail_on]
    if policies:
        if other is not None or limits:
            raise UsageError("--policies judges one recording; give it alone")
        print_policies(recording, price=price, as_json=as_json)
        return 0
    if limits and other is None:
        raise UsageError("--fail-on compares: give two recordings, the one to judge last")
    paths = [recording] if other is None else [recording, other]
    return print_show(paths, price=price, limits=limits, as_json=as_json)


def print_show(
    paths: Sequence[Path],
    *,
    price: float | None,
    as_json: bool,
    limits: Sequence[Limit] = (),
    out: TextIO | None = None,
) -> int:
    """Print the summary of recordings, side by side when there are two.

    Returns the exit code: 3 when a limit on the difference is broken.
    """
    from traces.comparison import compare
    from traces.limits import judge
    from traces.repeats import beside
    from traces.summary import summarise
    from traces.watched import runs_beside, watched_engines
    from tui.limits_text import limit_lines
    from tui.live_text import watched_lines
    from tui.show_text import show_json, show_lines

    _check_price(price)
    recordings = [Recording.open(path) for path in paths]
    watched, of_each = [], []
    for recording in recordings:
        own = summarise(recording, price_usd_per_device_hour=price)
        servers = watched_engines(recording, own)
        watched += servers
        of_each.append(runs_beside(own, servers))
    runs = [run for each in of_each for run in each]
    compared = None
    if list(map(len, of_each)) == [1, 1]:
        compared = compare(runs[0], runs[1], beside(recordings))
    if limits and compared is None:
        held = "no run of problems" if not all(of_each) else "more than one"
        raise UsageError(f"--fail-on compares two runs; a recording here holds {held}")
    judged = judge(limits, compared) if compared is not None and limits else ()
    if as_json:
        document = show_json(runs, compared)
        for plain, run in zip(document["runs"], runs, strict=True):
            plain["notes"] = list(run.notes)
        if limits:
            document["fail_on"] = [each.to_json() for each in judged]
        if watched:
            document["watched"] = [each.to_json() for each in watched]
        print_document(document, out)
    else:
        lines = [*show_lines(runs, compared), *limit_lines(judged)] if runs else []
        for each in watched:
            lines += [*([""] if lines else []), *watched_lines(each)]
        for line in lines:
            say(line, file=out)
    return 3 if any(each.broken for each in judged) else 0


def print_policies(path: Path, *, price: float | None, as_json: bool) -> None:
    """Print the accuracy and tokens of policies that a recording's samples contain."""
    from traces.summary import summarise
    from tui.policies_text import judged_policies, policies_lines
    from tui.show_text import show_json, show_policies_head

    _check_price(price)
    recording = Recording.open(path)
    runs = summarise(recording, price_usd_per_device_hour=price)
    found = [judged_policies(recording, run) for run in runs]
    if as_json:
        whole = [
            replace(run, policies=() if isinstance(each, str) else each.outcomes)
            for run, each in zip(runs, found, strict=True)
        ]
        document = show_json(whole)
        for plain, each in zip(document["runs"], found, strict=True):
            plain["policy_notes"] = [each] if isinstance(each, str) else list(each.notes)
        print_document(document)
        return
    for run, each in zip(runs, found, strict=True):
        for line in (*show_policies_head(run), "", *policies_lines(run, each)):
            say(line)


def _check_price(price: float | None) -> None:
    if price is not None and not price > 0:
        raise UsageError(f"--price must be above 0, not {price}")


def run_doctor(
    url: str | None = None,
    *,
    api_key_env: str | None = None,
    api_key_file: Path | None = None,
    headers: Sequence[str] = (),
    as_json: bool,
) -> None:
    """Print what can be captured on this machine, or of a server."""
    from tui.progress import progress_bar

    if url is None:
        from profiler.doctor import examine

        if api_key_env or api_key_file or headers:
            raise UsageError("a key or a header is for a server; name its URL")
        with progress_bar() as bar:
            bar.add_task("looking at this machine, and whether vLLM starts", total=None)
            findings = examine()
    else:
        from profiler.access import Access, read_headers, read_key
        from profiler.doctor_server import examine_server

        given = read_headers(read_key(api_key_env, api_key_file), headers)
        access = Access.of(url, given)
        with progress_bar() as bar:
            bar.add_task(f"looking at {access.url}", total=None)
            findings = examine_server(access)
    if as_json:
        print_document({"findings": [finding.to_json() for finding in findings]})
        return
    for finding in findings:
        mark = {True: "yes", False: "no", None: "-"}[finding.present]
        lines = wrap(f"{mark:<4}{finding.what}", finding.detail, width=80, indent=26)
        if finding.needs:
            lines += wrap("", f"needs: {finding.needs}", width=80, indent=26)
        for line in lines:
            say(line)
