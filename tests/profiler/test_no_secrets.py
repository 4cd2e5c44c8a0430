"""A password or key in a URL is in no message, recording or file of failures."""

import json

import pytest

from profiler.engines.server.access import Access, read_headers, read_key, without_secrets
from profiler.engines.server.server import ServerEngine
from profiler.runs.telemetry import check_settings
from profiler.sweep.plan import load_plan, run_plan
from traces.errors import UsageError

URLS = (
    "http://user:canary@host:8000",
    "http://canary@host:8000",
    "https://host/v1?api_key=canary",
    "http://host:8000/#canary",
    "user:canary@host:8000",
    "host:8000?token=canary",
    "ftp://user:canary@host",
    "http://user:canary@host:99999",
    "http://user:can@canary@[::1",
    "http://user:canary@",
    "//user:canary@host",
)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("use", [Access.of, ServerEngine, check_settings])
def test_a_refusal_does_not_repeat_it(url, use):
    with pytest.raises(UsageError) as told:
        use(url)
    assert "canary" not in str(told.value)
    assert "canary" not in without_secrets(url)


def keyed(key):
    return read_key(key, None)


def headed(key):
    return read_headers(None, [f"Authorization: ${key}"])


@pytest.mark.parametrize("read", [keyed, headed])
def test_a_key_that_is_given_for_its_variable_is_not_repeated(read):
    with pytest.raises(UsageError, match="the variable is not set") as told:
        read("sk-canary")
    assert "canary" not in str(told.value)


@pytest.mark.slow
def test_a_sweep_keeps_it_nowhere(tmp_path):
    plan = {"engines": [{"model": "m", "endpoint": URLS[0]}], "policies": [{"method": "greedy"}]}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    lines = []
    try:
        outcomes = run_plan(
            load_plan(tmp_path / "plan.yaml"), tmp_path / "runs", on_line=lines.append
        )
        told = " ".join(str(each) for each in outcomes)
    except UsageError as error:
        told = str(error)
    assert "no user or password" in told
    kept = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not any(b"canary" in text for text in (told.encode(), str(lines).encode(), *kept))
