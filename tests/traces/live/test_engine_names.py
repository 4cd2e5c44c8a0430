"""Pages of other engines are read under vLLM's names, where both mean the same."""

import re
from pathlib import Path

import polars as pl
import pytest

from traces.live.metrics_page import PageReader, Series
from traces.live.numbers import (
    ASKED_TOKENS,
    DRAFTS,
    ITL,
    KV,
    REPORTED,
    RUNNING,
    STARTED,
    WAITING,
    numbers_of,
)
from traces.recording.tables import SCRAPES
from traces.summary.prefix_hits import HIT_TOKENS

LIVE = Path(__file__).parents[2] / "data" / "live"
SGLANG = (LIVE / "metrics_sglang_0.5.23.txt").read_text()
VLLM = (LIVE / "metrics.txt").read_text()
GROWS = re.compile(r"^(\S+_(?:total|count|sum|bucket)(?:\{.*\})?) (\S+)$", re.MULTILINE)


def grown(page, times):
    return GROWS.sub(lambda line: f"{line[1]} {float(line[2]) * times}", page)


def numbers(*pages, engine=""):
    reader, rows = PageReader(), []
    for second, page in enumerate(pages):
        for series, value in reader.read(page).items():
            rows.append((second * 10**9, *series[:1], *series[1:], value))
    frame = pl.DataFrame(rows, schema=SCRAPES, orient="row")
    return numbers_of(frame.filter(pl.col("engine") == engine), engine)


def test_sglangs_own_page():
    page = SGLANG.replace("# ", "")
    found = numbers(page, grown(page, 2.0))
    assert (found.running, found.waiting, found.kv_share) == (12, 3, pytest.approx(0.41))
    assert found.generated_tokens_per_s == 18_000
    assert found.prompt_tokens_per_s == pytest.approx(69_378)
    assert found.steps_per_s == 1_540
    assert found.tokens_per_step == pytest.approx(70_000 / 1_540)
    assert found.prefix_hit_share == pytest.approx(20_480 / 69_378)
    assert found.finished == {"ended": 80}
    assert found.preemptions == 2
    assert found.ttft_s.mean.value == pytest.approx(35.31525629554946 / 80)
    assert found.queue_s.mean.value == pytest.approx(12.810845227779676 / 80)
    assert (found.drafts, found.drafted_tokens) == (6_103, None)
    assert found.acceptance_length == pytest.approx(2.6)
    assert found.accepted_per_position is None


