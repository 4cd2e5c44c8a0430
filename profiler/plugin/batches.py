"""What the plugin sends, and what rows of `steps` it amounts to.

A stat logger sits in the server's front end: it sees that a step ended, how many requests run and
wait, the blocks in use, what was generated, accepted, finished and preempted. With
--enable-logging-iteration-details it is told the composition and the time of the step too. It never
sees when a step began, which requests were in it, or what was aborted. The context that a step
reads is inferred from running sums of prompt and generated tokens, set to 0 when nothing runs.
Behind steps that are missing it is not known until then, nor where many requests of the sums get no
token, since they were aborted or preempted. A batch of a pipeline reads its requests' share.

Of several front ends one gets the scheduler's part of a step, and each what its own requests got.
What came without it (`running` is null) is added to the step whose end is nearest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from traces.errors import UsageError
from traces.recording.tables import LATEST_NS
from traces.schema.engine import EngineConfig, ModelFacts

STEPS_PATH = "/v1/ttscope/steps"
MOST_ROWS = 5_000  # of a batch
MOST_BYTES = 4 << 20  # of a batch
MOST_HELD = 20_000  # rows that wait for those of other front ends, of all engines
_FEWEST_SEEN = 0.9  # of the requests whose context is summed, those that got a token
MOST_VALUE = 1 << 50  # of a configuration, such as bytes of weights
LONGEST_NAME = 1_024  # of a configuration, where a model may be a path
_MOST_NAMES = 16  # other settings of a configuration
_MOST_LISTS = 3 * MOST_ROWS + 100  # in a batch

_Time = Annotated[int, Meta(gt=0, le=LATEST_NS)]
_Count = Annotated[int, Meta(ge=0, le=1 << 40)]
_MaybeCount = _Count | None
_MaybeTime = _Time | None
_Much = Annotated[float, Meta(ge=0, le=1e24)] | None
_Places = Annotated[list[_Count], Meta(max_length=1_024)] | None


class Step(NamedTuple):
    """A row of a batch, whose items have the order of these fields."""

    end: _Time
    running: _MaybeCount
    waiting: _MaybeCount
    kv_usage: Annotated[float, Meta(ge=0, le=2)] | None
    first_tokens: _Count  # requests whose prefill ended in the step
    computed: _Count  # their prompt tokens that were computed
    cached: _Count  # and those from the cache
    prompts: _Count  # all of them
    continued: _Count  # requests that got a further token
    generated: _Count
    finished: _Count
    finished_context: _Count  # tokens of the finished requests
    preempted: _Count
    drafted: _Places
    accepted: _Places
    ctx_requests: _MaybeCount
    ctx_tokens: _MaybeCount
    gen_requests: _MaybeCount
    gen_tokens: _MaybeCount
    elapsed_ms: Annotated[float, Meta(ge=0, le=1e10)] | None
    dummy: bool | None
    flops: _Much
    read_bytes: _Much


COLUMNS = Step._fields
_COUNTED = COLUMNS[4:13]  # what is counted by request, so by front end


class Batch(Struct):
    """What the plugin of one engine of one front-end process sends at a time.

    `first` is the number of its first row among all that it sends. A batch whose answer came too
    late is sent again, and more with it. `dropped` counts the steps that were never sent, since
    the engine began, and `dropped_until` is the end of the newest of them. `now` is the sender's
    clock. The receiver says how far that is `ahead` of ours, and the address of the `sender`'s
    machine. Times are unix nanoseconds. `model` is what the served model costs, `replica` the
    sender's of Ray Serve.
    `process_id` and `tracer`, the `service.instance.id`, are what spans of the sender tell of it.
    """

    v: int
    instance: Annotated[str, Meta(min_length=1, max_length=64)]
    engine: Annotated[int, Meta(ge=0, lt=1 << 20)]
    columns: list[Literal[COLUMNS]]  # type: ignore[valid-type]
    rows: list[Step]
    first: _MaybeCount = None
    dropped: _Count = 0
    dropped_until: _MaybeTime = None
    now: _MaybeTime = None
    ahead: int | None = None
    sender: str | None = None
    on: bool = True
    details: bool | None = None
    process_start_s: Annotated[float, Meta(ge=0, le=LATEST_NS / 1e9)] | None = None
    ports: Annotated[list[Annotated[int, Meta(ge=0, lt=65_536)]], Meta(max_length=64)] = []
    config: EngineConfig | None = None
    model: ModelFacts | None = None
    replica: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    process_id: _Count | None = None
    tracer: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


_DECODER = msgspec.json.Decoder(Batch)


def read_batch(body: bytes | bytearray) -> Batch:
    """Read a batch. Raises ValueError where it is none, or where something in it is out of range.

    What it returns fits the columns of a recording, and its names can be shown.
    """
    if len(body) > MOST_BYTES or body.count(b"[") > _MOST_LISTS:
        raise ValueError("more than a batch has")
    try:
        batch = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, UsageError):
        raise ValueError("not a batch of steps") from None
    if batch.v != 1 or tuple(batch.columns) != COLUMNS or len(batch.rows) > MOST_ROWS:
        raise ValueError("a batch of another version")
    if not batch.instance.isprintable() or not (batch.replica or "").isprintable():
        raise ValueError("an odd name")
    for row in batch.rows:
        if len({each is None for each in row[1:4]}) > 1:
            raise ValueError("a load with a part missing")
        if len({each is None for each in row[15:20]}) > 1:
            raise ValueError("details with a part missing")
    if batch.config is not None:
        if len(batch.config.other) > _MOST_NAMES:
            raise ValueError("a configuration of too many settings")
        _check_values(batch.config.to_json())
    if batch.model is not None:
        _check_values(batch.model.to_json())
    return batch


def _check_values(told: Any) -> None:
    """Raise ValueError where a name is long or odd, or a number out of range, however deep."""
    if isinstance(told, dict):
        _check_values([*told, *told.values()])
    elif isinstance(told, list | tuple):
        for each in told:
            _check_values(each)
    elif isinstance(told, str):
        if len(told) > LONGEST_NAME or not told.isprintable():
            raise ValueError("a configuration with an odd name")
    elif told is not None and not 0 <= told <= MOST_VALUE:
        raise ValueError("a configuration with a number out of range")


def computed(told: Mapping[str, Any]) -> bool:
    """Whether a step computed something, so that it is a row of `steps`."""
    worked = told["generated"] or told["computed"] or told["ctx_tokens"] or told["running"]
    return bool(worked) and not told["dummy"]


@dataclass
class PluginRows:
    """Turns what the plugin of one engine sent into rows of `steps`, in the order of their ends.

    `usable_blocks` is the size of the KV cache in blocks; None leaves `kv_blocks` null.
    `asynchronous` says that vLLM schedules ahead: its elapsed_ms is then no step's time, and
    `pipelined` that a step has some of the requests that run. `before` counts the steps that ended
    before the recording began: they are in no row, but what later ones read rests on them. `lost`
    counts what other front ends saw of steps that never came.
    """

    engine: str
    usable_blocks: int | None = None
    asynchronous: bool | None = None
    pipelined: bool = False
    before: int = 0
    lost: int = 0
    _step: int = 0
    _context: int | None = 0
    _alive: int = 0  # requests that it is of
    _gaps: list[int] = field(default_factory=list)  # ends of the newest steps that are missing
    _last_end: int | None = None
    _ran: bool = False
    _drafts: bool = False  # whether the engine speculates
    _waiting: list[dict[str, Any]] = field(default_factory=list)
    _parts: list[dict[str, Any]] = field(default_factory=list)

    def miss(self, until: int) -> None:
        """Note that steps are missing, which ended up to then, unix ns."""
        insort(self._gaps, until)

    def has_earlier(self, raw: list[Step], start_ns: int) -> bool:
        """Whether one of these steps, or one that came before them, ended before `start_ns`."""
        ends = [self._last_end, *(each["end"] for each in self._waiting), *(row[0] for row in raw)]
        return any(end is not None and end < start_ns for end in ends)

    def rows(
        self,
        raw: list[Step],
        *,
        since: int | None = None,
        until: int | None = None,
        most: int = MOST_HELD,
    ) -> list[dict[str, Any]]:
        """Return the rows of steps that computed something and ended after `since`, unix ns.

        Steps that ended after `until` wait for the next call, `most` of them: of several front ends
        others may still send what belongs before or to them.
        """
        steps = [dict(zip(COLUMNS, each, strict=True)) for each in raw]
        self._waiting += [each for each in steps if each["running"] is not None]
        self._parts += [each for each in steps if each["running"] is None]
        self._waiting.sort(key=lambda each: each["end"])
        cut = len(self._waiting)
        if until is not None:
            cut = bisect_right(self._waiting, until, key=lambda each: each["end"])
        cut = max(cut, len(self._waiting) - most)
        self._add_parts(until)
        surplus = max(len(self._parts) - most, 0)
        self._parts, self.lost = self._parts[surplus:], self.lost + surplus
        ready, self._waiting = self._waiting[:cut], self._waiting[cut:]
        return [row for each in ready if (row := self._row(each, since))]

    def _add_parts(self, until: int | None) -> None:
        """Add what other front ends saw to the step whose end is nearest."""
        if not self._waiting:
            return
        ends, later = [each["end"] for each in self._waiting], []
        for part in self._parts:
            if until is not None and part["end"] > until:
                later.append(part)
                continue
            place = bisect_left(ends, part["end"])
            near = [each for each in (place - 1, place) if 0 <= each < len(ends)]
            step = self._waiting[min(near, key=lambda each: abs(ends[each] - part["end"]))]
            for name in _COUNTED:
                step[name] += part[name]
        self._parts = later

    def _row(self, told: dict[str, Any], since: int | None) -> dict[str, Any] | None:
        while self._gaps and told["end"] > self._gaps[0]:
            self._gaps.pop(0)
            self._context, self._alive, self._ran = None, 0, False
        if not computed(told):
            self._last_end, self._ran, self._context, self._alive = told["end"], False, 0, 0
            return None
        detailed = told["gen_requests"] is not None
        drafted = sum(told["drafted"] or ())
        self._drafts = self._drafts or told["drafted"] is not None
        decodes = told["gen_requests"] if detailed else told["continued"]
        decode_tokens = told["gen_tokens"] if detailed else told["continued"] + drafted
        prefills = told["ctx_requests"] if detailed else told["first_tokens"]
        prefill_tokens = told["ctx_tokens"] if detailed else told["computed"]
        if detailed and not self._drafts and decode_tokens > decodes > 0:
            # vLLM has a preempted request that is computed again among those that generate. How
            # many there are it does not tell: one, as a rule.
            again = decode_tokens - decodes + 1
            prefills, prefill_tokens = prefills + 1, prefill_tokens + again
            decodes, decode_tokens = decodes - 1, decode_tokens - again
        # The newest token of each request is known and not computed yet: it is among the step's.
        read = 0 if not decodes else None
        share = min(decodes / self._alive, 1.0) if self._alive > 0 else 1.0
        counts_newest = share >= _FEWEST_SEEN or self.pipelined
        if decodes and counts_newest and self._context is not None:
            read = max(round(self._context * share) + decode_tokens - decodes, 0)
        interval = None
        if self._ran and self._last_end is not None:
            interval = max(told["end"] - self._last_end, 0)
        wall = None
        if detailed and self.asynchronous is False:
            wall = round(told["elapsed_ms"] * 1e6)
        row = {
            "engine": self.engine,
            "step": self._step,
            "end": told["end"],
            "interval_ns": interval,
            "wall_ns": wall,
            "prefill_requests": prefills,
            "prefill_tokens": prefill_tokens,
            "decode_requests": decodes,
            "decode_tokens": decode_tokens,
            "running": told["running"],
            "waiting": told["waiting"],
            "decode_kv_tokens": read,
            "kv_blocks": None
            if self.usable_blocks is None
            else round(told["kv_usage"] * self.usable_blocks),
            "cached_prompt_tokens": told["cached"],
            "drafted": told["drafted"],
            "accepted": told["accepted"],
            "finished": told["finished"],
            "preempted": told["preempted"],
            "flops": told["flops"] or None,
            "read_bytes": told["read_bytes"] or None,
            "source": "measured" if detailed else "inferred",
        }
        before = since is not None and told["end"] <= since
        # No time from before the recording is in it, so that its first step has no interval.
        self._last_end, self._ran = told["end"], told["running"] > 0 and not before
        if before:
            self.before += 1
        else:
            self._step += 1
        if self._context is not None:
            self._context += told["prompts"] + told["generated"] - told["finished_context"]
            self._alive += told["first_tokens"] - told["finished"]
        if not told["running"] or (self._context or 0) < 0:
            self._context = self._alive = 0
        return None if before else row
