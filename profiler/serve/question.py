"""What of a request is a question that a policy answers, and how its answer looks."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgspec
from opentelemetry.context import Context

from profiler.engines.interface import THINK_END, THINK_START, Prompt
from traces.files import check_values
from traces.schema.tts.routes import CLASS, EFFORTS

MOST_VALUES = 200_000  # of a request's JSON
MOST_SEED = 1 << 62
NO_SEED = -1  # a seed that stands for none, as vLLM has it
_NAME = re.compile(r"[A-Za-z0-9_:@~-][A-Za-z0-9_.:@~-]{0,63}")
_FIELD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HALF = re.compile(  # one that is high without a low one behind it, or low without a high one
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_PIECE = 512  # characters of a streamed chunk
_OURS = frozenset(  # read here, or of no meaning for a question
    {
        *("model", "messages", "prompt", "n", "stream", "stream_options", "temperature", "top_p"),
        *("max_tokens", "max_completion_tokens", "seed", "ttscope", "reasoning_effort"),
        *("best_of", "echo", "logprobs", "top_logprobs", "tool_choice", "request_id"),
        *("return_token_ids", "tools", "functions", "modalities", "audio", "suffix"),
        *("prompt_logprobs", "use_beam_search", "prompt_embeds", "function_call"),
    }
)
DRAWN = frozenset(  # that go to the engine, and change how samples are drawn
    {
        *("top_k", "min_p", "typical_p", "frequency_penalty", "presence_penalty", "stop"),
        *("repetition_penalty", "length_penalty", "logit_bias", "bad_words", "stop_token_ids"),
        *("allowed_token_ids", "min_tokens", "ignore_eos", "response_format", "verbosity"),
        *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        *("json_schema", "regex", "ebnf", "chat_template", "chat_template_kwargs", "documents"),
        *("add_generation_prompt", "continue_final_message", "add_special_tokens", "reasoning"),
        *("skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens"),
    }
)
CARRIED = frozenset(  # that go to the engine, and change no sample
    {
        *("user", "metadata", "store", "service_tier", "priority", "safety_identifier"),
        *("prompt_cache_key", "cache_salt", "parallel_tool_calls", "include_reasoning"),
        *("separate_reasoning", "stream_reasoning"),
    }
)
_NO_QUESTION = (  # a field, and what makes the request none
    *(("tools", bool), ("functions", bool), ("modalities", lambda v: v not in (None, ["text"]))),
    *(
        ("audio", bool),
        ("n", lambda v: v not in (None, 1)),
        ("best_of", lambda v: v not in (None, 1)),
    ),
    # 0 asks a completion for the log-probabilities of its own tokens.
    *(("logprobs", lambda v: v is not None and v is not False), ("top_logprobs", bool)),
    ("echo", bool),
    *(("suffix", bool), ("prompt_logprobs", lambda v: v is not None), ("use_beam_search", bool)),
    *(("prompt_embeds", bool), ("return_token_ids", bool)),
)


class BadRequest(Exception):
    """A request that is refused: its HTTP status, and one line that repeats nothing of it."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Override(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The field `ttscope` of a request: what it wants of the policy, and what it is called."""

    n: int | None = None
    passed: bool = msgspec.field(default=False, name="pass")
    id: str | None = None
    group: str | None = None
    answer: str | None = None


