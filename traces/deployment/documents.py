"""`policy.json` and `expect.json`: the policy that a deployment answers with, and its promises.

Both are JSON objects whose first field is their version. They are read strictly: each field of its
type, and none that is not known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from traces.errors import UsageError
from traces.files import read_small, whole_file
from traces.recording.manifest import WorkloadFacts
from traces.schema.advice import Budget
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate, Interval, Of
from traces.schema.quantities import quantity
from traces.schema.record import LARGEST, Rate, Some
from traces.schema.tts.methods import PARAMETER
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.policy import Policy

VERSION: Final = 4  # 2 has policies with tables, 3 names of problems, 4 tables with efforts
PROBLEM_NAMES: Final = 3  # of expectations alone
POLICY, EXPECT, SERVE = "policy.json", "expect.json", "serve.sh"
MOST_BYTES = 1 << 20
VerifierName = Literal["exact", "numeric", "choice", "math", "demo"]
Value = float | int | str | None


class _PolicyDocument(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    ttscope_policy: int
    policy: dict[str, Value]
    model: str | None = None
    verifier: VerifierName | None = None
    most_n: int | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyFile:
    """What `policy.json` holds.

    `verifier` says which answers are the same one, None where that is not known. A request may ask
    for up to `most_n` samples instead of the policy's n. `model` is the one that it was chosen for.
    """

    policy: Policy
    model: str | None = None
    verifier: VerifierName | None = None
    most_n: int

    def to_json(self) -> dict[str, Any]:
        """Return the document; the parameters stand among the fields, as in a sweep's plan."""
        return {
            "ttscope_policy": _version(self.policy),
            "model": self.model,
            "verifier": self.verifier,
            "most_n": self.most_n,
            "policy": plain_policy(self.policy),
        }


def _version(policy: Policy) -> int:
    if policy.efforts is not None:
        return VERSION
    return 2 if policy.routes is not None else 1


def plain_policy(policy: Policy) -> dict[str, Value]:
    """Return a policy's fields and parameters by name, those that say nothing left out.

    A temperature that is not known is kept as null: without one, samples would be greedy.
    """
    said = {f.name: getattr(policy, f.name) for f in fields(policy) if f.name != "rule"}
    parameters = {
        name: int(value)
        if name in PARAMETER and PARAMETER[name].kind is int and not isinstance(value, str)
        else value
        for name, value in policy.rule
    }
    kept = {name: v for name, v in said.items() if v is not None or name == "temperature"}
    if not kept.pop("sampling"):
        return kept | parameters
    return kept | parameters | dict(policy.sampling)


def read_policy(path: Path) -> PolicyFile:
    """Read `policy.json`. Raises UsageError in one line that names the file and what is wrong."""
    document = _read(path, _PolicyDocument, "ttscope_policy", "a policy of ttscope advise -o")
    policy = _policy(path, document.policy)
    check_runnable(path, policy)
    most = policy.n if document.most_n is None else document.most_n
    if not 1 <= policy.n <= most <= MOST_SAMPLES:
        raise UsageError(
            f"{path}: most_n must lie between the policy's n = {policy.n} and {MOST_SAMPLES:,}"
        )
    return PolicyFile(policy=policy, model=document.model, verifier=document.verifier, most_n=most)


def check_runnable(path: Path, policy: Policy) -> None:
    """Raise UsageError where it is not known how to draw a policy's samples."""
    if policy.temperature is None:
        raise UsageError(
            f"{path}: does not say the temperature that samples are drawn at, as the outcomes did "
            'not. Put it in, such as "temperature": 0.6'
        )


MOST_SAMPLES = 4_096  # of a problem, as one request may make the engine draw


_Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]  # its square is one too


