"""What can be seen of a running server, and the flag or command that each missing part needs.

Four GET requests, nothing else: nothing is started on somebody else's server. The token that
senders need is made on this machine, since the advice names its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import httpx

from profiler.access import Access
from profiler.doctor import Finding
from profiler.engines.served import ask_model, ask_version, routes
from profiler.scraper import Page, ScrapeError, Scraper
from profiler.server_windows import SERVER_FLAGS
from profiler.shared_token import in_a_shell, shared_token
from traces.deployment import DRAFTS, FLOPS
from traces.errors import EngineError, UsageError

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
    with httpx.Client(base_url=access.url, headers=dict(access.headers), timeout=10.0) as client:
        return [*_models(client, access), *_metrics(access), *_inside(client)]


def _models(client: httpx.Client, access: Access) -> Iterator[Finding]:
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
