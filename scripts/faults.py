"""Single faults in the packages, drawn at random, and which of them the tests catch.

    python -m scripts.faults draw 60 --seed 1 > faults.json
    python -m scripts.faults judge faults.json [--whole | --near] [--only 3 7] > judged.json

A fault is one change of one place: a sign, a bound, a unit, two arguments that change places, a
guard that is left out, an `and` for an `or`. Every kind is drawn as often. `judge` copies the
sources, puts one fault at a time into the copy and runs tests until one fails: first those that
import the file or mirror its folder, then the others, or with `--near` none. These are the tests of
`make check`, and with `--whole` all of them. A test that fails runs again without the fault: where
it fails then too it caught nothing, and is left out from then on. A fault is found again by its
lines, so that it can be judged on later code. One whose lines are gone is said to be so.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "profiler", "advisor", "tui")
KINDS = ("sign", "bound", "unit", "argument", "guard", "logic")
SIGNS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
BOUNDS = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
LOGIC = {ast.And: ("and", "or"), ast.Or: ("or", "and")}
LONGEST_S = 900  # of a run of tests: a fault that makes one hang is caught
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A change of a file: `before` stands there `after` the fault, in the line `line` when drawn.

    `context` is the whole of the source lines around it, by which it is found again. `caught` names
    the test that failed, None where none did or none ran.
    """

    path: str
    line: int
    kind: str
    before: str
    after: str
    offset: int  # of `before` in `context`
    context: str
    caught: str | None = None
    seconds: float | None = None

    def applied(self, source: str) -> str | None:
        """Return the source with the fault, None where its lines are not there once."""
        if source.count(self.context) != 1:
            return None
        start = source.index(self.context) + self.offset
        return source[:start] + self.after + source[start + len(self.before) :]


class Source:
    """A file and the places at which a fault may be."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, path.read_text()
        self.starts = [0]
        for line in self.text.encode().splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.bytes = self.text.encode()

    def span(self, node: ast.expr) -> tuple[int, int]:
        """Return where an expression stands in the bytes."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        first = self.starts[node.lineno - 1] + node.col_offset
        return first, self.starts[node.end_lineno - 1] + node.end_col_offset

    def faults(self) -> Iterator[Fault]:
        """Yield every fault that can be made here."""
        for node in ast.walk(ast.parse(self.text)):
            for kind, start, end, after in self._changes(node):
                found = self._fault(kind, start, end, after)
                with suppress(SyntaxError):
                    changed = found.applied(self.text)
                    if changed is not None:
                        ast.parse(changed)
                        yield found

    def _changes(self, node: ast.AST) -> Iterator[tuple[str, int, int, str]]:
        if isinstance(node, ast.BinOp) and type(node.op) in SIGNS and not _textual(node):
            yield from self._between("sign", node.left, node.right, SIGNS[type(node.op)])
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in BOUNDS:
            words = BOUNDS[type(node.ops[0])]
            yield from self._between("bound", node.left, node.comparators[0], words)
        elif isinstance(node, ast.BoolOp):
            yield from self._between("logic", *node.values[:2], LOGIC[type(node.op)])
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            if abs(node.value) > 1:
                yield "unit", *self.span(node), repr(node.value * (1000 if node.value > 999 else 2))
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            first, second = (self.span(each) for each in node.args[:2])
            one, other = (self.bytes[slice(*span)].decode() for span in (first, second))
            if one != other and not any(isinstance(each, ast.Starred) for each in node.args[:2]):
                between = self.bytes[first[1] : second[0]].decode()
                yield "argument", first[0], second[1], f"{other}{between}{one}"
        elif isinstance(node, ast.If) and not node.orelse and _leaves(node.body):
            yield "guard", *self.span(node.test), "False"

    def _between(
        self, kind: str, left: ast.expr, right: ast.expr, words: tuple[str, str]
    ) -> Iterator[tuple[str, int, int, str]]:
        """Yield the change of the operator that stands between two expressions."""
        start, end = self.span(left)[1], self.span(right)[0]
        word, other = words
        place = self.bytes[start:end].find(word.encode())
        if place >= 0 and b"#" not in self.bytes[start:end]:
            yield kind, start + place, start + place + len(word), other

    def _fault(self, kind: str, start: int, end: int, after: str) -> Fault:
        first = self.bytes.rfind(b"\n", 0, start) + 1
        last = self.bytes.find(b"\n", end)
        while True:  # so many lines before it as make it the only one
            context = self.bytes[first:last].decode()
            if first == 0 or self.text.count(context) == 1:
                break
            first = self.bytes.rfind(b"\n", 0, first - 1) + 1
        return Fault(
            path=str(self.path.relative_to(ROOT)),
            line=self.bytes.count(b"\n", 0, start) + 1,
            kind=kind,
            before=self.bytes[start:end].decode(),
            after=after,
            offset=len(self.bytes[first:start].decode()),
            context=context,
        )


def _leaves(body: Sequence[ast.stmt]) -> bool:
    """Whether a branch does nothing but leave what it is in."""
    return len(body) == 1 and isinstance(body[0], (ast.Raise, ast.Return, ast.Continue))


def _textual(node: ast.BinOp) -> bool:
    """Whether an operation is of texts or of paths."""
    sides = (node.left, node.right)
    plain = (isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides)
    return any(plain) or any(isinstance(side, ast.JoinedStr) for side in sides)