class _Interval(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    low: _Number | None = None
    high: _Number | None = None

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low lies above high. Give the lower one first")


class _Estimate(_Interval, forbid_unknown_fields=True, kw_only=True):
    value: _Number
    unit: str
    runs: int | None = None
    extrapolated: bool = False
    of: Of | None = None
    fresh: _Interval | None = None
    others: _Interval | None = None

    def estimate(self) -> Estimate:
        both: dict[str, Interval | None] = {
            name: None if each is None else Interval(low=each.low, high=each.high)
            for name, each in (("fresh", self.fresh), ("others", self.others))
        }
        return Estimate(**(msgspec.structs.asdict(self) | both))


class _Load(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    concurrency: Some | None = None
    rate_per_s: Rate | None = None


class _ExpectDocument(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    ttscope_expect: int
    engine: dict[str, Any]
    policy: dict[str, Value]
    load: _Load
    promised: dict[str, _Estimate | None]
    assumed: dict[str, _Estimate | None] = {}
    workload: WorkloadFacts | None = None
    problem_names: str | None = None
    budget: Budget = msgspec.field(default_factory=Budget)
    probability_within_budget: float | None = None
    served: _Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Expectations:
    """What `expect.json` holds: the promises of a pick, and what they rest on.

    `promised` are the pick's estimates, `assumed` what traffic must be like for them to hold
    (`ASSUMED`). The load is problems in flight, or arriving a second. `served` is how many times as
    long a problem takes through a server, which the promised latencies have. None: they are of the
    engine alone. `problem_names` is the `names_hash` of imported outcomes, whose hash no run has.
    """

    engine: EngineConfig
    policy: Policy
    promised: Mapping[str, Estimate | None]
    assumed: Mapping[str, Estimate | None] = field(default_factory=dict)
    concurrency: int | None = None
    rate_per_s: float | None = None
    workload: WorkloadFacts | None = None
    problem_names: str | None = None
    budget: Budget = field(default_factory=Budget)
    probability_within_budget: float | None = None
    served: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the document, without what is not known, not limited or not promised."""
        document: dict[str, Any] = {
            "ttscope_expect": max(
                PROBLEM_NAMES if self.problem_names else 1, _version(self.policy)
            ),
            "engine": self.engine.to_json(),
            "workload": None if self.workload is None else self.workload.to_json(),
            "problem_names": self.problem_names or None,
            "load": {"concurrency": self.concurrency, "rate_per_s": self.rate_per_s},
            "budget": self.budget.to_json(),
            "probability_within_budget": self.probability_within_budget,
            "served": _plain(self.served),
            "promised": {name: _plain(each) for name, each in self.promised.items()},
            "assumed": {name: _plain(each) for name, each in self.assumed.items()},
        }
        without_nulls: dict[str, Any] = _told(document)
        return without_nulls | {"policy": plain_policy(self.policy)}  # whose nulls must be put in


def _told(document: Any) -> Any:
    """Return JSON without the fields that are null."""
    if not isinstance(document, dict):
        return document
    return {name: _told(each) for name, each in document.items() if each is not None}


def names_hash(names: Iterable[str]) -> str:
    """Return what is the same for the same names of problems, in any order."""
    encoded = json.dumps(sorted(set(names))).encode()
    return hashlib.sha256(encoded).hexdigest()[:16]


# What the promises rest on, and its words.
ASSUMED: Final = {
    "prompt_tokens": "tokens of a prompt",
    "output_tokens": "tokens of a sample",
    "acceptance_length": "tokens that a drafted step gives",
    "agreement": "share of a problem's answers that are the one given",
}


def read_expectations(path: Path) -> Expectations:
    """Read `expect.json`. Raises UsageError in one line that names the file and what is wrong."""
    document = _read(path, _ExpectDocument, "ttscope_expect", "an expect.json of ttscope advise -o")
    try:
        engine = msgspec.convert(document.engine, EngineConfig)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: engine: {error}") from None
    return Expectations(
        engine=engine,
        policy=_policy(path, document.policy),
        promised=_promised(path, document.promised),
        assumed=_estimates(document.assumed),
        concurrency=document.load.concurrency,
        rate_per_s=document.load.rate_per_s,
        workload=document.workload,
        problem_names=document.problem_names,
        budget=document.budget,
        probability_within_budget=document.probability_within_budget,
        served=document.served and document.served.estimate(),
    )


def write_document(path: Path, document: PolicyFile | Expectations) -> None:
    """Write a document, whole or not at all. Raises RecordingError where it cannot be written."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(document.to_json(), indent=2) + "\n")


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    """Return an estimate as JSON has it: without a number where none is known."""
    if estimate is None or not isfinite(estimate.value):
        return None
    told = estimate.each_interval(
        lambda ends: ends.each_end(lambda end: end if isfinite(end) else None)
    )
    return told.to_json()


def _promised(path: Path, given: Mapping[str, _Estimate | None]) -> dict[str, Estimate | None]:
    promises = _estimates(given)
    for name, each in promises.items():
        try:
            unit = quantity(name).unit
        except (KeyError, ValueError):
            raise UsageError(f"{path}: promised: {name} is no quantity of ttscope") from None
        if each is not None and each.unit != unit:
            raise UsageError(f"{path}: promised.{name}: is in {each.unit}. Give it in {unit}")
    return promises


def _estimates(given: Mapping[str, _Estimate | None]) -> dict[str, Estimate | None]:
    return {name: None if each is None else each.estimate() for name, each in given.items()}


def _policy(path: Path, given: Mapping[str, Value]) -> Policy:
    try:
        msgspec.convert({k: v for k, v in given.items() if k not in PARAMETER}, Policy)
        policy = make_policy(given)
    except (UsageError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}") from None
    if policy.spec.of_others:
        raise UsageError(f"{path}: policy: {policy.method} is what others sent. Choose a method")
    return policy if given.get("temperature") is not None else replace(policy, temperature=None)


def _read(path: Path, kind: type[Any], version: str, what: str) -> Any:
    try:
        raw = read_small(path, MOST_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Name {what}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}, so it is not {what}") from None
    try:
        document = msgspec.json.decode(raw)
        number = document.get(version) if isinstance(document, dict) else None
        if type(number) is not int or number < 1:
            raise UsageError(f"{path}: is not {what}: it has no {version!r}: 1")
        if number > VERSION:
            raise UsageError(
                f"{path}: version {number} is newer than this ttscope reads ({VERSION}). Upgrade it"
            )
        if number == PROBLEM_NAMES and kind is _PolicyDocument:
            raise UsageError(f"{path}: no {version!r} has version {number}. Write it again")
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: is not JSON ({error}). Name {what}") from None
