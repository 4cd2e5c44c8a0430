"""A policy of test-time scaling: how many samples a problem gets and how one answer is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from traces.errors import UsageError
from traces.schema.record import Record

Method = Literal[
    "greedy",
    "majority",
    "best_of_n",
    "weighted",
    "confidence",
    "early_stopping",
    "adaptive",
    "agreement",
    "first_finish",
    "budget_forcing",
    "sequential",
    "beam",
    "as_sent",
]


EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

# Method -> its short name, and the parameter that its label shows before n.
_SHORT: dict[str, tuple[str, str | None]] = {
    "majority": ("maj", None),
    "best_of_n": ("best", None),
    "confidence": ("conf", "keep"),
    "early_stopping": ("esc", "window"),
    "adaptive": ("asc", "threshold"),
    "agreement": ("agree", "agree"),
    "first_finish": ("first", "first"),
    "budget_forcing": ("wait", "extend"),
    "sequential": ("revise", None),
    "beam": ("beam", "width"),
}


@dataclass(frozen=True, kw_only=True)
class Policy(Record):
    """How many samples a problem gets, how they are drawn, and how the answer is chosen.

    `rule` has the parameters of the method, by name; they are in traces/schema/parameters.py.
    `reasoning_effort` is vLLM's: the chat template makes of it what the model was trained on.
    `temperature` and `top_p` are None only in recordings made by others, which may not tell.
    """

    method: Method = "greedy"
    n: int = 1
    thinking_token_budget: int | None = None
    reasoning_effort: str | None = None
    max_tokens: int | None = None
    temperature: float | None = 0.0
    top_p: float | None = 1.0
    rule: tuple[tuple[str, float | str], ...] = ()

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UsageError(
                f"policy: no method {self.method!r}; one of {', '.join(get_args(Method))}"
            )
        if self.n < 1:
            raise UsageError(f"policy: n must be at least 1, not {self.n}")
        if self.method == "greedy" and self.n != 1:
            raise UsageError(f"policy: greedy draws one sample, not {self.n}; use majority")
        if self.temperature is not None and self.temperature < 0:
            raise UsageError(f"policy: temperature must not be negative, not {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"policy: top_p must lie in (0, 1], not {self.top_p}")
        if self.reasoning_effort is not None and self.reasoning_effort not in EFFORTS:
            known = ", ".join(EFFORTS)
            raise UsageError(
                f"policy: no reasoning_effort {self.reasoning_effort!r}; one of {known}"
            )
        for name in ("thinking_token_budget", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"policy: {name} must be at least 1, not {value}")

    def label(self) -> str:
        """Return the short form shown in tables, such as `maj@16 128` or `esc 4/16 high`.

        One sample is called greedy where each of its tokens is the likeliest: at temperature 0.
        """
        name, decisive = _SHORT.get(self.method, (self.method, None))
        given = dict(self.rule).get(decisive or "")
        if self.method == "as_sent":
            label = "as sent"
        elif self.method == "greedy":
            drawn = "1 sample" if self.temperature is None else f"1 sample T={self.temperature:g}"
            label = name if self.temperature == 0 else drawn
        elif given is None or isinstance(given, str):
            label = f"{name}@{self.n}"
        else:
            label = f"{name} {given:g}/{self.n}"
        parts = (label, self.reasoning_effort, self.thinking_token_budget)
        return " ".join(str(part) for part in parts if part is not None)

    def label_with_temperature(self) -> str:
        """Return the label and the temperature, once, where it is known and not 0."""
        label = self.label()
        return (
            f"{label} T={self.temperature:g}" if self.temperature and " T=" not in label else label
        )


WHOLE = ("greedy", "majority")  # every sample ends
STOPPING = ("early_stopping", "adaptive", "agreement", "first_finish")
FIXED_N = (
    "greedy",
    "majority",
    "best_of_n",
    "as_sent",
)  # every sample runs to its end: nothing is selected

# What others sent to a server that was only watched: each problem has the samples that it had, and
# neither how they were drawn nor how an answer was chosen is known.
AS_SENT = Policy(method="as_sent", temperature=None, top_p=None)
