"""The Budget panel: a labelled field for each limit, and what the fields hold as a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import DescendantBlur, DescendantFocus
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Select

from advisor.search.budget import parse_budget
from traces.errors import UsageError
from traces.schema.advice import Budget, Load, Objective
from traces.schema.formats import percent
from traces.schema.quantities import latency, statistic
from tui.text.words import budget_words, goal_words
from tui.widgets.still import StillColumn, StillGrid, StillText


@dataclass(frozen=True, kw_only=True)
class FormField:
    """A field: the name of its option, label, example, and what holds while it is empty."""

    name: str
    label: str
    example: str
    empty: str = "none"


FIELDS = (
    FormField(name="min_accuracy", label="accuracy at least", example="0.75 or 75%"),
    FormField(name="max_latency", label="latency at most", example="5s or 250ms"),
    FormField(name="max_cost", label="cost at most", example="$0.002, or 0.5s of a device"),
    FormField(name="max_energy", label="energy at most", example="800J"),
    FormField(name="gpus", label="GPUs at most", example="4"),
    FormField(name="rate", label="arrival rate", example="2/s or 30/min"),
    FormField(name="price", label="price", example="2.5 dollars a device-hour, or H100=2.5"),
    FormField(name="api_price", label="API price", example="2 dollars per million output tokens"),
    FormField(
        name="confidence",
        label="sure at least",
        example="0.9 or 90%",
        empty=f"{Budget.confidence:g}",
    ),
)
HINT = 11  # columns at the right of a field
NAMES = (  # of fields and choices in their order
    *(field.label for field in FIELDS[:2]),
    "which latency",
    *(field.label for field in FIELDS[2:]),
    "optimise",
)
STATISTICS = tuple((statistic(each), each) for each in (None, 50, 95, 99))
OBJECTIVES = get_args(Objective)
BY_LIMITS = "by the limits"  # accuracy within limits on what is spent alone, else latency
LABELS = {  # options of `ttscope advise` as the screen names them
    **{f"--{each.name.replace('_', '-')}": each.label for each in FIELDS},
    "--optimise": "optimise",
    "with --with": "with o on screen 1",
    "--set ": "",
    "--plan: ": "",
}
KEYS = "enter applies, esc takes it back"


def in_fields(text: str) -> str:
    """Return an error with the names that things have on the screen in place of the options'."""
    for option, label in LABELS.items():
        text = text.replace(option, label)
    return text


def load_hint(load: Load | None) -> str:
    """Return the load that holds while no rate is given, as short as a field."""
    if load is None:
        return "none"
    if load.rate_per_s is not None:
        return f"{load.rate_per_s:.3g}/s"
    return f"{load.concurrency or 1:,} in flight"


def summary_of(budget: Budget) -> str:
    """Return a budget in a line."""
    goal = f"{goal_words(budget)}, {percent(budget.confidence)} sure"
    if not budget.required:
        return "no limit is set"
    return ", ".join(filter(None, (budget_words(budget), goal)))


def budget_of(
    texts: Mapping[str, str], *, percentile: int | None, objective: str, price: float | None
) -> Budget:
    """Return the budget of what the fields hold by `parse_budget`'s names; empty is not limited.

    `price` is that of a device-hour where no field says one. Raises UsageError.
    """
    given: dict[str, object] = {name: text.strip() for name, text in texts.items() if text.strip()}
    given.pop("api_price", None)  # which no limit depends on
    if "gpus" in given:
        try:
            given["gpus"] = int(str(given["gpus"]))
        except ValueError:
            raise UsageError(f"--gpus {given['gpus']}: wants a whole number, such as 4") from None
    if price is not None:
        given.setdefault("price", price)
    if "max_latency" in given or objective in (BY_LIMITS, "latency"):
        given["percentile"] = percentile
    if objective != BY_LIMITS:
        given["optimise"] = objective
    return parse_budget(given)


def api_price_of(text: str) -> float | None:
    """Return the price of an API of what its field holds, None of an empty one. Raises UsageError.

    It is in USD per million output tokens.
    """
    if not text.strip():
        return None
    from advisor.advice.accounts.costs import Tariff

    try:
        return Tariff(api_price=float(text.strip().removeprefix("$"))).api_price
    except ValueError:
        raise UsageError(f"--api-price {text.strip()}: wants a number, such as 2") from None


