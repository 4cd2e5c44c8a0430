"""Pages become rates and quantiles; restarts are left out; verdicts follow from the numbers."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.servers.metrics_server import Metrics
from traces.live import numbers as live_numbers
from traces.live.metrics_page import LONGEST_LINE, MOST_ENGINES, MOST_EVER, PageReader, Series
from traces.live.numbers import (
    ACCEPTED_AT,
    DRAFTED,
    DRAFTS,
    FINISHED,
    GENERATED,
    ITL,
    KV,
    QUEUE,
    RUNNING,
    STARTED,
    STEP_TOKENS,
    TTFT,
    WAITING,
    Bounds,
    Histogram,
    Polls,
    cancelled_told,
    numbers_in,
    numbers_of,
    window_of,
)
from traces.live.verdict import LiveEvidence, draft_gain, fixed_share, judge
from traces.recording.tables import SCRAPES
from traces.summary.kernels import Collective, DeviceTime

S = 10**9


def scrapes(pages):
    """Rows of `scrapes` from (seconds, text of a page)."""
    reader, rows = PageReader(), []
    for seconds, page in pages:
        for series, value in reader.read(page).items():
            rows.append((int(seconds * S), "e", *series[1:], value))
    return pl.DataFrame(rows, schema=SCRAPES, orient="row")


PROMPTS, E2E = "vllm:prompt_tokens_total", "vllm:e2e_request_latency_seconds"
STOPPED, ABORTED = ((FINISHED, f'finished_reason="{why}"', None) for why in ("stop", "abort"))


def polled(told, times=None):
    """Rows of polls from values by name, or name and labels; None ends one, ... is no row."""
    rows = []
    for place, second in enumerate(times or range(len(next(iter(told.values()))))):
        for key, values in told.items():
            series = key if isinstance(key, tuple) else (key, "", None)
            if values[place] is not ...:
                rows.append((int(second * S), "e", *series, values[place]))
    return pl.DataFrame(rows, schema=SCRAPES, orient="row")


def numbers(told, times=None):
    return numbers_of(polled(told, times), "e")


def test_numbers_that_vllm_never_tells_are_left_out():
    page = "".join(f'vllm:x{{engine="{value}"}} {value}\n' for value in ("NaN", "-Inf", "+Inf"))
    page += 'vllm:x{engine="0"} -5\nvllm:x{engine="1"} 1e300\nvllm:x{engine="2"} 7\n'
    assert PageReader().read(page) == {Series("2", "vllm:x"): 7.0}


@pytest.mark.parametrize("name", ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"])
def test_a_share_is_from_0_to_1_and_that_of_one_cache_whatever_models_it_serves(name):
    reader, cache = PageReader(), Series("0", "vllm:kv_cache_usage_perc")
    told = "".join(f'{name}{{engine="0",model_name="m{at}"}} 0.{at}\n' for at in range(10))
    assert reader.read(told) == {cache: 0.9} and not reader.odd_shares
    odd = f'{name}{{engine="0",model_name="m"}} 500\n{name}{{engine="1"}} -1\n'
    assert reader.read(odd) == {} and reader.odd_shares == 2
    assert reader.read(odd + told) == {cache: 0.9}


def test_a_page_of_too_many_engines_is_read_in_part():
    page = "".join(f'vllm:x{{engine="{number}"}} 1\n' for number in range(5_000))
    reader = PageReader()
    assert len(reader.read(page)) == len(reader.read(page)) == MOST_ENGINES
    assert (reader.left_out, reader.pages_cut) == (5_000 - MOST_ENGINES, 2)
    assert reader.engines_cut == 5_000 - MOST_ENGINES
    for other in range(2, 9):  # replicas come and go, but not for ever
        page = "".join(f'vllm:x{{engine="{other}n{number}"}} 1\n' for number in range(MOST_ENGINES))
        room = other * MOST_ENGINES <= MOST_EVER
        assert len(reader.read(page)) == (MOST_ENGINES if room else 0)


def test_a_line_is_a_series_and_others_are_left_out():
    reader = PageReader()
    page = (
        "# HELP vllm:x text\n"
        'vllm:x_bucket{engine="1",le="+Inf",model_name="a b} c",z="q\\"u\\\\o\\n"} 3 1700000000\n'
        'vllm:x_created{engine="1"} 1.7e9\n'
        'vllm:y{engine="1"} NaN\n'
        "vllm:z broken\n"
        "python_info 1\n"
        "process_start_time_seconds 1.5e9\n"
        f'vllm:long{{a="{"x" * LONGEST_LINE}"}} 1\n'
    )
    expected = {
        Series("1", "vllm:x_bucket", 'z="q"u\\o\n"', math.inf): 3.0,
        Series("", "process_start_time_seconds"): 1.5e9,
    }
    assert reader.read(page) == expected == reader.read(page)
    assert (reader.left_out, reader.pages_cut) == (1, 2)  # the long line, twice
    with pytest.raises(ValueError, match="no metrics"):
        reader.read("")


@pytest.mark.slow
@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(page):
    reader = PageReader()
    try:
        values = reader.read(page)
    except ValueError:
        return
    assert all(math.isfinite(v) or math.isinf(v) for v in values.values())


def ray_page(reports, gauge=0):
    """A page of Ray's after so many reports of 60 tokens and 6 gaps of up to 10 ms."""
    lines = {
        "generation_tokens_total": 60 * reports,
        'inter_token_latency_seconds_bucket{le="0.01"}': 6 * reports,
        'inter_token_latency_seconds_bucket{le="+Inf"}': 6 * reports,
        "inter_token_latency_seconds_count": 6 * reports,
        "inter_token_latency_seconds_sum": 0.005 * 6 * reports,  # Ray's middle of the bucket
        "num_requests_running": gauge,
    }
    parts = ((name.partition("{"), value) for name, value in lines.items())
    return "".join(
        f'ray_vllm_{name}{{ReplicaId="r",{rest.rstrip("}")}}} {value}\n'
        for (name, _, rest), value in parts
    )


