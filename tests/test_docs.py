"""The docs tell of every verb that the command line has, and of no option that it lacks."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.made.terminal import ROOT
from scripts import command_line, glossary, links, plain_words
from scripts.transcripts import rewritten
from tests.golden_outputs import KEPT
from traces import errors
from tui.cli import EXIT_CODES, VERBS, loaded

DOCS = Path(__file__).parent.parent / "docs"
COMMANDS = {verb: loaded(verb) for verb in VERBS}


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_has_a_page(verb):
    assert f"ttscope {verb}" in (DOCS / command_line.page_of(verb)).read_text()


def test_the_list_of_verbs_says_what_each_says_itself():
    assert {verb: told for verb, (_, told, *_) in VERBS.items()} == {
        verb: command.help for verb, command in COMMANDS.items()
    }


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_help_can_be_typed(verb):
    for line in VERBS[verb][3]:
        name, typed, *words = shlex.split(line)
        assert (name, typed) == ("ttscope", verb) and len(line) <= 78
        COMMANDS[verb].make_context(verb, words)


def test_the_reference_has_every_verb_group_option_and_default():
    parts = "\n".join(command_line.reference()).split("\n## ")
    sections = dict(part.removeprefix("## ").split("\n", 1) for part in parts)
    assert list(sections) == [*(f"ttscope {verb}" for verb in VERBS), "Exit codes"]
    for verb, command in COMMANDS.items():
        section = sections[f"ttscope {verb}"]
        names = re.findall(r"^\| `(.*)` \| \S.* \|$", section, re.MULTILINE)
        first = {name.split()[0].rstrip(",.") for name in names}
        assert first == {parameter.opts[0] for parameter in command.params}
        panels = {parameter.rich_help_panel for parameter in command.params} - {None}
        assert panels <= set(re.findall(r"^\| (.*) \| \|$", section, re.MULTILINE))
        assert all(line in section for line in VERBS[verb][3])
    attach = sections["ttscope attach"]
    assert "| `--period TEXT` | Time between polls of /metrics.  [default: 1s] |" in attach
    codes = {
        int(code) for code in re.findall(r"^\| (\d+) \|", sections["Exit codes"], re.MULTILINE)
    }
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    assert codes == {0, 3} | {each.exit_code for each in kinds} == set(EXIT_CODES)


def test_docs_name_no_option_that_is_not_there():
    known = {o for command in COMMANDS.values() for p in command.params for o in p.opts}
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for line in page.read_text().splitlines():
            match = re.match(r"\s*\$? ?ttscope (\w+) (.*)", line)
            if match and match[1] in COMMANDS:
                options = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", match[2]))
                assert options <= known, f"{page.name}: {line}"


def test_links_and_anchors_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    assert [fault for page in pages for fault in links.dead_links(page)] == []


def test_the_site_has_every_page_once():
    assert list(links.navigation_faults()) == []


def test_a_dead_link_and_a_page_without_a_place_are_found(tmp_path):
    docs = tmp_path / "docs"
    (docs / "how-to").mkdir(parents=True)
    (tmp_path / "OTHER.md").write_text("# Other\n")
    (tmp_path / "mkdocs.yml").write_text("nav: [{Home: index.md}, {How: [index.md, gone.md]}]\n")
    (docs / "index.md").write_text(
        "# `a verb`, its [link](how-to/one.md)\n[x](how-to/one.md#one-two) [y](#a-verb-its-link)\n"
        "[away](https://a.org/x.md) `[code](nowhere.md)`\n```\n[code](nowhere.md)\n# no\n```\n"
        "[dead](nowhere.md) [heading](how-to/one.md#three) [out](../OTHER.md) ![p](p.svg)\n[z](#no)"
        '<img src="q.png"> <img src="how-to/one.md">'
    )
    (docs / "how-to" / "one.md").write_text("## One: two\n[up](../index.md)\n")
    assert list(links.dead_links(docs / "index.md", tmp_path)) == [
        "docs/index.md: nowhere.md: no such file",
        "docs/index.md: how-to/one.md#three: no such heading",
        "docs/index.md: ../OTHER.md: not in docs, so not on the site",
        "docs/index.md: p.svg: no such file",
        "docs/index.md: #no: no such heading",
        "docs/index.md: q.png: no such file",
    ]
    assert list(links.dead_links(docs / "how-to" / "one.md", tmp_path)) == []
    assert sorted(links.navigation_faults(tmp_path)) == [
        "mkdocs.yml: gone.md: no such page",
        "mkdocs.yml: how-to/one.md: not in nav",
        "mkdocs.yml: index.md: in nav twice",
    ]


def test_the_glossary_has_the_texts_of_the_report():
    assert glossary.PAGE.read_text() == glossary.page(), "python -m scripts.glossary"


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "tutorial.md"], ids=lambda p: p.name)
def test_the_answer_that_is_shown_is_the_one_that_is_printed(page):
    shown = page.read_text().split("```\n")[1]
    assert shown in (KEPT / "advise-accuracy.txt").read_text()
    assert len(shown.splitlines()) <= 15


def test_transcripts_are_of_a_terminal_and_name_no_machine():
    page = (ROOT / "benchmarks" / "transcripts.md").read_text()
    assert "python -m scripts.transcripts" in page
    assert not re.search(r"/(?:root|home|work|tmp)/", page)
    once = rewritten(page, "ttscope doctor", 61.0, ["yes", f"at {ROOT}/x"])
    assert (
        "## ttscope doctor (1 min 1 s)\n\n```\n$ ttscope doctor\nyes\nat ~/ttscope/x\n```" in once
    )
    assert once.count("## ") == page.count("## ")
    assert rewritten(once, "ttscope doctor", 61.0, ["yes", f"at {ROOT}/x"]) == once


def test_sentences_are_counted_without_code_tables_and_headings():
    page = (
        "# A heading of words\n\nOne `code of words` [two three](x.md). Four (at 0.5 s)!\n\n"
        "    code that is indented\n\n| a table | of words |\n|---|---|\n"
        "- item one\n  goes on\n- item two\n    - inner one\n\n```\nfenced words\n```\n1. last\n"
    )
    words = [plain_words.words_of(each) for each in plain_words.sentences(page)]
    assert words == [4, 4, 4, 2, 2, 1]


def test_a_page_of_long_sentences_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_words, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "One two three. " + "word " * 60 + "end.\n\n- What?\n- Of it.\n"
    )
    assert list(plain_words.hits(tmp_path / "page.md")) == [
        "page.md: 16.8 words a sentence, not 15 at most",
        "page.md: a sentence of 61 words, not 40 at most",
        "page.md: begins without its subject: 'Of it.'",
    ]