@dataclass(kw_only=True)
class ServedQuestion:
    """A request that a policy answers.

    `extra` are its fields that go with every sample as they are, `stop` among them. `sampling` are
    those of them that change how samples are drawn, as they are recorded: numbers, and a hash of
    anything else. `refusal` is what the engine answered to a sample that it refused, for the client
    alone. `context` is the client's trace. `parsed` says that the engine sends thought and answer
    apart.
    """

    chat: bool
    prompt: Prompt
    override: Override
    stream: bool
    with_usage: bool
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: tuple[str, ...]
    reasoning_effort: str | None
    extra: Mapping[str, Any]
    sampling: tuple[tuple[str, float | str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    context: Context = field(default_factory=Context)
    refusal: tuple[int, bytes] | None = None
    parsed: bool = False
    _shared: dict[Any, bytes] = field(default_factory=dict)

    def encoded(self, asked: Mapping[str, Any], prompt_is_ours: bool) -> tuple[bytes, ...]:
        """Return the JSON of a sample's request in parts: what is asked, and what all samples say.

        That second part is the further fields, and the prompt where it is the question's own. It is
        encoded once, as it may have megabytes.
        """
        prompt = "messages" if self.chat else "prompt"
        own = {name: v for name, v in asked.items() if name != prompt or not prompt_is_ours}
        key = prompt_is_ours, tuple(name for name in self.extra if name in own)
        if key not in self._shared:
            said = {name: v for name, v in self.extra.items() if name not in own}
            more = {prompt: asked[prompt]} if prompt_is_ours else {}
            self._shared[key] = msgspec.json.encode({**said, **more})[1:]
        return (
            msgspec.json.encode(own)[:-1],
            b"," if len(self._shared[key]) > 1 else b"",
            self._shared[key],
        )


def read_body(raw: bytes) -> dict[str, Any]:
    """Return the JSON object of a body. Raises BadRequest."""
    try:
        check_values(raw, MOST_VALUES)
        body = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        if _HALF.search(raw):
            raise BadRequest(
                "the body holds half of a character (a lone surrogate, \\ud800 to \\udfff). Send "
                "both halves, or leave it out"
            ) from None
        raise BadRequest("the body is not JSON, or holds too many values") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def memory_of(body: Any) -> int:
    """Return the bytes that what was read takes here: a text may take four for each it came in."""
    left, count = [body], 0
    while left:
        value = left.pop()
        count += sys.getsizeof(value)
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
    return count


def why_passed(body: Mapping[str, Any], *, chat: bool, model: str) -> str | None:
    """Return why a request is no question for the policy, in a word; None where it is one."""
    if body.get("model") not in (None, model):
        return "model"
    own_fields = body.get("ttscope")
    if isinstance(own_fields, dict) and own_fields.get("pass") is True:
        return "asked"
    for name, differs in _NO_QUESTION:
        if name in body and differs(body[name]):
            return name
    if not chat:
        return None if isinstance(body.get("prompt"), str) else "prompt"
    messages = body.get("messages")  # what is no list of messages is refused when it is read
    whys = [_why_message(each) for each in messages] if isinstance(messages, list) else []
    return next((why for why in whys if why is not None), None)


def _why_message(message: Any) -> str | None:
    if not isinstance(message, dict):
        return None
    called = message.get("tool_calls") or message.get("function_call")
    if called or message.get("role") in ("tool", "function"):
        return "tools"
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    images = any(isinstance(part, dict) and part.get("type") != "text" for part in parts)
    return "images" if images else None


def read_question(body: Mapping[str, Any], *, chat: bool, most_n: int) -> ServedQuestion:
    """Return the question of a body that `why_passed` lets be one. Raises BadRequest."""
    try:
        override = msgspec.convert(body.get("ttscope") or {}, Override)
    except msgspec.ValidationError:
        raise BadRequest(
            "ttscope must be an object of n, id, group, answer and pass, each of its type"
        ) from None
    if override.n is not None and not 1 <= override.n <= most_n:
        raise BadRequest(f"ttscope.n must lie between 1 and {most_n}, which the policy allows")
    if override.id is not None and not _NAME.fullmatch(override.id):
        raise BadRequest("ttscope.id must be at most 64 letters, digits and _.:@~-")
    if override.group is not None and not CLASS.fullmatch(override.group):
        raise BadRequest("ttscope.group must be at most 64 letters, digits, spaces and _.:@~-")
    limits = [_whole(body, name) for name in ("max_tokens", "max_completion_tokens")]
    given = [limit for limit in limits if limit is not None]
    options = body.get("stream_options") or {}
    stream = body.get("stream") or False
    if not isinstance(stream, bool) or not isinstance(options, dict):
        raise BadRequest("stream must be true or false, and stream_options an object")
    effort = body.get("reasoning_effort")
    if not isinstance(effort, str | None):
        raise BadRequest("reasoning_effort must be a text")
    stop = body.get("stop") or []
    stops = stop if isinstance(stop, list) else [stop]
    if not all(isinstance(each, str) for each in stops):
        raise BadRequest("stop must be a text or a list of texts")
    seed = _whole(body, "seed", low=-MOST_SEED)
    seed = None if seed == NO_SEED else seed
    extra = {name: v for name, v in body.items() if name not in _OURS and v is not None}
    if unknown := sorted(extra.keys() - DRAWN - CARRIED):
        named = [name for name in unknown if _FIELD.fullmatch(name)] or ["a field"]
        raise BadRequest(
            f"{', '.join(named[:3])}: no field that goes on to the engine. Leave it out, or have "
            "the request passed on without the policy: ttscope.pass"
        )
    sampling = {name: _recorded(extra[name]) for name in extra.keys() & DRAWN if extra[name] != []}
    if seed is not None:  # each question may have its own
        sampling["seed"] = "given"
    if effort is not None and (effort not in EFFORTS or not chat):
        sampling["reasoning_effort"] = _recorded(effort)
    return ServedQuestion(
        chat=chat,
        prompt=_messages(body.get("messages")) if chat else str(body["prompt"]),
        override=override,
        stream=stream,
        with_usage=bool(options.get("include_usage")),
        max_tokens=min(given, default=None),
        temperature=_number(body, "temperature"),
        top_p=_number(body, "top_p"),
        seed=seed,
        stop=tuple(stops),
        reasoning_effort=effort,
        extra=extra,
        sampling=tuple(sorted(sampling.items())),
    )


def _recorded(value: Any) -> float | str:
    """Return a number as it is, and a hash of anything else: texts of clients are not kept."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = msgspec.json.encode(value, order="deterministic")
        return str(value).lower() if isinstance(value, bool) else f"#{sha256(text).hexdigest()[:8]}"
    return float(value)


def _number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise BadRequest(f"{name} must be a number")
    return None if value is None else float(value)


def _whole(body: Mapping[str, Any], name: str, low: int = 1) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= MOST_SEED:
        raise BadRequest(f"{name} must be a whole number from {low} to {MOST_SEED}")
    return value


def _messages(messages: Any) -> tuple[Mapping[str, str], ...]:
    shape = "messages must be a list of {role, content}, their content a text or parts of text"
    if not isinstance(messages, list) or not messages:
        raise BadRequest(shape)
    read = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(shape)
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else part for part in content]
            texts = [text for text in parts if isinstance(text, str)]
            if len(texts) < len(parts):
                raise BadRequest(shape)
            content = "\n".join(texts)
        if content is None and message["role"] == "assistant":
            content = ""  # it refused
        if not isinstance(content, str):
            raise BadRequest(shape)
        read.append(message | {"content": content})
    return tuple(read)


# What goes back to the client.


@dataclass(frozen=True, kw_only=True)
class ServedAnswer:
    """A question's answer: the text of the chosen sample, and what it took.

    `told` is the field `ttscope` of the answer.
    """

    request_id: str
    model: str
    text: str
    opened: bool
    finish_reason: str
    prompt_tokens: int | None
    output_tokens: int | None
    told: Mapping[str, Any]
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(self) -> dict[str, int] | None:
        """Return the tokens of all samples together, None where the engine does not tell them."""
        if self.output_tokens is None:
            return None
        prompt = self.prompt_tokens or 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.output_tokens,
            "total_tokens": prompt + self.output_tokens,
        }


def _parts(question: ServedQuestion, answer: ServedAnswer) -> tuple[str, str]:
    """Return thought and answer as the engine sent them: the thought "" where it was no field."""
    if not question.parsed:
        return "", answer.text
    thought, mark, content = answer.text.rpartition(THINK_END)
    if not mark and answer.opened:
        return answer.text, ""
    return thought.replace(THINK_START, "").replace(THINK_END, ""), content


def whole_answer(question: ServedQuestion, answer: ServedAnswer) -> bytes:
    """Return the body of an answer that is not streamed."""
    thought, content = _parts(question, answer)
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": answer.finish_reason}
    if question.chat:
        message = {"role": "assistant", "content": content}
        if thought:
            message |= {"reasoning": thought, "reasoning_content": thought}
        choice["message"] = message
    else:
        choice["text"] = answer.text
    return msgspec.json.encode(
        {
            **_head(question, answer, chunk=False),
            "choices": [choice],
            "usage": answer.usage(),
            "ttscope": answer.told,
        }
    )


def streamed_answer(question: ServedQuestion, answer: ServedAnswer) -> Iterator[bytes]:
    """Give the events of an answer that is streamed."""
    thought, content = _parts(question, answer)
    head = _head(question, answer, chunk=True)

    def event(choice: dict[str, Any], **more: Any) -> bytes:
        full_choice = {"index": 0, "logprobs": None, "finish_reason": None} | choice
        return _event({**head, "choices": [full_choice], **more})

    if question.chat:
        yield event({"delta": {"role": "assistant", "content": ""}})
        for piece in _pieces(thought):
            yield event({"delta": {"reasoning": piece, "reasoning_content": piece}})
        for piece in _pieces(content):
            yield event({"delta": {"content": piece}})
        last: dict[str, Any] = {"delta": {}}
    else:
        for piece in _pieces(answer.text):
            yield event({"text": piece})
        last = {"text": ""}
    yield event(last | {"finish_reason": answer.finish_reason}, ttscope=answer.told)
    if question.with_usage:
        yield _event({**head, "choices": [], "usage": answer.usage()})
    yield b"data: [DONE]\n\n"


def _head(question: ServedQuestion, answer: ServedAnswer, *, chunk: bool) -> dict[str, Any]:
    kind = "text_completion"
    if question.chat:
        kind = "chat.completion.chunk" if chunk else "chat.completion"
    return {
        "id": f"{'chatcmpl' if question.chat else 'cmpl'}-{answer.request_id}",
        "object": kind,
        "created": answer.created,
        "model": answer.model,
    }


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"
