"""A policy of test-time scaling: how many samples a problem gets and how one answer is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated, Any

from msgspec import Meta

from traces.errors import UsageError
from traces.schema.record import Record, Some
from traces.schema.tts.methods import METHODS, Method
from traces.schema.tts.routes import (
    AT,
    EFFORTS,
    Table,
    first_of,
    packed,
    read_efforts,
    read_routes,
    table_for,
)
from traces.schema.tts.stop_rules import Stop

LONG = 1024  # tokens from which a limit stands in a name: thoughts are cut at several


@dataclass(frozen=True, kw_only=True)
class Policy(Record):
    """How many samples a problem gets, how they are drawn, and how the answer is chosen.

    `method` and the names in `rule`, its parameters, are those of traces/schema/tts/methods.py.
    `reasoning_effort` is vLLM's: the chat template makes of it what the model was trained on. It is
    None too where classes of problems have efforts of their own (`efforts`).
    `temperature` and `top_p` are None only in recordings made by others, which may not tell.
    `sampling` are further fields that clients of `serve` sent to the engine, such as top_k. Texts
    and objects stand there as a hash. No policy that is to be run has any.
    """

    method: str = "greedy"
    n: Annotated[int, Meta(ge=1, le=1 << 16)] = 1
    thinking_token_budget: Some | None = None
    reasoning_effort: str | None = None
    max_tokens: Some | None = None
    temperature: float | None = 0.0
    top_p: float | None = 1.0
    rule: tuple[tuple[str, float | str], ...] = ()
    sampling: tuple[tuple[str, float | str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, `sampling` where there is any: other policies keep their keys."""
        plain = super().to_json()
        return plain if self.sampling else {k: v for k, v in plain.items() if k != "sampling"}

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            choices = ", ".join(name for name, each in METHODS.items() if not each.of_others)
            raise UsageError(f"policy: no method {self.method!r}. Choose one of {choices}")
        if self.n < 1:
            raise UsageError(f"policy: n must be at least 1, not {self.n}")
        if self.method == "greedy" and self.n != 1:
            raise UsageError(f"policy: greedy draws one sample, not {self.n}. Use majority")
        if self.temperature is not None and not 0 <= self.temperature < inf:
            raise UsageError(
                f"policy: temperature must be finite and must not be negative, not "
                f"{self.temperature}"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"policy: top_p must lie in (0, 1], not {self.top_p}")
        if self.reasoning_effort is not None and self.reasoning_effort not in EFFORTS:
            choices = ", ".join(EFFORTS)
            raise UsageError(
                f"policy: no reasoning_effort {self.reasoning_effort!r}. Choose one of {choices}"
            )
        for name in ("thinking_token_budget", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"policy: {name} must be at least 1, not {value}")

    @property
    def truncated(self) -> bool:
        """Whether samples are drawn from the likeliest tokens alone (`top_p`)."""
        return self.temperature != 0 and self.top_p is not None and self.top_p < 1

    @property
    def spec(self) -> Method:
        return METHODS[self.method]

    @property
    def all_samples_end(self) -> bool:
        return self.spec.all_samples_end

    @property
    def stops_early(self) -> bool:
        return self.spec.stops_early

    @property
    def stop(self) -> Stop | None:
        """When a problem is decided, None where requests go on from earlier answers."""
        return self.stop_for(None)

    def check(self) -> None:
        """Raise ValueError, KeyError or OverflowError where its rule is not that of its method."""
        for group in (None, *(self.routes or ())):
            self.stop_for(group)
            self.effort_for(group)
        self.words()

    @property
    def routes(self) -> dict[str, Table] | None:
        """The tables by class of a policy that goes by them."""
        text = dict(self.rule).get("route")
        return read_routes(text) if isinstance(text, str) else None

    @property
    def efforts(self) -> dict[str, str | None] | None:
        """The reasoning efforts by class of a policy whose tables name them, None for any other."""
        text = dict(self.rule).get("route")
        return read_efforts(text) if isinstance(text, str) and AT in text else None

    def effort_for(self, group: str | None) -> str | None:
        """Return the reasoning effort that samples of a class are drawn at, None where not set."""
        efforts = self.efforts
        return self.reasoning_effort if efforts is None else table_for(efforts, group)

    def stop_for(self, group: str | None) -> Stop | None:
        """Return when a problem of a class is decided (`stop`)."""
        if self.spec.rule is None:
            return None
        if (routes := self.routes) is not None:
            table = table_for(routes, group)
            return Stop(rule=self.spec.rule, value=packed(table), drawn_first=first_of(table))
        given = {name: value for name, value in self.rule if not isinstance(value, str)}
        return Stop(
            rule=self.spec.rule,
            value=given[self.spec.decisive] if self.stops_early else 0.0,
            drawn_first=int(given[self.spec.at_a_time]) if self.spec.at_a_time else 0,
        )

    def label(self) -> str:
        """Return the short form shown in tables, such as `maj@16 128` or `esc 4/16 high`.

        One sample is called greedy where each of its tokens is the likeliest: at temperature 0.
        """
        name, given = self.spec.short, dict(self.rule).get(self.spec.decisive)
        if self == AS_SENT:
            label = name
        elif self.method == "greedy":
            drawn = "1 sample" if self.temperature is None else f"1 sample T={self.temperature:g}"
            label = name if self.temperature == 0 else drawn
        elif given is None or isinstance(given, str):
            label = f"{name}@{self.n}"
        else:
            label = f"{name} {given:g}/{self.n}"
        effort, efforts = self.reasoning_effort, self.efforts
        if efforts is not None:
            named = sorted(filter(None, set(efforts.values())), key=EFFORTS.index)
            effort = "/".join([*["unset"] * (None in efforts.values()), *named])
        fields = ",".join(f"{name}={value}" for name, value in self.sampling) or None
        parts = (label, effort, self.thinking_token_budget, fields)
        return " ".join(str(part) for part in parts if part is not None)

    def words(self) -> str:
        """Return what it does, such as `8 samples, majority vote`."""
        if self == AS_SENT:
            return "the traffic as it was sent"
        if self.method == "greedy":
            words = "one sample, greedy" if self.temperature == 0 else "one sample"
        elif self.n == 1 and self.method == "majority":
            words = "one sample"
        else:
            words = self.spec.describe(self.spec.words, self.n, dict(self.rule))
        if self.reasoning_effort is not None:
            words += f", {self.reasoning_effort} reasoning effort"
        if self.thinking_token_budget is not None:
            words += f", at most {self.thinking_token_budget:,} tokens of thought"
        if self.max_tokens is not None and self.max_tokens >= LONG:
            words += f", at most {self.max_tokens:,} tokens each"
        if self.temperature:
            words += f", temperature {self.temperature:g}"
        return words

    def label_with_temperature(self) -> str:
        """Return the label, the temperature where it is known and not 0, and a long max_tokens."""
        label = self.label()
        if self.temperature and " T=" not in label:
            label = f"{label} T={self.temperature:g}"
        most = self.max_tokens
        return label if most is None or most < LONG else f"{label} max {most}"


# What others sent to a server that was only watched: each problem has the samples that it had, and
# neither how they were drawn nor how an answer was chosen is known.
AS_SENT = Policy(method="as_sent", temperature=None, top_p=None)
