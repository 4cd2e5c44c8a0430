"""Policies made from what was given, and what they need of an engine.

Parameters are kept in `Policy.rule` as sorted pairs of name and value. `make_policy` checks them
and fills in the defaults, so that a recording says all of its policy.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlsplit

from traces.errors import UsageError
from traces.schema.tts.methods import (
    CONFIDENCE_TOP,
    CONFIDENCE_WINDOW,
    METHODS,
    PARAMETER,
    PARAMETERS,
    Value,
)
from traces.schema.tts.policy import Policy
from traces.schema.tts.routes import OTHERS, most_samples, write_routes
from traces.schema.tts.stop_rules import ROUTED


def meant(name: str, known: Sequence[str]) -> str:
    """Return which of the known names a wrong one may stand for, or else all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"


def make_policy(given: Mapping[str, Any]) -> Policy:
    """Return a policy from fields and parameters by name, None not given. Raises UsageError."""
    policy_fields = {field.name for field in fields(Policy)}
    said = {name: value for name, value in given.items() if value is not None}
    if unknown := said.keys() - policy_fields - PARAMETER.keys():
        name, known = sorted(unknown)[0], [*sorted(policy_fields), *PARAMETER]
        raise UsageError(f"no Policy field {name!r}: {meant(name, known)}")
    policy = Policy.from_json(
        {name: value for name, value in said.items() if name in policy_fields}
    )
    chosen = {name: value for name, value in said.items() if name in PARAMETER}
    return complete(replace(policy, rule=tuple((dict(policy.rule) | chosen).items())))


def lowered(policy: Policy, n: int) -> dict[str, Value]:
    """Return a policy's parameters for fewer samples.

    What was the default for its own n is that for the new one, and in flight there are at most so
    many. What else exceeds the new n stays, so that `complete` says what to set.
    """
    rule = dict(policy.rule)
    for name, value in rule.items():
        parameter = PARAMETER.get(name)
        if parameter is None or isinstance(value, str) or n >= policy.n or n < 1:
            continue
        if value == parameter.default_at(policy.n):
            new = parameter.default_at(n)
            rule[name] = value if new is None else new
        elif name == "in_flight":
            rule[name] = min(value, float(n))
    return rule


def complete(policy: Policy) -> Policy:
    """Return the policy, checked, defaults filled in, sorted by name. Raises UsageError."""
    given = dict(policy.rule)
    names = policy.spec.parameters
    for name in given:
        if name not in PARAMETER:
            raise UsageError(f"policy: no parameter {name!r}. Choose one of {', '.join(PARAMETER)}")
        if name not in names:
            takers = ", ".join(each.name for each in METHODS.values() if name in each.parameters)
            raise UsageError(f"policy: {name} is for {takers}, not {policy.method}")
    rule: dict[str, Value] = {}
    for parameter in PARAMETERS:
        if parameter.name in names:
            value = given.get(parameter.name, parameter.default_at(policy.n))
            if value is not None:
                rule[parameter.name] = parameter.check(value)
    made = _one_effort(replace(policy, rule=tuple(sorted(rule.items()))))
    _check_together(made)
    return made


def _one_effort(policy: Policy) -> Policy:
    """Return a policy whose tables all have one reasoning effort with that as its own."""
    efforts, tables = policy.efforts, policy.routes
    if efforts is None or tables is None:
        return policy
    if policy.reasoning_effort is not None:
        raise UsageError(
            f"policy: reasoning_effort {policy.reasoning_effort} and efforts in route exclude each "
            "other. Leave it out, and give each class its effort"
        )
    if len(set(efforts.values())) > 1:
        return policy
    rule = dict(policy.rule) | {"route": write_routes(tables)}
    return replace(policy, reasoning_effort=efforts[OTHERS], rule=tuple(sorted(rule.items())))


def _check_together(policy: Policy) -> None:
    for name in (each.name for each in PARAMETERS if each.at_most_n):
        value = number(policy, name)
        if value is not None and value > policy.n:
            raise UsageError(
                f"policy: {name} must be at most n = {policy.n}, not {value}. Set {name} too"
            )
    if policy.spec.rule == ROUTED and (most := most_samples(policy.routes or {})) != policy.n:
        raise UsageError(
            f"policy: n = {policy.n} must be the most samples that route gives, {most}"
        )
    template = text(policy, "revise_prompt")
    if template is not None and "{prompt}" not in template:
        raise UsageError("policy: revise_prompt must contain {prompt}, the question itself")
    if policy.spec.in_steps and policy.thinking_token_budget is not None:
        raise UsageError(
            f"policy: {policy.method} bounds its thoughts by depth and step_tokens. "
            "Leave out the budget"
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
    return policy.n * (1 + (number(policy, "extend") or 0)) * (number(policy, "depth") or 1)


def most_at_once(policy: Policy) -> int:
    """Return how many requests of a problem a policy has in flight at most."""
    if policy.spec.in_turn:
        return 1
    stop = policy.stop
    return policy.n if stop is None or not policy.spec.at_a_time else stop.drawn_first


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
    scored = "scorer" in policy.spec.parameters
    built_in = scored and text(policy, "scorer") is None
    return Needs(
        top_logprobs=CONFIDENCE_TOP if window is not None else 0 if built_in else None,
        confidence_window=window,
        token_ids=policy.spec.continues,
        scores=scored,
    )
