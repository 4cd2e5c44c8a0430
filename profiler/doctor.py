"""What can be captured on this machine, and what each missing part needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from profiler.engines.interface import Capability
from profiler.engines.server.access import Access, is_loopback
from profiler.engines.start import examine_engines
from profiler.plugin.shared_token import in_a_shell, shared_token
from profiler.probes.power import energy_here
from profiler.runs.provenance import cpu_name, usable_cpus
from traces.errors import EngineError, UsageError, install_command, installed
from traces.live.engine_names import (
    NIM,
    ROUTER,
    SGLANG,
    TENSORRT_LLM,
    TGI,
    VLLM,
    is_on_ray,
    is_under_dynamo,
    unwrapped,
)
from traces.live.numbers import ADDED, DRAFTS, FLOPS, tells

if TYPE_CHECKING:
    import httpx

    from profiler.attach.scraper import PolledPage
    from profiler.engines.server.identity import Identity


def examine() -> list[Capability]:
    """Look at the machine; starts nothing and changes nothing."""
    return [*examine_engines(), *_devices(), _telemetry(), _receivers(), *_host()]


def _devices() -> Iterator[Capability]:
    names = _gpus()
    yield Capability(
        what="GPU",
        present=bool(names),
        detail=", ".join(names) if names else "none, so vLLM runs on the CPU",
    )
    present, detail, needs = energy_here()
    yield Capability(what="energy", present=present, detail=detail, needs=needs)


def _gpus() -> list[str]:
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for each in files for line in each.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def _telemetry() -> Capability:
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    )
    return Capability(
        what="OTLP export",
        present=endpoint is not None,
        detail="as OTEL_EXPORTER_OTLP_* says" if endpoint else "nothing is sent anywhere",
        needs=None if endpoint else "record --otlp http://localhost:4318, to send spans",
    )


def _receivers() -> Capability:
    version = installed("grpcio")
    return Capability(
        what="OTLP receiver",
        present=True,
        detail=f"HTTP, and gRPC by grpcio {version}" if version else "HTTP, no gRPC",
        needs=None if version else f"for attach --listen-grpc: {install_command('grpc')}",
    )


def _host() -> Iterator[Capability]:
    yield Capability(
        what="processor", present=True, detail=f"{cpu_name() or 'unknown'}, {usable_cpus()} usable"
    )
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Capability(
        what="OMP_NUM_THREADS",
        present=threads is not None,
        detail=f"{threads}" if threads else "unset, and ttscope sets 1 for vLLM's CPU build",
    )


# What can be seen of a running server, and the flag or command that each missing part needs.
#
# A few GET requests, nothing else: nothing is started on somebody else's server. The token that
# senders need is made on this machine, since the advice names its file.


SPANS = (
    "start vLLM so, for spans and steps, and ttscope attach URL --listen 4318. For spans over gRPC "
    "leave out OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, name http://127.0.0.1:4317 and give "
    "--listen-grpc 4317"
)
PLUGIN = (
    "pip install CHECKOUT, the folder of ttscope's sources, in vLLM's Python, start vLLM by the "
    "command for spans and steps as the user who attaches (else give both the same "
    "TTSCOPE_TOKEN), and ttscope attach URL --listen 4318"
)
_EXPORTER = (
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf "
    'OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20{token}" '
)
_ENDPOINT = "--otlp-traces-endpoint http://127.0.0.1:4318/v1/traces"
_RAY_ENVIRONMENT = "in the environment of Ray's replicas (of ray start, or env_vars of runtime_env)"
RAY_SPANS = (
    'otlp_traces_endpoint="http://127.0.0.1:4318/v1/traces" in engine_kwargs, the variables '
    f"OTEL_EXPORTER_OTLP_... of docs/attach.md {_RAY_ENVIRONMENT}, and ttscope attach URL "
    "--metrics-url PAGE --listen 4318"
)
RAY_PLUGIN = (
    "pip install CHECKOUT, the folder of ttscope's sources, in the Python of Ray's replicas, "
    f"TTSCOPE_PLUGIN=http://127.0.0.1:4318 {_RAY_ENVIRONMENT}, "
    "enable_logging_iteration_details=True in engine_kwargs, and ttscope attach URL --metrics-url "
    "PAGE --listen 4318"
)
_SERVE, _DYNAMO = "vllm serve MODEL", "python -m dynamo.vllm --model MODEL"
_PLUGIN = "TTSCOPE_PLUGIN=http://127.0.0.1:4318 "
_DETAILS, _TRACES = "--enable-logging-iteration-details", "--otlp-traces-endpoint"
_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
_DECIDES = (_PROTOCOL, "TTSCOPE_PLUGIN")  # of the variables of a server
WITH_BOTH = f"{_PLUGIN}{_EXPORTER}{_SERVE} {_DETAILS} {_ENDPOINT}"
WITH_PLUGIN = f"VLLM_USE_RUST_FRONTEND=0 {_PLUGIN}{_SERVE} {_DETAILS}"
_MODULE = "vllm.entrypoints.openai.api_server"  # as vLLM's CPU build is started
FPM = "vLLM with #52061 (--forward-pass-metrics-port 20380), and attach URL --fpm tcp://HOST:20380"
DYNAMO_FPM = (
    "DYN_FORWARDPASS_METRIC_PORT=20380 before python -m dynamo.vllm, and attach URL --metrics-url "
    "PAGE --fpm tcp://HOST:20380. Or DYN_FPM_TRACE=1 DYN_FPM_MODE=full, and ttscope import "
    "/tmp/dynamo-fpm.*.jsonl.gz"
)
_DYNAMO_PROFILER = "none: Dynamo's route for it takes no number of steps, so that nothing ends it"
SPANS_OF = {SGLANG: "start SGLang so, and ttscope attach URL --listen 4318"}
WITH_SPANS_OF = {
    SGLANG: f"{_EXPORTER}python -m sglang.launch_server --model-path MODEL --enable-trace "
    f"{_ENDPOINT}"
}
SPANS_ELSEWHERE = (
    "if the engine behind it can send OpenTelemetry spans, have it send them to "
    "http://127.0.0.1:4318/v1/traces with the token of attach, and ttscope attach URL --listen 4318"
)
STEPS_OF = {
    SGLANG: "start SGLang with --enable-forward-pass-metrics. Its log names ipc:///PATH.0, for "
    "ttscope attach URL --fpm ipc:///PATH.0",
    TENSORRT_LLM: "run it under Dynamo with DYN_FPM_TRACE=1 DYN_FPM_MODE=full, and ttscope import "
    "/tmp/dynamo-fpm.*.jsonl.gz",
    NIM: "a NIM publishes none. Start its engine by itself",
    TGI: "TGI publishes none",
}
PROFILER_OF = {
    SGLANG: "POST /start_profile is there: attach URL --kernels FOLDER, of one path here and there"
}
RUST = (
    "the Rust front end answers (VLLM_USE_RUST_FRONTEND=1), or a proxy before vLLM: the first has "
    "neither plugins (vllm#58313) nor spans (vllm#44757)"
)
RUST_NEEDS = (
    "VLLM_USE_RUST_FRONTEND=0 for plugin and spans, or keep it, and for steps the engine's own "
    f"stream: {FPM}"
)
_NEEDS = {  # by what an error of `ask_model` says
    "wants a key": "a key: --api-key-env NAME",
    "no model yet": "an engine that has started",
}
_ALLOWS = (  # what each depth of attach gives, from the outside in
    (
        "HTTP alone",
        "rates, latencies within bounds, running, waiting, KV cache, drafts, and whether it is "
        "KV-bound or queueing",
    ),
    (
        "with spans",
        "requests one by one: arrivals, lengths, TTFT, end, and their times with intervals",
    ),
    (
        "with steps",
        "step times and batches, and compute-bound, fixed cost and unpaying drafts",
    ),
    ("with kernels", "what steps are made of, and launch- and communication-bound"),
)
ALLOWED = [Capability(what=what, present=None, detail=detail) for what, detail in _ALLOWS]


def examine_server(access: Access) -> list[Capability]:
    """Look at a server from outside. Raises EngineError where nothing answers at all."""
    with access.client() as client:
        metrics, kinds, started = _metrics(access)
        answers = any(each.present for each in metrics)
        models, identity = _models(client, access, kinds, answers=answers)
        words, variables = _begun_with(access, started)
        serve = None if is_on_ray(kinds) else _serve(words, kinds)
        inside = [_as_begun(each, words, variables) for each in _inside(client, identity, serve)]
        metrics = [_as_begun(each, words, variables) for each in metrics]
        return [*models, *metrics, *inside, *ALLOWED]


def _models(
    client: httpx.Client, access: Access, kinds: set[str], *, answers: bool
) -> tuple[list[Capability], Identity]:
    """Return which model is served, and by what. Its metrics have lines of these `kinds`.

    `answers` says that the server's metrics were read.
    """
    from profiler.engines.server.identity import Identity, identify
    from profiler.engines.server.served import Unanswered, ask_model

    try:
        card = ask_model(client, access.url, None)
    except EngineError as error:
        if isinstance(error, Unanswered) and not answers:
            raise
        needs = next((each for why, each in _NEEDS.items() if why in str(error)), "its URL")
        capabilities = [Capability(what="models", present=False, detail=str(error), needs=needs)]
        return capabilities, Identity().with_page(kinds)
    identity = identify(client, card).with_page(kinds)
    length = card.get("max_model_len")
    details = [str(card["id"]), *([f"{length} tokens"] if length else []), identity.text]
    capabilities = [Capability(what="models", present=True, detail=", ".join(details))]
    if identity.front_end == "rust":
        capabilities.append(
            Capability(what="front end", present=False, detail=RUST, needs=RUST_NEEDS)
        )
    return capabilities, identity


def _metrics(access: Access) -> tuple[list[Capability], set[str], float | None]:
    """Return what a server's page has, whose lines, and when the server began (unix seconds)."""
    from profiler.attach.deployment import ENGINES_PAGE
    from profiler.attach.scraper import EACH, OF_ROUTER, SEVERAL, ScrapeError, Scraper

    scraper = Scraper(access, lambda label: label, on_event=lambda kind, detail: None)
    page: PolledPage | None = None
    others = False
    try:
        page = scraper.poll(leave=True)
        why = "nothing of an engine on the page"
        others = scraper.meets_others(page)
    except ScrapeError as error:
        why = str(error)
    finally:
        scraper.close()
    names = {series.name for series in page.values} if page is not None else set()
    kinds = scraper.reader.engines
    if ROUTER in kinds:
        of_router = Capability(what="metrics", present=False, detail=OF_ROUTER, needs=EACH)
        return [of_router], set(), None
    if page is None or not any(map(tells, names)):
        capabilities = [Capability(what="metrics", present=False, detail=why, needs=ENGINES_PAGE)]
        return capabilities, set(), None
    engines = len({series.engine for series in page.values if series.engine}) or 1
    if others:
        return [Capability(what="metrics", present=False, detail=SEVERAL, needs=EACH)], kinds, None
    series = sum(each.name not in ADDED for each in page.values)  # which ttscope adds
    read = f"{series} series of {engines} engine{'s' if engines != 1 else ''} "
    read += f"({' and '.join(sorted(kinds))}), read in {page.took_s * 1e3:.0f} ms"
    capabilities = [Capability(what="metrics", present=True, detail=read), *_on_page(page, kinds)]
    return capabilities, kinds, page.started