class BudgetField(Input):
    """A field of the budget; the footer says what ends it.

    While it is empty, what holds without it stands at its right.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "apply", key_display="enter"),
        Binding("escape", "screen.leave", "take it back", key_display="esc"),
        Binding("tab", "app.focus_next", "next field"),
    ]

    def __init__(self, field: FormField, value: str) -> None:
        super().__init__(value, id=f"field_{field.name}", classes="budget", compact=True)
        self._hint = field.empty

    @property
    def hint(self) -> str:
        return self._hint

    @hint.setter
    def hint(self, hint: str) -> None:
        self._hint, width = hint, self.size.width
        fits = len(hint) < width  # half of it may be another word
        self.placeholder = " " * (width - max(HINT, len(hint))) + hint if fits else ""

    def on_resize(self) -> None:
        self.hint = self._hint


class BudgetForm(StillColumn):
    """The fields with their labels. While it is small and without focus, one line sums them up."""

    @dataclass
    class Changed(Message):
        """The fields hold something else; `typing` says that more may follow."""

        typing: bool = False

    class Left(Message):
        """The fields were left, with enter or escape."""

    def __init__(self, limits: Mapping[str, str], *, id: str) -> None:
        super().__init__(id=id, classes="panel")
        self._limits = limits
        self._before = ""  # what the field held that has the focus
        self._price: float | None = None
        self._narrow = self._is_open = False
        self.border_title = "Budget"

    def compose(self) -> ComposeResult:
        yield StillText(id="summary")
        with StillGrid(id="fields"):
            cells = [*self._cells()]
            yield StillText(id="left", classes="labels")
            yield cells[0]
            yield StillText(id="right", classes="labels")
            yield from cells[1:]

    def _cells(self) -> Iterator[Widget]:
        """Yield the fields and choices in their order."""
        for field in FIELDS:
            yield BudgetField(field, self._limits.get(field.name, ""))
            if field.name == "max_latency":
                start = statistic(Budget.latency_percentile)  # what the command line takes too
                options = [(latency(each).noun, name) for name, each in STATISTICS]
                yield self._choice("statistic", options, start)
        objectives = [(name, name) for name in (BY_LIMITS, *OBJECTIVES)]
        yield self._choice("objective", objectives, BY_LIMITS)

    def _choice(self, name: str, options: list[tuple[str, str]], start: str) -> Widget:
        return Select(options, value=start, allow_blank=False, compact=True, id=name)

    def on_mount(self) -> None:
        self.border_subtitle = "b edits"

    def set_price(self, price: float | None) -> None:
        """Say which price holds while none is in the field."""
        self._price = price
        self.field("price").hint = "none" if price is None else f"{price:g} (screen 1)"

    def set_load(self, load: Load | None) -> None:
        """Say which load holds while no rate is in the field."""
        self.field("rate").hint = load_hint(load)

    def read(self) -> Budget:
        """Return what the fields ask for. Raises UsageError."""
        texts = {each.name: self.field(each.name).value for each in FIELDS}
        budget = budget_of(
            texts,
            percentile=dict(STATISTICS)[str(self.query_one("#statistic", Select).value)],
            objective=str(self.query_one("#objective", Select).value),
            price=self._price,
        )
        summary = self.query_one("#summary", StillText)
        if summary.content != (text := summary_of(budget)):
            summary.update(text)
        return budget

    def api_price(self) -> float | None:
        """Return the price of an API that the picks are compared with. Raises UsageError."""
        return api_price_of(self.field("api_price").value)

    def field(self, name: str) -> BudgetField:
        return self.query_one(f"#field_{name}", BudgetField)

    def fit(self, narrow: bool) -> None:
        """Show the fields, or where there is little room a line instead while none is entered."""
        self._narrow = narrow
        labels = NAMES[::2], NAMES[1::2]
        for side, names in zip(("#left", "#right"), labels if narrow else (NAMES, ()), strict=True):
            self.query_one(side, StillText).update("\n".join(names))
        self._open(self._is_open)

    def _open(self, is_open: bool) -> None:
        self._is_open = is_open
        self.query_one("#fields").display = is_open or not self._narrow
        self.query_one("#summary").display = self._narrow and not is_open

    def enter(self) -> None:
        """Go to the first field."""
        self._open(True)
        self.screen.set_focus(self.field(FIELDS[0].name))

    def take_back(self) -> None:
        """Put back what the field held when it was entered."""
        focused = self.screen.focused
        if isinstance(focused, Input) and focused in self.query(".budget"):
            focused.value = self._before

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        self._open(True)
        for field in FIELDS:
            if event.widget.id == f"field_{field.name}":
                self._before = self.field(field.name).value
                self.border_subtitle = f"for example {field.example}. {KEYS}"
                return
        self.border_subtitle = "enter opens, tab goes on, esc leaves"

    def on_descendant_blur(self, event: DescendantBlur) -> None:
        self.border_subtitle = "b edits"
        if isinstance(event.widget, Input):
            event.widget.cursor_position = 0  # what is too long shows its beginning
        self.call_after_refresh(self._close)

    def _close(self) -> None:
        focused = self.screen.focused
        if focused is None or focused not in self.query("*"):
            self._open(False)

    @on(Input.Changed, ".budget")
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Changed(typing=event.input.has_focus))

    @on(Input.Blurred, ".budget")
    @on(Select.Changed)
    def _given(self, event: Message) -> None:
        event.stop()
        self.post_message(self.Changed())

    @on(Input.Submitted, ".budget")
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Changed())
        try:
            self.read()
        except UsageError:
            return  # what is wrong stays where it can be mended
        self._before = event.value
        self.post_message(self.Left())
