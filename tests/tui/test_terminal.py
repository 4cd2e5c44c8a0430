"""Every verb at a terminal of 80 columns, with its progress drawn; interrupted; cut off; plain."""

import json
import re
import shlex
import signal
import sys

import pytest

from benchmarks.made.terminal import CTRL_C, ROOT, TTSCOPE, in_terminal, ttscope
from tests.tui.chat_server import chat_server
from traces.recording.reader import Recording
from tui.cli import VERBS, loaded
from tui.verbs.demo import SHIPPED

pytestmark = pytest.mark.slow

RUN = next(SHIPPED.glob("demo-s-*-maj@16-*"))
OTHER = next(SHIPPED.glob("demo-l-tp1-seqs64-maj@16-*"))
FOREIGN = ROOT / "tests" / "data" / "foreign"
SOME_SECONDS = re.compile(r"\d:\d\d:(?!00)\d\d")  # a line that is written anew each second
BUDGET = ("--min-accuracy", "0.75")
IMPORT = ("import", FOREIGN / "requests_vllm_bench.json", "-o", "made")
RECORD = ("--problems", "6", "--n", "2", "--concurrency", "2")


def check(seen, code=0, *, paths=()):
    """No traceback, the right exit code, nothing wider than the terminal but paths."""
    assert "Traceback" not in seen.text and b"Traceback" not in seen.raw, seen.text
    assert seen.code == code, seen.text
    allowed = [str(path) for path in paths]  # a path is one word
    assert not [line for line in seen.wrapped if not any(each in line for each in allowed)]


@pytest.fixture
def url():
    with chat_server() as served:
        yield served


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("advise", RUN, *BUDGET), 0, "Run demo/"),
        (("show", RUN), 0, "accuracy"),
        (("replay", RUN, "--set", "engine.max_num_seqs=8"), 0, "predicted"),
        (("import", FOREIGN / "requests_vllm_bench.json", "-o", "made"), 0, "kept in made"),
        (("import", FOREIGN / "README.md", "-o", "made"), 1, "ttscope: "),
        (("export", RUN, "-o", "trace.json.gz"), 0, "to trace.json.gz"),
        (("report", RUN, OTHER, *BUDGET, "-o", "page.html"), 0, "wrote page.html"),
        (("tui", RUN, "--screenshot", "a.svg", "--size", "80x24"), 0, ""),
        (("gate", RUN, OTHER, "--fail-on", "latency>+5%"), 3, "latency"),
        (("serve", "policy.json", "--upstream", "http://127.0.0.1:9"), 2, "policy.json"),
        (("nonsense",), 2, "ttscope: No such command"),
        (("--help",), 0, "record"),
    ],
    ids=lambda value: " ".join(map(str, value[:1])) if isinstance(value, tuple) else None,
)
def test_a_verb(tmp_path, arguments, code, said):
    seen = ttscope(*arguments, cwd=tmp_path, fresh=True)
    check(seen, code, paths=[SHIPPED, FOREIGN])
    assert said in seen.text
    if code == 0 and arguments[0] in ("advise", "show", "replay", "report"):
        assert re.search(r"^(next|Next) ", seen.text, re.M) and seen.coloured


def test_every_help_is_whole():
    every = "from tui.cli import VERBS, app\nfor verb in VERBS:\n"
    every += "    app([verb, '--help'], prog_name='ttscope', standalone_mode=False)"
    seen = in_terminal(sys.executable, "-c", every)
    check(seen)
    assert not seen.wrapped and "…" not in seen.text and seen.coloured
    helps = dict(zip(VERBS, seen.text.split(" Usage: ")[1:], strict=True))
    for verb, text in helps.items():
        assert "\n Example" in text and f"\n ttscope {verb}" in text
        for parameter in loaded(verb).params:
            names = parameter.opts if parameter.param_type_name == "option" else [parameter.name]
            assert all(re.search(rf"[│*] +(-o +)?{name}[ .]", text) for name in names[-1:]), names


def test_progress_stays_in_its_place():
    seen = ttscope("advise", RUN, *BUDGET, "--json", columns=40, redirected=True)
    check(seen)
    assert b"learn" in seen.raw
    assert seen.text == ""  # all progress has gone
    assert json.loads(seen.stdout)["system_optimal"]["command"]