def test_older_names_of_vllm_are_read_where_the_new_ones_are_not_there():
    older = (
        VLLM.replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
        .replace("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
        .replace("vllm:prefix_cache_", "vllm:gpu_prefix_cache_")
    )
    assert older != VLLM
    new = numbers(VLLM, grown(VLLM, 2.0), engine="0")
    assert new.kv_share is not None and new.itl_s.mean is not None
    assert numbers(older, grown(older, 2.0), engine="0") == new
    both = f"{VLLM}\n{older}".splitlines()
    once = "\n".join(dict.fromkeys(both))
    assert numbers(once, grown(once, 2.0), engine="0") == new


def test_streamed_and_whole_requests_are_added_up():
    told = PageReader().read(SGLANG)
    name, part = "vllm:time_to_first_token_seconds_count", 'is_streaming="true"'
    (streamed,) = [
        line
        for line in SGLANG.splitlines()
        if "time_to_first_token_seconds_count" in line and part in line
    ]
    assert told[Series("", name)] == 80 > float(streamed.split()[-1])


def test_every_rank_says_the_same_once():
    line = 'sglang:num_running_reqs{{tp_rank="{}",dp_rank="{}"}} {}\n'
    page = "".join(line.format(tp, dp, 5 + dp) for dp in (0, 1) for tp in (2 * dp, 2 * dp + 1))
    assert PageReader().read(page) == {Series("0", RUNNING): 5, Series("1", RUNNING): 6}


def test_ray_serve_has_no_colons_and_a_replica_each():
    page = VLLM.replace("vllm:", "ray_vllm_").replace('engine="0"', 'engine="0",ReplicaId="r1"')
    reader = PageReader()
    ray, own = reader.read(page), PageReader().read(VLLM)
    assert reader.engines == {"vLLM on Ray Serve"}
    mine = {
        series: value
        for series, value in own.items()
        if series.engine
        and not series.name.endswith("_sum")  # which Ray makes up
        and series.name != STARTED  # its agent's
    }
    assert f"{ITL}_sum" in {series.name for series in own} - {series.name for series in mine}
    assert ray.pop(Series("0 r1", REPORTED)) == 10
    assert {series._replace(engine="0") for series in ray if series.engine} == set(mine)
    assert {series.engine for series in ray if series.engine} == {"0 r1"}
    two = page + page.replace("r1", "r2")
    assert {series.engine for series in PageReader().read(two) if series.engine} == {"0 r1", "0 r2"}


def test_rays_counters_may_lack_their_ending():
    told = PageReader().read('ray_vllm_prompt_tokens{ReplicaId="a"} 7\n')
    assert told == {Series("a", "vllm:prompt_tokens_total"): 7, Series("a", REPORTED): 10}
    older = "ray_vllm_gpu_prefix_cache_hits 3\nray_vllm_gpu_prefix_cache_queries 9\n"
    told = PageReader().read(older)
    assert told == {
        Series("", HIT_TOKENS): 3,
        Series("", ASKED_TOKENS): 9,
        Series("", REPORTED): 10,
    }


def test_what_ray_says_twice_counts_once():
    """Each counter stands there as a gauge too, whose name lacks its ending."""
    line = '{}{{ReplicaId="a",finished_reason="stop"}} {}\n'
    names = ("ray_vllm_request_success", "ray_vllm_gpu_prefix_cache_hits")
    page = "".join(line.format(name + end, 7) for name in names for end in ("", "_total"))
    label = 'finished_reason="stop"'
    expected = {
        Series("a", "vllm:request_success_total", label): 7,
        Series("a", HIT_TOKENS, label): 7,
        Series("a", REPORTED): 10,
    }
    assert PageReader().read(page) == expected
    assert PageReader().read(page + line.format("ray_vllm_prefix_cache_hits", 9)) == {
        **expected,
        Series("a", HIT_TOKENS, label): 9,
    }


def test_dynamo_adds_labels_of_its_own():
    extra = 'dynamo_component="backend",dynamo_endpoint="generate",dynamo_namespace="d",engine="0"'
    page = VLLM.replace('engine="0"', extra) + 'dynamo_component_inflight_requests{a="b"} 3\n'
    assert PageReader().read(page) == PageReader().read(VLLM)


def test_nim_has_no_prefix_and_tensorrt_llm_another():
    nim = PageReader()
    told = nim.read(
        'num_requests_running{model_name="m"} 3\ngpu_cache_usage_perc{model_name="m"} 0.5\n'
        'num_requests_waiting{model_name="m"} 1\n'
        'time_to_first_token_seconds_sum{model_name="m"} 2\n'
        "num_request_max 2048\npython_info 1\n"
    )
    assert told[Series("", RUNNING)] == 3 and told[Series("", WAITING)] == 1
    assert told[Series("", KV)] == 0.5
    assert told[Series("", "vllm:time_to_first_token_seconds_sum")] == 2
    assert len(told) == 4 and nim.engines == {"NIM"}
    for prefix in ("trtllm_", "trtllm:"):
        reader = PageReader()
        told = reader.read(f'{prefix}request_success_total{{finished_reason="stop"}} 4\n')
        name = "vllm:request_success_total"
        assert told == {Series("", name, 'finished_reason="stop"'): 4}
        assert reader.engines == {"TensorRT-LLM"}


def test_what_is_not_in_a_table_keeps_its_name():
    told = PageReader().read(SGLANG)
    assert told[Series("", "sglang:gen_throughput")] == 812.5
    assert not any(series.name == "sglang:num_running_reqs" for series in told)
    assert told[Series("", DRAFTS)] == 6_103


def test_what_is_told_whole_and_by_priority_counts_once():
    gauge, counter = "sglang:num_queue_reqs", "sglang:num_requests_total"
    page = "".join(
        f'{name}{{priority="{priority}"}} {value}\n'
        for name in (gauge, counter)
        for priority, value in (("", 5), ("1", 2), ("2", 3))
    )
    told = PageReader().read(page)
    assert told[Series("", WAITING)] == 5
    assert told[Series("", "vllm:request_success_total", 'finished_reason="ended"')] == 10
