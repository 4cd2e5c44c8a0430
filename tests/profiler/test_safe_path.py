"""Nothing is imported from the folder that a command or a server is started in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import profiler

ROOT = Path(profiler.__file__).parents[1]
SCRIPT = Path(sys.executable).parent / "ttscope"
SHADOWED = (
    "random", "socket", "json", "profiler", "traces", "advisor", "tui", "polars", "numpy", "httpx",
    "math_verify", "sympy", "msgspec", "typing_extensions", "yaml", "vllm", "sitecustomize",
)  # fmt: skip

PLAN = """
workload: demo
engines: [{model: m, endpoint: "http://127.0.0.1:1"}]
policies: [{method: greedy}]
"""


@pytest.fixture
def folder(tmp_path):
    """A folder whose modules leave a mark when one is imported."""
    for name in SHADOWED:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r} + '\\n')\n"
        )
    return tmp_path


def executed(folder):
    mark = folder / "executed"
    return mark.read_text().split() if mark.exists() else []


def environment(**more):
    known = {name: text for name, text in os.environ.items() if name != "PYTHONSAFEPATH"}
    return known | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])} | more


@pytest.mark.slow
def test_a_sweep_imports_nothing_from_there(folder):
    (folder / "plan.yaml").write_text(PLAN)
    code = "import sys; sys.path[:] = [p for p in sys.path if p]; from tui.cli import main; main()"
    start = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        [*start, "sweep", "plan.yaml", "--json"], cwd=folder, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    outcomes = json.loads(done.stdout)["outcomes"]
    assert all("no server answers" in each["error"] for each in outcomes)
    assert executed(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "from profiler.workload.math_check import MathVerifier as V; assert V().matches('1', '1')",
        "import os, multiprocessing as m; os.environ['PYTHONSAFEPATH'] = '1';"
        "p = m.get_context('spawn').Process(target=print); p.start(); p.join()",
    ],
)
def test_children_import_nothing_from_there(folder, code):
    if "math" in code:
        pytest.importorskip("math_verify")
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert executed(folder) == []


def test_every_child_that_ttscope_starts_has_a_safe_path():
    for package in ("traces", "profiler", "advisor", "tui"):
        for source in (ROOT / package).rglob("*.py"):
            for line in source.read_text().splitlines():
                if "[sys.executable" in line and "pip" not in line:
                    assert '"-P"' in line, f"{source.name}: {line.strip()}"


@pytest.mark.slow
def test_numba_takes_no_settings_from_there(tmp_path):
    (tmp_path / ".numba_config.yaml").write_text(
        f"cache_dir: {tmp_path / 'evil'}\ncache_locator_classes: evil.Locator\n"
    )
    code = "from advisor.compiled import config as c; print([c.CACHE_DIR, c.CACHE_LOCATOR_CLASSES])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment(XDG_CACHE_HOME=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "evil" not in done.stdout


LOADED = """
import logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
import ttscope_plugin
print("on" if ttscope_plugin.StepLogger.__module__ == "profiler.plugin.step_logger" else "off")
logger = ttscope_plugin.StepLogger(None, 0)
logger.record(None, None)
logger.log_engine_initialized()
"""


BASE = "class StatLoggerBase:\n    pass\n"
NEWER = """
from abc import ABC, abstractmethod
class StatLoggerBase(ABC):
    @abstractmethod
    def __init__(self, vllm_config, engine_index=0): ...
    @abstractmethod
    def record_what_is_new(self, stats): ...
"""


def plugin_in(folder, tmp_path_factory, target, base_class=BASE):
    """Load the plugin as a server does that is started by `python -m` in `folder`."""
    base = tmp_path_factory.mktemp("vllm") / "vllm" / "v1" / "metrics"
    base.mkdir(parents=True)
    for package in (base, *list(base.parents)[:2]):
        (package / "__init__.py").touch()
    (base / "loggers.py").write_text(base_class)
    (base / "stats.py").write_text("class SchedulerStats: pass\nclass IterationStats: pass\n")
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=folder,
        env=environment(TTSCOPE_PLUGIN=target)
        | {"PYTHONPATH": os.pathsep.join([str(base.parents[2]), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["profiler", "traces"])
@pytest.mark.parametrize("target", ["", "http://127.0.0.1:4318"])
def test_a_folder_of_that_name_beside_a_server_costs_one_line(
    tmp_path, tmp_path_factory, name, target
):
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('executed')\n")
    *lines, state = plugin_in(tmp_path, tmp_path_factory, target)
    assert state == "off"
    assert len(lines) == bool(target)
    if target:
        assert f"another {name} hides ttscope's" in lines[0]


@pytest.mark.parametrize(
    "body", ["raise SystemExit", "1 / 0", "raise RuntimeError('a\\nb')", "import absent_module"]
)
def test_a_module_that_hides_a_library_costs_one_line(tmp_path, tmp_path_factory, body):
    (tmp_path / "msgspec.py").write_text(body)
    *lines, state = plugin_in(tmp_path, tmp_path_factory, "http://127.0.0.1:4318")
    assert state == "off"
    assert len(lines) == 1 and "the step probe is off" in lines[0]


@pytest.mark.parametrize("target", ["", "http://user@host"])
def test_a_newer_vllm_that_asks_for_more_methods_starts(tmp_path, tmp_path_factory, target):
    *lines, _ = plugin_in(tmp_path, tmp_path_factory, target, NEWER)
    assert not any("Traceback" in line for line in lines)
