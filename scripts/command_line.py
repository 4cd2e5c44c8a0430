"""The reference of the command line, as Markdown on stdout: `python -m scripts.command_line`.

It is made of what `--help` reads, so it has every verb, its groups of options, their defaults and
examples. `make docs` puts it into docs/command-line.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import typer

from tui.cli import EXIT_CODES, VERBS, loaded

ELSEWHERE = {
    "demo": "tutorial.md",
    "doctor": "install.md",
    "export": "import.md",
    "report": "tui.md",
    "sweep": "record.md",
}


def page_of(verb: str) -> str:
    """Return the page of docs that has a verb: its own, or another's."""
    return ELSEWHERE.get(verb, f"{verb}.md")


def reference() -> Iterator[str]:
    """Yield the lines of the reference: a heading for each verb in the order of `--help`."""
    for verb, (_, summary, _, examples) in VERBS.items():
        yield from _verb(verb, summary, examples)
    yield from ("## Exit codes", "", "| code | meaning |", "|---|---|")
    yield from (f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())


def _verb(verb: str, summary: str, examples: tuple[str, ...]) -> Iterator[str]:
    command = loaded(verb)
    context = typer.Context(command, info_name=f"ttscope {verb}")
    yield from (f"## ttscope {verb}", "", f"{summary} [More]({page_of(verb)})", "")
    yield from ("```", command.get_usage(context).removeprefix("Usage: "), "```", "")
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.params:
        argument = parameter.param_type_name == "argument"
        group = parameter.rich_help_panel or ("Arguments" if argument else "Options")
        record = parameter.get_help_record(context)
        if record is not None:  # None of what is hidden
            groups.setdefault(group, []).append(record)
    for group, records in groups.items():
        yield from (f"| {group} | |", "|---|---|")
        yield from (f"| `{names}` | {_cell(text)} |" for names, text in records)
        yield ""
    yield from (f"Example{'s' if len(examples) > 1 else ''}:", "", "```", *examples, "```", "")


def _cell(text: str) -> str:
    for sign in "\\|<*_`$":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in reference())