def _begun_with(access: Access, started: float | None) -> tuple[list[str], dict[str, str]]:
    """Return the words and the variables that a server began with, empty where it is elsewhere."""
    from profiler.attach.gpus_here import processes_here

    for pid in processes_here(access, started):
        with suppress(OSError):
            words, lines = (
                Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace").split("\0")
                for name in ("cmdline", "environ")
            )
            pairs = (line.partition("=") for line in lines)
            return words, {name: value for name, _, value in pairs if name in _DECIDES}
    return [], {}


def _serve(words: Sequence[str], kinds: set[str]) -> str:
    """Return the command that starts a vLLM: that of the server, where it runs here."""
    if is_under_dynamo(kinds):
        return _DYNAMO
    return f"python -m {_MODULE} --model MODEL" if _MODULE in words else _SERVE


def _as_begun(found: Capability, words: Sequence[str], variables: Mapping[str, str]) -> Capability:
    """Return what a server of this machine needs no more, as it began with it."""
    if found.what == "FLOPs, bytes" and found.needs in words:
        return replace(found, detail="0: nothing has run yet", needs=None)
    target, flag = None, "--listen"
    if found.what == "steps (plugin)" and _DETAILS in words:
        target = variables.get("TTSCOPE_PLUGIN")
    elif found.what == "spans":
        given = [*words, ""]
        target = next(
            (
                word.partition("=")[2] or after
                for word, after in pairwise(given)
                if word.partition("=")[0] == _TRACES
            ),
            None,
        )
        if not variables.get(_PROTOCOL, "grpc").startswith("http/"):
            flag = "--listen-grpc"
    at = urlsplit(target or "")
    if not is_loopback(at.hostname) or at.port is None:
        return found
    detail = f"sent to {target}: attach URL {flag} {at.port}"
    return replace(
        found, present=True, detail=detail, needs=None, run=(), attach=(flag, str(at.port))
    )


