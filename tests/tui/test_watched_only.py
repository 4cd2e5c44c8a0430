"""Recordings of traffic that was only watched have no policy: every verb and screen is of use."""

import json

import pytest

from tests.tui.live_recordings import write_watched
from tests.tui.test_run_screen import settle, text_of
from tui.app import TtscopeApp

DEPTHS = {
    "metrics": {"spans": False},
    "spans": {"spans": True},
    "steps": {"spans": True, "steps": True},
    "two": {"spans": True, "engines": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    for name, given in DEPTHS.items():
        write_watched(folder / name, **given)
    return folder


@pytest.mark.parametrize("name", DEPTHS)
def test_policies_show_what_was_sent(run, folder, name):
    code, out, err = run("show", folder / name, "--policies")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "the traffic of others, of which neither the policy nor the right answers" in text
    assert out.count("samples as sent") == {"metrics": 0, "two": 2}.get(name, 1)
    if name != "metrics":
        assert "1 19 - 100 [100, 100]" in text
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = run("show", folder / name, "--policies", "--json")
    for each in json.loads(out)["runs"]:
        assert each["policies"] == []
        assert "the traffic of others" in each["policy_notes"][0]


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("replay {}", 2, "has no policy, so there is nothing to replay"),
        ("replay {} --set policy.n=2", 2, "has no policy, so there is nothing to replay"),
        ("advise {} --max-latency 5s", 1, "the traffic of others"),
        ("show {} {} --fail-on p95>+5%", None, "--fail-on"),
        ("show {} {}", 0, ""),
        ("show {}", 0, ""),
        ("report {} -o {}.html", 0, "the traffic of others"),
        ("export {} -o {}.trace.json", None, ""),
    ],
)
def test_verbs_are_of_use_or_one_line(run, folder, name, words, code, told):
    arguments = [each.format(folder / name) for each in words.split()]
    got, out, err = run(*arguments)
    assert told in out + err
    assert got == code or (code is None and got in (0, 1, 2))
    if got:
        assert len(err.splitlines()) == 1 and not out
    if words.startswith("export"):
        assert got == (1 if name == "metrics" else 0)
        assert ("holds no problem, step, kernel or power" in err) == (name == "metrics")


def test_two_servers_are_told_apart(run, folder):
    _, out, _ = run("show", folder / "two")
    assert out.count("server    http://h:0") == out.count("server    http://h:1") == 1


@pytest.mark.parametrize("size", [(80, 24), (160, 40)])
@pytest.mark.parametrize("name", DEPTHS)
async def test_every_page_of_the_run_screen(folder, name, size):
    app = TtscopeApp([folder])
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        (entry, *_) = (each for each in app.entries if each.path.name == name)
        app.open_run(entry)
        await settle(pilot)
        found = text_of(app, "#title") + text_of(app, "#text")
        assert ("VERDICT" in found) == (name == "metrics")
        pages = []
        for _ in range(3):
            await pilot.press("k")
            await settle(pilot)
            pages.append(text_of(app, "#text"))
        assert "no kernels were profiled" in pages[0]
        assert "the traffic of others" in " ".join(pages[1].split())
        assert "v replays" in pages[2]
        await pilot.press("k", "v")
        app.screen.query_one("#ask").value = "policy.n=2"
        await pilot.press("enter")
        await settle(pilot)
        assert "has no policy" in text_of(app, "#message")
        await pilot.press("space", "right", "full_stop", "r", "w", "z", "0", "right_square_bracket")
        await settle(pilot)


async def test_other_screens_with_nothing_else(folder):
    app = TtscopeApp([folder])
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "enter opens it" in text_of(app, "#detail")
        await pilot.press("4")
        await settle(pilot)
        assert "the traffic of others" in " ".join(text_of(app, "#message").split())
