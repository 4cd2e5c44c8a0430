"""The docs tell of every verb and option that the command line has, and of no other."""

import re
from pathlib import Path

import pytest
import typer

from tui.cli import app

DOCS = Path(__file__).parent.parent / "docs"
COMMANDS = typer.main.get_command(app).commands
UNDOCUMENTED = {"--help", "--output"}


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_has_a_page_that_names_its_options(verb):
    page = (DOCS / f"{verb}.md").read_text()
    assert f"ttscope {verb}" in page
    for parameter in COMMANDS[verb].params:
        for option in parameter.opts:
            if option.startswith("-") and option not in UNDOCUMENTED:
                assert option in page, option


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


def test_files_stay_short():
    root = DOCS.parent
    folders = ("traces", "profiler", "advisor", "tui")
    long = {
        str(path): count
        for folder in folders
        for path in (root / folder).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 500
    }
    assert not long
