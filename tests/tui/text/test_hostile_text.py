"""Names, answers and texts of servers that try to command the terminal, in verbs and the app."""

import html
import http.server
import json
import re
import sys
import unicodedata

import pytest

from benchmarks.made.terminal import ttscope
from tests.loopback import serving
from tests.traces.synthetic import engine_config, simulate, write_recording
from traces.plain_text import clean
from tui.terminal import say, say_json

EVIL = "\x1b]0;owned\x07\x1b[31mred\x9b2J\x9d8;;x\x07\u202egpj\u2066\x7f\x08\x85"
MARKUP = "[red]x[@click=app.quit]y[$]"
NAME = f"m{EVIL}{MARKUP}"
SEQUENCES = re.compile(  # of EVIL, as bytes
    rb"\x1b\]0|\x1b\[31mred|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae\x8e\x8f]|\xe2\x81[\xa6-\xa9]"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two recordings whose every text is hostile, but for what ttscope itself writes."""
    folder = tmp_path_factory.mktemp("hostile")
    for at, name in enumerate(("one\x1b]0;owned\x07", "two")):
        rows = simulate(problems=12, n=4, seed=at)
        for row in (*rows["problems"], *rows["samples"]):
            row["problem_id"] += NAME
            if "answer" in row:
                row["answer"] += NAME
        for row in rows["problems"]:
            row["group"] = NAME
        rows["events"] = [
            {
                "time": 1,
                "kind": "note",
                "detail": f"note {NAME}",
                "engine": engine_config(model=NAME).key(),
            }
        ]
        write_recording(folder / name, rows, engine=engine_config(model=NAME, gpu=NAME))
    return folder


def check(raw):
    assert not SEQUENCES.search(raw), SEQUENCES.search(raw)


@pytest.mark.slow
def test_a_line_is_shown_as_it_would_be_written_in_code(capsys):
    assert clean("a\x1b[1m\u202eb\x9b\n") == "a\\x1b[1m\\u202eb\\x9b\\n"
    assert clean("Größe ≤ 1 µs … 模型 😀") == "Größe ≤ 1 µs … 模型 😀"
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(
            letter
        ) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"):
            assert clean(letter) != letter, hex(code)
    say(NAME)
    assert capsys.readouterr().out.count("\n") == 1


def test_json_is_exact_and_has_no_control_character(capsys):
    document = {NAME: [NAME]}
    say_json(document)
    out = capsys.readouterr().out
    assert json.loads(out) == document
    assert out.isascii() and set(filter(lambda each: not each.isprintable(), out)) == {"\n"}


@pytest.fixture
def here(folder, tmp_path):
    """Files with hostile names and texts in an empty folder; fills the arguments of a verb."""
    one, two = sorted(folder.iterdir())
    (tmp_path / "plan.yaml").write_text(json.dumps({"engines": [{NAME: 1}], NAME: 1}))
    row = {"problem_id": NAME, "sample_index": 0, "correct": True, "answer": NAME, "group": NAME}
    (tmp_path / f"file{EVIL}").write_text(json.dumps(row) + "\n{\n")
    return lambda verb: [each.format(one=one, two=two, both=folder) for each in verb]


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb",  # with colours or progress
    [
        ("show", "{one}", "{two}"), ("replay", "{one}"),
        ("advise", "{both}", "--min-accuracy", "0.1"),
        ("import", "file" + EVIL, "-o", "out" + EVIL),
    ],
    ids=lambda verb: verb[0],
)  # fmt: skip
def test_no_verb_lets_it_through(here, tmp_path, verb):
    seen = ttscope(*here(verb), cwd=tmp_path)
    assert b"Traceback" not in seen.raw, seen.text
    check(seen.raw)


@pytest.mark.parametrize(
    "verb",
    [
        ("show", "{one}"), ("show", "{one}", "--policies"), ("show", "absent" + EVIL),
        ("report", "{both}", "-o", "page.html"), ("export", "{one}", "-o", "t.json"),
        ("sweep", "plan.yaml"), ("tui", "{both}", "--screen", "nowhere" + EVIL),
        ("record", "--" + EVIL),
    ],
    ids=lambda verb: " ".join(verb[:3]).encode("ascii", "ignore").decode(),
)  # fmt: skip
def test_no_verb_prints_it(run, here, tmp_path, verb):
    _, out, err = run(*here(verb))
    check((out + err).encode())
    for page in tmp_path.glob("*.html"):
        assert not SEQUENCES.search(page.read_bytes())


@pytest.mark.slow
def test_what_a_server_says_is_shown_as_text(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            pages = {"/v1/models": {"data": [{"id": NAME}]}, "/version": {"version": NAME}}
            self.wfile.write(json.dumps(pages.get(self.path, {})).encode())

        def do_POST(self):
            self.send_response(400)
            self.end_headers()
            self.wfile.write(json.dumps({"error": {"message": NAME}}).encode())

    with serving(Handler) as url:
        for verb in (
            ("doctor", url), ("attach", url), ("record", "--endpoint", url, "--model", "x"),
            ("record", "--endpoint", url, "--problems", "2", "--n", "2"),
        ):  # fmt: skip
            seen = ttscope(*verb, cwd=tmp_path)
            assert b"Traceback" not in seen.raw, seen.text
            check(seen.raw)


@pytest.mark.slow
def test_the_app_shows_it_literally(folder, tmp_path):
    """On each screen; only what came last has to be waited for."""
    run, advice = re.compile(r"\[red\][\s\S]*space play"), "no engine step to learn from"
    keys = [(f"m{clean(EVIL)[:8]}", "\r"), (run, "4"), (advice, "3"), ("u URL", "q")]
    seen = ttscope(
        "tui", folder, columns=200, cwd=tmp_path, keys=keys, env={"XDG_CONFIG_HOME": str(tmp_path)}
    )
    assert seen.code == 0, seen.text
    check(seen.raw)


@pytest.mark.slow
async def test_a_message_of_the_app_is_no_markup(folder):
    from tui.app.app import TtscopeApp

    app = TtscopeApp([folder])
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        app.notify(NAME)
        app.screen.notify(f"second {NAME}")
        await pilot.pause()
        text = html.unescape(app.export_screenshot())
    assert "[red]x[@click" in text.replace("\xa0", " ")
    assert clean(EVIL)[:30] in text
    assert "\x1b" not in text and "\u202e" not in text
