"""What can be captured on this machine, and what each missing part needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.engines.interface import Finding
from profiler.engines.server.access import Access
from profiler.engines.start import examine_engines
from profiler.plugin.shared_token import in_a_shell, shared_token
from profiler.probes.power import energy_here
from profiler.runs.provenance import cpu_name, usable_cpus
from traces.errors import EngineError, UsageError, install_command, installed
from traces.live.numbers import DRAFTS, FLOPS

if TYPE_CHECKING:
    import httpx

    from profiler.attach.scraper import Page


def examine() -> list[Finding]:
    """Look at the machine; starts nothing and changes nothing."""
    return [*examine_engines(), *_devices(), _telemetry(), _receivers(), *_host()]


def _devices() -> Iterator[Finding]:
    names = _gpus()
    yield Finding(
        what="GPU",
        present=bool(names),
        detail=", ".join(names) if names else "none; vLLM runs on the CPU",
    )
    present, detail, needs = energy_here()
    yield Finding(what="energy", present=present, detail=detail, needs=needs)


def _gpus() -> list[str]:
    folder = Path("/proc/driver/nvidia/gpus")
    if not folder.is_dir():
        return []
    names = []
    for gpu in sorted(folder.iterdir()):
        for line in (gpu / "information").read_text().splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return names


def _telemetry() -> Finding:
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    )
    return Finding(
        what="OTLP export",
        present=endpoint is not None,
        detail="as OTEL_EXPORTER_OTLP_* says" if endpoint else "nothing is sent anywhere",
        needs=None if endpoint else "record --otlp http://localhost:4318, to send spans",
    )


def _receivers() -> Finding:
    version = installed("grpcio")
    return Finding(
        what="OTLP receiver",
        present=True,
        detail=f"HTTP, and gRPC by grpcio {version}" if version else "HTTP; no gRPC",
        needs=None if version else f"for attach --listen-grpc: {install_command('grpc')}",
    )


def _host() -> Iterator[Finding]:
    yield Finding(
        what="processor", present=True, detail=f"{cpu_name() or 'unknown'}, {usable_cpus()} usable"
    )
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        what="OMP_NUM_THREADS",
        present=threads is not None,
        detail=f"{threads}" if threads else "unset; ttscope sets 1 for vLLM's CPU build",
    )


# What can be seen of a running server, and the flag or command that each missing part needs.
#
# Four GET requests, nothing else: nothing is started on somebody else's server. The token that
# senders need is made on this machine, since the advice names its file.


SPANS = (
    "start vLLM with OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf, "
    'OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20{token}" and '
    "--otlp-traces-endpoint http://127.0.0.1:4318/v1/traces, and ttscope attach URL --listen 4318; "
    "or without the first variable, with http://127.0.0.1:4317 and --listen-grpc 4317"
)
PLUGIN = (
    "pip install CHECKOUT, the folder of ttscope's sources, in vLLM's Python, start vLLM with "
    "TTSCOPE_PLUGIN=http://127.0.0.1:4318 and --enable-logging-iteration-details, as the user who "
    "attaches (else give both the same TTSCOPE_TOKEN), and ttscope attach URL --listen 4318"
)


def examine_server(access: Access) -> list[Finding]:
    """Look at a server from outside."""
    import httpx

    with httpx.Client(base_url=access.url, headers=dict(access.headers), timeout=10.0) as client:
        return [*_models(client, access), *_metrics(access), *_inside(client)]


def _models(client: httpx.Client, access: Access) -> Iterator[Finding]:
    from profiler.engines.server.served import ask_model, ask_version

    try:
        card = ask_model(client, access.url, None)
    except EngineError as error:
        needs = "a key: --api-key-env NAME" if "wants a key" in str(error) else "its URL"
        yield Finding(what="models", present=False, detail=str(error), needs=needs)
        return
    version = ask_version(client)
    kind = f"vLLM {version}" if version else "no vLLM: only a workload can be posed"
    length = card.get("max_model_len")
    yield Finding(what="models", present=True, detail=f"{card['id']}, {length} tokens, {kind}")


def _metrics(access: Access) -> Iterator[Finding]:
    from profiler.attach.scraper import ScrapeError, Scraper

    scraper = Scraper(access, lambda label: label, on_event=lambda kind, detail: None)
    page: Page | None = None
    try:
        page = scraper.poll()
        why = "nothing of vLLM on the page"
    except ScrapeError as error:
        why = str(error)
    finally:
        scraper.close()
    names = {series.name for series in page.values} if page is not None else set()
    if page is None or not any(name.startswith("vllm:") for name in names):
        needs = "vLLM's own host and port, started without --disable-log-stats"
        yield Finding(what="metrics", present=False, detail=why, needs=needs)
        return
    engines = len({series.engine for series in page.values if series.engine})
    told = f"{len(page.values)} series of {engines} engine{'s' if engines != 1 else ''}"
    yield Finding(
        what="metrics", present=True, detail=f"{told}, read in {page.took_s * 1e3:.0f} ms"
    )
    drafts = sum(value for series, value in page.values.items() if series.name == DRAFTS)
    yield Finding(
        what="speculation",
        present=True if DRAFTS in names else None,
        detail=f"{drafts:,.0f} drafts so far"
        if DRAFTS in names
        else "the server does not speculate",
    )
    estimated = any(v > 0 for series, v in page.values.items() if series.name == FLOPS)
    yield Finding(
        what="FLOPs, bytes",
        present=estimated,
        detail="vLLM's estimates" if estimated else "0: off, or nothing has run yet",
        needs=None if estimated else "--enable-mfu-metrics",
    )


def _inside(client: httpx.Client) -> Iterator[Finding]:
    from profiler.attach.kernel_windows import SERVER_FLAGS
    from profiler.engines.server.served import routes

    outside = "cannot be told from outside"
    needs = SPANS.format(token=in_a_shell())
    with suppress(UsageError):  # attach says it
        shared_token()  # so that the file is there
    yield Finding(what="spans", present=None, detail=outside, needs=needs)
    yield Finding(what="steps (plugin)", present=None, detail=outside, needs=PLUGIN)
    known = routes(client)
    profiler = None if known is None else "/start_profile" in known["paths"]
    yield Finding(
        what="profiler",
        present=profiler,
        detail={
            True: "POST /start_profile is there: attach URL --kernels FOLDER",
            False: "no POST /start_profile",
            None: "the server does not list its routes",
        }[profiler],
        needs=None if profiler else SERVER_FLAGS,
    )
