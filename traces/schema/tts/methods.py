"""The methods of test-time scaling and their parameters: the one table that all packages read.

A method that stops by a rule of traces/schema/tts/stop_rules.py needs no more than its row here: it
runs, is replayed, judged, proposed and described by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from traces.errors import UsageError
from traces.schema.tts import routes, stop_rules

Value = float | str
CONFIDENCE_TOP = 20  # log-probabilities per token that a confidence is made of; vLLM's limit
CONFIDENCE_WINDOW = 2048
REVISE = (
    "{prompt}\n\nAn earlier attempt ended with the answer: {answer}\n"
    "Check it, correct it where it is wrong, and give the final answer."
)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of methods; numbers lie in [low, high], and `help` describes its option.

    `default` may be a function of n. Without one the parameter may be absent. `words` say a text in
    the description of a method.
    """

    name: str
    help: str
    default: Value | Callable[[int], Value] | None = None
    kind: type = int
    low: float = 1
    high: float = float("inf")
    at_most_n: bool = False
    words: Callable[[str], str] = str

    def default_at(self, n: int) -> Value | None:
        value = self.default(n) if callable(self.default) else self.default
        return float(value) if isinstance(value, int) else value

    def check(self, value: Any) -> Value:
        """Return the value in its type. Raises UsageError in one line."""
        if self.kind is str:
            if not isinstance(value, str) or not value:
                raise UsageError(f"policy: {self.name} must be a text that is not empty")
            return value
        whole = self.kind is int
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high or (whole and value % 1):
            kind = "a whole number" if whole else "a number"
            most = "" if self.high == float("inf") else f" and at most {self.high:g}"
            raise UsageError(
                f"policy: {self.name} must be {kind} of at least {self.low:g}{most}, not {value!r}"
            )
        return float(value)


PARAMETERS: Final = (
    Parameter(
        name="window",
        help="early_stopping: samples of a window (4).",
        default=lambda n: min(4, n),
        low=2,
        at_most_n=True,
    ),
    Parameter(
        name="threshold",
        help="adaptive: how sure the majority must be (0.95).",
        default=0.95,
        kind=float,
        low=0.5,
        high=1.0,
    ),
    Parameter(
        name="in_flight",
        help="adaptive, agreement: samples of a problem at a time (n).",
        default=lambda n: n,
        at_most_n=True,
    ),
    Parameter(
        name="agree",
        help="agreement: equal answers that decide (over half of n).",
        default=lambda n: n // 2 + 1,
        at_most_n=True,
    ),
    Parameter(
        name="first",
        help="first_finish: how many answers decide (half of n).",
        default=lambda n: (n + 1) // 2,
        at_most_n=True,
    ),
    Parameter(
        name="route",
        help="routed: samples by agreement of the first: 8,8,8,4,4.",
        kind=str,
        default=routes.half_first,
        words=routes.in_words,
    ),
    Parameter(
        name="keep",
        help="confidence: share of the samples that votes (0.9).",
        default=0.9,
        kind=float,
        low=0.01,
        high=1.0,
    ),
    Parameter(
        name="confidence_window",
        help="confidence: tokens of the sliding window (2048).",
        default=float(CONFIDENCE_WINDOW),
    ),
    Parameter(
        name="scorer",
        help="best_of_n, weighted, beam: URL of a reward model (log-probability).",
        kind=str,
    ),
    Parameter(
        name="extend",
        help="budget_forcing: how often thought is reopened (1).",
        default=1.0,
        high=64,
    ),
    Parameter(
        name="word",
        help="budget_forcing: what reopens a thought (Wait).",
        default="Wait",
        kind=str,
    ),
    Parameter(
        name="stable",
        help="sequential: equal answers that end it, 0: never (2).",
        default=2.0,
        low=0,
    ),
    Parameter(
        name="revise_prompt",
        help="sequential: with {prompt}, {answer} and {thought}.",
        default=REVISE,
        kind=str,
    ),
    Parameter(
        name="width",
        help="beam: thoughts kept at each step (root of n).",
        default=lambda n: round(n**0.5),
        at_most_n=True,
    ),
    Parameter(name="depth", help="beam: steps at most (8).", default=8.0, low=2, high=1000),
    Parameter(
        name="step_stop",
        help="beam: text that ends a step (an empty line).",
        default="\n\n",
        kind=str,
    ),
    Parameter(name="step_tokens", help="beam: tokens of a step at most (256).", default=256.0),
)
PARAMETER: Final = {each.name: each for each in PARAMETERS}