def _on_page(page: PolledPage, kinds: set[str]) -> Iterator[Capability]:
    """Say what a page has of drafts and FLOPs, which those of some engines never have."""
    names = {series.name for series in page.values}
    if unwrapped(kinds) - {VLLM, SGLANG}:
        for what in ("speculation", "FLOPs, bytes"):
            yield Capability(what=what, present=None, detail="this page does not say")
        return
    drafts = sum(value for series, value in page.values.items() if series.name == DRAFTS)
    yield Capability(
        what="speculation",
        present=True if DRAFTS in names else None,
        detail=f"{drafts:,.0f} drafts so far"
        if DRAFTS in names
        else "the server does not speculate",
    )
    estimated = any(v > 0 for series, v in page.values.items() if series.name == FLOPS)
    yield Capability(
        what="FLOPs, bytes",
        present=estimated,
        detail="the engine's estimates" if estimated else "0: off, or nothing has run yet",
        needs=None if estimated else "--enable-mfu-metrics",
    )


def _inside(client: httpx.Client, identity: Identity, serve: str | None) -> Iterator[Capability]:
    """Say what is to be had from inside; `serve` starts such a server, None where Ray does."""
    from profiler.attach.kernel_windows import SERVER_FLAGS
    from profiler.engines.server.served import routes

    outside, engine = "cannot be seen from outside", identity.engine
    rust = identity.front_end == "rust"
    lacking = None
    try:
        shared_token()  # so that the file is there
    except UsageError as error:
        lacking = str(error)
    has_spans = engine in (None, VLLM, SGLANG)  # None: a proxy may be before vLLM
    spans = SPANS_OF.get(engine or "", SPANS) if has_spans else SPANS_ELSEWHERE
    spans = RAY_SPANS if serve is None else RUST_NEEDS if rust else spans
    silent = "none where the Rust front end answers" if rust else outside
    starts = has_spans and not rust and serve is not None
    start: tuple[str, ...] = ()
    if starts and lacking is not None:
        spans = lacking
    elif starts and serve is not None:
        start = _with_token(WITH_SPANS_OF.get(engine or "", WITH_BOTH).replace(_SERVE, serve))
    yield Capability(what="spans", present=None, detail=silent, needs=spans, run=start)
    if serve is None:
        yield Capability(what="steps (plugin)", present=None, detail=silent, needs=RAY_PLUGIN)
    elif engine in STEPS_OF:
        yield Capability(what="steps (FPM)", present=None, detail=outside, needs=STEPS_OF[engine])
    else:
        start = (WITH_PLUGIN.replace(_SERVE, serve),) if rust else start
        needs = PLUGIN.replace("by the command for spans and steps", "so") if rust else PLUGIN
        yield Capability(what="steps (plugin)", present=None, detail=silent, needs=needs, run=start)
        fpm = DYNAMO_FPM if serve == _DYNAMO else FPM
        yield Capability(what="steps (FPM)", present=None, detail=outside, needs=fpm)
    if serve == _DYNAMO:
        yield Capability(what="profiler", present=False, detail=_DYNAMO_PROFILER)
        return
    schema = routes(client)
    profiler = None if schema is None else "/start_profile" in schema["paths"]
    detail = {
        True: "POST /start_profile is there: attach URL --kernels FOLDER",
        False: "no POST /start_profile",
        None: "the server does not list its routes",
    }[profiler]
    flags = None if profiler else SERVER_FLAGS
    if engine is not None and engine != VLLM:
        detail, flags = PROFILER_OF.get(engine, detail) if profiler else detail, None
    yield Capability(what="profiler", present=profiler, detail=detail, needs=flags)


def _with_token(command: str) -> tuple[str, ...]:
    """Return a command with the token, which is read before so that its lines stay short."""
    token = in_a_shell()
    if token.startswith("$("):
        return f"TOKEN={token}", command.format(token="$TOKEN")
    return (command.format(token=token),)
