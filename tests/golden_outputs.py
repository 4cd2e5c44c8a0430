"""What each verb prints of the shipped recordings and of small fixtures, kept in tests/golden.

    python -m tests.golden_outputs [CASE ..]    names the outputs that differ, with the difference
    python -m tests.golden_outputs --keep       keeps the outputs of now

Numbers in JSON are kept to `DIGITS`. Folders of this machine and times of day are left out.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import math
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

from advisor.accuracy import counterfactual
from advisor.advice.advisor import Advisor
from advisor.advice.command import CpuBuild
from advisor.step_time.prior import tables as prior_tables
from advisor.what_if import predict as predicting
from benchmarks.made import kineto_files
from tests.advisor import synthetic as advised
from tests.advisor.step_time.operators import operator_tables
from tests.advisor.step_time.prior import prior_files
from tests.learned import Learned
from tests.traces import synthetic
from tests.tui.live_recordings import write_watched
from tui import cli
from tui.text import commands

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).parent / "golden"
SHIPPED = ROOT / "profiler" / "demo" / "recordings"
FOREIGN = ROOT / "tests" / "data" / "foreign"
VERBS = (
    "sweep", "show", "replay", "import", "export", "advise", "report", "demo", "doctor", "record",
    "attach", "tui", "serve", "gate",
)  # fmt: skip
DIGITS = 7  # no interval is known to four, and rounding alone changes the twelfth
FLOAT = re.compile(r"-?\d+\.\d+(?:[eE][-+]?\d+)?|-?\d+[eE][-+]?\d+")
INNERMOST, SPACE = re.compile(r"\{[^{}\[\]]*\}|\[[^{}\[\]]*\]"), re.compile(r"\s*\n\s*")
OF_TWO = re.compile(r"\{(?:[^{}\[\]]|\{[^{}\[\]\n]*\})*\}")
WIDEST = 320
PROGRESS = re.compile(r", \d:\d\d:\d\d$")
CPU_BUILD = CpuBuild(python="/venv/bin/python", omp_threads="1")
NOT_KEPT = (  # what differs from one run to the next
    (re.compile(r"recordings, \d+(\.\d+)? m?s\b"), "recordings, TIME"),
    (re.compile(r"\(\d+ kB\)"), "(N kB)"),  # paths and times of day are in it
    (re.compile(r"terminal-\d+-|rich-terminal-\d+|clip-\d+|\d{9,}-"), "N-"),
    (re.compile(r"\b20[2-9]\d-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+\d\d:\d\d)?"), "TIME"),
)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:{at:02d}.9799600,{100 + at},{20 + at % 7}\n" for at in range(1, 30)
)
MOONCAKE = "".join(
    json.dumps({"timestamp": 400 * at, "input_length": 900 + 7 * at, "output_length": 20 + at,
                "hash_ids": [1, at]}) + "\n"
    for at in range(30)
)  # fmt: skip
PLAIN = "".join(
    json.dumps({"problem_id": f"p{at // 4}", "sample_index": at % 4, "answer": str(at % 3),
                "correct": at % 3 == 0, "output_tokens": 30 + at}) + "\n"
    for at in range(40)
)  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": 1024,
    "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 4, "vocab_size": 1000,
}  # fmt: skip


RUNS = {  # of the shipped recordings
    "votes": "demo-s-tp1-seqs64-maj@16-t0.8-a1b9005e",
    "large": "demo-l-tp1-seqs64-maj@16-t0.8-09e0005e",
    "narrow": "demo-l-tp1-seqs8-maj@16-t0.8-39b7005e",
    "drafts": "demo-l-tp1-seqs64-draft-model-k3-greedy-t0-863e7ae0",
    "greedy": "demo-l-tp1-seqs64-greedy-t0-09e07ae0",
}


class Fixtures:
    """The inputs of the cases, written on first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> str:
        """Return a path relative to the folder: the width of no line depends on where that is."""
        path = self.shipped / RUNS[name] if name in RUNS else getattr(self, name)
        return os.path.relpath(path, self.folder)

    @cached_property
    def shipped(self) -> Path:
        (self.folder / "shipped").symlink_to(SHIPPED)
        return self.folder / "shipped"

    @cached_property
    def sessions(self) -> Path:
        (self.folder / "sessions").symlink_to(SHIPPED.parent / "sessions")
        return self.folder / "sessions" / "session-2.json"

    @cached_property
    def foreign(self) -> Path:
        (self.folder / "foreign").symlink_to(FOREIGN)
        return self.folder / "foreign"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @cached_property
    def made(self) -> Path:
        """Recordings of two models, TP 1 and 2, with and without n-gram lookup."""
        plan = (
            ("small", {}, advised.GREEDY, 0.02),
            ("small", {}, advised.VOTE16, -0.02),
            ("small", {"speculative": advised.NGRAM}, advised.VOTE16, 0.01),
            ("large", {}, advised.VOTE16, 0.03),
            ("large", {"tensor_parallel_size": 2}, advised.VOTE16, 0.0),
        )
        for number, (model, changes, policy, drift) in enumerate(plan):
            folder = self.folder / "made" / f"run{number}"
            advised.record(folder, advised.engine_of(model, **changes), policy, drift=drift)
        return self.folder / "made"

    @cached_property
    def tp2(self) -> Path:
        return self.made / "run4"

    @cached_property
    def ngram(self) -> Path:
        return self.made / "run2"

    @cached_property
    def tiny(self) -> Path:
        rows = synthetic.simulate(problems=12, n=5)
        return synthetic.write_recording(self.folder / "tiny", rows).path

    @cached_property
    def cut_off(self) -> Path:
        rows = synthetic.simulate(problems=6, n=3)
        return synthetic.write_recording(self.folder / "cut_off", rows, complete=False).path

    @cached_property
    def watched(self) -> Path:
        return write_watched(self.folder / "watched", spans=True, engines=2, steps=True).path

    @cached_property
    def scraped(self) -> Path:
        return write_watched(self.folder / "scraped", spans=False).path

    @cached_property
    def server(self) -> Path:
        return ROOT / "scripts" / "watched"

    @cached_property
    def tables(self) -> Path:
        operator_tables.write_tables(self.folder / "tables")
        return self.folder / "tables"

    @cached_property
    def config(self) -> Path:
        path = self.folder / "model" / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps(CONFIG))
        return path

    @cached_property
    def prior(self) -> Path:
        return prior_files.write_prior(self.folder / "systems")

    def written(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    @cached_property
    def azure(self) -> Path:
        return self.written("azure.csv", AZURE)

    @cached_property
    def mooncake(self) -> Path:
        return self.written("mooncake.jsonl", MOONCAKE)

    @cached_property
    def plain(self) -> Path:
        return self.written("plain.jsonl", PLAIN)

    @cached_property
    def gpu_trace(self) -> Path:
        return kineto_files.write(
            self.folder / "gpu.json", kineto_files.document(kineto_files.device_events())
        )

    @cached_property
    def cpu_trace(self) -> Path:
        return kineto_files.write(
            self.folder / "cpu.json", kineto_files.document(kineto_files.cpu_events())
        )


def cases() -> dict[str, str]:
    """Return the command of each case; `{name}` is a fixture, `{out}` where it may write.

    JSON is kept once for each kind of answer, and the text for each question. A refusal is the same
    in both.
    """
    found = {"help": "--help"} | {f"help-{verb}": f"{verb} --help" for verb in VERBS}

    text = found.__setitem__

    def both(name: str, command: str) -> None:
        text(name, command)
        found[f"{name}-json"] = f"{command} --json"

    recordings = ("votes", "large", "drafts", "greedy", "tp2", "ngram", "tiny",
                  "cut_off", "watched", "scraped")  # fmt: skip
    for name in recordings:
        kept = text if name in ("large", "greedy", "tp2") else both
        kept(f"show-{name}", f"show {{{name}}} --price 2.5")
    for name in ("votes", "tiny", "tp2", "scraped"):
        kept = text if name in ("tiny", "tp2") else both
        kept(f"show-policies-{name}", f"show {{{name}}} --policies")
    both("compare-engines", "show {large} {narrow} --fail-on p95>+5% --fail-on accuracy<-1%")
    text("compare-models", "show {votes} {large}")
    both("compare-watched", "show {watched} {scraped}")
    changes = {
        "seqs": "{large} --set engine.max_num_seqs=8",
        "fewer": "{large} --set policy.n=4",
        "agree": "{votes} --set policy.method=agreement --set policy.agree=3",
        "adaptive": "{votes} --set policy.method=adaptive --set policy.in_flight=4",
        "first": "{votes} --set policy.method=first_finish --set policy.first=3",
        "esc": "{votes} --set policy.method=early_stopping --set policy.window=4",
        "rate": "{large} --rate 4/s",
        "batch": "{large} --batch 200 --set engine.max_num_seqs=32",
        "replicas": "{large} --concurrency 8 --replicas 2 --routing least-outstanding --together",
        "drafts": "{drafts} --with {greedy} --set engine.speculative=null",
        "drafting": "{greedy} --with {drafts} --set engine.max_num_seqs=16",
        "lookup": "{made}/run1 --with {ngram} --set engine.max_num_seqs=4",
        "tp": "{made}/run3 --with {tp2} --set engine.tensor_parallel_size=2",
        "tables": "{tiny} --operators {tables} --num-hidden-layers 2",
        "watch": "{server} --set engine.max_num_seqs=16",
        "gpu": "{votes} --gpu test_gpu --model-config {config}",
        "no-field": "{votes} --set engine.nothing=2",
        "no-value": "{votes} --set engine.max_num_seqs=many",
        "scraped": "{scraped}",
        "policy-words": "{votes} --set policy.method=nothing",
    }
    of_a_kind = ("esc", "rate", "batch", "drafting", "tables", "watch", "gpu")
    for name, command in changes.items():
        (both if name in of_a_kind else text)(f"replay-{name}", f"replay {command}")
    found["import-sessions"] = "import {sessions} -o {out}/agents"
    agents = "--gpu test_gpu --model-config {config} --agents 2,12 --max-turn-latency 20s"
    both("replay-agents", f"replay {{out}}/agents {agents}")
    found["replay-kept"] = "replay {votes} --set engine.max_num_seqs=16 -o {out}/kept"
    both("show-kept", "show {out}/kept")
    budgets = {
        "accuracy": "--min-accuracy 0.75",
        "latency": "--max-latency 250ms --percentile 95",
        "cost": "--max-cost 0.05s --optimise accuracy --price 2.5",
        "energy": "--min-accuracy 0.6 --optimise energy",
        "rate": "--rate 3/s --min-accuracy 0.7 --optimise cost",
        "throughput": "--optimise throughput",
        "nothing": "--min-accuracy 0.999",
        "nearly": "--min-accuracy 0.9 --max-latency 20ms",
        "sure": "--min-accuracy 0.7 --confidence 0.5 --gpus 1",
        "empty": "",
        "bad": "--min-accuracy 3",
        "present": "--min-accuracy 0.75 --present {narrow} --plan {out}/plan.yaml",
    }
    for name, options in budgets.items():
        command = f"advise {{shipped}} {options}"
        (both if name in ("latency", "cost", "nothing", "bad") else text)(f"advise-{name}", command)
    both("advise-drafts", "advise {greedy} {drafts} --drafts")
    both("advise-made", "advise {made} --min-accuracy 0.6 --optimise latency")
    found["advise-made-cost"] = "advise {made} --max-latency 2s --optimise cost --price 2.5"
    text("advise-tiny", "advise {tiny} --optimise latency")
    text("advise-cut-off", "advise {cut_off} --optimise latency")
    found["report"] = "report {shipped} --min-accuracy 0.75 -o {out}/report.html"
    found["report-made"] = "report {made} --max-latency 2s -o {out}/made.html"
    imports = {
        "lm-eval": "{foreign}/samples_toy_sums_all.jsonl",
        "lm-eval-choice": "{foreign}/samples_toy_choice.jsonl",
        "lm-eval-self": "{foreign}/samples_toy_sums_self.jsonl --verifier numeric",
        "inspect": "{foreign}/inspect_sums.eval",
        "inspect-log": "{foreign}/inspect_sums.json",
        "aiperf": "{foreign}/requests_aiperf.jsonl",
        "guidellm": "{foreign}/requests_guidellm.json",
        "vllm-bench": "{foreign}/requests_vllm_bench.json",
        "azure": "{azure}",
        "mooncake": "{mooncake}",
        "plain": "{plain}",
        "gpu-trace": "{gpu_trace}",
        "cpu-trace": "{cpu_trace}",
    }
    for name, path in imports.items():
        found[f"import-{name}"] = f"import {path} -o {{out}}/{name}"
        found[f"import-{name}-json"] = f"import {path} -o {{out}}/{name}-json --json"
        found[f"import-{name}-shown"] = f"show {{out}}/{name} --json"
    found["export-perfetto"] = "export {tiny} -o {out}/trace.json"
    both("export-mooncake", "export {tiny} -o {out}/trace.jsonl --format mooncake")
    for screen in ("recordings", "run", "advice", "live"):
        name = "watched" if screen == "live" else "votes" if screen == "run" else "shipped"
        options = f"{{{name}}} --screen {screen} --screenshot {{out}}/{screen}.svg"
        found[f"tui-{screen}"] = f"tui {options} --min-accuracy 0.75 --size 100x40"
    return found


def output_of(command: str, fixtures: Fixtures) -> str:
    """Run one command in this process; return its exit code and what it printed and wrote."""
    filled = re.sub(r"\{(\w+)\}", lambda name: fixtures[name[1]], command)
    arguments = shlex.split(filled)
    written = [Path(each) for each in arguments if each.startswith("out/")]
    for path in written:
        if (fixtures.folder / path).is_file():
            (fixtures.folder / path).unlink()
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["ttscope", *arguments]),
        mock.patch.object(prior_tables, "tables_folder", lambda: fixtures.prior),
        mock.patch.object(
            sys.modules["__main__"], "__package__", None
        ),  # usage begins with its name
        mock.patch.object(commands, "served_path", "/models/{}".format),
        mock.patch.object(commands, "cpu_build_here", lambda: CPU_BUILD),
        contextlib.chdir(fixtures.folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as left:
            code = left.code or 0
    parts = [f"$ ttscope {command}", f"exit {code}", _printed(out.getvalue())]
    told = "".join(line for line in err.getvalue().splitlines(True) if not PROGRESS.search(line))
    if told:
        parts += ["-- stderr", told]
    written = [fixtures.folder / path for path in written]
    parts += [f"-- {path.name}\n{_file(path)}" for path in written if path.is_file()]
    text = "\n".join(part.rstrip() for part in parts) + "\n"
    for folder, name in ((fixtures.folder, "FOLDER"), (ROOT, "ROOT")):
        text = text.replace(str(folder), name)
    for pattern, instead in NOT_KEPT:
        text = pattern.sub(instead, text)
    return text


def _printed(text: str) -> str:
    """Return JSON with a line an estimate and its numbers to `DIGITS`, other text as it is."""
    with contextlib.suppress(ValueError):
        text = json.dumps(_rounded(json.loads(text)), indent=1)
        for part in (INNERMOST, OF_TWO):  # an estimate holds two intervals
            text = part.sub(_on_one_line, text)
    return text


def _on_one_line(part: re.Match[str]) -> str:
    line = SPACE.sub(" ", part.group())
    return line if len(line) <= WIDEST else part.group()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _file(path: Path) -> str:
    text = path.read_text()
    if path.suffix == ".svg":  # what stands on the screen, without the drawing
        text = "\n".join(re.findall(r">([^<>]+)</text>", text)).replace("&#160;", " ")
    if path.suffix == ".html":
        text = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
        text = re.sub(r"\s*<[^>]*>\s*", "\n", text)
        return re.sub(r"\n\n+", "\n", text)
    text = _printed(text)
    if len(text) > 50_000:  # that nothing changed is enough to know
        return f"{text.count(chr(10)):,} lines, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}"
    return text


@contextlib.contextmanager
def learned_once() -> Iterator[None]:
    """Have each set of recordings learned once, and a case and the same as JSON replayed once."""
    with (
        mock.patch.object(Advisor, "fit", Learned()),
        mock.patch.object(predicting, "predict", Once(predicting.predict)),
        mock.patch.object(counterfactual, "evaluate", Once(counterfactual.evaluate)),
    ):
        yield


class Once:
    """A function whose results for a case are those for the same case as JSON."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.argv = function, []
        self.found: list[Any] = []
        self.again: list[Any] = []

    def __call__(self, *given: Any, **options: Any) -> Any:
        if sys.argv != self.argv:
            same_case = without_json(sys.argv) == without_json(self.argv)
            self.argv, self.found, self.again = sys.argv, [], self.found if same_case else []
        if self.again:
            return self.again.pop(0)
        self.found.append(self.function(*given, **options))
        return self.found[-1]


def without_json(words: list[str]) -> list[str]:
    return [word for word in words if word != "--json"]


def outputs(names: list[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the output of each case, in order: some read what others wrote.

    Of named cases, those that write what these read are run too.
    """
    fixtures = Fixtures(folder)
    fixtures.out.mkdir()
    every = cases()
    if unknown := {*names} - {*every}:
        sys.exit(f"no such case: {' '.join(sorted(unknown))}")
    shared = {path for name in names for path in written_by(every[name])}
    with learned_once():
        for name, command in every.items():
            if not names or name in names or not shared.isdisjoint(written_by(command)):
                text = output_of(command, fixtures)
                if not names or name in names:
                    yield name, text


def written_by(command: str) -> list[str]:
    """Return what a case writes or reads of the folder that all cases share."""
    return re.findall(r"\{out\}/\S+", command)


def same(kept: str, new: str) -> bool:
    """Whether two outputs are equal, their numbers with fractions but for the last of `DIGITS`.

    Another processor adds in another order. What is then rounded may differ by one there.
    """
    for pattern, instead in NOT_KEPT:
        kept, new = pattern.sub(instead, kept), pattern.sub(instead, new)
    if kept == new:
        return True
    if FLOAT.split(kept) != FLOAT.split(new):
        return False
    pairs = zip(FLOAT.findall(kept), FLOAT.findall(new), strict=True)
    last = 1.01 * 10.0 ** (1 - DIGITS)
    return all(math.isclose(float(a), float(b), rel_tol=last, abs_tol=1e-12) for a, b in pairs)


def differences(names: list[str], folder: Path) -> Iterator[str]:
    """Yield a unified difference for each case whose output is not the kept one."""
    for name, new in outputs(names, folder):
        path = KEPT / f"{name}.txt"
        kept = path.read_text() if path.exists() else ""
        if not same(kept, new):
            lines = difflib.unified_diff(
                kept.splitlines(), new.splitlines(), name, "now", lineterm="", n=2
            )
            yield "\n".join(lines)


def main() -> int:
    """Keep the outputs or compare them; 1 where one differs."""
    os.environ["NUMBA_NUM_THREADS"] = "1"
    names = [each for each in sys.argv[1:] if each != "--keep"]
    with tempfile.TemporaryDirectory() as folder:
        if "--keep" not in sys.argv:
            found = list(differences(names, Path(folder)))
            print("\n".join(found) or "all outputs are the kept ones")
            return 1 if found else 0
        KEPT.mkdir(exist_ok=True)
        if not names:
            for path in KEPT.glob("*.txt"):
                path.unlink()
        for name, text in outputs(names, Path(folder)):
            (KEPT / f"{name}.txt").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
