"""Links, anchors and the navigation of the pages, checked without building the site.

    python -m scripts.links

Reads README.md, the other pages beside it, and docs. A link must lead to a file of the checkout,
its anchor to a heading of that page. Of a page in docs it must stay in docs, as the site has
nothing else. mkdocs.yml must name every page of docs once, and no other. `make docs` checks what
only the site has (scripts/site_hook.py).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
ONLY_SITE = re.compile(r"<!-- site: .*?-->", re.DOTALL)  # as of site_hook.py
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(\s*([^()\s]+)\s*\)|\b(?:src|srcset|href)=\"([^\"]*)\"")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*#*$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site both make them."""
    found: Counter[str] = Counter()
    names = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def dead_links(page: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield `FILE: LINK: what is wrong` for each link of a page that leads nowhere."""
    docs = root / "docs"
    text = ONLY_SITE.sub("", page.read_text())
    for found in LINK.finditer(CODE.sub("", FENCE.sub("", text))):
        link = found[1] or found[2]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        where = f"{page.relative_to(root)}: {link}"
        if not target.exists():
            yield f"{where}: no such file"
        elif docs in page.parents and docs not in target.parents:
            yield f"{where}: not in docs, so not on the site"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
            yield f"{where}: no such heading"


def navigation(entry: object) -> Iterator[str]:
    """Yield the pages of mkdocs.yml's `nav`, in their order."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        yield from navigation(list(entry.values()))
    elif isinstance(entry, list):
        for each in entry:
            yield from navigation(each)


def navigation_faults(root: Path = ROOT) -> Iterator[str]:
    """Yield a line for each page that the navigation lacks, has twice, or has without a file."""
    docs = root / "docs"
    named = Counter(navigation(yaml.safe_load((root / "mkdocs.yml").read_text())["nav"]))
    there = {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    yield from (f"mkdocs.yml: {name}: no such page" for name in sorted(named.keys() - there))
    yield from (f"mkdocs.yml: {name}: not in nav" for name in sorted(there - named.keys()))
    yield from (f"mkdocs.yml: {name}: in nav twice" for name, n in named.items() if n > 1)


def main() -> int:
    """Print what is wrong; 1 where anything is."""
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    faults = [fault for page in pages for fault in dead_links(page)]
    faults += navigation_faults()
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
