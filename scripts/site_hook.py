"""A hook of mkdocs: what only the site has.

A comment `<!-- site: TEXT -->` of a page becomes TEXT, and `{NAME.csv}` in it a table of that file
of docs. The .html files of build/pages, which
`make docs` writes, stand beside the pages.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = Path(__file__).parents[1] / "build" / "pages"
DOCS = Path(__file__).parents[1] / "docs"
ONLY_HERE = re.compile(r"<!-- site: (.*?)\s*-->", re.DOTALL)
BOOST = 3  # of how-tos in the search
TABLE = re.compile(r"\{([\w-]+\.csv)\}")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are not Markdown."""
    for page in sorted(PAGES.glob("*.html")):
        files.append(File.generated(config, page.name, abs_src_path=str(page)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: Any, **_: Any) -> str:
    """Show what only the site has, and say how the search takes the page (mkdocs.yml `extra`)."""
    name, search = page.file.src_uri, config.extra["search"]
    page.meta["search"] = {
        "exclude": name in search["exclude"],
        "boost": BOOST if name.startswith(tuple(search["boost"])) else 1,
    }
    return TABLE.sub(lambda name: _table(DOCS / name[1]), ONLY_HERE.sub(r"\1", markdown))


def _table(path: Path) -> str:
    head, *rows = csv.reader(path.read_text().splitlines())
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
