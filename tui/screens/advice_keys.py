"""The keys of the Advice screen."""

from __future__ import annotations

from textual.binding import Binding, BindingType

KEYS: list[BindingType] = [
    Binding("c", "copy", "copy command", id="advice.copy"),
    Binding("b", "budget", "budget", id="advice.budget"),
    Binding("x", "axis", "axis", id="advice.axis"),
    Binding("w", "what_if", "what if", id="advice.what_if"),
    Binding("e", "explain", "explain", id="advice.explain"),
    Binding("m", "measure", "measure next", id="advice.measure"),
    Binding("escape", "leave", "to the picks", show=False),
]
