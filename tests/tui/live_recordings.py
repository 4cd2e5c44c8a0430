"""Recordings of live servers that were only watched, as `ttscope attach` writes them."""

from tests.traces.synthetic import MODEL, engine_config
from traces.live.metrics_page import PageReader
from traces.recording.manifest import Manifest
from traces.recording.reader import Recording
from traces.recording.writer import RecordingWriter, read_clocks

S = 10**9
BEGIN = 1_700_000_000 * S
BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TIMES = ["time_to_first_token", "inter_token_latency", "e2e_request_latency"]


def page(seconds, requests):
    """Return /metrics of a server after so many requests that took `seconds` in turn."""
    taken = [seconds[at % len(seconds)] for at in range(requests)]
    lines = [
        f'vllm:generation_tokens_total{{engine="0"}} {100 * requests}',
        f'vllm:num_requests_running{{engine="0"}} {requests % 3 + 1}',
        'vllm:num_requests_waiting{engine="0"} 0',
        'vllm:kv_cache_usage_perc{engine="0"} 0.1',
        f'vllm:request_success_total{{engine="0",finished_reason="stop"}} {requests}',
    ]
    for name in TIMES:
        head = f"vllm:{name}_seconds"
        for bound in (*BOUNDS, float("inf")):
            le = "+Inf" if bound == float("inf") else bound
            count = sum(each <= bound for each in taken)
            lines.append(f'{head}_bucket{{engine="0",le="{le}"}} {count}')
        lines.append(f'{head}_count{{engine="0"}} {requests}')
        lines.append(f'{head}_sum{{engine="0"}} {sum(taken)}')
    return "\n".join(lines) + "\n"


def write_watched(
    folder, *, spans, engines=1, polls=20, steps=False, seconds=(0.3, 0.3, 5.9), each=1
):
    """Write what was watched of `engines` servers, of which `each` requests end between polls.

    With `spans` each is the sample of a problem.
    """
    configs = [engine_config(mode="server", other=(("url", f"http://h:{n}"),))
               for n in range(engines)]  # fmt: skip
    facts = Manifest(
        clock_start=read_clocks(),
        engines={each.key(): each for each in configs},
        models={"toy": MODEL},
    )
    writer = RecordingWriter(folder, facts, period_s=60)
    for config in configs:
        reader = PageReader()
        for poll in range(polls):
            for series, value in reader.read(page(seconds, poll * each)).items():
                row = {"time": BEGIN + poll * S, "engine": config.key(), "name": series.name}
                writer.append(
                    "scrapes", row | {"labels": series.labels, "le": series.le, "value": value}
                )
        for at in range(polls - 1 if spans else 0):
            begin = BEGIN + at * S
            end = begin + int(seconds[at % len(seconds)] * S)
            row = {"problem_id": f"{config.key()}{at}", "engine": config.key(), "policy": ""}
            row |= {"arrival": begin, "end": end, "prompt_tokens": 10}
            writer.append("problems", row | {"decided_at": end})
            row |= {"sample_index": 0, "role": "sample", "output_tokens": 100}
            writer.append("samples", row | {"scheduled": begin, "first_token": end - 1000})
        for at in range(50 if steps else 0):
            row = {"step": at, "end": BEGIN + (at + 1) * S // 4, "interval_ns": S // 4}
            row |= {"running": 2, "waiting": 0, "kv_blocks": 3, "source": "inferred"}
            row |= {"decode_requests": 2, "decode_tokens": 2, "engine": config.key()}
            writer.append("steps", row)
    writer.close(complete=True)
    return Recording.open(folder)