def test_steps_that_each_front_end_counts_are_not_those_of_the_engine():
    """A page of several has no start of a process (vLLM 0.32, --api-server-count 2)."""
    page = 'vllm:iteration_tokens_total_count{engine="0"} 7\nvllm:generation_tokens_total 9\n'
    counted = Series("0", "vllm:iteration_tokens_total_count")
    assert counted not in PageReader().read(page)
    for one in (
        f"process_start_time_seconds 5\n{page}",
        page.replace("{", '{dynamo_component="b",'),
    ):
        assert PageReader().read(one)[counted] == 7


def test_rays_page_is_written_every_ten_seconds_with_sums_that_are_made_up():
    """Polls every second; reports at 3.5 s, 13.5 s, ..., the first of traffic from before too."""
    pages = [(t, ray_page(1 + math.floor((t + 6.5) / 10), gauge=t // 10)) for t in range(60)]
    window = window_of(scrapes(pages), "e")
    assert (window.times // S).tolist() == [4, 14, 24, 34, 44, 54]
    found = numbers_in(window, "e")
    assert (found.seconds, found.generated_tokens_per_s) == (50, 6)
    assert found.end_ns == 59 * S  # so that nobody takes the server for silent
    assert (window.counted[GENERATED][1:] == 60).all()
    assert window.gauges[RUNNING].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.itl_s.mean is None and found.itl_s.p50.high == 0.01
    assert window.histograms[ITL].counts.sum(axis=1).tolist()[1:] == [6] * 5
    assert numbers_of(scrapes([(t + 0.5, page) for t, page in pages[:9]]), "e").seconds == 0


@pytest.mark.parametrize("idle", [range(40), range(15, 30)])
def test_rays_page_stands_still_where_nothing_runs(idle):
    """A report that two polls see is one, and seconds without requests have their own rate."""
    pages, reports, written = [], 1, 0
    for t in range(60):
        page = ray_page(reports)
        if t - written >= 10 and t not in idle:
            reports, written = reports + 1, t
            old, tokens = page, f"}} {60 * (reports - 1)}"
            page = ray_page(reports).replace(f"}} {60 * reports}", tokens)  # and the rest later
            assert page not in (old, ray_page(reports))
        pages.append((t, page))
    window = window_of(scrapes(pages), "e")
    told, seconds = window.counted[GENERATED][1:], np.diff(window.times) / S
    assert set(told.tolist()) == {0, 60} and (told > 0).sum() == reports - 1
    assert (told / seconds).max() <= 60 / 9


def test_recorded_page_gives_the_numbers_that_are_in_it():
    recorded = Metrics()
    pages = []
    for second, scale in enumerate((1.0, 1.5, 2.0)):
        recorded.scale = scale
        pages.append((second, recorded.page()))
    found = numbers_of(scrapes(pages), "e")
    told = PageReader().read(pages[0][1])
    value = {series.name: v for series, v in told.items() if not series.labels}
    assert found.seconds == 2.0
    assert found.polls == 3
    assert found.generated_tokens_per_s == pytest.approx(value["vllm:generation_tokens_total"] / 2)
    mean = (
        value["vllm:time_to_first_token_seconds_sum"]
        / value["vllm:time_to_first_token_seconds_count"]
    )
    assert found.ttft_s.mean.value == pytest.approx(mean)
    for times in (found.ttft_s, found.itl_s, found.e2e_s):
        for each in (times.p50, times.p95):
            assert 0 <= each.low < each.high
    assert found.flops_per_gpu_per_s is None  # vLLM's 0 where nobody asked for estimates
    assert found.acceptance_length is None
    assert found.finished.keys() == {"stop"}


def test_quantiles_against_counting_by_hand():
    counts = {0.1: 50, 0.2: 90, math.inf: 100}
    found = numbers({(f"{ITL}_bucket", "", le): [0, n] for le, n in counts.items()}).itl_s
    assert found.p50.low == 0.0 and 0.1 < found.p50.high < 0.16  # the 50th and the 51st
    assert found.p95 == Bounds(low=0.2, high=None, unit="s")
    told = {"value": None, "low": 0.2, "high": None, "unit": "s", "extrapolated": True}
    assert found.p95.to_json() == told
    assert found.mean is None  # its sum was not told


TIMES = st.floats(0.001, 30.0)


def histogram(intervals, before=(), bounds=(0.3, 0.5, 1.0, 5.0, 10.0, math.inf)):
    """What is told by a server that had seen `before`, then each interval's times."""
    seen = [list(before)]
    for times in intervals:
        seen.append([*seen[-1], *times])
    told = {
        (f"{E2E}_bucket", "", le): [sum(each <= le for each in some) for some in seen]
        for le in bounds
    }
    return told | {f"{E2E}_sum": [*map(sum, seen)], f"{E2E}_count": [*map(len, seen)]}


def test_counts_beyond_whole_numbers_have_quantiles():
    """A page may count what it likes: no watch ends with a traceback."""
    counts = np.array([[3e20, 2e20, 1e20]], dtype=np.float32)
    found = Histogram(bounds=np.array([1.0, 2.0, 3.0]), counts=counts, sums=np.array([math.nan]))
    assert found.quantile(1.0) == Bounds(low=2.0, high=3.0, unit="s")


@pytest.mark.slow
@given(st.lists(st.lists(TIMES, max_size=25), min_size=1, max_size=6), st.lists(TIMES, max_size=9))
def test_a_quantile_lies_between_its_bounds(intervals, before):
    """Whatever was seen, and by any usual definition; what came before the first poll is out."""
    found = numbers(histogram(intervals, before)).e2e_s
    times = [each for interval in intervals for each in interval]
    if not times:
        assert (found.p50, found.p95, found.p99) == (None, None, None)
        return
    assert found.mean.value == pytest.approx(np.mean(times))
    for bounds, q in ((found.p50, 0.5), (found.p95, 0.95), (found.p99, 0.99)):
        for method in ("linear", "inverted_cdf"):
            true = np.quantile(times, q, method=method)
            assert bounds.low - 1e-9 <= true
            assert bounds.high is None or true <= bounds.high + 1e-9


def test_a_sum_between_two_polls_tells_more_than_a_bucket():
    """One slow request of 5.92 s is no p95 of 9.61 s; two that overflow have an end."""
    found = numbers(histogram([(0.4, 0.6), (5.92,), ()])).e2e_s
    assert found.p99.high == pytest.approx(5.92, abs=1e-4)
    assert found.p50.low >= 0.5 and found.p50.high <= 0.7 + 1e-4
    found = numbers(histogram([(12.0, 14.0)])).e2e_s
    assert (found.p50.low, found.p50.high) == (10.0, pytest.approx(14.5, abs=1e-4))
    torn = histogram([(0.4,), (8.0,), (0.4,)])
    torn[f"{E2E}_sum"][1] = 8.4
    found = numbers(torn).e2e_s
    assert 4.9 <= found.p99.low <= 5.0 and 9.9 <= found.p99.high <= 10.0


def test_an_interval_with_a_restart_is_left_out():
    found = numbers({GENERATED: [100, 200, 40, 140]}, times=[0, 1, 3, 4])
    assert (found.resets, found.seconds) == (1, 2.0)
    assert found.generated_tokens_per_s == 100.0


def test_no_time_is_negative_where_a_sum_alone_fell():
    """As of two servers behind a load balancer, which began at the same moment."""
    told = {f"{TTFT}_count": [5, 6, 7, 8], f"{TTFT}_sum": [9.0, 2.0, 2.5, 3.0]}
    found = numbers(told)
    assert (found.resets, found.ttft_s.mean.value) == (1, 0.5)


def test_a_restart_is_seen_where_the_new_counters_are_higher():
    """The process began at another time: so say all engines of its page."""
    lives = [(1000, 100), (1000, 200), (2000, 1500), (2000, 1600)]
    page = "process_start_time_seconds {}\n" + GENERATED + '{{engine="0"}} {}\n'
    rows = scrapes([(second, page.format(*told)) for second, told in enumerate(lives)])
    found = numbers_of(rows, "e")
    assert (found.resets, found.seconds) == (1, 2.0)
    assert found.generated_tokens_per_s == 100.0
    assert numbers_in(fed(rows, 1), "e") == found


def test_a_counter_that_a_restart_ended_counts_from_0():
    """A server makes some series at their first use: the page lacks them, and then has them."""
    told = {GENERATED: [100, 200, None, ..., 150, 160], STOPPED: [50, 60, None, 5, 6, 7]}
    found = numbers(told)
    assert (found.resets, found.seconds) == (1, 4.0)
    assert found.generated_tokens_per_s == (100 + 160) / 4
    assert found.finished == {"stop": 10 + 7}


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300, -1e39])
def test_a_value_that_no_counter_holds_is_no_reading(value):
    """A broken page writes what it likes: a poll without that reading, and no overflow."""
    bucket = (f"{E2E}_bucket", "", 1.0)
    told = {GENERATED: [0, 100, value, 250], RUNNING: [1, 1, value, 3], bucket: [0, 1, value, 5]}
    rows = polled(told)
    window = window_of(rows, "e")
    assert window.total(GENERATED) == 250 and window.resets == 0
    assert window.gauges[RUNNING].tolist()[-1] == 3
    assert window.histograms[E2E].counts.sum() == 5


def test_a_counter_that_a_page_lacks_for_a_while_goes_on():
    """A page of several servers may lack a line for a poll, and have it again."""
    told = {GENERATED: [1_000_000, 1_000_100, None, ..., 1_000_400], RUNNING: [1, 1, 1, 1, 1]}
    found = numbers(told)
    assert (found.resets, found.seconds) == (0, 4.0)
    assert found.generated_tokens_per_s == 100.0


@pytest.mark.parametrize(
    ("others", "prompts", "seconds"),
    [([7, 8, 9, 10, 11], 3, 3.0), ([9, 9, 9, 9, 9], 0, 3.0), ([7, 8, 2, 3, 4], 3, 3.0)],
    ids=["others go on", "others stand still", "others fall"],
)
def test_a_counter_that_comes_back_lower_is_one_restart(others, prompts, seconds):
    told = {GENERATED: [100, 200, None, 150, 160], PROMPTS: others}
    told[STOPPED] = [9, 9, None, ..., 5]
    found = numbers(told)
    assert (found.resets, found.seconds) == (1, seconds)
    assert found.generated_tokens_per_s * seconds == 100 + 150 + 10
    assert found.finished == {"stop": 5}
    assert found.prompt_tokens_per_s * seconds == prompts


def test_a_histogram_counts_from_0_as_a_whole():
    told = {
        (f"{TTFT}_bucket", "", 0.1): [0, 5, None, 5],
        (f"{TTFT}_bucket", "", math.inf): [0, 10, None, 6],
        f"{TTFT}_count": [0, 10, None, 6],
        f"{TTFT}_sum": [0.0, 50.0, None, 50.4],
    }
    found = numbers(told).ttft_s
    assert found.mean.value == pytest.approx(100.4 / 16)
    assert found.p50.high <= 0.1  # 10 of 16


def test_a_gauge_goes_on_under_the_labels_that_a_restart_gives_it():
    a, b = (RUNNING, 'pod="a"', None), (RUNNING, 'pod="b"', None)
    told = {a: [1, ..., None, None], b: [..., ..., 3, 5], GENERATED: [1, 2, 3, 4]}
    assert numbers(told).running == (1 + 1 + 3 + 3 + 5 + 1) / 6  # by time
    told[b] = [..., 4, ..., 5]
    window = fed(polled(told), 1)
    assert window.gauges[RUNNING].tolist() == pytest.approx([1, math.nan, 4, 5], nan_ok=True)


def fed(rows, polls):
    """What is told of rows that come so many polls at a time."""
    found = Polls()
    for _, some in rows.group_by(pl.col("time") // (polls * S), maintain_order=True):
        found.add(some)
    return found.window()


@pytest.mark.parametrize("seed", range(20))
def test_rows_tell_the_same_however_they_come(seed):
    random = np.random.default_rng(seed)
    pods = ((GENERATED, "b"), (RUNNING, "a"), (RUNNING, "b"))
    keys = [GENERATED, PROMPTS, *((name, f'pod="{pod}"', None) for name, pod in pods)]
    told = {KV: [0.5] * 12}
    for key in keys:
        values = np.cumsum(random.integers(0, 3, 12) * 10)
        values[random.integers(1, 12) :] %= 40
        kinds = random.choice(3, 12, p=(0.6, 0.25, 0.15))
        told[key] = [(int(v), None, ...)[kind] for v, kind in zip(values, kinds, strict=True)]
    whole, *others = (fed(polled(told), polls) for polls in (12, 1, 5))
    for other in others:
        assert numbers_in(whole, "e") == numbers_in(other, "e")
        for name in whole.counted:
            assert np.array_equal(whole.counted[name], other.counted[name], equal_nan=True)


def test_series_are_bounded_over_all_pages(monkeypatch):
    monkeypatch.setattr(live_numbers, "MOST_SERIES", 3)
    told = {GENERATED: [1, 3, 5], RUNNING: [1, 1, 1], (GENERATED, 'a="0"', None): [0, 1, 2]}
    told |= {(GENERATED, f'a="{n}"', None): [..., 10**n, ...] for n in range(1, 9)}
    window = fed(polled(told), 1)
    assert window.left_out and not fed(polled({GENERATED: [1, 3, 5]}), 1).left_out
    assert window.total(GENERATED) == 4 + 2
    assert window.gauges[RUNNING].tolist() == [1, 1, 1]


def test_places_are_found_where_the_ends_of_series_are_alike():
    bits = np.array([7, 7 + (1 << 16), 9, 7 + (3 << 16), 0], dtype=np.uint64)
    known = live_numbers._Known.of(bits[:4])
    asked = np.append(bits[::-1], np.uint64(7 + (9 << 16)))
    assert known.places(asked).tolist() == [4, 3, 2, 1, 0, 4]
    assert live_numbers._Known.of(bits[:0]).places(bits).tolist() == [0] * 5


def test_what_a_page_tells_twice_is_told_once():
    rows = polled({GENERATED: [10, 20, 40], RUNNING: [1, 2, 3]})
    twice = pl.concat([rows.with_columns(pl.col("value") * 9), rows]).sort(
        "time", maintain_order=True
    )
    assert numbers_of(twice, "e") == numbers_of(rows, "e")


def test_labels_that_a_relabelled_page_adds():
    drafts = "vllm:spec_decode_num_drafts_total"
    names = [
        (drafts, {}, 100),
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", {"position": "0"}, 80),
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", {"position": "1"}, 40),
        ("vllm:request_success_total", {"finished_reason": "stop"}, 3),
    ]

    def page(scale):
        lines = []
        for pod in ("a", "b"):
            for name, labels, value in names:
                every = {"engine": "0", "job": "h:1", "pod": pod, "zone": "z", **labels}
                text = ",".join(f'{key}="{each}"' for key, each in every.items())
                lines.append(f"{name}{{{text}}} {value * scale}")
        return "\n".join(lines) + "\n"

    found = numbers_of(scrapes([(0, page(1)), (1, page(2))]), "e")
    assert found.accepted_per_position == (0.8, 0.4)
    assert found.finished == {"stop": 6}
    assert found.running is None  # of two
    names.append(("vllm:num_requests_running", {}, 3))
    one = [
        (at, "".join(line + "\n" for line in page(at).splitlines() if '"a"' in line))
        for at in (1, 2)
    ]
    assert numbers_of(scrapes(one), "e").running == 4.5


def test_a_gap_counts_where_the_server_lived_on():
    found = numbers({GENERATED: [0, 10, 110]}, times=[0, 1, 11])
    assert found.generated_tokens_per_s == 10.0


def test_one_poll_is_no_window():
    assert numbers({GENERATED: [1]}) is None
    assert numbers_of(polled({GENERATED: [1, 2]}), "other") is None


def watched(polls=20, **told):
    """Numbers of an engine that polls like this: gauges as they are, counters by their rate."""
    grows = ("_total", "_sum", "_count")
    values = {
        f"vllm:{name}": [value * at if name.endswith(grows) else value for at in range(polls)]
        for name, value in told.items()
    }
    return numbers(values)


@pytest.mark.parametrize(
    ("ended", "running", "low", "high", "told_as"),
    [
        (14, (0, 0), 6, 6, "6 of 20"),  # nobody ran at the first and the last poll
        (14, (1, 1), 5, 7, "5 to 7 of 20"),  # either may have had no first token
        (14, (1, 7), 0, 7, None),
        (20, (1, 1), 0, 1, None),
        (20, (0, 0), 0, 0, None),
        (19, (0, 0), 1, 1, None),  # too few to be a warning
    ],
)
def test_requests_that_neither_ended_nor_run_were_cancelled(ended, running, low, high, told_as):
    """vLLM counts no abort by a client (0.32)."""
    told = {
        f"{TTFT}_count": [5, 25], STOPPED: [0, ended], ABORTED: [0, 0], RUNNING: running
    }  # fmt: skip
    found = cancelled_told(window_of(polled(told), "e"))
    assert found is None if told_as is None else found.startswith(f"{told_as} requests got a first")
    cancelled = numbers(told).cancelled
    assert (cancelled.low, cancelled.high) == (low, high)
    del told[ABORTED]
    assert numbers(told).cancelled is None


LOADED = {"num_requests_running": 16, "num_requests_waiting": 0, "kv_cache_usage_perc": 0.3}


def kinds(found, **evidence):
    verdict = judge("e", LiveEvidence(numbers=found, **evidence))
    return [each.kind for each in verdict.found], {each.kind for each in verdict.unseen}


def test_nothing_is_said_of_a_short_or_an_idle_watch():
    assert "too short" in judge("e", LiveEvidence(numbers=watched(polls=9, **LOADED))).reason
    idle = watched(**LOADED | {"num_requests_running": 0})
    assert "no load" in judge("e", LiveEvidence(numbers=idle)).reason
    between = judge("e", LiveEvidence(numbers=idle, told=True)).reason  # its spans came
    assert "no request ran" not in between and "came between polls" in between
    assert judge("e", LiveEvidence(numbers=None)).reason


def test_a_loaded_server_that_is_polled_less_often_counts_by_time():
    """Two bursts: a poll in 1 s while it is idle, in up to 13 s while requests wait."""
    times = [*range(20), 33, 46, *range(47, 61)]
    waits = [0] * 20 + [9, 9] + [0] * 14
    runs = [1] * 20 + [8, 8] + [1] * 14
    slow = {
        f"vllm:{name}_seconds_{part}": [each * at for at in range(36)]
        for name, each in (("request_queue_time", 3), ("time_to_first_token", 4))
        for part in ("sum", "count")
    }
    found = numbers({RUNNING: runs, WAITING: waits, **slow}, times)
    assert found.waiting_share == pytest.approx(20.5 / 60, abs=0.05)  # 2 of 36 polls
    assert found.running == pytest.approx((8 * 20.5 + 39.5) / 60, rel=0.05)
    assert kinds(found)[0] == ["queueing"]


def starved(polls, *, left=0, front_ends=1):
    """Numbers of a server of 8 places that is polled then, and what ran and waited in truth.

    Bursts of 64 requests come every 20 s, a step takes 10 ms and a request 50 steps. Of the last
    burst some clients leave, which a page counts nowhere.
    """
    busy = 0.5 * 64 / 8
    times = np.array(
        [(20.0 * burst, 0.5 * (place // 8)) for burst in range(3) for place in range(64)]
    )
    arrived, queued = times[:, 0], times[:, 1]
    ends = arrived + queued + 0.5
    stays = np.arange(len(ends)) < len(ends) - left
    told = {} if front_ends > 1 else {STARTED: [1.7e9] * len(polls)}
    for at in polls:
        done, first = (ends <= at) & stays, arrived + queued + 0.01 <= at
        steps = 100 * np.clip(at - 20.0 * np.arange(3), 0, busy).sum()
        histograms = {
            E2E: (done.sum(), (queued + 0.5)[done].sum()),
            QUEUE: (done.sum(), queued[done].sum()),
            TTFT: (first.sum(), (queued + 0.01)[first].sum()),
            ITL: (49 * done.sum(), 0.49 * done.sum()),
        }
        if front_ends == 1:
            histograms[STEP_TOKENS] = steps, 8 * steps
        now = {
            RUNNING: (first & (ends > at)).sum(),
            WAITING: ((arrived < at) & ~first).sum(),
            GENERATED: 50 * done.sum(),
        }
        for name, (count, total) in histograms.items():
            now[f"{name}_bucket", "", math.inf] = now[f"{name}_count"] = count
            now[f"{name}_sum"] = total
        for key, value in now.items():
            told.setdefault(key, []).append(value)
    seconds = polls[-1] - polls[0]
    truth = (32 * 3 / seconds, queued.sum() / seconds, 3 * busy / seconds)
    return numbers(told, [*polls]), truth


def test_what_ran_while_no_poll_was_answered_is_told_by_the_requests_that_ended():
    """A front end that is starved answers when all is done: no poll saw a request."""
    pauses = [*np.arange(-10, 0.5, 1), *np.arange(5, 20.5, 1), *np.arange(25, 40.5, 1)]
    pauses = [*pauses, *np.arange(45, 60.5, 1)]
    found, truth = starved(pauses)
    assert found.running_max == 0
    assert (found.running, found.waiting, found.busy_share) == pytest.approx(truth, rel=0.02)
    assert found.waiting_share == pytest.approx(found.busy_share)
    # Nor do polls that saw it change what is right, and where they tell all it is the same.
    # Several front ends count no steps: those of a first burst say how many ran.
    first = np.arange(-10, 5, 0.1)
    for polls, front_ends in ((np.arange(-10, 60.5, 1), 1), (np.arange(-10, 60.1, 0.1), 1),
                              ([*first, *pauses[16:]], 2)):  # fmt: skip
        seen, truth = starved(polls, front_ends=front_ends)
        assert (seen.running, seen.waiting, seen.busy_share) == pytest.approx(truth, rel=0.02)
        assert seen.waiting_share == pytest.approx(truth[2] * 7 / 8, rel=0.15)


def test_requests_that_were_left_have_no_times_so_the_polls_count():
    found, (running, waiting, _) = starved(np.arange(-10, 60.1, 0.1), left=40)
    assert (found.running, found.waiting) == pytest.approx((running, waiting), rel=0.05)


def test_an_idle_hour_does_not_make_the_queue_of_a_burst_shorter():
    waits = [0] * 100 + [6] * 12 + [0] * 100
    runs = [0] * 100 + [8] * 12 + [0] * 100
    verdict = judge("e", LiveEvidence(numbers=numbers({RUNNING: runs, WAITING: waits})))
    assert verdict.reason is None and verdict.found[0].kind == "queueing"
    assert "for 100 % of the time under load (6.0 on average, 6 at most in a poll)" in (
        verdict.found[0].evidence
    )
    few = numbers({RUNNING: [0] * 57 + [8] * 3, WAITING: [0] * 60})
    assert "requests ran for 2.50 s of 59.0 s" in judge("e", LiveEvidence(numbers=few)).reason


def hung(seconds, *, tokens=30, kv=None, gaps=True, running=8):
    """An engine that gave tokens in the first 20 s and hung for some more."""
    polls = range(20 + seconds)
    made = [min(tokens * at, tokens * 20) for at in polls]
    told = {GENERATED: made, RUNNING: [running] * len(polls), WAITING: [4] * len(polls)}
    told[KV] = [0.3 if kv is None else kv(at) for at in polls]
    if gaps:
        told[f"{ITL}_bucket", "", 0.1] = made
    return numbers(told)


def test_an_engine_whose_requests_get_no_token_is_stalled_and_not_full():
    still = hung(300)
    (found,) = judge("e", LiveEvidence(numbers=still)).found
    assert found.kind == "stalled" and "8 requests ran and no token came for 299 s" in (
        found.evidence
    )
    assert still.last.still_s == pytest.approx(299) and still.last.waiting == 4
    assert kinds(hung(5))[0] == ["queueing"]  # a step may take some seconds
    # A long prompt gives no token and takes blocks. Some engines tell tokens with the request.
    assert kinds(hung(300, kv=lambda at: at / 1000))[0] == ["queueing"]
    assert hung(300, gaps=False).stalled_share is None
    assert hung(300, running=0).last.still_s == 0
    assert hung(300).last.tokens == 0 and hung(0).last.tokens == 30


def test_what_came_while_a_profiler_held_the_server_is_left_out():
    made = [30 * at for at in range(20)] + [570] * 18 + [600 + 30 * at for at in range(20)]
    waits = [0] * 20 + [9] * 18 + [0] * 20
    rows = polled({GENERATED: made, RUNNING: [4] * 58, WAITING: waits})
    whole, rest = (
        numbers_of(rows, "e", profiled=each) for each in ((), [(19 * S + 1, round(37.4 * S))])
    )
    assert whole.waiting_max == 9 and whole.generated_tokens_per_s < 22
    assert rest.generated_tokens_per_s == 30 and rest.seconds == 57 - 19
    assert rest.waiting_share == 0 and rest.resets == 0


def test_nothing_stands_out_is_an_answer_and_says_what_it_could_not_see():
    found, unseen = kinds(watched(**LOADED))
    assert found == []
    assert unseen == {"communication-bound", "launch-bound", "compute-bound"}


def test_kv_bound_by_a_full_cache_and_preemptions():
    full = LOADED | {"kv_cache_usage_perc": 0.97, "num_preemptions_total": 1}
    verdict = judge("e", LiveEvidence(numbers=watched(**full, num_requests_waiting_x=0)))
    assert verdict.found[0].kind == "KV-bound"
    assert "19 preemptions" in verdict.found[0].evidence
    # A full cache that keeps nobody out is only well used: prefix caching fills it.
    assert kinds(watched(**LOADED | {"kv_cache_usage_perc": 0.97}))[0] == []


def test_queueing_is_not_said_where_the_cache_is_the_cause():
    slow = {
        "request_queue_time_seconds_sum": 6,
        "request_queue_time_seconds_count": 2,
        "time_to_first_token_seconds_sum": 7,
        "time_to_first_token_seconds_count": 2,
    }
    waiting = LOADED | slow | {"num_requests_waiting": 5}
    verdict = judge("e", LiveEvidence(numbers=watched(**waiting)))
    assert [each.kind for each in verdict.found] == ["queueing"]
    assert "max_num_seqs" in verdict.found[0].evidence
    assert "3.00 s in the queue, 3.50 s" in verdict.found[0].evidence
    assert kinds(watched(**waiting | {"kv_cache_usage_perc": 0.99}))[0] == ["KV-bound"]
    assert "KV cache at most 30 % full in a poll: max_num_seqs" in verdict.found[0].evidence
    unknown = {name: value for name, value in waiting.items() if name != "kv_cache_usage_perc"}
    (found,) = judge("e", LiveEvidence(numbers=watched(**unknown))).found
    assert found.evidence.endswith("16 run and never more")
    short = waiting | {"request_queue_time_seconds_sum": 1, "num_requests_waiting": 1}
    assert kinds(watched(**short))[0] == []
    # Those that ended came before the queue: 5 that wait, at 2 first tokens a second, wait 2.5 s.
    early = waiting | {"request_queue_time_seconds_sum": 0.1}
    (found,) = judge("e", LiveEvidence(numbers=watched(**early))).found
    assert found.kind == "queueing" and "takes 2.50 s at 2.00 first tokens a second" in (
        found.evidence
    )


def drafting(accepted):
    told = {f"vllm:{name}": [value] * 20 for name, value in LOADED.items()}
    rates = {DRAFTS: 100, DRAFTED: 300, (ACCEPTED_AT, 'position="0"', None): accepted}
    return numbers(told | {key: [rate * at for at in range(20)] for key, rate in rates.items()})


def test_a_draft_that_is_hardly_accepted_and_one_that_may_pay():
    assert kinds(drafting(5))[0] == ["draft not paying"]
    found, unseen = kinds(drafting(60))
    assert found == []
    assert "draft not paying" in unseen


def test_windows_tell_communication_and_launches():
    device = DeviceTime(busy_s=5.0, idle_s=5.0, idle_share=0.5, windows=1, steps=20, ranks=2)
    together = Collective(name="all_reduce", group_size=2, calls=9, bytes=1, s=2.0, exposed_s=1.5)
    found, unseen = kinds(watched(**LOADED), device_time=device, collectives=(together,))
    assert found == ["communication-bound", "launch-bound"]
    assert unseen == {"compute-bound"}
    sometimes = numbers({RUNNING: [0, 3] * 10, WAITING: [0] * 20, KV: [0.3] * 20})
    assert "launch-bound" not in kinds(sometimes, device_time=device, collectives=())[0]


INTS = pl.List(pl.Int64)
OVERRIDES = {"interval_ns": pl.Int64, "drafted": INTS, "accepted": INTS}


def steps(fixed_ms, per_token_ms, sizes=range(1, 33), count=300, draft=None):
    rows = []
    for index in range(count):
        size = list(sizes)[index % len(sizes)]
        with_draft = draft is not None and index % 2
        longer = draft[0] if with_draft else 1.0
        rows.append(
            {
                "prefill_tokens": 0,
                "decode_requests": size,
                "decode_tokens": size,
                "decode_kv_tokens": 100 * size,
                "wall_ns": int((fixed_ms + per_token_ms * size) * longer * 1e6),
                "interval_ns": None,
                "profiled": False,
                "drafted": [size] if with_draft else None,
                "accepted": [int(draft[1] * size)] if with_draft else None,
            }
        )
    return pl.DataFrame(rows, schema_overrides=OVERRIDES)


def test_the_fixed_part_of_a_step():
    assert fixed_share(steps(10, 0.1))[0] == pytest.approx(10 / 11.65, rel=0.02)
    assert fixed_share(steps(1, 1))[0] == pytest.approx(1 / 17.5, rel=0.05)
    assert kinds(watched(**LOADED), steps=steps(10, 0.1))[0] == ["fixed cost of steps"]
    assert kinds(watched(**LOADED), steps=steps(1, 1))[0] == ["compute-bound"]


def test_what_a_draft_gains_is_measured_at_the_same_batch():
    times, ratio = draft_gain(steps(10, 0, sizes=[4, 8, 16], draft=(1.5, 0.25)))
    assert ratio == pytest.approx(1.5)
    assert times == pytest.approx(1.25 / 1.5)
    assert draft_gain(steps(10, 0.1)) is None


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        (None, "--enable-logging-iteration-details"),
        (lambda: steps(1, 1, count=100), "200 or more steps whose time and composition are known"),
        (lambda: steps(1, 1).with_columns(decode_tokens=None), "steps with their composition"),
        (lambda: steps(10, 1, sizes=[8]), "All 300 are alike"),
        (lambda: steps(10, 0).with_columns(wall_ns=pl.Series([1, 9, 4] * 100) * 10**6),
         "It explains <1 % of how 300 steps differ"),
    ],
    ids=["no steps", "few steps", "no composition", "all alike", "no fit"],
)  # fmt: skip
def test_where_no_share_is_told_it_is_said_what_failed(given, needs):
    share, said = fixed_share(given and given())
    assert share is None and needs in said


@pytest.mark.parametrize("at_once", [True, False])
def test_a_counter_that_was_away_at_a_restart_counts_from_0(at_once):
    """The start of the process alone tells of it: the counter comes back higher."""
    rows = polled({STARTED: [1, 1, 2, 2, 2], FINISHED: [5, 6, None, 10, 11]})
    window = fed(rows, 5 if at_once else 1)
    assert (window.total(FINISHED), window.resets) == (12, 1)
