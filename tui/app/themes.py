"""Colours that people of any colour vision tell apart, dark and light (Okabe and Ito, 2008)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from textual.cache import LRUCache
from textual.css.model import RuleSet
from textual.css.styles import RenderStyles, RulesMap
from textual.css.stylesheet import Stylesheet
from textual.dom import DOMNode
from textual.style import Style
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


@dataclass
class Styled:
    """The styles that a theme gives to a node, and to the parts that it draws."""

    rules: RulesMap
    parts: dict[str, RenderStyles] = field(default_factory=dict)


@dataclass
class Asked:
    """How a node is to be drawn again: with a layout, and with all that is in it."""

    layout: bool = False
    children: bool = False


class ThemedStylesheet(Stylesheet):
    """Does once for each theme what gives the same again: parses, and finds a node's styles.

    A node's styles are found again, in all themes, whenever Textual asks for them though the theme
    stayed: it does so where a node's classes, its focus or the like have changed. Textual also
    parses twice for each screen that is shown first: 0.1 s in which no key is answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self._theme: dict[str, str] | None = None
        self._parsed: dict[str, str] | None = None
        self._by_theme: dict[tuple[object, ...], list[RuleSet]] = {}
        self._texts: dict[tuple[object, ...], LRUCache[str, Style]] = {}  # parsed, by theme
        self._styled: WeakKeyDictionary[DOMNode, dict[int, Styled]] = WeakKeyDictionary()
        self._is_theme = False  # whether nothing but the theme has changed
        self._asked: dict[DOMNode, Asked] | None = None

    def set_variables(self, variables: dict[str, str]) -> None:
        if variables != self._theme:
            self._theme = dict(variables)
            texts = self._texts.setdefault((*variables.items(),), LRUCache(1024))
            self._style_parse_cache = LRUCache(1)  # which Textual empties
            super().set_variables(variables)
            self._style_parse_cache = texts

    def reparse(self) -> None:
        """Parse everything where the theme is another; what is new is parsed when it is needed."""
        if self._parsed == self._theme:
            return
        known = self._by_theme.get(self._origin)
        if known is not None:
            self._rules, self._rules_map = known, None
            self._require_parse = False
        else:
            super().reparse()
            self._by_theme[self._origin] = self._rules
        self._parsed = self._theme

    def parse(self) -> None:
        """Parse what is new, after which a node may have other styles in any theme."""
        super().parse()
        self._by_theme[self._origin] = self._rules
        self._styled.clear()

    @property
    def _origin(self) -> tuple[object, ...]:
        """What rules follow from."""
        return (*(self._theme or {}).items(), *self.source.items())

    def update(self, root: DOMNode, animate: bool = False) -> None:
        self._is_theme = True
        try:
            super().update(root, animate=animate)
        finally:
            self._is_theme = False

    def update_nodes(self, nodes: Iterable[DOMNode], animate: bool = False) -> None:
        """Ask for one drawing of each node once all have their styles."""
        before, self._asked = self._asked, {}
        try:
            super().update_nodes(nodes, animate=animate)
        finally:
            asked, self._asked = self._asked, before
            _draw(asked)

    def apply(
        self,
        node: DOMNode,
        *,
        animate: bool = False,
        cache: dict[tuple[object, ...], RulesMap] | None = None,
    ) -> None:
        rules = id(self.rules)  # parses what is new
        known = self._styled.setdefault(node, {})
        styled = known.get(rules)
        if styled is None or not self._is_theme:
            if not self._is_theme:
                known.clear()
            super().apply(node, animate=animate, cache=cache)
            return
        self.replace_rules(node, styled.rules, animate=animate)
        if styled.parts:
            node._component_styles.clear()
            node._component_styles.update(styled.parts)
            if self._asked is not None:
                self._asked.setdefault(node, Asked())

    def _process_component_classes(self, node: DOMNode) -> None:
        super()._process_component_classes(node)
        styled = self._styled[node].get(id(self.rules))
        if styled is not None:
            styled.parts = dict(node._component_styles)

    def replace_rules(  # type: ignore[override]
        self, node: DOMNode, rules: RulesMap, animate: bool = False
    ) -> None:
        """Set what differs, and ask for one drawing and not for one for each colour."""
        self._styled[node][id(self.rules)] = Styled(rules)
        if animate:
            super().replace_rules(node, rules, animate=True)
            return
        base, alone = node.styles.base, dict[DOMNode, Asked]()
        asked = alone if self._asked is None else self._asked

        def ask(*, layout: bool = False, children: bool = False, parent: bool = False) -> None:
            if not node._is_mounted:
                return
            if parent and node.parent is not None:
                asked.setdefault(node.parent, Asked())
            own = asked.setdefault(node, Asked())
            own.layout, own.children = own.layout or layout, own.children or children

        before = base.get_rules()
        base.refresh = ask  # type: ignore[assignment, method-assign]
        try:
            for key in before.keys() | rules.keys():
                if before.get(key) != rules.get(key):
                    setattr(base, key, rules.get(key))
        finally:
            del base.refresh
        node.notify_style_update()
        _draw(alone)


def _draw(asked: Mapping[DOMNode, Asked]) -> None:
    """Have nodes drawn again, each once."""
    layouts: dict[DOMNode, bool] = {}
    for node, how in asked.items():
        whole = node.walk_children(with_self=True) if how.children else [node]
        for each in whole:
            layouts[each] = how.layout or layouts.get(each, False)
    for node, layout in layouts.items():
        node.refresh(layout=layout)
