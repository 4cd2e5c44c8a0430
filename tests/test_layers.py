"""Light imports stay light, and the layers hold at run time."""

import ast
import functools
import subprocess
import symtable
import sys
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import grimp
import pytest

HEAVY = ("torch", "vllm", "scipy", "textual", "transformers", "pynvml", "httpx", "rich")
PACKAGES = ("traces", "profiler", "advisor", "tui")
ELSEWHERE = ("vllm", "torch", "transformers", "safetensors", "hta", "mkdocs")
OURS = (*PACKAGES, "benchmarks", "scripts", "ttscope", "ttscope_plugin")
ROOT = Path(__file__).parents[1]


def loaded_by(*statements):
    """Which modules a fresh interpreter has after each of some statements."""
    told = "\nimport sys\nprint(*sorted(sys.modules))\n"
    code = "".join(statement + told for statement in statements)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "absent",  # after each statement, in one interpreter
    [
        {
            "import ttscope": {*HEAVY, "polars", "numpy", "typer", "profiler", "advisor", "tui"},
            "import traces": {*HEAVY, "polars", "numpy", "opentelemetry"},
            "import traces.recording.reader, traces.recording.writer, traces.summary.run": {
                *HEAVY, "profiler", "advisor", "tui",
            },
            "import advisor.advice.advisor": {*HEAVY, "profiler", "tui"},
        },
        {
            "import profiler.demo.task": {*HEAVY, "numpy", "polars"},
            "import profiler.runs.record": {
                "torch", "vllm", "scipy", "textual", "pynvml", "advisor", "tui",
            },
        },
        {
            "import tui.cli": {*HEAVY[:-1], "polars", "numpy", "opentelemetry"},
            "import tui.app.app": {*HEAVY, "numba", "opentelemetry"} - {"textual", "rich"},
        },
        {"import tui.screens.entries, tui.text.recordings.show": {"textual", "scipy", "torch"}},
    ],
    ids=lambda absent: next(iter(absent)),
)  # fmt: skip
def test_imports_stay_light(absent):
    for loaded, heavy in zip(loaded_by(*absent), absent.values(), strict=True):
        assert loaded & heavy == set()


@functools.cache
def names_in(module):
    """What a module of ours has, modules of its folder among it. None where it is not ours."""
    for root in (ROOT, ROOT / "benchmarks"):  # where `python benchmarks/NAME.py` finds others
        folder = root.joinpath(*module.split("."))
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if folder.is_dir() or file.exists():
            text = file.read_text() if file.exists() else ""
            bound = symtable.symtable(text, str(file), "exec").get_symbols()
            there = {each.get_name() for each in bound if each.is_assigned() or each.is_imported()}
            return there | {path.stem for path in folder.glob("*")}
    return None


def test_what_benchmarks_and_scripts_import_is_there_and_no_test():
    """Their types are not checked, so that only who runs them would find a name that moved."""
    for path in (path for of in ("benchmarks", "scripts") for path in (ROOT / of).rglob("*.py")):
        for each in ast.walk(ast.parse(path.read_text())):
            asked = [each.module] if isinstance(each, ast.ImportFrom) else []
            asked += [of.name for of in each.names] if isinstance(each, ast.Import) else []
            for module in asked:
                top, names = module.split(".")[0], names_in(module)
                assert top != "tests", path
                if names is None:
                    assert top not in OURS and (top in ELSEWHERE or find_spec(top)), (path, module)
                elif isinstance(each, ast.ImportFrom):
                    assert {of.name for of in each.names} <= names, path


def test_no_modules_import_each_other_and_a_package_has_at_most_six_floors():
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)  # what only types need counts too
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(list(TopologicalSorter(imports).static_order())) == len(imports)
    for package in PACKAGES:
        for room in graph.find_children(package):
            graph.squash_module(room)
        rooms = {room: graph.find_modules_directly_imported_by(room) for room in graph.modules}
        floor = {}
        for room in TopologicalSorter(rooms).static_order():
            below = [floor[other] for other in rooms[room] if other.startswith(f"{package}.")]
            floor[room] = 1 + max(below, default=0)
        assert max(floor[room] for room in floor if room.startswith(f"{package}.")) <= 6, floor


def test_a_folder_has_at_most_eight_modules():
    for package in PACKAGES:
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(modules) <= 8 or folder == ROOT / "tui" / "verbs", folder
