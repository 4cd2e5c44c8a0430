"""The events of a trace as columns: what is kept of each kernel, launch, operator and step."""

from __future__ import annotations

import re
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from traces.kineto.intervals import Ints
from traces.kineto.marks import StepMark, read_mark
from traces.kineto.names import CollectiveMessage, family_of, read_message
from traces.kineto.stream import Arguments, Event, ExactEvent

# Category, lower case, to what its events are; names of old and new Kineto.
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset", "concurrent_kernel")
_LAUNCH = (
    *("cuda_runtime", "cuda_driver", "runtime", "driver", "hip_runtime", "hip_driver"),
    *("xpu_runtime", "xpu_driver", "privateuse1_runtime", "privateuse1_driver"),
)
_CPU = ("cpu_op", "operator")
_MARKS = ("user_annotation", "gpu_user_annotation")
_UNUSED = (  # known, and nothing is lost by leaving them
    *("ac2g", "async_gpu", "async_cpu_to_gpu", "fwdbwd", "trace", "python_function", "overhead"),
    *("python function", "cpu_instant_event", "external_correlation", "cuda_sync", "cuda_event"),
    *("cuda_profiler_range", "cuda_profiler_metric", "collective_comm", "glow_runtime"),
    *("mtia_counters", "itt", "module", "forward", "backward", "dataloader", "autograd"),
)
_LEFT = frozenset(_UNUSED) | {None, ""}
_LEFT_WITH_OPS = _LEFT | set(_CPU)
_LAUNCHES = re.compile(r"launch|mem_?(cpy|set)|memory_?copy|prefetch|enqueue", re.IGNORECASE)
# Messages of process groups that run on the CPU are marked, not operators.
_CPU_GROUPS = ("gloo:", "mpi:", "ucc:")

_TOGETHER = 1024  # events of one kind that are taken in together
_FURTHEST_US = 9e12  # 104 days, or with exact stamps any time of this century
_FURTHEST_NS = 1 << 61
_LARGE = 1 << 40
_NONE = Arguments()
_Any = Event | ExactEvent


class Annotation(NamedTuple):
    """A step annotation: on a thread of the CPU, or on a device's stream (`thread`)."""

    name: str
    mark: StepMark
    device: int
    thread: int
    start: int
    end: int
    external: int | str | None


class _Numbers(dict[Any, int]):
    def __missing__(self, key: Any) -> int:
        number = self[key] = len(self)
        return number


class _Launches(dict[str, bool]):
    """Remembers which calls put work on a device."""

    def __missing__(self, name: str) -> bool:
        known = self[name] = _LAUNCHES.search(name) is not None
        return known


