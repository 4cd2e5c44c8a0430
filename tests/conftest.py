"""What all tests share: the rule for tests that need vLLM, and where foreign data lies."""

import atexit
import functools
import gc
import importlib.util
import os
import re
import signal
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# As the engine sets it: numba refuses another number of threads once it has started some.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
# Before numpy is imported: threads of small products wait for each other longer than they work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")  # of small tables: a tenth of the tests' time

# So that receivers, plugins and servers of the tests know each other, and the user's file is left.
os.environ["TTSCOPE_TOKEN"] = "a-token-of-the-tests-and-of-nobody"

# No test cuts the power: what is written stays in memory until the disk has time.
os.fsync = lambda file: None

# `make test &` of a script leaves out Ctrl-C, and what the tests start would never see theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each HTTP client reads the certificates of all authorities: of small tests, a third of the time.
ssl.create_default_context = functools.cache(ssl.create_default_context)

# A machine may be busy: how long an example takes is no fault. The examples are the same in each
# run; `--hypothesis-profile new` draws others.
ANY_PACE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("tests", derandomize=True, **ANY_PACE)
settings.register_profile("new", **ANY_PACE)
settings.load_profile("tests")

LEARNED = re.compile(r"def test_\w+\([^)]*\b(?:advisor|fresh|fresh_advisor|recordings)\b")
OF_SHIPPED = re.compile(r"\(\[SHIPPED\]|run\.ok\(\"demo\"")  # of all of them
IN_PROCESS = re.compile(r"\b(?:InProcessEngine|start_engine)\(|^ +from vllm", re.M)
IMPORTING = "tests that import vLLM"
ENGINES = 2  # as many processes as there are cores where the tests run
LONGEST = (  # files that take more than half a minute; one of those that share an advisor
    "profiler/serve/test_real_serve.py", "tui/test_terminal.py", "advisor/advice/test_advise.py",
    "tui/test_real_terminal.py", "test_golden.py", "profiler/attach/test_real_attach.py",
    "test_live_to_advice.py", "profiler/engines/vllm/test_real_vllm.py",
    "tui/verbs/test_outcomes_alone.py", "tui/screens/live/test_live_real.py",
    "advisor/accuracy/models/test_answers.py", "advisor/what_if/test_predict.py",
    "tui/app/test_one_answer.py", "tui/report/test_report.py",
)  # fmt: skip
SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Have the tests of a file stay together, and all that share what an advisor has learned.

    There are two: that of `tests/advisor`, and that of all shipped recordings. So do those that
    import vLLM, which takes ten seconds. No more than `ENGINES` processes get files with real
    engines, while other files are left.
    """
    from xdist.scheduler import LoadScopeScheduling

    @functools.cache
    def text(file):
        return (config.rootpath / file).read_text()

    @functools.cache
    def group(file):
        if file.startswith("tests/advisor/") and LEARNED.search(text(file)):
            return "advisor"
        if file.startswith("tests/tui/") and OF_SHIPPED.search(text(file)):
            return "shipped"
        return IMPORTING if starts_engines(file) and IN_PROCESS.search(text(file)) else file

    def starts_engines(scope):
        return scope == IMPORTING or (scope.endswith(".py") and "mark.vllm" in text(scope))

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(nodeid.partition("::")[0])

        def _assign_work_unit(self, node):
            importing = sum(  # nodes, of which each imports vLLM once
                each is not node and any(map(starts_engines, scopes))
                for each, scopes in self.assigned_work.items()
            )
            if importing >= ENGINES:
                others = (scope for scope in self.workqueue if not starts_engines(scope))
                if (other := next(others, None)) is not None:
                    self.workqueue.move_to_end(other, last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log)


def pytest_ignore_collect(collection_path, config):
    """Do not import a file all of whose tests carry a mark that `-m` leaves out."""
    left_out = re.findall(r"not (\w+)", config.option.markexpr)
    if not left_out or collection_path.suffix != ".py":
        return None
    marks = re.search(r"^pytestmark = (\[.*?^\]|.*?$)", collection_path.read_text(), re.M | re.S)
    return True if marks and re.search(rf"mark\.({'|'.join(left_out)})\b", marks[1]) else None


def pytest_sessionstart(session):
    """Import a part of the files, each process another, before all collect all of them.

    A first run rewrites their assertions, which takes ten seconds of a processor. So each file is
    rewritten by one process.
    """
    config, count = session.config, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if count == 1 or config.args != ["tests"] or not hasattr(config, "workerinput"):
        return
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    for path in files[int(os.environ["PYTEST_XDIST_WORKER"][2:]) :: count]:
        if not pytest_ignore_collect(path, config):
            name = ".".join(path.relative_to(config.rootpath).with_suffix("").parts)
            with suppress(Exception, pytest.skip.Exception):  # which collecting it tells
                importlib.import_module(name)


gc.disable()  # while tests are collected, which leaves hardly any garbage


def pytest_collection_finish():
    """Search for garbage from now on, and never again among what all tests keep."""
    gc.enable()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else nanobind lists what nobody frees
    gc.unfreeze = lambda: None  # which an engine calls when it ends


def pytest_collection_modifyitems(config, items):
    """Begin with the files that take longest, then other slow ones: short ones end it.

    So the processes end together. Tests with real engines are skipped where vLLM is missing. In CI
    they fail instead.
    """
    kinds = ("vllm", "slow")
    files = {kind: {i.path for i in items if i.get_closest_marker(kind)} for kind in kinds}
    rank = {config.rootpath / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: (
            rank.get(item.path, len(rank)), *(item.path not in files[kind] for kind in kinds)
        )
    )  # fmt: skip
    if importlib.util.find_spec("vllm") is not None or os.environ.get("CI") == "true":
        return
    skip = pytest.mark.skip(reason="vLLM is not installed (make install)")
    for item in items:
        if item.get_closest_marker("vllm") is not None:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def environment():
    """What a test sets in the environment, and the verbs that it calls, ends with it."""
    before = dict(os.environ)
    yield
    for name in (os.environ.keys() | before.keys()) - {"PYTEST_CURRENT_TEST"}:
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


@pytest.fixture(scope="session")
def made_tables(tmp_path_factory) -> Path:
    """The operator tables of a made-up GPU, whose laws are then learned once."""
    from tests.advisor.step_time.prior.prior_files import write_prior

    return write_prior(tmp_path_factory.mktemp("prior") / "systems")


@pytest.fixture
def prior(made_tables, monkeypatch) -> Path:
    """The made-up tables in the place of those that are installed."""
    monkeypatch.setattr("advisor.step_time.prior.tables.tables_folder", lambda: made_tables)
    return made_tables


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data measured by others; its tests are skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the folder with data measured by others is absent")
    return SHARED
