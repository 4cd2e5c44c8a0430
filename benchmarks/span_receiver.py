"""Spans that the receiver takes in, keeps and groups per second, sender on the same core.

Run it pinned to one core: taskset -c 1 python -m benchmarks.span_receiver. It counts what arrives
(nothing may be lost) and divides by CPU time of this process, the sender's part included.
"""

import http.client
import time

from profiler.receiver import Receiver
from tests.traces.test_otlp import as_protobuf, request, span
from traces.span_groups import SpanGroups

REQUESTS, SPANS = 100, 200


def main() -> None:
    """Send `REQUESTS` requests of `SPANS` spans, four of which make a problem."""
    bodies = [
        as_protobuf(
            request(
                *[span(first + i + 1, parent=(first + i) // 4 + 10_000_000) for i in range(SPANS)]
            )
        )
        for first in range(0, REQUESTS * SPANS, SPANS)
    ]
    receiver, groups = Receiver("127.0.0.1", 0), SpanGroups(lambda span: "e")
    receiver.start()
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port)
    wall, cpu = time.perf_counter(), time.process_time()
    for body in bodies:
        connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        for each in receiver.take_spans():
            groups.add(each)
    problems, samples = groups.drain(everything=True)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    receiver.close()
    assert len(samples) == REQUESTS * SPANS == 4 * len(problems)
    print(f"{len(samples):,} spans, none lost: {len(samples) / cpu:,.0f} per CPU second")
    print(f"{len(samples) / wall:,.0f} per second of wall time")


if __name__ == "__main__":
    main()
