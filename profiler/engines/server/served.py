"""What a running OpenAI-compatible server tells of itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from profiler.engines.models.model_facts import facts_from_folder
from profiler.engines.options import model_path
from traces.errors import EngineError
from traces.recording.tables import MOST_TOKENS
from traces.schema.engine import BLOCKS, EngineConfig, ModelFacts
from traces.schema.record import fitting

LONGEST_NAME = 256  # characters of a model's name and of a version
PLAIN = {"Accept-Encoding": "identity"}  # so that no answer can swell
_HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_CACHE: dict[str, Callable[[str], Any]] = {
    "block_size": int,
    "num_gpu_blocks": int,
    "enable_prefix_caching": lambda text: text == "True",
}


class Unanswered(EngineError):
    """Nothing answers at a URL."""


def ask_model(client: httpx.Client, url: str, model: str | None) -> dict[str, Any]:
    """Return the card of the model of that name, by default the first that is served.

    Raises EngineError, which repeats nothing of an answer but names of models: Unanswered where
    there is none.
    """
    try:
        cards = json.loads(asked(client, "/v1/models"))["data"]
        served = [_name(card["id"]) for card in cards]
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        hint = ", as it wants a key (see --api-key-env)" if status in {401, 403} else ""
        raise EngineError(f"{url}: GET /v1/models answers HTTP {status}{hint}") from None
    except httpx.HTTPError as error:
        why = type(error).__name__
        if "CERTIFICATE" in str(error).upper():
            why += ": its certificate is not trusted here (SSL_CERT_FILE names another authority)"
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) and url.startswith(
            "http://"
        ):
            why += ": it may speak https"
        raise Unanswered(
            f"{url}: no server answers ({why}). Start one, or correct the URL"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EngineError(f"{url}: /v1/models is not an OpenAI-compatible answer") from None
    if not served:  # as of a front end of Dynamo without workers
        raise EngineError(f"{url}: serves no model yet. Try again once an engine has joined it")
    chosen: dict[str, Any] | None = next((c for c in cards if model in {None, c["id"]}), None)
    if chosen is None and model is not None:  # a bundled one may be served by its folder
        folder = model_path(model)
        chosen = next((c for c in cards if c["id"] == folder), None)
    if chosen is None:
        raise EngineError(f"{url}: does not serve {model}. It serves {', '.join(served)}")
    return chosen


def ask_version(client: httpx.Client) -> str | None:
    """Return vLLM's version, None for another server."""
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError):
        return _name(json.loads(asked(client, "/version"))["version"])
    return None


def _name(told: Any) -> str:
    """Return a name that a server tells. Raises ValueError for what is none."""
    if not isinstance(told, str) or not 0 < len(told) <= LONGEST_NAME:
        raise ValueError("no name, or one that is too long")
    told.encode()  # halves of characters cannot be written
    return told


def count(told: Any) -> int | None:
    """Return a number of tokens that a server tells, None for what is none."""
    if isinstance(told, float) and told.is_integer():
        told = int(told)
    if type(told) is not int or not 0 <= told <= MOST_TOKENS:
        return None
    return told


def asked(client: httpx.Client, path: str) -> bytes:
    """Return the body of a GET that is answered 200.

    Raises httpx.HTTPError, also where it is too large or takes too long, and ValueError where it is
    compressed.
    """
    with client.stream("GET", path, headers=PLAIN) as answer:
        answer.raise_for_status()
        check_plain(answer)
        return b"".join(answer.iter_raw())


def check_plain(answer: httpx.Response) -> None:
    """Raise ValueError where an answer is compressed although none was asked for."""
    if answer.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise ValueError("a compressed answer")


def routes(client: httpx.Client) -> dict[str, Any] | None:
    """Return the OpenAPI document of a server, None where it gives none that names paths.

    Asking a route itself might start what it is for.
    """
    with contextlib.suppress(httpx.HTTPError, ValueError, RecursionError):
        document = json.loads(asked(client, "/openapi.json"))
        if isinstance(document, dict) and isinstance(document.get("paths"), dict):
            return document
    return None


def cache_settings(caches: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return what vLLM's cache_config_info says, in the names of EngineConfig.

    `other` is there where the server was started with a number of KV blocks.
    `caches` are its labels by engine, of which each data-parallel replica is one.
    """
    settings: dict[str, Any] = {}
    labels = next(iter(caches.values()), {})
    for key, read in _CACHE.items():
        with contextlib.suppress(ValueError):
            if labels.get(key, "None") != "None":
                settings[key] = read(labels[key])
    if labels.get(BLOCKS, "None") != "None":
        settings["other"] = ((BLOCKS, labels[BLOCKS]),)
    engines = len(set(caches) - {""})
    return settings | ({"data_parallel_size": engines} if engines > 1 else {})


def describe(
    card: Mapping[str, Any],
    version: str | None,
    *,
    name: str | None,
    told: Mapping[str, Any],
    declared: Mapping[str, Any],
) -> tuple[EngineConfig, ModelFacts | None]:
    """Return the engine as far as it is known, and the model's facts where its folder is here.

    Settings that the server `told` and that cannot be are not known. The `declared` ones win.
    """
    label = name or _name(card["id"])
    told = fitting(EngineConfig, {"max_model_len": count(card.get("max_model_len")), **told})
    given = {key: each for key, each in declared.items() if each is not None}
    config = EngineConfig(
        model=label,
        mode="server",
        vllm_version=version,
        **{key: each for key, each in told.items() if each is not None} | given,
    )
    root = card.get("root") or card["id"]
    folder = _folder(root if isinstance(root, str) else card["id"])
    return config, facts_from_folder(folder, name=label, dtype=config.dtype)


def _folder(model: str) -> Path:
    """Return where a model's files lie if they are here: its folder, or one of the hub's cache."""
    if _HUB_NAME.fullmatch(model) is None or Path(model).is_dir():
        return Path(model)
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    cached = cache / f"models--{model.replace('/', '--')}"
    with contextlib.suppress(OSError, ValueError):
        return cached / "snapshots" / (cached / "refs" / "main").read_text()[:64].strip()
    return Path(model)
