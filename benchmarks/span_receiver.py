"""Spans that the receiver takes in, keeps and groups, the sender in the same process.

Run it pinned to one core: taskset -c 1 python -m benchmarks.span_receiver. First as many as it can,
divided by CPU time of this process, the sender's part included; then 5,000 a second for 30 s, as
exporters send them, in requests of 200. It counts what arrives: nothing may be lost.
"""

import http.client
import os
import time

from benchmarks.made.spans import as_protobuf, request, span
from profiler.attach.receiver.receiver import Receiver
from profiler.plugin.shared_token import shared_token
from traces.live.span_groups import SpanGroups

REQUESTS, SPANS = 100, 200
RATE, SECONDS = 5_000, 30.0


def bodies(first: int, count: int) -> list[bytes]:
    """Make requests of `SPANS` spans, four of which make a problem."""
    return [
        as_protobuf(
            request(*[span(at + i + 1, parent=(at + i) // 4 + 10_000_000) for i in range(SPANS)])
        )
        for at in range(first, first + count * SPANS, SPANS)
    ]


def send(made: list[bytes], pause_s: float) -> tuple[int, int, float, float, float]:
    """Send requests, one in `pause_s`; return samples, problems, wall, CPU and slowest answer."""
    receiver, groups = Receiver("127.0.0.1", 0), SpanGroups(lambda span: "e")
    receiver.start()
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port)
    headers = {
        "Content-Type": "application/x-protobuf",
        "Authorization": f"Bearer {shared_token()}",
    }
    wall, cpu, slowest = time.perf_counter(), time.process_time(), 0.0
    due = wall
    for body in made:
        time.sleep(max(due - time.perf_counter(), 0.0))
        begun = time.perf_counter()
        due += pause_s
        connection.request("POST", "/v1/traces", body, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        slowest = max(slowest, time.perf_counter() - begun)
        for each in receiver.take_spans():
            groups.add(each)
    found = groups.drain(everything=True)
    problems, samples = len(found[0]), len(found[1])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    receiver.close()
    assert samples == len(made) * SPANS == 4 * problems
    return samples, problems, wall, cpu, slowest


def main() -> None:
    print(f"load {os.getloadavg()[0]:.1f}")
    samples, _, wall, cpu, _ = send(bodies(0, REQUESTS), 0.0)
    print(f"{samples:,} spans, none lost: {samples / cpu:,.0f} per CPU second")
    print(f"{samples / wall:,.0f} per second of wall time")
    count = round(RATE * SECONDS / SPANS)
    samples, _, wall, cpu, slowest = send(bodies(0, count), SPANS / RATE)
    print(
        f"{samples:,} spans at {samples / wall:,.0f}/s, none lost: {cpu / wall:.1%} of a core, "
        f"slowest answer {slowest * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
