"""Polls one server's /metrics into rows of `scrapes`, without ever being a burden to it.

Rendering the page takes time on the server's own event loop. So there is one request at a time,
with a time-out; a page that is slow is asked for less often, at most a tenth of the time; and a
server that does not answer is left alone for longer and longer.

Of most pages only what changed is kept, and `RUNNING`, which tells that there was a poll; a null
says that a series is gone. Once a minute a page is kept whole.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import polars as pl

from profiler.doors.clients import AnswerTooLarge, Client
from profiler.engines.server.access import Access
from traces.clock import now_ns
from traces.live.metrics_page import PageReader, Series
from traces.live.numbers import RUNNING
from traces.recording.tables import SCRAPES, SILENT

PERIOD_S = 1.0
_CONNECT_S, _PAGE_S = 3.0, 10.0  # a page in all
_MOST_PAGE_BYTES = 16 << 20
_TOO_LARGE = f"a page of more than {_MOST_PAGE_BYTES >> 20} MB"
_MOST_WAITING = 300  # pages that may wait for the writer
_BUSY_SHARE = 0.1  # of the time, at most, a request of ours is in the server
_LAST_S = 3.0  # that the last poll may take
_LONGEST_PAUSE_S = 15.0  # between polls that fail
_SAME_CLOCK_S = 5.0
_JSON = "trtllm-serve needs return_perf_metrics in its --config: /prometheus/metrics answers "
_BESIDE_JSON = "/prometheus/metrics"  # where trtllm-serve has it, whose /metrics are steps in JSON
_WHOLE_S = 60.0  # between pages that are kept with what did not change
_LOOKS = 3  # further polls at first, which tell whether another server answers too
_CONNECTED_S = 60.0  # after which a poll takes a connection of its own, as another may answer it
SEVERAL = "several servers answer there, as behind a load balancer"
OF_ROUTER = "its /metrics is that of a router before several servers"
EACH = (
    "the URL of each, or their pages: --metrics-url http://HOST1:8000/metrics --metrics-url "
    "http://HOST2:8000/metrics"
)
_STARTED = "process_start_time_seconds"


@dataclass(frozen=True)
class PolledPage:
    """What one poll brought."""

    time_ns: int
    took_s: float
    values: Mapping[Series, float]
    ahead_ns: int = 0  # the server's clock, as its answer's date tells; 0 within that date's second

    @property
    def started(self) -> float | None:
        """When the server's process began, unix seconds."""
        return self.values.get(Series("", _STARTED))


def _ahead_ns(date: str | None, now: int) -> int:
    """Return how far a server's clock is ahead, from its answer's date, a whole second.

    0 where that is less than `_SAME_CLOCK_S`, which a slow answer may make.
    """
    try:
        server_ns = 0 if date is None else round(parsedate_to_datetime(date).timestamp() * 1e9)
    except (ValueError, OverflowError):
        return 0
    ahead = server_ns + 500_000_000 - now
    return ahead if server_ns and abs(ahead) > _SAME_CLOCK_S * 1e9 else 0


class ScrapeError(Exception):
    """A poll that brought nothing, in words that hold nothing of the answer."""


class AnotherServerError(ScrapeError):
    """A poll that another server answered, as behind a balancer."""


class Silence(NamedTuple):
    """For how many seconds an answer is due, and in how many it is asked for again.

    An answer is due from when it is asked for, 0 where none is: a pause of ours is no silence.
    `another` says that another server answers.
    """

    seconds: float
    again_s: float
    another: bool