Judged = Callable[[int], Iterable[Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of test-time scaling.

    `rule` of `stop_rules` says when a problem is decided, None where requests go on from earlier
    answers, so that no other recording says what they would be. `decisive` is the parameter that
    labels show, and the value of the rule. `at_a_time` is the one that says how many samples are
    drawn first, else all are. `in_turn` says that a request begins when the one before has ended,
    `plurality` that the most frequent answer is given. `continues` and `in_steps` say that requests
    go on from token ids, and that a request is a step of a sample. `of_others` is what somebody
    else sent, which can be replayed and not run.

    `words` describe the method and `answer` which answer it gives, with {n} and the parameters.
    `judged` gives the parameters for which `show` says what n samples would have given.
    `proposed_from` n samples `advise` proposes it, with each of `proposed` in place of defaults.
    `capped` says that n only ends what mostly ends before, so that few n are proposed.
    """

    name: str
    short: str
    decisive: str = ""
    parameters: tuple[str, ...] = ()
    rule: int | None = stop_rules.ALL
    at_a_time: str = ""
    in_turn: bool = False
    plurality: bool = True
    continues: bool = False
    in_steps: bool = False
    of_others: bool = False
    words: str = ""
    answer: str = "the most frequent answer"
    judged: Judged = lambda n: ()
    proposed_from: int | None = None
    proposed: Judged = lambda n: ({},)
    capped: bool = False

    @property
    def all_samples_end(self) -> bool:
        """Whether it waits for every sample, which makes the recorded ones a fair draw."""
        return self.rule == stop_rules.ALL

    @property
    def stops_early(self) -> bool:
        """Whether it decides by a rule before every sample has ended."""
        return self.rule is not None and not self.all_samples_end

    def describe(self, template: str, n: int, rule: Mapping[str, Value]) -> str:
        """Fill in `words` or `answer`."""
        given = {
            name: PARAMETER[name].words(value) if isinstance(value, str) else f"{value:g}"
            for name, value in rule.items()
        }
        return template.format(n=n, **dict.fromkeys(self.parameters, "enough") | given)


def _firsts(n: int, fewest: float = 1) -> list[int]:
    """Return of how many answers of n a vote may be: 1, 2, 3, 4, 6, 8, 12, ..., and half of n.

    Of at least `fewest`.
    """
    some = [k * 2**i for i in range(n.bit_length()) for k in (1, 3)]
    return sorted({n // 2, *(k for k in some if fewest <= k < n)})


THRESHOLDS = (0.88, 0.95)  # three votes to none or four to one suffice; four to none
_ROWS = (
    Method(name="as_sent", short="as sent", plurality=False, of_others=True),
    Method(name="greedy", short="greedy"),
    Method(name="majority", short="maj", words="{n} samples, majority vote"),
    Method(
        name="best_of_n",
        short="best",
        parameters=("scorer",),
        plurality=False,
        words="the best of {n} samples",
    ),
    Method(
        name="weighted",
        short="weighted",
        parameters=("scorer",),
        plurality=False,
        words="{n} samples, vote by score",
    ),
    Method(
        name="confidence",
        short="conf",
        decisive="keep",
        parameters=("keep", "confidence_window"),
        plurality=False,
        words="{n} samples, vote of the most confident (a share of {keep})",
        judged=lambda n: ({"keep": 0.5}, {"keep": 0.9}),
    ),
    Method(
        name="early_stopping",
        short="esc",
        decisive="window",
        parameters=("window",),
        rule=stop_rules.WINDOWS,
        at_a_time="window",
        words="up to {n} samples until {window} in a row agree",
        answer="the most frequent answer as soon as {window} in a row agree",
        judged=lambda n: [{"window": size} for size in (3, 4) if n >= 8],
        proposed_from=8,
        capped=True,
    ),
    Method(
        name="adaptive",
        short="asc",
        decisive="threshold",
        parameters=("threshold", "in_flight"),
        rule=stop_rules.SAFE,
        at_a_time="in_flight",
        words="up to {n} samples until the majority is {threshold} sure",
        answer="the most frequent answer as soon as it is {threshold} sure to stay so",
        judged=lambda n: [
            {"threshold": level, "in_flight": count} for count in (1, n) for level in THRESHOLDS
        ],
        proposed_from=8,
        proposed=lambda n: ({"in_flight": 4},),
        capped=True,
    ),
    Method(
        name="agreement",
        short="agree",
        decisive="agree",
        parameters=("agree", "in_flight"),
        rule=stop_rules.AGREE,
        at_a_time="in_flight",
        words="up to {n} samples until {agree} agree",
        answer="the answer that {agree} give first, or else the most frequent,",
        judged=lambda n: [{"agree": k, "in_flight": n} for k in (n // 4 + 1, n // 2 + 1)],
        proposed_from=4,
    ),
    Method(
        name="first_finish",
        short="first",
        decisive="first",
        parameters=("first",),
        rule=stop_rules.FIRST,
        words="{n} samples, vote of the first {first} that end",
        answer="the most frequent answer of the first {first} that end",
        judged=lambda n: [{"first": k} for k in _firsts(n)],
        # Of fewer most of the work is cancelled, which the closed form of advice does not price.
        proposed=lambda n: [{"first": k} for k in _firsts(n, n / 3)],
        proposed_from=4,
    ),
    Method(
        name="routed",
        short="route",
        parameters=("route",),
        rule=stop_rules.ROUTED,
        words="{route}",
        answer="the most frequent answer of as many as its table gives ({route})",
    ),
    Method(
        name="budget_forcing",
        short="wait",
        decisive="extend",
        parameters=("extend", "word"),
        rule=None,
        words="{n} samples, each thought reopened {extend} times",
        continues=True,
    ),
    Method(
        name="sequential",
        short="revise",
        parameters=("stable", "revise_prompt"),
        rule=None,
        in_turn=True,
        plurality=False,
        words="up to {n} revisions of an answer until {stable} agree",
    ),
    Method(
        name="beam",
        short="beam",
        decisive="width",
        parameters=("scorer", "width", "depth", "step_stop", "step_tokens"),
        rule=None,
        plurality=False,
        continues=True,
        in_steps=True,
        words="beam search over {n} thoughts, {width} kept at each step",
    ),
)
METHODS: Final = {each.name: each for each in _ROWS}
