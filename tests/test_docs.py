"""The docs tell of every verb and option that the command line has, and of no other."""

import re
from pathlib import Path

import pytest

from benchmarks.made.terminal import ROOT
from scripts.transcripts import rewritten
from tui.cli import VERBS, loaded

DOCS = Path(__file__).parent.parent / "docs"
COMMANDS = {verb: loaded(verb) for verb in VERBS}
UNDOCUMENTED = {"--help", "--output"}


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_has_a_page_that_names_its_options(verb):
    page = (DOCS / f"{verb}.md").read_text()
    assert f"ttscope {verb}" in page
    for parameter in COMMANDS[verb].params:
        for option in parameter.opts:
            if option.startswith("-") and option not in UNDOCUMENTED:
                assert option in page, option


def test_the_list_of_verbs_says_what_each_says_itself():
    assert {verb: told for verb, (_, told) in VERBS.items()} == {
        verb: command.help for verb, command in COMMANDS.items()
    }


def test_docs_name_no_option_that_is_not_there():
    known = {o for command in COMMANDS.values() for p in command.params for o in p.opts}
    for page in DOCS.glob("*.md"):
        for line in page.read_text().splitlines():
            match = re.match(r"\s*\$? ?ttscope (\w+) (.*)", line)
            if match and match[1] in COMMANDS:
                options = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", match[2]))
                assert options <= known, f"{page.name}: {line}"


def test_links_lead_somewhere():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_transcripts_are_of_a_terminal_and_name_no_machine():
    page = (DOCS / "transcripts.md").read_text()
    assert "python -m scripts.transcripts" in page
    assert not re.search(r"/(?:root|home|work|tmp)/", page)
    once = rewritten(page, "ttscope doctor", 61.0, ["yes", f"at {ROOT}/x"])
    assert (
        "## ttscope doctor (1 min 1 s)\n\n```\n$ ttscope doctor\nyes\nat ~/ttscope/x\n```" in once
    )
    assert once.count("## ") == page.count("## ")
    assert rewritten(once, "ttscope doctor", 61.0, ["yes", f"at {ROOT}/x"]) == once
