"""A hook of mkdocs: what only the site has.

A comment `<!-- site: TEXT -->` of a page becomes TEXT. The .html files of build/pages, which
`make docs` writes, stand beside the pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PAGES = Path(__file__).parents[1] / "build" / "pages"
ONLY_HERE = re.compile(r"<!-- site: (.*?)\s*-->", re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are not Markdown."""
    for page in sorted(PAGES.glob("*.html")):
        files.append(File.generated(config, page.name, abs_src_path=str(page)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show what only the site has."""
    return ONLY_HERE.sub(r"\1", markdown)
