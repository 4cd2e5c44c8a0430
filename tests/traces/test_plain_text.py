"""Names of others in what is written for people: commands, scripts, Markdown and XML."""

import shlex

import pytest

from advisor.advice.command import serve_command
from advisor.evidence.unrecorded import recording_of
from tests.traces.synthetic import engine_config
from traces.deployment.reports import _cell, _code, _plain
from traces.plain_text import COMMANDS, clean, clean_lines, flag_word, name_word, quoted
from tui.text.commands import next_lines

EVIL = "-x\x1b]0;owned\x07\u202egpj\n$(touch y)\x00"


@pytest.mark.parametrize("written", [clean, quoted, name_word, _plain, _cell, _code])
def test_no_medium_has_what_commands_it(written):
    assert not COMMANDS.search(written(EVIL).replace("\n", ""))


def test_lines_keep_their_ends_and_tabs():
    assert clean_lines("a\tb\n\x1bc\r\n") == "a\tb\n\\x1bc\\r\n"


def test_a_name_in_a_command_is_neither_an_option_nor_a_command():
    assert shlex.split(name_word("-rf")) == ["./-rf"]
    assert shlex.split(flag_word("model", "-rf")) == ["--model=-rf"]
    assert shlex.split(flag_word("model", "a b")) == ["--model", "a b"]
    assert shlex.split(name_word("$(touch y)")) == ["$(touch y)"]


@pytest.mark.parametrize(
    "command",
    [
        serve_command(engine_config(model=EVIL, gpu="NVIDIA L4"), model_path=EVIL),
        serve_command(engine_config(model=EVIL, dtype=EVIL), model_path=EVIL),
        recording_of(engine_config(model=EVIL, dtype=EVIL), ["model", "dtype"]),
    ],
)
def test_a_command_names_an_evil_model_as_one_word(command):
    assert not COMMANDS.search(command)
    names = [word for word in shlex.split(command) if "owned" in word]
    assert names and all((word.startswith(("./-x", "--")) and "=" in word) or "./" in word
                         for word in names)  # fmt: skip


def test_a_folder_that_begins_with_a_dash_is_no_option_of_the_next_command():
    from pathlib import Path

    assert next_lines("tui", Path("-x"), "--screen", "advice")[1].endswith(
        "tui ./-x --screen advice"
    )
