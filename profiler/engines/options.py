"""The options that a person gives an engine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from profiler.demo import task
from traces.errors import UsageError
from traces.files import read_small
from traces.schema.engine import Speculative
from traces.schema.record import Record

DEMO_PREFIX = "demo/"
_COUNTS = ("tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens", "block_size")
MOST_TEMPLATE_BYTES = 1 << 20  # the longest that models come with have some 30 KB


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Record):
    """What an engine is started with; None leaves a setting to the engine.

    `model` is a Hugging Face folder or name, or one of the bundled reasoners: demo/s, demo/m,
    demo/l. With `endpoint` the engine is a running OpenAI-compatible server. `chat_template` is
    a file with a Jinja template.
    """

    model: str | None = None
    endpoint: str | None = None
    api_key_env: str | None = None
    dtype: str | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool | None = None
    speculative: Speculative | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"gpu_memory_utilization must be above 0 and at most 1, not {share}")
        if self.model is None and self.endpoint is None:
            raise UsageError("needs --model, or --endpoint for a running server")

    def label(self) -> str:
        """Return the short form that names recordings."""
        parts = [Path(self.model or "server").name if self.model else "server"]
        if self.model and self.model.startswith(DEMO_PREFIX):
            parts = ["demo-" + self.model.removeprefix(DEMO_PREFIX)]
        parts.append(f"tp{self.tensor_parallel_size or 1}")
        if self.max_num_seqs is not None:
            parts.append(f"seqs{self.max_num_seqs}")
        if self.speculative is not None:
            parts.append(f"{self.speculative.method}-{self.speculative.short_length}")
        return " ".join(parts)


def parse_speculative(text: str | None) -> Speculative | None:
    """Read vLLM's --speculative-config. Raises UsageError when it is not such JSON."""
    if text is None:
        return None
    example = '\'{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}\''
    try:
        data = json.loads(text)
    except ValueError:
        raise UsageError(f"--speculative: not JSON. Give for example {example}") from None
    names = Speculative.__dataclass_fields__
    if not isinstance(data, dict) or not {"method", "num_speculative_tokens"} <= data.keys():
        raise UsageError(f"--speculative: needs method and num_speculative_tokens, as {example}")
    if unknown := data.keys() - names.keys():
        raise UsageError(f"--speculative: no field {sorted(unknown)[0]!r}, only {', '.join(names)}")
    if not isinstance(data["num_speculative_tokens"], int):
        raise UsageError("--speculative: num_speculative_tokens must be a whole number")
    return Speculative.from_json(data)


def model_path(name: str) -> str:
    """Return where a model lies: the bundled folder for demo/s, demo/m and demo/l."""
    if name.startswith(DEMO_PREFIX):
        try:
            return str(task.model_path(name.removeprefix(DEMO_PREFIX)))
        except ValueError:
            choices = ", ".join(DEMO_PREFIX + size for size in task.MODELS)
            raise UsageError(f"no bundled model {name}. Choose one of {choices}") from None
    return name


def read_template(name: str | None) -> str | None:
    """Read a chat template and look whether it is Jinja. Raises UsageError."""
    if name is None:
        return None
    import jinja2

    try:
        text = read_small(Path(name), MOST_TEMPLATE_BYTES).decode()
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except OSError as error:
        raise UsageError(f"--chat-template {name}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, RecursionError, jinja2.TemplateError) as error:
        raise UsageError(
            f"--chat-template {name}: not a Jinja template ({type(error).__name__}: {error})"
        ) from None
    except ValueError as error:
        raise UsageError(f"--chat-template {name}: {error}") from None
    return text