def test_the_demo_ends_in_the_app(tmp_path):
    keys = [("A system-optimal", "q")]
    seen = ttscope("demo", "--shipped", cwd=tmp_path, keys=keys, fresh=True)
    check(seen, paths=[SHIPPED])
    assert f"recordings in {SHIPPED}" in seen.text
    assert any("Run demo/m with up to 5 samples" in line for line in seen.app)


@pytest.mark.parametrize("plain", [False, True])
def test_the_app(tmp_path, plain):
    env = {"COLORTERM": "truecolor"} | ({"NO_COLOR": "1"} if plain else {})
    seen = ttscope("tui", RUN, keys=[("maj@16", "q")], env=env)
    check(seen)
    grey = b"\x1b[38;2;"
    colours = {
        tuple(part.split(b"m")[0].split(b";")[:3]) for part in seen.raw.split(grey)[1:] if part
    }
    assert colours and plain == all(len(set(each)) == 1 for each in colours)


def test_every_screen_and_prompt_of_the_app(tmp_path):
    """The foot says where one is; a word is typed into some fields, and all are left."""
    esc, field = "\x1b", "enter apply esc cancel"
    table, run, advice = "space mark", "space play", "b budget"
    walked = [
        *(
            (table, "/"), (field, f"maj{esc}"), (table, "o"), (field, esc), (table, "i"),
            (field, esc),
        ),
        *((table, "$"), (field, esc), (table, "x"), ("Delete the recording", "n")),
        *((table, "?"), ("Help", "q"), (table, "\r"), (run, "g"), (field, f"s5{esc}")),
        *((run, "v"), (field, esc), (run, "?"), ("Help", "q"), (run, "3"), ("u URL", "u")),
        *((field, esc), ("u URL", "4"), ("Run demo/s", "b"), ("esc take it back", esc)),
        *(
            (advice, "w"), ("replay both esc leave", esc), (advice, "m"),
            ("Write what to measure", "n"), (advice, "q"),
        ),
    ]  # fmt: skip
    seen = ttscope("tui", RUN, "--min-accuracy", "0.3", keys=walked, rows=24, cwd=tmp_path)
    check(seen, paths=[RUN.parent])
    written = seen.raw.decode()
    asked = ("filter", "open", "import", "price of a device-hour", "go to", "replay with", "URL")
    assert all(label in written for label in (*asked, "accuracy at least", "what if"))
    assert any("Run demo/s" in line for line in seen.app)
    assert not [*tmp_path.iterdir()]  # nothing was agreed to


@pytest.mark.parametrize("as_json", [False, True])
def test_record_and_sweep_on_a_server(tmp_path, url, as_json):
    shape = ("--json",) if as_json else ()
    options = {"cwd": tmp_path, "redirected": as_json, "fresh": not as_json}
    seen = ttscope("record", "--endpoint", url, *RECORD, "-o", "made", *shape, **options)
    check(seen)
    assert b"6/6" in seen.raw or b"0/6" in seen.raw
    engine = {"model": "demo-s", "endpoint": url, "policies": [{"method": "greedy"}]}
    plan = {"problems": 4, "engines": [engine]}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    swept = ttscope("sweep", "plan.yaml", *shape, **options)
    check(swept)
    assert b"1/1" in swept.raw or b"0/1" in swept.raw
    if as_json:
        assert json.loads(seen.stdout)["runs"][0]["problems"] == 6
        assert json.loads(swept.stdout)["outcomes"][0]["error"] is None
        assert "tensor_parallel_size" in seen.text and swept.text == ""
    else:
        assert "kept in made" in seen.text and "kept" in swept.text