class TraceEvents:
    """Collects a trace's batches with `add`; times are nanoseconds of the trace's clock.

    `seen` counts all events, `skipped` those of use that could not be used, by reason. `launches`
    are the calls that put work on a device, `message_places` where there was communication.
    Operators of the CPU are kept, with `keep_ops`, until the first device event: a trace with
    devices counts those.
    """

    def __init__(self, *, keep_ops: bool = True) -> None:
        self.seen = 0
        self._keep_ops = keep_ops
        self.skipped: Counter[str] = Counter()
        self.names = _Numbers()
        self.messages: list[CollectiveMessage] = []
        self.annotations: list[Annotation] = []
        self.device_annotations: list[Annotation] = []
        self._message_ids: dict[CollectiveMessage, int] = {}
        self.message_places: set[tuple[int, int]] = set()  # devices and streams
        self._threads = _Numbers()
        self._launching = _Launches()
        self._waiting: dict[str, list[_Any]] = {
            role: [] for role in ("device", "launch", "cpu", "mark")
        }
        self.devices = Columns(
            start=np.int64,
            time=np.int64,
            correlation=np.int64,
            device=np.int16,
            stream=np.int64,
            name=np.int32,
            message=np.int32,
            bytes=np.int64,
            copy=np.int8,
        )
        self.launches = Columns(start=np.int64, correlation=np.int64, thread=np.int32)
        self.ops = Columns(
            start=np.int64,
            time=np.int64,
            thread=np.int32,
            name=np.int32,
            message=np.int32,
            bytes=np.int64,
            apart=np.int8,
        )

    def device_chunks(self, group: int | None) -> Iterator[dict[str, Any]]:
        """Yield the device events; `group` stands in for group sizes not told."""
        self._fill_groups(group)
        return self.devices.chunks()

    def cpu_columns(self, group: int | None) -> dict[str, Any]:
        self._fill_groups(group)
        return self.ops.whole()

    def _fill_groups(self, group: int | None) -> None:
        self.messages = [
            message._replace(group_size=message.group_size or group) for message in self.messages
        ]

    def add(self, events: Sequence[_Any]) -> None:
        self.seen += len(events)
        by_category: defaultdict[str | None, list[_Any]] = defaultdict(list)
        left = _LEFT if self._keep_ops else _LEFT_WITH_OPS
        for event in [event for event in events if event.cat not in left]:
            if event.ph == "X":
                by_category[event.cat].append(event)
        for category, some in by_category.items():
            role = _role(category)
            if role in self._waiting:
                self._waiting[role] += some
            elif role is not None:
                self.skipped[role] += len(some)
        first = self._waiting["device"] and not self.devices.size
        if first or any(len(some) > _TOGETHER for some in self._waiting.values()):
            self.finish()

    def finish(self) -> None:
        """Take in what waits; call it behind the last batch."""
        waiting, self._waiting = self._waiting, {role: [] for role in self._waiting}
        self._add_device(waiting["device"])
        self._add_launches(waiting["launch"])
        self._add_marks(waiting["mark"])
        if self._keep_ops:
            self._add_ops(waiting["cpu"])

    def _timed(self, events: list[_Any]) -> tuple[list[_Any], Ints, Ints]:
        """Return the events whose times can be used, their starts and durations."""
        starts, told = _starts(events)
        times = np.asarray([event.dur for event in events], dtype=np.float64)  # None is nan
        near = np.abs(starts) < _FURTHEST_NS
        sound = told & near & (times >= 0) & (times < _FURTHEST_US)
        if not sound.all():
            for reason, bad in (
                ("events without ts", ~told),
                ("events without dur", told & np.isnan(times)),
                ("events of negative duration", told & (times < 0)),
                ("events with times out of range", told & ((times >= _FURTHEST_US) | ~near)),
            ):
                if bad.any():
                    self.skipped[reason] += int(bad.sum())
            events = [event for event, good in zip(events, sound.tolist(), strict=True) if good]
            starts, times = starts[sound], times[sound]
        return events, starts, np.rint(times * 1e3).astype(np.int64)

    def _add_device(self, events: list[_Any]) -> None:
        events, starts, times = self._timed(events)
        if not events:
            return
        self.ops.clear()
        self._keep_ops = False
        arguments = [event.args or _NONE for event in events]
        pairs = list(zip(events, arguments, strict=True))
        names = [self.names[event.name] for event in events]
        messages = [-1] * len(events)
        moved = _wholes([args.bytes for args in arguments], -1)
        devices = [_device(args.device, event.pid) for event, args in pairs]
        streams = [_stream(args.stream, event.tid) for event, args in pairs]
        for index, event in enumerate(events):
            if family_of(event.name) == "communication":
                messages[index], moved[index] = self._message(event)
                self.message_places.add((devices[index], streams[index]))
        self.devices.add(
            start=starts,
            time=times,
            correlation=_wholes([args.correlation for args in arguments], 0),
            device=devices,
            stream=streams,
            name=names,
            message=messages,
            bytes=moved,
            copy=[event.cat not in ("kernel", "Kernel") for event in events],
        )

    def _add_launches(self, events: list[_Any]) -> None:
        events, starts, _ = self._timed([event for event in events if self._launching[event.name]])
        if events:
            self.launches.add(
                start=starts,
                correlation=_wholes([(event.args or _NONE).correlation for event in events], 0),
                thread=[self._threads[event.pid, event.tid] for event in events],
            )

    def _add_marks(self, events: list[_Any]) -> None:
        groups = [event for event in events if event.name.startswith(_CPU_GROUPS)]
        if groups and self._keep_ops:
            self._add_ops(groups, apart=True)
        steps = [event for event in events if read_mark(event.name) is not None]
        steps, starts, times = self._timed(steps)
        for event, start, time in zip(steps, starts.tolist(), times.tolist(), strict=True):
            mark = read_mark(event.name)
            args = event.args or _NONE
            on_device = (event.cat or "").lower() == "gpu_user_annotation"
            if mark is not None:
                (self.device_annotations if on_device else self.annotations).append(
                    Annotation(
                        name=event.name,
                        mark=mark,
                        device=_device(args.device, event.pid) if on_device else -1,
                        thread=_stream(args.stream, event.tid)
                        if on_device
                        else self._threads[event.pid, event.tid],
                        start=start,
                        end=start + time,
                        external=args.external if isinstance(args.external, int | str) else None,
                    )
                )

    def _add_ops(self, events: list[_Any], *, apart: bool = False) -> None:
        """Keep operators; `apart` marks messages that another thread waits for, if any does."""
        events, starts, times = self._timed(events)
        if not events:
            return
        messages = [
            self._message(event) if family_of(event.name) == "communication" else (-1, -1)
            for event in events
        ]
        self.ops.add(
            start=starts,
            time=times,
            thread=[self._threads[event.pid, event.tid] for event in events],
            name=[self.names[event.name] for event in events],
            message=[number for number, _ in messages],
            bytes=[size for _, size in messages],
            apart=[apart] * len(events),
        )

    def _message(self, event: _Any) -> tuple[int, int]:
        """Return the number of the collective's kind and its bytes, -1 where not known."""
        found = read_message(event.name, event.args or _NONE)
        if found not in self._message_ids:
            self._message_ids[found] = len(self.messages)
            self.messages.append(found)
        size = -1 if found.bytes is None or found.bytes > 1 << 60 else found.bytes
        return self._message_ids[found], size


