"""A page read back: its numbers by key, its text, and whether its tags are closed."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "line", "rect", "circle", "path", "use", "link", "img", "input"}


class Page(HTMLParser):
    """`values` has data-value by data-key (None for what was not measured), `text` what is read."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.values: dict[str, float | None] = {}
        self.text, self.titles, self.ids = "", [], []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute twice: {attrs}"
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if "id" in given:
            self.ids.append(given["id"])
        key = given.get("data-key")
        if key is not None:
            value = given.get("data-value")
            found = None if value is None else float(value)
            assert self.values.get(key, found) == found, f"{key} twice, and not the same"
            self.values[key] = found
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.text += data


def looked_up(document: Any, key: str) -> float | None:
    """Return the number at a key such as `runs.0.latency_s.mean` of a JSON document."""
    found = document
    for part in key.split("."):
        if found is None:
            return None
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found["value"] if isinstance(found, dict) else found
