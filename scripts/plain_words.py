"""Plain English where a user reads it: no word of `WORDS`, and no semicolon.

    python -m scripts.plain_words [FILE ..]

Reads the strings of the packages, without docstrings and single words, and the prose of the
pages here and in docs. Code and tables may have semicolons. Pages in
`LATER` are not done yet: the list must only shrink, and a page on it without a hit is an error.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS = (
    "told(?! apart)", "foretold", "mend(?:s|ed|ing)?", "posed", "anew", "spares", "whoever",
    "of which", "of those that", "that which",
)  # fmt: skip
WORD = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)
SEMICOLON = re.compile(r";(?!\S)(?! charset=| version=)")
LATER = ("CHANGELOG.md",)
LANGUAGES = ("{ ", "default-src ", "; frame-ancestors")  # of style sheets, scripts and headers
CODE = re.compile(r"^```.*?^```|^(?:    [^\n]*\n)+|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def strings(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each string that is no docstring, as f-strings have them."""
    tree = ast.parse(text)
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            words = any(sign.isspace() for sign in node.value)
            if words and not any(mark in node.value for mark in LANGUAGES):
                yield node.lineno, node.value


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page with its code blanked out."""
    blanked = CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)
    yield from enumerate(blanked.splitlines(), 1)


def hits(path: Path) -> Iterator[str]:
    """Yield `FILE:LINE: what is there` for each word and semicolon of a file."""
    text = path.read_text()
    for line, part in (prose if path.suffix == ".md" else strings)(text):
        found = [match[0] for match in WORD.finditer(part)]
        found += [] if part.startswith("|") else SEMICOLON.findall(part)
        for what in found:
            yield f"{path.relative_to(ROOT)}:{line}: {what!r} in {' '.join(part.split())[:90]!r}"


def main() -> int:
    """Print the hits; 1 where there are any."""
    named = [Path(name).resolve() for name in sys.argv[1:]]
    packages = ("traces", "profiler", "advisor", "tui")
    paths = named or [
        *sorted(path for name in packages for path in (ROOT / name).rglob("*.py")),
        *sorted(ROOT.glob("ttscope*.py")),
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    lines = []
    for path in paths:
        found = list(hits(path))
        if not named and str(path.relative_to(ROOT)) in LATER:
            name = f"{path.relative_to(ROOT)} is plain now: take it off LATER"
            found = [] if found else [name]
        lines += found
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