@lru_cache(maxsize=1024)
def _role(category: str | None) -> str | None:
    """Return the bucket of a category, None for one without use, else why it is skipped."""
    text = (category or "").lower()
    for role, known in (
        ("device", _DEVICE),
        ("launch", _LAUNCH),
        ("cpu", _CPU),
        ("mark", _MARKS),
        (None, (*_UNUSED, "")),
    ):
        if text in known:
            return role
    return f"events of unknown category {text[:40]!r}"


def _starts(events: Sequence[_Any]) -> tuple[Ints, Any]:
    """Return the start of each event in nanoseconds, and which events tell it."""
    if events and isinstance(events[0], ExactEvent):
        texts = [bytes(event.ts) for event in events]  # type: ignore[arg-type]
        usual = _usual_ns(texts)
        if usual is not None:
            return usual, np.ones(usual.shape, dtype=bool)
        exact = [_exact_ns(text) for text in texts]
        told = np.asarray([start is not None for start in exact], dtype=bool)
        return np.asarray([start or 0 for start in exact], dtype=np.int64), told
    stamps = np.asarray([event.ts for event in events], dtype=np.float64)
    told = ~np.isnan(stamps)
    near = np.where(told, np.clip(stamps, -_FURTHEST_US, _FURTHEST_US), 0)
    starts = np.rint(near * 1e3).astype(np.int64)
    return np.where(np.abs(near) < _FURTHEST_US, starts, _FURTHEST_NS), told


_THOUSANDTHS: dict[bytes, int] = {
    f"{n:0{size}d}".encode(): n * 10 ** (3 - size) for size in (1, 2, 3) for n in range(10**size)
} | {b"": 0}


_USUAL = len(b"1234567890123456.789")  # a time of this century as Kineto writes it
_WEIGHTS = np.array([10**place for place in range(18, -1, -1)], dtype=np.int64)


def _usual_ns(texts: Sequence[bytes]) -> Ints | None:
    """Read time stamps that are all of the usual form, None when one is not."""
    joined = b"".join(texts)
    if len(joined) != _USUAL * len(texts) or set(map(len, texts)) != {_USUAL}:
        return None
    letters = np.frombuffer(joined, dtype=np.uint8).reshape(-1, _USUAL)
    digits = np.delete(letters, 16, axis=1) - ord("0")
    if (letters[:, 16] != ord(".")).any() or (digits > 9).any():
        return None
    return digits.astype(np.int64) @ _WEIGHTS


