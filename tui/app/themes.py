"""Colours that people of any colour vision tell apart, dark and light (Okabe and Ito, 2008)."""

from __future__ import annotations

from textual.css.model import RuleSet
from textual.css.styles import RulesMap
from textual.css.stylesheet import Stylesheet
from textual.dom import DOMNode
from textual.theme import Theme

DARK = Theme(
    name="ttscope-dark",
    primary="#56B4E9",
    secondary="#CC79A7",
    accent="#E69F00",
    success="#2FBF96",
    warning="#F0E442",
    error="#FF8A4C",
    foreground="#E4E6E8",
    background="#14161A",
    surface="#1A1D22",
    panel="#272C34",
    boost="#20242B",
    dark=True,
)
LIGHT = Theme(
    name="ttscope-light",
    primary="#0072B2",
    secondary="#9C3D7C",
    accent="#A85600",
    success="#00755A",
    warning="#7A6000",
    error="#B23B00",
    foreground="#1B1D20",
    background="#FCFCFC",
    surface="#F4F5F6",
    panel="#E1E5EA",
    boost="#EAEDF0",
    dark=False,
)


# Textual's is Python code that gives the same, called a hundred thousand times for a theme.
RuleSet.__hash__ = object.__hash__  # type: ignore[method-assign]


class ThemedStylesheet(Stylesheet):
    """Parses what it has parsed before only for another theme, and once for each.

    Textual's does so twice for each screen that is shown first: 0.1 s in which no key is answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self._theme: dict[str, str] | None = None
        self._parsed: dict[str, str] | None = None
        self._by_theme: dict[tuple[object, ...], list[RuleSet]] = {}

    def set_variables(self, variables: dict[str, str]) -> None:
        if variables != self._theme:
            self._theme = dict(variables)
            super().set_variables(variables)

    def reparse(self) -> None:
        """Parse everything where the theme is another; what is new is parsed when it is needed."""
        if self._parsed == self._theme:
            return
        theme = tuple((self._theme or {}).items()), tuple(self.source.items())
        if theme in self._by_theme:
            self._rules, self._rules_map = self._by_theme[theme], None
            self._require_parse = False
        else:
            super().reparse()
            self._by_theme[theme] = self._rules
        self._parsed = self._theme

    @classmethod
    def replace_rules(cls, node: DOMNode, rules: RulesMap, animate: bool = False) -> None:
        """Ask for a drawing of the node and of all in it once, and not for each of its colours."""
        base, asked = node.styles.base, dict[tuple[tuple[str, bool], ...], None]()
        base.refresh = lambda **how: asked.setdefault((*how.items(),))  # type: ignore[method-assign]
        try:
            super().replace_rules(node, rules, animate=animate)
        finally:
            del base.refresh
        for how in asked:
            base.refresh(**dict(how))
