"""Make docs/glossary.md again from the report's glossary: `python -m scripts.glossary`."""

from __future__ import annotations

from pathlib import Path

from tui.report.words import GLOSSARY

PAGE = Path(__file__).parents[1] / "docs" / "glossary.md"
HEAD = """# Glossary

This page explains the words and numbers of ttscope. The [report](tui.md#the-report) has the same
texts, and `python -m scripts.glossary` makes this page from them.

| word | meaning |
|---|---|
"""


def page() -> str:
    """Return the page, a row for each word of the report's glossary."""
    rows = [(word, meaning.replace("|", "\\|")) for word, meaning in GLOSSARY]
    return HEAD + "".join(f"| {word} | {meaning} |\n" for word, meaning in rows)


if __name__ == "__main__":
    PAGE.write_text(page())