class Scraper:
    """Polls the metrics page of `access` every `period_s` from `start` to `stop`.

    Parameters
    ----------
    engine_key: the key of an engine by the label `engine`; "" is the server itself.
    on_event: called with a kind and a detail of `events`: gap, reconnect, restart, counter_reset.
    on_page: called with the rows of every page read, and a null for what the last one had.
    on_restart: called with the first page of a restarted server, before it is kept.

    `lost` is set when the server is gone and `reconnect` is False.

    """

    def __init__(
        self,
        access: Access,
        engine_key: Callable[[str], str],
        *,
        on_event: Callable[[str, str], None],
        on_page: Callable[[pl.DataFrame], None] = lambda rows: None,
        on_restart: Callable[[PolledPage], None] = lambda page: None,
        period_s: float = PERIOD_S,
        reconnect: bool = True,
    ) -> None:
        self.access, self.reader = access, PageReader()
        self._engine_key, self._on_event = engine_key, on_event
        self._on_page, self._on_restart = on_page, on_restart
        self._period_s, self._reconnect = period_s, reconnect
        self._frames: deque[pl.DataFrame] = deque()
        self._last: PolledPage | None = None
        self._before: set[float] = set()  # when processes began that answered, but for the last
        self._balanced = False  # whether one of them answered again
        self._leave = 0.0  # when the connection is left, monotonic
        self._kept: PolledPage | None = None  # the last one that is kept
        self._keys: dict[str, str] = {}  # of its engines
        self._whole_ns = 0  # when a page was last kept whole
        self._gap: tuple[float, int] | None = None  # since when, and polls that failed
        self._due = self._owed = math.inf  # the next poll, and the first without an answer
        self._another = False  # whether another server answered the last one
        self.peer: str | None = None  # the address that answered
        self.polls = self.failures = self.dropped = 0
        self.lost = threading.Event()
        self._stopping = threading.Event()
        self._client = Client(
            headers={**access.metrics_headers, "Accept": "text/plain"},
            seconds=_PAGE_S,
            connect_s=_CONNECT_S,
            most_bytes=_MOST_PAGE_BYTES,
        )
        self._thread = threading.Thread(target=self._work, name="ttscope-scrape", daemon=True)

    def poll(self, *, leave: bool = False) -> PolledPage:
        """Ask once, and `leave` the connection then. Raises ScrapeError."""
        begun = time.monotonic()
        if leave or begun >= self._leave:
            leave, self._leave = True, begun + _CONNECTED_S
        before = now_ns()
        body, ahead_ns = bytearray(), 0
        try:
            headers = {"Connection": "close"} if leave else {}
            with self._client.stream("GET", self.access.metrics_page, headers=headers) as answer:
                if answer.status_code != 200:
                    beside = self.access.metrics_page.endswith(_BESIDE_JSON)
                    raise ScrapeError(f"{_JSON if beside else ''}HTTP {answer.status_code}")
                self.peer = _peer_of(answer)
                ahead_ns = _ahead_ns(answer.headers.get("date"), now_ns())
                for piece in answer.iter_bytes():
                    body += piece
                    if len(body) > _MOST_PAGE_BYTES:
                        raise ScrapeError(_TOO_LARGE)
            page = self.access.metrics_page
            at_metrics = self.access.metrics is None or urlsplit(page).path == "/metrics"
            if at_metrics and body.lstrip()[:1] == b"[":
                prometheus = page.removesuffix("/metrics") + _BESIDE_JSON
                self.access = self.access.with_metrics(prometheus)
                return self.poll(leave=leave)
            values = self.reader.read(body.decode("utf-8", "replace"))
        except httpx.TimeoutException:
            raise ScrapeError("no answer in time") from None
        except AnswerTooLarge:
            raise ScrapeError(_TOO_LARGE) from None
        except httpx.HTTPError as error:
            raise ScrapeError(type(error).__name__) from None
        except ValueError:
            raise ScrapeError("no metrics page") from None
        # The server read its counters somewhere between both times.
        took_s = time.monotonic() - begun
        return PolledPage((before + now_ns()) // 2, took_s, values, ahead_ns)

    def meets_others(self, page: PolledPage) -> bool:
        """Whether another server than the page's answers too, asked on connections of their own.

        Counters that fall tell it too, of servers that began at the same moment or that do not
        say when: none is restarted between two of these polls.
        """
        for _ in range(_LOOKS):
            last = page
            try:
                page = self.poll(leave=True)
            except ScrapeError:
                continue
            if page.started != last.started or _fell(last, page):
                return True
        return False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Poll a last time, and leave a request that hangs behind."""
        self._stopping.set()
        self._thread.join(_LAST_S)

    @property
    def ended(self) -> bool:
        """Whether no poll comes any more."""
        return self.lost.is_set() or (self._stopping.is_set() and not self._thread.is_alive())

    def close(self) -> None:
        """Close the connection of a scraper that was not started."""
        if self._thread.ident is None:
            self._client.close()

    @property
    def silence(self) -> Silence:
        now = time.monotonic()
        again_s = max(self._due - now, 0.0)
        return Silence(max(now - self._owed, 0.0), again_s, self._another)

    def drain(self) -> pl.DataFrame:
        frames = [self._frames.popleft() for _ in range(len(self._frames))]
        return pl.concat([pl.DataFrame(schema=SCRAPES), *frames])

    def _work(self) -> None:
        try:
            self._due = time.monotonic()
            while not self._stopping.wait(max(self._due - time.monotonic(), 0.0)):
                begun = time.monotonic()
                self._owed = min(self._owed, begun)
                try:
                    page = self._fresh(self.poll())
                    self._take(page)
                except Exception as error:  # one page that cannot be taken does not end the watch
                    is_expected = isinstance(error, ScrapeError)
                    why = str(error) if is_expected else f"{type(error).__name__} while it was read"
                    pause_s = self._failed(why)
                    self._another = isinstance(error, AnotherServerError)
                    self._due = time.monotonic() + (self._period_s if self._another else pause_s)
                    if self.lost.is_set():
                        return
                else:
                    # It may be behind for long where this process was stopped.
                    due = max(self._due, begun - self._period_s) + self._period_s
                    self._due, self._owed = max(due, begun + page.took_s / _BUSY_SHARE), math.inf
            self._poll_at_the_end()
        finally:
            self._client.close()

    def _poll_at_the_end(self) -> None:
        """Have what came since the last poll, unless the server is silent."""
        if self._gap is None and self._last is not None:
            with contextlib.suppress(Exception):  # there is no next one to wait for
                self._take(self._fresh(self.poll()))

    def _failed(self, why: str) -> float:
        """Note that a poll failed; return how long to wait for the next."""
        self.failures += 1
        if self._gap is None:
            self._gap = time.monotonic(), 1
            self._on_event("gap", f"{self.access.where}: /metrics: {why}")
        else:
            self._gap = self._gap[0], self._gap[1] + 1
        if not self._reconnect and self._gap[1] >= 3:
            self.lost.set()
        return float(min(self._period_s * 2 ** min(self._gap[1] - 1, 10), _LONGEST_PAUSE_S))

    def _take(self, page: PolledPage) -> None:
        if self._gap is not None:
            seconds = time.monotonic() - self._gap[0]
            self._gap = None
            self._on_event("reconnect", f"{self.access.where}: after {seconds:.1f} s")
        if self._last is not None:
            self._compare(self._last, page)
        before = {} if self._last is None else self._last.values
        gone = dict.fromkeys(before.keys() - page.values.keys())
        self.polls += 1
        self._last = page
        keys = {engine: self._engine_key(engine) for engine in {s.engine for s in page.values}}
        self._on_page(_rows(page.time_ns, {**page.values, **gone}, self._keys | keys))
        moved = any(self._keys.get(engine, key) != key for engine, key in keys.items())
        self._keys |= keys
        values = self._news(None if moved else self._kept, page)
        if len(self._frames) >= _MOST_WAITING:
            self.dropped += len(values)
            self._kept = None  # so that the next is kept whole
        else:
            self._frames.append(_rows(page.time_ns, values, self._keys))
            self._kept = page

    def _news(self, last: PolledPage | None, page: PolledPage) -> Mapping[Series, float | None]:
        """Return what is kept of a page: all, or what is not as on the `last` that was kept."""
        before = {} if last is None else last.values
        gone = dict.fromkeys(before.keys() - page.values.keys())
        if last is None or abs(page.time_ns - self._whole_ns) >= _WHOLE_S * 1e9:
            self._whole_ns = page.time_ns
            return {**page.values, **gone}
        polled = {self._keys[series.engine] for series in page.values if series.name == RUNNING}
        changed: dict[Series, float | None] = {
            series: value
            for series, value in page.values.items()
            if value != before.get(series)
            or series.name == RUNNING
            or self._keys[series.engine] not in polled
        }
        return changed | gone

    def _fresh(self, page: PolledPage) -> PolledPage:
        """Return a page, read anew where its process may be another one.

        The page of several front ends does not say when they began, so that its counters tell.
        No process comes back after another one. So where one does, several servers answer, and
        raises AnotherServerError, so that the recording is of one of them.
        """
        began, last = page.started, None if self._last is None else self._last.started
        if began in self._before:
            if not self._balanced:
                self._balanced = True
                warning = f"{self.access.where}: {SEVERAL}. The numbers are of one at a time"
                self._on_event(SILENT, f"{warning}. Name {EACH}")
            self._leave = 0.0
            raise AnotherServerError("another server answers")
        if last is not None and began != last:
            self._before.add(last)
        if page.started is None and self._last is not None and _fell(self._last, page):
            self.reader.forget()
            return self.poll()
        return page

    def _compare(self, last: PolledPage, page: PolledPage) -> None:
        """Note a restart: another process, or counters that fell."""
        fell = _fell(last, page)
        if last.started is not None and page.started not in (None, last.started):
            self._on_event("restart", f"{self.access.where}: another process answers")
            self._on_restart(page)
        elif fell and page.started is None:
            self._on_restart(page)
        if fell:
            self._on_event("counter_reset", f"{self.access.where}: {fell} counters fell")


def _peer_of(answer: httpx.Response) -> str | None:
    """Return the address of the machine that answers, None where that is not known."""
    stream = answer.extensions.get("network_stream")
    address = None if stream is None else stream.get_extra_info("server_addr")
    return str(address[0]) if isinstance(address, tuple) else None


def _fell(last: PolledPage, page: PolledPage) -> int:
    """Return how many counters are lower than on the page before."""
    return sum(
        value < last.values.get(series, value)
        for series, value in page.values.items()
        if series.name.endswith(("_total", "_count", "_bucket"))
    )


def _rows(
    time_ns: int, values: Mapping[Series, float | None], keys: Mapping[str, str]
) -> pl.DataFrame:
    """Return series of a page as rows of `scrapes`."""
    columns: dict[str, Any] = {
        "time": [time_ns] * len(values),
        "engine": [keys[series.engine] for series in values],
        "name": [series.name for series in values],
        "labels": [series.labels for series in values],
        "le": [series.le for series in values],
        "value": list(values.values()),
    }
    return pl.DataFrame(columns, schema=SCRAPES)
