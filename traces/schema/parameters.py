"""The parameters of policies: names, defaults and limits; what a policy needs of its engine.

They travel in `Policy.rule` as sorted pairs of name and value. `make_policy` checks them and fills
in the defaults, so that a recording says all of its policy.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlsplit

from traces.errors import UsageError
from traces.schema.policy import Policy

Value = float | str
CONFIDENCE_TOP = 20  # log-probabilities per token that a confidence is made of; vLLM's limit
CONFIDENCE_WINDOW = 2048
REVISE = (
    "{prompt}\n\nAn earlier attempt ended with the answer: {answer}\n"
    "Check it, correct it where it is wrong, and give the final answer."
)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of methods; numbers lie in [low, high], and `help` describes its option."""

    name: str
    methods: tuple[str, ...]
    default: Value | None
    help: str
    whole: bool = False
    low: float = 1
    high: float = float("inf")

    @property
    def kind(self) -> type:
        """The type of its values as they are given."""
        if isinstance(self.default, str) or self.name == "scorer":
            return str
        return int if self.whole else float

    def check(self, value: Any) -> Value:
        """Return the value in its type. Raises UsageError in one line."""
        if self.kind is str:
            if not isinstance(value, str) or not value:
                raise UsageError(f"policy: {self.name} must be a text that is not empty")
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high or (self.whole and value % 1):
            kind = "a whole number" if self.whole else "a number"
            most = "" if self.high == float("inf") else f" and at most {self.high:g}"
            raise UsageError(
                f"policy: {self.name} must be {kind} of at least {self.low:g}{most}, not {value!r}"
            )
        return float(value)


