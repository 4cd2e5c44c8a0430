"""An OpenAI-compatible server over HTTP: streaming completions, one request of n = 1 per sample.

Requests run on an asyncio loop in a thread of its own, so that a policy drives a server as it
drives an engine in this process. Nothing of a response body but its tokens, usage and finish
reason is kept, and no error repeats what the server said, which may hold a prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from profiler.engines.protocol import SampleRequest, SampleResult
from profiler.model_facts import facts_from_folder
from traces.errors import EngineError
from traces.schema import EngineConfig, ModelFacts

THINK_END = "</think>"
_POLL_S = 0.05
_GIVE_UP_AFTER = 8  # requests in a row that found no server


@dataclass
class _Stream:
    """What one response has brought so far."""

    text: list[str] = field(default_factory=list)
    chunks: int = 0
    first_token: int | None = None
    think_end: int | None = None
    think_tokens: int | None = None
    in_reasoning: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None


class ServerEngine:
    """An OpenAI-compatible server (see `Engine`).

    `url` is its base, with or without `/v1`; `model` names one of those it serves, by default
    its first. `declared` are engine settings that the server does not tell, such as its
    tensor_parallel_size; `chat_template` goes with every chat instead of the server's own. Raises
    EngineError when nothing answers there, or it takes no such template.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        name: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        declared: dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = httpx.Timeout(timeout_s, connect=10.0)
        self._results: queue.Queue[SampleResult] = queue.Queue()
        self._live: dict[str, tuple[Future[None], _Stream]] = {}
        self._unreachable = 0
        self.chat_template = chat_template  # the server's own is not told
        self._served, self.config, self.model = self._look(model, name, declared or {})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="ttscope-http", daemon=True
        )
        self._thread.start()
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            timeout=self._timeout,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
        )

    def _look(
        self, model: str | None, name: str | None, declared: dict[str, Any]
    ) -> tuple[str, EngineConfig, ModelFacts | None]:
        """Ask the server what it serves."""
        with httpx.Client(base_url=self.url, headers=self._headers, timeout=10.0) as client:
            try:
                answer = client.get("/v1/models")
                answer.raise_for_status()
                cards = answer.json()["data"]
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                hint = "; it wants a key, see --api-key-env" if status in {401, 403} else ""
                raise EngineError(
                    f"{self.url}: GET /v1/models answers HTTP {status}{hint}"
                ) from None
            except httpx.HTTPError as error:
                raise EngineError(
                    f"{self.url}: no server answers ({type(error).__name__}); "
                    "start one with vllm serve, or correct --endpoint"
                ) from None
            except (ValueError, KeyError, TypeError):
                raise EngineError(
                    f"{self.url}: /v1/models is not an OpenAI-compatible answer"
                ) from None
            card = next((c for c in cards if model in {None, c.get("id")}), None)
            if card is None:
                served = ", ".join(str(c.get("id")) for c in cards)
                raise EngineError(f"{self.url}: does not serve {model}; it serves {served}")
            version = self._vllm_version(client)
            cache = self._cache_config(client) if version else {}
            if self.chat_template is not None:
                self._try_template(client, str(card["id"]))
        self._is_vllm = version is not None
        label = name or str(card["id"])
        root = Path(str(card.get("root") or card["id"]))
        config = EngineConfig(
            model=label,
            max_model_len=card.get("max_model_len"),
            mode="server",
            vllm_version=version,
            **(cache | {k: v for k, v in declared.items() if v is not None}),
        )
        return str(card["id"]), config, facts_from_folder(root, name=label, dtype=config.dtype)

    def _try_template(self, client: httpx.Client, model: str) -> None:
        """Raise EngineError where the server takes no template with a request, as by default."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "?"}],
            "chat_template": self.chat_template,
        }
        with contextlib.suppress(httpx.HTTPError):
            if client.post("/tokenize", json=body).status_code == 200:
                return
        raise EngineError(
            f"{self.url}: refuses --chat-template; start vLLM with --chat-template FILE instead, "
            "or with --trust-request-chat-template"
        )

    @staticmethod
    def _vllm_version(client: httpx.Client) -> str | None:
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            return str(client.get("/version").json()["version"])
        return None

    @staticmethod
    def _cache_config(client: httpx.Client) -> dict[str, Any]:
        """Read block size, blocks and prefix caching from vLLM's cache_config_info metric."""
        from prometheus_client.parser import text_string_to_metric_families

        readers: dict[str, Callable[[str], Any]] = {
            "block_size": int,
            "num_gpu_blocks": int,
            "enable_prefix_caching": lambda text: text == "True",
        }
        with contextlib.suppress(httpx.HTTPError, ValueError):
            page = client.get("/metrics").text
            for family in text_string_to_metric_families(page):
                if family.name.startswith("vllm:cache_config"):
                    labels = family.samples[0].labels
                    return {
                        key: read(labels[key])
                        for key, read in readers.items()
                        if labels.get(key, "None") != "None"
                    }
        return {}

    def submit(self, request: SampleRequest) -> None:
        """Send a sample (see `Engine`)."""
        stream = _Stream()
        future = asyncio.run_coroutine_threadsafe(self._run(request, stream), self._loop)
        self._live[request.request_id] = (future, stream)

    def cancel(self, request_ids: Sequence[str]) -> list[SampleResult]:
        """Close the streams, at which the server aborts them (see `Engine`)."""
        results = []
        for request_id in request_ids:
            future, stream = self._live.pop(request_id, (None, None))
            if future is not None and stream is not None and not future.done():
                future.cancel()
                stream.finish_reason = "abort"
                results.append(_result(request_id, stream, time.time_ns(), None))
        return results

    def poll(self) -> list[SampleResult]:
        """Wait a moment for samples to end (see `Engine`).

        Raises EngineError when the server has not been reached many times in a row.
        """
        if not self._live:
            return []
        ended = []
        with contextlib.suppress(queue.Empty):
            ended.append(self._results.get(timeout=_POLL_S))
            while True:
                ended.append(self._results.get_nowait())
        kept = [result for result in ended if self._live.pop(result.request_id, None)]
        for result in kept:
            lost = result.error is not None and not result.error.startswith("HTTP")
            self._unreachable = self._unreachable + 1 if lost else 0
        if self._unreachable >= _GIVE_UP_AFTER:
            raise EngineError(
                f"{self.url}: {self._unreachable} requests in a row failed ({kept[-1].error}); "
                "the server seems to be gone"
            )
        return kept

    async def _run(self, request: SampleRequest, stream: _Stream) -> None:
        error = None
        try:
            async for event, now in self._events(request):
                _take(stream, event, now)
        except httpx.HTTPStatusError as failure:
            error = f"HTTP {failure.response.status_code}"
        except (httpx.HTTPError, ValueError) as failure:
            error = type(failure).__name__
        self._results.put(_result(request.request_id, stream, time.time_ns(), error))

    async def _events(self, request: SampleRequest) -> AsyncIterator[tuple[dict[str, Any], int]]:
        headers = {"X-Request-Id": request.request_id}
        if request.traceparent is not None:
            headers["traceparent"] = request.traceparent
        path = "/v1/chat/completions" if request.chat else "/v1/completions"
        async with self._client.stream(
            "POST", path, json=self._body(request), headers=headers
        ) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                yield json.loads(data), time.time_ns()

    def _body(self, request: SampleRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._served,
            "n": 1,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.chat:
            body["messages"] = request.messages()
            if self.chat_template is not None:
                body["chat_template"] = self.chat_template
        else:
            body["prompt"] = request.prompt
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        elif not request.chat and self.config.max_model_len is not None:
            # completions stop at 16 tokens unless told otherwise; vLLM caps what does not fit
            body["max_tokens"] = max(1, self.config.max_model_len - len(request.prompt))
        if request.thinking_token_budget is not None:
            body["thinking_token_budget"] = request.thinking_token_budget
        if self._is_vllm:
            body["stream_options"]["continuous_usage_stats"] = True
        return body

    def close(self) -> None:
        """Close the connections and stop the thread (see `Engine`)."""
        if not self._loop.is_running():
            return
        for future, _ in self._live.values():
            future.cancel()
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    async def _finish(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()


def _take(stream: _Stream, event: dict[str, Any], now: int) -> None:
    """Add one event of a streamed completion."""
    before = stream.usage.get("completion_tokens") or 0
    if event.get("usage"):
        stream.usage = event["usage"]
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        content = choice.get("text") or delta.get("content") or ""
        stream.finish_reason = choice.get("finish_reason") or stream.finish_reason
        if not reasoning and not content:
            continue
        stream.chunks += 1
        stream.first_token = stream.first_token or now
        if reasoning:
            stream.in_reasoning = True
        elif stream.in_reasoning:  # the server's reasoning parser took the marks out
            stream.in_reasoning = False
            stream.text.append(THINK_END)
        stream.text.append(reasoning + content)
        if stream.think_end is None and THINK_END in "".join(stream.text[-8:]):
            stream.think_end = now
            # exact where the mark came alone; a chunk may carry more tokens than one
            after = stream.usage.get("completion_tokens")
            stream.think_tokens = before if after == before + 1 else None


def _result(request_id: str, stream: _Stream, end: int, error: str | None) -> SampleResult:
    details = stream.usage.get("prompt_tokens_details") or {}
    return SampleResult(
        request_id=request_id,
        text="".join(stream.text),
        finish_reason=stream.finish_reason,
        end=end,
        prompt_tokens=stream.usage.get("prompt_tokens"),
        cached_tokens=details.get("cached_tokens"),
        output_tokens=stream.usage.get("completion_tokens"),
        think_tokens=stream.think_tokens,
        first_token=stream.first_token,
        think_end=stream.think_end,
        error=error,
    )
