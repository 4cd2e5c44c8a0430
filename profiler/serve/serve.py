"""Serve a policy until a signal, and keep what happened as a recording."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop

from profiler.engines.server.access import read_headers, read_key
from profiler.runs.provenance import provenance
from profiler.runs.telemetry import Telemetry
from profiler.serve.service import Service, Settings, listening
from profiler.serve.upstream import Upstream
from profiler.workload.problems import verifier_of
from traces.clock import ClockWatch
from traces.deployment.documents import PolicyFile
from traces.endings import Interrupting, ending_signals, leave_terminal
from traces.errors import UsageError
from traces.recording.manifest import Manifest
from traces.recording.spans import RecordingSpanProcessor
from traces.recording.writer import RecordingWriter, read_clocks
from traces.schema.tts.parameters import complete, needs_of

_SWITCH_S = 0.0005  # the thread that writes the recording holds up no answer for longer


def serve(
    document: PolicyFile,
    url: str,
    folder: Path,
    settings: Settings,
    *,
    verifier: str | None = None,
    model: str | None = None,
    api_key_env: str | None = None,
    otlp: str | None = None,
    price_usd_per_device_hour: float | None = None,
    ready: Callable[[str], None],
    handed: Callable[[Callable[[], object]], None] | None = None,
) -> None:
    """Answer questions by the policy until SIGINT, SIGTERM or SIGHUP; `ready` hears of the URL.

    Off the main thread, which gets the signals, `handed` is given what ends it. Raises UsageError
    for what cannot be served, EngineError where no engine answers at `url`.
    """
    named = verifier or document.verifier
    if named is None and document.policy.n > 1:
        raise UsageError(
            "the policy does not name a verifier, which says which answers are the same one. Give "
            "--verifier exact, numeric, choice or math"
        )
    judge = verifier_of(named or "exact")
    policy = complete(document.policy)
    upstream = Upstream(
        url,
        model=model,
        headers=read_headers(read_key(api_key_env, None), ()),
    )
    needs = needs_of(policy)
    upstream.prepare(
        top_logprobs=needs.top_logprobs, thinking_budget=policy.thinking_token_budget is not None
    )
    manifest = Manifest(
        provenance=provenance(upstream.config) | {"served": True},
        clock_start=read_clocks(),
        engines={upstream.config.key(): upstream.config},
        policies={policy.key(): policy},
        models={} if upstream.model is None else {upstream.config.model: upstream.model},
        price_usd_per_device_hour=price_usd_per_device_hour,
    )
    with RecordingWriter(folder, manifest) as writer:
        writer.add_source("events", ClockWatch().drain)
        recorder = RecordingSpanProcessor(writer.append)
        telemetry = Telemetry(recorder, resource={"tts.model": upstream.config.model}, otlp=otlp)

        async def run() -> None:
            service = Service(
                policy=policy,
                most_n=document.most_n,
                verifier=judge,
                upstream=upstream,
                writer=writer,
                telemetry=telemetry,
                recorder=recorder,
                settings=settings,
            )
            writer.at_close(rate_per_s=service.rate_per_s)
            ended, loop = asyncio.Event(), asyncio.get_running_loop()
            if handed is None:
                _end_by_signals(ended, service)
            else:
                handed(lambda: loop.call_soon_threadsafe(ended.set))
            async with listening(service) as where:
                gc.freeze()  # what is there stays: a full collection would hold up answers
                sys.setswitchinterval(_SWITCH_S)
                ready(where)
                await ended.wait()

        switch_s = sys.getswitchinterval()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run())
        finally:
            sys.setswitchinterval(switch_s)
            if handed is None:  # the loop has left them to the system
                for number in (signal.SIGINT, *ending_signals()):
                    signal.signal(number, Interrupting(heard=True))
            telemetry.close()
            for note in upstream.notes:
                writer.event("note", note, engine=upstream.config.key())


def _end_by_signals(ended: asyncio.Event, service: Service) -> None:
    """Have the first signal drain, and the second one end what runs at once."""

    def heard() -> None:
        leave_terminal()
        service.hurried = ended.is_set()
        ended.set()

    for number in (signal.SIGINT, *ending_signals()):
        asyncio.get_running_loop().add_signal_handler(number, heard)