def draw(count: int, seed: int) -> list[Fault]:
    """Return so many faults of different places, each kind in turn."""
    rng = random.Random(seed)
    by_kind: dict[str, list[Fault]] = {kind: [] for kind in KINDS}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for fault in Source(path).faults():
                by_kind[fault.kind].append(fault)
    drawn: list[Fault] = []
    while len(drawn) < count:
        of_kind = by_kind[KINDS[len(drawn) % len(KINDS)]]
        drawn.append(of_kind.pop(rng.randrange(len(of_kind))))
    return drawn


def near_tests(tree: Path, path: str) -> list[str]:
    """Return the tests that mirror a file's folder, then those that import it."""
    module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    package, _, name = module.rpartition(".")
    imports = re.compile(rf"from {module} import|from {package} import .*\b{name}\b")
    tests = sorted((tree / "tests").rglob("test_*.py"))
    own = [test for test in tests if test.parent == tree / "tests" / Path(path).parent]
    importing = [test for test in tests if test not in own and imports.search(test.read_text())]
    own.sort(key=lambda test: (name not in test.stem, not imports.search(test.read_text())))
    return [str(test.relative_to(tree)) for test in (*own, *importing)]


class Judge:
    """A copy of the sources in which tests run."""

    def __init__(self, *, whole: bool, near: bool, processes: int) -> None:
        self.whole, self.near, self.processes = whole, near, processes
        self.room = Path(tempfile.mkdtemp(prefix="faults-"))
        self.tree = self.room / "tree"
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        files = subprocess.check_output(listed, cwd=ROOT, text=True)
        for name in filter(lambda each: (ROOT / each).is_file(), files.splitlines()):
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.tree / name)
        if (shared := ROOT.parent / "shared").exists():
            (self.room / "shared").symlink_to(shared.resolve())
        self.left_out: list[str] = []  # tests that fail without a fault
        self.writes = 0

    def write(self, path: Path, source: str) -> None:
        """Write a source with a whole second of its own.

        Python takes what it compiled before where size and second are the same, and most faults
        change neither within a short test.
        """
        path.write_text(source)
        self.writes += 1
        os.utime(path, (self.writes, self.writes))

    def close(self) -> None:
        shutil.rmtree(self.room, ignore_errors=True)

    def run(self, tests: Sequence[str], processes: int) -> list[str]:
        """Return the first tests that failed, one of each process."""
        left_out = [f"--deselect={each}" for each in self.left_out]
        marks = [] if self.whole else ["-m", "not vllm and not slow"]
        several = ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"]
        several = several if processes > 1 else []
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--tb=no",
            "-rfE",
            "-x",
        ]
        environ = os.environ | {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": ""}
        with tempfile.TemporaryFile("w+") as output:
            started = subprocess.Popen(
                [*command, *marks, *several, *left_out, *tests],
                cwd=self.tree, env=environ, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = started.wait(LONGEST_S)
            except subprocess.TimeoutExpired:
                code = -1
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            output.seek(0)
            failed = FAILED.findall(output.read())
        if code in (0, 5):  # 5: of these tests none is among those that run
            return []
        return failed or [f"pytest ended with {code}"]

    def judge(self, fault: Fault) -> Fault:
        """Return a fault with the test that catches it."""
        path, begun = self.tree / fault.path, time.monotonic()
        source = path.read_text()
        changed = fault.applied(source)
        if changed is None:
            return replace(fault, caught="its line is gone")
        near = near_tests(self.tree, fault.path)
        caught = None
        for tests, processes in ((near, 1), ([] if self.near else ["tests"], self.processes)):
            while tests and caught is None:
                self.write(path, changed)
                failed = self.run(tests, processes)
                self.write(path, source)
                if not failed:
                    break
                if "::" in failed[0] and self.run(failed[:1], 1):
                    self.left_out.append(failed[0])
                else:
                    caught = failed[0]
        return replace(fault, caught=caught, seconds=round(time.monotonic() - begun, 1))


def main() -> None:
    """Draw or judge, as the command line says. What it prints is JSON, progress goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="verb", required=True)
    drawing = verbs.add_parser("draw")
    drawing.add_argument("count", type=int)
    drawing.add_argument("--seed", type=int, default=1)
    judging = verbs.add_parser("judge")
    judging.add_argument("faults", type=Path)
    judging.add_argument("--whole", action="store_true")
    judging.add_argument("--near", action="store_true")
    judging.add_argument("--only", type=int, nargs="*")
    judging.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.verb == "draw":
        print(json.dumps([asdict(each) for each in draw(options.count, options.seed)], indent=1))
        return
    faults = [Fault(**each) for each in json.loads(options.faults.read_text())]
    chosen = range(len(faults)) if options.only is None else options.only
    judge = Judge(whole=options.whole, near=options.near, processes=options.processes)
    judged: list[Fault] = []
    try:
        for number in chosen:
            found = judge.judge(faults[number])
            judged.append(found)
            where = f"{number} {found.path}:{found.line} {found.kind}"
            change = f"{found.before[:40]!r} -> {found.after[:40]!r}"
            print(f"{where} {change}: {found.caught} ({found.seconds} s)", file=sys.stderr)
    finally:
        judge.close()
    print(json.dumps([asdict(each) for each in judged], indent=1))
    caught = sum(each.caught is not None for each in judged)
    print(f"{caught} of {len(judged)} caught", file=sys.stderr)


if __name__ == "__main__":
    main()
