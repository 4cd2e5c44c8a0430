"""The keys of the Recordings screen, and what it asks for."""

from __future__ import annotations

from textual.binding import Binding, BindingType

QUESTIONS = {
    "open": "recordings, or folders of them, to open beside these",
    "price": "USD per device-hour, such as 2.5; - takes what the recordings say",
    "import": "profiler traces, one per rank, samples of evaluations, or a file of requests",
}
KEYS: list[BindingType] = [
    Binding("space", "mark", "mark", id="recordings.mark"),
    Binding("slash", "filter", "filter", id="recordings.filter"),
    Binding("s", "sort", "sort", id="recordings.sort"),
    Binding("r", "reverse", "reverse", id="recordings.reverse", show=False),
    Binding("u", "unmark", "unmark all", id="recordings.unmark", show=False),
    Binding("a", "advise", "advise", id="recordings.advise"),
    Binding("o", "ask('open')", "open", id="recordings.open"),
    Binding("i", "ask('import')", "import", id="recordings.import"),
    Binding("x", "delete", "delete", id="recordings.delete"),
    Binding("dollar_sign", "ask('price')", "price", id="recordings.price", show=False),
    Binding("escape", "leave_filter", "leave the field", show=False),
]
