"""Plain English where a user reads it: no word of `WORDS`, and no semicolon.

    python -m scripts.plain_words [FILE ..]

Reads the strings of the packages, without docstrings, and the prose of README.md and docs. Code
and tables may have semicolons. Files in `LATER` are not done yet: the list must only shrink, and a
file on it without a hit is an error too.
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
CODE = re.compile(r"^```.*?^```|^(?:    .*\n)+|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LATER: tuple[str, ...] = ()


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
            yield node.lineno, node.value


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page with its code blanked out."""
    blanked = CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)
    yield from enumerate(blanked.splitlines(), 1)


def hits(path: Path) -> Iterator[str]:
    """Yield `FILE:LINE: what is there` for each word and semicolon of a file."""
    text = path.read_text()
    page = path.suffix == ".md"
    for line, part in (prose if page else strings)(text):
        found = [match[0] for match in WORD.finditer(part)]
        if not (page and part.startswith("|")):
            found += SEMICOLON.findall(part)
        for what in found:
            yield f"{path.relative_to(ROOT)}:{line}: {what!r} in {' '.join(part.split())[:90]!r}"


def main() -> int:
    """Print the hits; 1 where there are any outside `LATER`."""
    named = [Path(name).resolve() for name in sys.argv[1:]]
    packages = ("traces", "profiler", "advisor", "tui")
    paths = named or [
        *sorted(path for name in packages for path in (ROOT / name).rglob("*.py")),
        *sorted(ROOT.glob("ttscope*.py")),
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]
    count = 0
    for path in paths:
        lines, later = list(hits(path)), str(path.relative_to(ROOT)) in LATER and not named
        if later and not lines:
            lines, later = [f"{path.relative_to(ROOT)}: is plain now, take it off LATER"], False
        if not later:
            count += len(lines)
            print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
