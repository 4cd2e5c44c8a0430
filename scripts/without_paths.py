"""Take this machine's paths out of pages and pictures: `python -m scripts.without_paths FILE ..`.

The folder of the checkout becomes ~/ttscope, its ttscope the plain command. A text of a picture
has a width, so it gets as many spaces as it loses characters.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = re.compile(r"(?<=>)[^<]*(?=</text>)")


def without_paths(text: str, root: str = str(ROOT)) -> str:
    """Return a page or an SVG without the paths of this machine."""

    def plain(part: str) -> str:
        return part.replace(root, "~/ttscope").replace(".venv/bin/ttscope", "ttscope")

    def padded(found: re.Match[str]) -> str:
        lost = len(found[0]) - len(plain(found[0]))
        return plain(found[0]) + "&#160;" * lost

    return plain(TEXT.sub(padded, text) if text.lstrip().startswith("<svg") else text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(without_paths(Path(name).read_text()))