_SCORED = ("best_of_n", "weighted", "beam")
PARAMETERS = (
    Parameter(
        name="window",
        help="early_stopping: samples of a window (4).",
        methods=("early_stopping",),
        default=4.0,
        whole=True,
        low=2,
    ),
    Parameter(
        name="threshold",
        help="adaptive: how sure the majority must be (0.95).",
        methods=("adaptive",),
        default=0.95,
        low=0.5,
        high=1.0,
    ),
    Parameter(
        name="in_flight",
        help="adaptive, agreement: samples of a problem at a time (n).",
        methods=("adaptive", "agreement"),
        default=None,
        whole=True,
    ),
    Parameter(
        name="agree",
        help="agreement: equal answers that decide (over half of n).",
        methods=("agreement",),
        default=None,
        whole=True,
    ),
    Parameter(
        name="first",
        help="first_finish: how many answers decide (half of n).",
        methods=("first_finish",),
        default=None,
        whole=True,
    ),
    Parameter(
        name="keep",
        help="confidence: share of the samples that votes (0.9).",
        methods=("confidence",),
        default=0.9,
        low=0.01,
        high=1.0,
    ),
    Parameter(
        name="confidence_window",
        help="confidence: tokens of the sliding window (2048).",
        methods=("confidence",),
        default=float(CONFIDENCE_WINDOW),
        whole=True,
    ),
    Parameter(
        name="scorer",
        help="best_of_n, weighted, beam: URL of a reward model (log-probability).",
        methods=_SCORED,
        default=None,
    ),
    Parameter(
        name="extend",
        help="budget_forcing: how often thought is reopened (1).",
        methods=("budget_forcing",),
        default=1.0,
        whole=True,
        high=64,
    ),
    Parameter(
        name="word",
        help="budget_forcing: what reopens a thought (Wait).",
        methods=("budget_forcing",),
        default="Wait",
    ),
    Parameter(
        name="stable",
        help="sequential: equal answers that end it, 0: never (2).",
        methods=("sequential",),
        default=2.0,
        whole=True,
        low=0,
    ),
    Parameter(
        name="revise_prompt",
        help="sequential: with {prompt}, {answer} and {thought}.",
        methods=("sequential",),
        default=REVISE,
    ),
    Parameter(
        name="width",
        help="beam: thoughts kept at each step (root of n).",
        methods=("beam",),
        default=None,
        whole=True,
    ),
    Parameter(
        name="depth",
        help="beam: steps at most (8).",
        methods=("beam",),
        default=8.0,
        whole=True,
        low=2,
        high=1000,
    ),
    Parameter(
        name="step_stop",
        help="beam: text that ends a step (an empty line).",
        methods=("beam",),
        default="\n\n",
    ),
    Parameter(
        name="step_tokens",
        help="beam: tokens of a step at most (256).",
        methods=("beam",),
        default=256.0,
        whole=True,
    ),
)
_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def meant(name: str, known: Sequence[str]) -> str:
    """Return which of the known names a wrong one may stand for, or else all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"


def make_policy(given: Mapping[str, Any]) -> Policy:
    """Return a policy from its fields and its parameters by name; None counts as not given.

    Raises UsageError for a field, a parameter or a value that its method has no use for.
    """
    own = {field.name for field in fields(Policy)}
    said = {name: value for name, value in given.items() if value is not None}
    if unknown := said.keys() - own - _BY_NAME.keys():
        name, known = sorted(unknown)[0], [*sorted(own), *_BY_NAME]
        raise UsageError(f"no Policy field {name!r}; {meant(name, known)}")
    policy = Policy.from_json({name: value for name, value in said.items() if name in own})
    chosen = {name: value for name, value in said.items() if name in _BY_NAME}
    return complete(replace(policy, rule=tuple((dict(policy.rule) | chosen).items())))


def lowered(policy: Policy, n: int) -> dict[str, Value]:
    """Return a policy's parameters for fewer samples.

    What was the default for its own n is that for the new one, and in flight there are at most so
    many. What else exceeds the new n stays, so that `complete` says what to set.
    """
    rule = dict(policy.rule)
    for name, value in rule.items():
        parameter = _BY_NAME.get(name)
        if parameter is None or isinstance(value, str) or n >= policy.n or n < 1:
            continue
        if value == _default(parameter, policy.n):
            new = _default(parameter, n)
            rule[name] = value if new is None else new
        elif name == "in_flight":
            rule[name] = min(value, float(n))
    return rule


def complete(policy: Policy) -> Policy:
    """Return the policy with its parameters checked, defaults filled in, sorted by name.

    Raises UsageError in one line.
    """
    given = dict(policy.rule)
    for name in given:
        parameter = _BY_NAME.get(name)
        if parameter is None:
            raise UsageError(f"policy: no parameter {name!r}; one of {', '.join(_BY_NAME)}")
        if policy.method not in parameter.methods:
            raise UsageError(
                f"policy: {name} is for {', '.join(parameter.methods)}, not {policy.method}"
            )
    rule = {
        parameter.name: parameter.check(given.get(parameter.name, default))
        for parameter in PARAMETERS
        if (
            policy.method in parameter.methods
            and (default := _default(parameter, policy.n)) is not None
        )
        or parameter.name in given
    }
    made = replace(policy, rule=tuple(sorted(rule.items())))
    _check_together(made)
    return made


def _default(parameter: Parameter, n: int) -> Value | None:
    """Return the default, of some parameters a matter of n."""
    by_n = {
        "in_flight": n,
        "agree": n // 2 + 1,
        "first": (n + 1) // 2,
        "width": round(n**0.5),
        "window": min(4, n),
    }
    if parameter.name in by_n:
        return float(by_n[parameter.name])
    return parameter.default


def _check_together(policy: Policy) -> None:
    for name in ("window", "in_flight", "agree", "first", "width"):
        value = number(policy, name)
        if value is not None and value > policy.n:
            raise UsageError(
                f"policy: {name} must be at most n = {policy.n}, not {value}; set {name} too"
            )
    template = text(policy, "revise_prompt")
    if template is not None and "{prompt}" not in template:
        raise UsageError("policy: revise_prompt must contain {prompt}, the question itself")
    if policy.method == "beam" and policy.thinking_token_budget is not None:
        raise UsageError(
            "policy: beam bounds its thoughts by depth and step_tokens; leave out the budget"
        )
    scorer = text(policy, "scorer")
    if scorer is not None and "://" in scorer:
        check_url(scorer)


def check_url(url: str) -> None:
    """Raise UsageError for a scorer's URL that cannot be used or that holds a password."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError("--scorer: give an http:// or https:// URL")
    if parts.username or parts.password or parts.query:
        raise UsageError("--scorer: the URL is recorded, so it must hold no password and no query")


def number(policy: Policy, name: str) -> int | None:
    """Return a parameter that is a whole number, None when the policy has none such."""
    value = dict(policy.rule).get(name)
    return None if value is None or isinstance(value, str) else int(value)


def text(policy: Policy, name: str) -> str | None:
    """Return a parameter that is a text, None when the policy has none such."""
    value = dict(policy.rule).get(name)
    return value if isinstance(value, str) else None


def most_requests(policy: Policy) -> int:
    """Return how many requests a policy makes for a problem at most, forced answers apart."""
    if policy.method == "budget_forcing":
        return policy.n * (1 + (number(policy, "extend") or 0))
    return policy.n * (number(policy, "depth") or 1)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a policy wants measured: `top_logprobs` per token (0: the sampled token's alone).

    `token_ids` says that samples may be continued; `scores` that samples are scored.
    """

    top_logprobs: int | None = None
    confidence_window: int | None = None
    token_ids: bool = False
    scores: bool = False


def needs_of(policy: Policy, *, logprobs: bool = False) -> Needs:
    """Return what to ask of the engine; `logprobs` asks for log-probabilities of any policy."""
    window = number(policy, "confidence_window") or (CONFIDENCE_WINDOW if logprobs else None)
    scored = policy.method in _SCORED
    built_in = scored and text(policy, "scorer") is None
    return Needs(
        top_logprobs=CONFIDENCE_TOP if window is not None else 0 if built_in else None,
        confidence_window=window,
        token_ids=policy.method in {"budget_forcing", "beam"},
        scores=scored,
    )