def test_a_server_is_watched_and_asked(tmp_path, url):
    seen = ttscope("attach", url, "--duration", "2s", "-o", "live", cwd=tmp_path, fresh=True)
    check(seen)
    assert "kept in live" in seen.text
    ended = ttscope("attach", url, "-o", "cut", cwd=tmp_path, keys=[(SOME_SECONDS, CTRL_C)])
    check(ended)
    assert "kept in cut" in ended.text and "^C" in ended.text
    posed = ttscope("attach", url, "--workload", "demo", *RECORD, "-o", "posed", cwd=tmp_path)
    check(posed)
    looked = ttscope("doctor", url, fresh=True)
    check(looked, paths=["OTEL_EXPORTER_OTLP_HEADERS="])  # a setting is one word
    assert "vLLM 0.32.0" in looked.text


def one_line(seen, begin):
    """Return the line that the command ends with, which the terminal may have wrapped."""
    words = " ".join(line.strip() for line in seen.lines[-3:])
    found = words[words.rindex("ttscope: ") :]
    assert found.startswith(f"ttscope: {begin}"), seen.text
    return found


@pytest.mark.parametrize("end", [CTRL_C, signal.SIGTERM, signal.SIGHUP])
def test_what_was_recorded_until_it_is_ended_is_kept(tmp_path, end):
    with chat_server(token_s=0.05) as url:
        long = ("--problems", "2000", "--concurrency", "2")
        keys = [(re.compile(r"\b([4-9]|\d\d+)/2000"), end)]
        seen = ttscope("record", "--endpoint", url, *long, "-o", "made", cwd=tmp_path, keys=keys)
        check(seen, 130)
        kept = Recording.open(tmp_path / "made")
        whole = kept.problems["end"].count()
        assert not kept.complete and whole >= 4
        assert f"made keeps {whole} whole problems" in one_line(seen, "interrupted")
        assert seen.ending_s < 20  # of the minutes that it had left

        # The second goes on for minutes, one request after the other.
        endless = {"method": "sequential", "n": 64, "stable": 0, "temperature": 0.8}
        engine = {"model": "demo-s", "endpoint": url, "policies": [{"method": "greedy"}, endless]}
        plan = {"problems": 12, "concurrency": 1, "engines": [engine]}
        (tmp_path / "plan.yaml").write_text(json.dumps(plan))
        keys = [("1/2", end)]
        swept = ttscope("sweep", "plan.yaml", "-o", "runs", cwd=tmp_path, keys=keys)
        check(swept, 130)
        assert "1 of 2 runs are kept in runs" in one_line(swept, "interrupted")

        posed = ttscope(
            "attach", url, "--workload", "demo", *long, "-o", "posed", cwd=tmp_path,
            keys=[(SOME_SECONDS, end)],
        )  # fmt: skip
        check(posed, 130)
        assert "posed keeps" in one_line(posed, "interrupted")


def test_ctrl_c_is_one_line():
    advised = ttscope("advise", SHIPPED, *BUDGET, keys=[("learning", CTRL_C)])
    check(advised, 130)
    assert one_line(advised, "interrupted") == "ttscope: interrupted"


@pytest.mark.parametrize(
    ("arguments", "reader"),
    [
        (("show", RUN), "head -1"),
        (("show", RUN, OTHER, "--json"), "head -1"),  # more than fits into the pipe
        ((*IMPORT, "--json"), "head -c 1"),  # after its progress
        (("--help",), "true"),
    ],
)
def test_a_pipe_that_closes(tmp_path, arguments, reader):
    line = shlex.join([*TTSCOPE, *map(str, arguments)])
    left = "left=${PIPESTATUS[0]}; echo; echo left: $left"
    seen = in_terminal("bash", "-c", f"{line} | {reader}; {left}", cwd=tmp_path)
    check(seen, paths=[SHIPPED])
    assert "left: 0" in seen.lines
    assert len(seen.lines) <= 3 and "rror" not in seen.text


@pytest.mark.parametrize("arguments", [IMPORT, ("nonsense",)])
def test_no_color(tmp_path, arguments):
    seen = ttscope(*arguments, env={"NO_COLOR": "1"}, cwd=tmp_path, fresh=True)
    assert not seen.coloured
    assert seen.code == (2 if arguments == ("nonsense",) else 0)


def test_a_terminal_that_says_nothing_of_itself(tmp_path):
    seen = ttscope(*IMPORT, env={"TERM": "dumb"}, cwd=tmp_path, fresh=True)
    check(seen)
    assert b"\x1b" not in seen.raw
