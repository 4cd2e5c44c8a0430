"""What a running OpenAI-compatible server tells of itself."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from profiler.engines.model_facts import facts_from_folder
from traces.errors import EngineError
from traces.schema.engine import EngineConfig, ModelFacts

_MOST_SCHEMA_BYTES = 8 << 20
_CACHE: dict[str, Callable[[str], Any]] = {
    "block_size": int,
    "num_gpu_blocks": int,
    "enable_prefix_caching": lambda text: text == "True",
}


def ask_model(client: httpx.Client, url: str, model: str | None) -> dict[str, Any]:
    """Return the card of the model of that name, by default the first that is served.

    Raises EngineError, which repeats nothing of an answer but names of models.
    """
    try:
        answer = client.get("/v1/models")
        answer.raise_for_status()
        cards = answer.json()["data"]
        served = [str(card["id"]) for card in cards]
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        hint = "; it wants a key, see --api-key-env" if status in {401, 403} else ""
        raise EngineError(f"{url}: GET /v1/models answers HTTP {status}{hint}") from None
    except httpx.HTTPError as error:
        why = type(error).__name__
        if "CERTIFICATE" in str(error).upper():
            why += ": its certificate is not trusted here; SSL_CERT_FILE names another authority"
        raise EngineError(
            f"{url}: no server answers ({why}); start one, or correct the URL"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise EngineError(f"{url}: /v1/models is not an OpenAI-compatible answer") from None
    found: dict[str, Any] | None = next((c for c in cards if model in {None, c["id"]}), None)
    if found is None:
        raise EngineError(f"{url}: does not serve {model}; it serves {', '.join(served)}")
    return found


def ask_version(client: httpx.Client) -> str | None:
    """Return vLLM's version, None for another server."""
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
        return str(client.get("/version").json()["version"])
    return None


def routes(client: httpx.Client) -> dict[str, Any] | None:
    """Return the OpenAPI document of a server, None where it gives none that names paths.

    Asking a route itself might start what it is for.
    """
    with contextlib.suppress(httpx.HTTPError, ValueError):
        body = bytearray()
        with client.stream("GET", "/openapi.json") as answer:
            if answer.status_code != 200:
                return None
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > _MOST_SCHEMA_BYTES:
                    return None
        document = json.loads(body)
        if isinstance(document, dict) and isinstance(document.get("paths"), dict):
            return document
    return None


def cache_settings(labels: Mapping[str, str]) -> dict[str, Any]:
    """Return what the labels of vLLM's cache_config_info say, in the names of EngineConfig."""
    found: dict[str, Any] = {}
    for key, read in _CACHE.items():
        with contextlib.suppress(ValueError):
            if labels.get(key, "None") != "None":
                found[key] = read(labels[key])
    return found


def describe(
    card: Mapping[str, Any], version: str | None, *, name: str | None, settings: Mapping[str, Any]
) -> tuple[EngineConfig, ModelFacts | None]:
    """Return the engine as far as it is known, and the model's facts where its folder is here."""
    label = name or str(card["id"])
    config = EngineConfig(
        model=label,
        max_model_len=card.get("max_model_len"),
        mode="server",
        vllm_version=version,
        **{key: value for key, value in settings.items() if value is not None},
    )
    root = Path(str(card.get("root") or card["id"]))
    return config, facts_from_folder(root, name=label, dtype=config.dtype)