def _exact_ns(text: bytes) -> int | None:
    """Read microseconds with decimals as whole nanoseconds, without passing through a float."""
    whole, _, part = text.partition(b".")
    if len(whole) == 16:  # this century
        try:
            return int(whole) * 1000 + _THOUSANDTHS[part]
        except (KeyError, ValueError):
            pass
    try:
        number = Decimal(text.decode().strip('"')) * 1000
        return int(number) if number.is_finite() and abs(number) < _FURTHEST_NS else _FURTHEST_NS
    except (InvalidOperation, UnicodeDecodeError):
        return None


def _wholes(values: list[Any], default: int) -> Ints:
    kinds = set(map(type, values))
    if kinds == {type(None)}:
        return np.full(len(values), default, dtype=np.int64)
    if kinds == {int}:
        try:
            found = np.asarray(values, dtype=np.int64)
        except OverflowError:
            pass
        else:
            return np.where((found >= 0) & (found < _LARGE), found, default)
    return np.asarray([_whole(value, default) for value in values], dtype=np.int64)


def _whole(value: Any, default: int) -> int:
    return value if isinstance(value, int) and 0 <= value < _LARGE else default


def _device(told: Any, process: Any) -> int:
    for value in (told, process):
        if isinstance(value, int) and 0 <= value < 1 << 15:
            return value
    return -1


def _stream(told: Any, thread: Any) -> int:
    for value in (told, thread):
        if isinstance(value, int) and 0 <= value < _LARGE:
            return value
        if isinstance(value, str) and re.fullmatch(r"0x[0-9a-f]{1,9}", value):
            return int(value, 16)
    return -1


# Columns of a trace's events, kept in chunks that are deflated when they are full.
#
# A kernel takes some fifty bytes as numbers and eight deflated, since its start and its correlation
# id are little more than those of the kernel before. So a trace of any length fits in memory.


_CHUNK = 1 << 14  # rows
_LEVEL = 1


class Columns:
    """Rows that arrive in batches; `dtypes` has a numpy type per column."""

    _open: dict[str, array[int]]

    def __init__(self, **dtypes: type[np.generic]) -> None:
        self._dtypes = dtypes
        self.clear()

    @property
    def size(self) -> int:
        return self._rows_full + len(next(iter(self._open.values())))

    def add(self, **columns: Sequence[int] | Ints) -> None:
        for name, values in columns.items():
            self._open[name].frombytes(np.asarray(values, dtype=self._dtypes[name]).tobytes())
        if (count := len(next(iter(self._open.values())))) >= _CHUNK:
            self._rows_full += count
            self._full.append({name: _deflated(rows) for name, rows in self._numbers().items()})
            self._open = self._empty()

    def clear(self) -> None:
        self._full: list[dict[str, bytes]] = []
        self._rows_full = 0
        self._open = self._empty()

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Yield the rows a chunk at a time, in their order; at least one chunk."""
        for packed in self._full:
            yield {name: _inflated(packed[name], kind) for name, kind in self._dtypes.items()}
        yield self._numbers()

    def whole(self) -> dict[str, Any]:
        chunks = list(self.chunks())
        return {name: np.concatenate([each[name] for each in chunks]) for name in self._dtypes}

    def _numbers(self) -> dict[str, Any]:
        return {
            name: np.frombuffer(rows.tobytes(), dtype=self._dtypes[name])
            for name, rows in self._open.items()
        }

    def _empty(self) -> dict[str, array[int]]:
        return {name: array(np.dtype(kind).char) for name, kind in self._dtypes.items()}


def _deflated(values: Any) -> bytes:
    """Pack the differences between neighbours, which wrap around as the type does."""
    steps = np.diff(values, prepend=values.dtype.type(0))
    return zlib.compress(steps.tobytes(), _LEVEL)


def _inflated(packed: bytes, kind: type[np.generic]) -> Any:
    return np.cumsum(np.frombuffer(zlib.decompress(packed), dtype=kind), dtype=kind)
