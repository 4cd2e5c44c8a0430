"""Plain English where a user reads it: no word of `WORDS`, no semicolon, short sentences.

    python -m scripts.plain_words [FILE ..]
    python -m scripts.plain_words --count [FILE ..]    # words, and words a sentence, of each page

Reads the strings of the packages, without docstrings and single words, and the prose of the
pages here and in docs. Code and tables may have semicolons. A page's sentences have at most
`MOST` words on average, each at most `LONGEST`, and none begins as `HEADLESS` does.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS = (
    "(?:tells?|told)(?! apart| you)", "foretold", "foretells?", "said of", "mend(?:s|ed|ing)?",
    "posed", "anew", "spares", "whoever", "of which", "of those that", "that which",
)  # fmt: skip
WORD = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)
SEMICOLON = re.compile(r";(?!\S)(?! charset=| version=)")
MOST, LONGEST = 15.0, 40  # words of a sentence
HEADLESS = re.compile(r"(?:\*\*[^*]*\*\* )?(?:What|Whatever|Who|Whose|Those|Of|Which)\b")
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


def sentences(text: str) -> list[str]:
    """Return the sentences of a page, without code, tables and headings.

    A code span counts as one word, and a list's item ends its sentence.
    """
    text = re.sub(r"^(?:```.*?^```|<picture>.*?</picture>)$", "", text, flags=re.M | re.S)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    blocks: list[str] = []
    before = ""
    for line in text.splitlines():
        item = re.match(r"\s*(?:[-*]|\d+\.) ", line)
        if not line.strip() or line.lstrip().startswith(("|", "#")):
            blocks.append("")
        elif line.startswith("    ") and not (item or (blocks and blocks[-1] and before)):
            blocks.append("")  # code
        elif item or not blocks:
            blocks.append(line[item.end() :] if item else line)
        else:
            blocks[-1] += f" {line}"
        before = line.strip()
    parts = [part for block in blocks for part in re.split(r"(?<=[.?!])[\"*)\]]*\s+", block)]
    return [part.strip() for part in parts if words_of(part)]


def words_of(sentence: str) -> int:
    """Return how many words a sentence has."""
    return len(re.findall(r"\S*\w\S*", sentence))


def hits(path: Path) -> Iterator[str]:
    """Yield `FILE:LINE: what is there` for each word and semicolon of a file."""
    text = path.read_text()
    for line, part in (prose if path.suffix == ".md" else strings)(text):
        found = [match[0] for match in WORD.finditer(part)]
        found += [] if part.startswith("|") else SEMICOLON.findall(part)
        for what in found:
            yield f"{path.relative_to(ROOT)}:{line}: {what!r} in {' '.join(part.split())[:90]!r}"
    page = sentences(text) if path.suffix == ".md" else []
    counts = [words_of(sentence) for sentence in page]
    mean, longest = sum(counts) / max(len(counts), 1), max(counts, default=0)
    if mean > MOST:
        yield f"{path.relative_to(ROOT)}: {mean:.1f} words a sentence, not {MOST:.0f} at most"
    if longest > LONGEST:
        yield f"{path.relative_to(ROOT)}: a sentence of {longest} words, not {LONGEST} at most"
    for sentence in page:
        if HEADLESS.match(sentence) and not sentence.endswith("?"):
            yield f"{path.relative_to(ROOT)}: begins without its subject: {sentence[:70]!r}"


def counted(paths: list[Path]) -> Iterator[str]:
    """Yield words of the file, words of its prose, words a sentence, longest sentence, file."""
    for path in paths:
        text = path.read_text()
        counts = [words_of(part) for part in sentences(text)] if path.suffix == ".md" else []
        if counts:
            mean, name = sum(counts) / len(counts), path.relative_to(ROOT)
            words = len(text.split())
            yield f"{words:6} {sum(counts):6} {mean:5.1f} {max(counts):4}  {name}"


def main() -> int:
    """Print the hits; 1 where there are any."""
    names = [name for name in sys.argv[1:] if name != "--count"]
    packages = ("traces", "profiler", "advisor", "tui")
    paths = [Path(name).resolve() for name in names] or [
        *sorted(path for name in packages for path in (ROOT / name).rglob("*.py")),
        *sorted(ROOT.glob("ttscope*.py")),
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    if "--count" in sys.argv[1:]:
        sys.stdout.writelines(f"{line}\n" for line in counted(paths))
        return 0
    lines = [line for path in paths for line in hits(path)]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
