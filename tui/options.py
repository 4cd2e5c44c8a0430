"""Options of verbs, each declared once: as a type, or as a dataclass with the options of a verb."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from traces.errors import UsageError
from traces.schema.estimate import Predicted
from traces.schema.tts.methods import PARAMETERS
from traces.schema.tts.parameters import make_policy, meant
from traces.schema.tts.policy import Policy

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Tariff

Group = TypeVar("Group")
OPTIONS = "Options"  # the group of `--help` that comes first
SAMPLES, PROMPTS, KEYS = "Samples of a problem", "Prompts and answers", "Keys and headers"
ACCOUNTS = "Costs and efforts"
_TOLD = "typer"  # key of a field's metadata
POWER_CAP = "--gpu: watts that a board may draw."
CAP_ALONE = "--power-cap goes with --gpu, whose boards it caps"
FOR_PRIOR = ("gpu", "tables", "power_cap")  # no part of a budget
BUDGET = {"max_latency": "Budget", "gpu": "GPUs that were not measured"}  # by their first fields


def option(default: Any, help: str, *names: str, **settings: Any) -> Any:
    """Return the field of a dataclass that is an option, with its `names` if they are not its own.

    `settings` are those of `typer.Option`. One of several verbs is a type instead, as below.
    """
    declared = typer.Option(*names, help=help, **settings)
    return field(default=default, metadata={_TOLD: declared})


def argument(help: str, *, default: Any = MISSING) -> Any:
    """Return the field of a dataclass that is an argument, required without a `default`."""
    return field(default=default, metadata={_TOLD: typer.Argument(help=help)})


Problems = Annotated[int | None, typer.Option(help="Ask only the first N problems.")]
Seed = Annotated[int, typer.Option(help="Seed of the demo's problems.")]
Concurrency = Annotated[int, typer.Option(help="Problems in flight at a time.")]
RawPrompts = Annotated[
    bool, typer.Option("--raw-prompts", help="Send prompts as they are, without a chat template.")
]
SystemPrompt = Annotated[
    str | None, typer.Option(help="System prompt of every chat of a JSONL workload.")
]
Verifier = Annotated[
    str | None, typer.Option(help="exact, numeric, choice or math, for a JSONL workload.")
]
RecordText = Annotated[
    bool, typer.Option("--record-text", help="Keep answers and token ids of your own workload.")
]
Price = Annotated[float | None, typer.Option(help="USD per device-hour.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="The recording's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

IntervalOf = Annotated[
    str,
    typer.Option(
        help="Intervals of one more run of the same problems (fresh) or of as many others (others)."
    ),
]


def read_interval(text: str) -> Predicted:
    """Return which interval is asked for. Raises UsageError for another word."""
    asked: Predicted | None = next((each for each in get_args(Predicted) if each == text), None)
    if asked is None:
        raise UsageError(f"--interval {text}: give fresh (the same problems) or others (as many)")
    return asked


BudgetSeed = Annotated[int, typer.Option(help="Seed of the resampling.")]
Recordings = Annotated[list[Path], typer.Argument(help="Recordings, or folders of recordings.")]

RuleOptions = make_dataclass(
    "RuleOptions",
    [
        (each.name, Annotated[each.kind | None, typer.Option(help=each.help)], None)
        for each in PARAMETERS
    ],
    frozen=True,
    kw_only=True,
)  # the parameters of policies


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How many samples a problem gets and how they are drawn: of `record` and `attach`."""

    policy: Path | None = option(None, "The policy.json of ttscope advise -o.", metavar="FILE")
    method: str | None = option(None, "See docs/policies.md. Greedy, or majority at n > 1.")
    n: int = option(1, "Samples per problem. Several vote.", "--n")
    thinking_budget: int | None = option(
        None, "Tokens of thought per sample, then the answer is forced."
    )
    reasoning_effort: str | None = option(
        None, "low, high, .. if the model's chat template has it."
    )
    max_tokens: int | None = option(None, "Tokens per sample.")
    temperature: float | None = option(None, "By default 0 for one sample, 0.8 for several.")
    top_p: float = option(1.0, "Nucleus sampling.")

    def chosen(self, rule: Mapping[str, Any]) -> Policy:
        """Return the policy with its parameters by name, or that of the file. Raises UsageError."""
        if self.policy is not None:
            given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
            given += [name for name, value in rule.items() if value is not None]
            if others := [name.replace("_", "-") for name in given if name != "policy"]:
                raise UsageError(f"--policy {self.policy}: says --{others[0]} too. Give one")
            from traces.deployment.documents import read_policy

            return read_policy(self.policy).policy
        several = self.n > 1 or self.method not in {None, "greedy"}
        temperature = 0.8 if several else 0.0
        return make_policy(
            {
                "method": self.method or ("majority" if several else "greedy"),
                "n": self.n,
                "thinking_token_budget": self.thinking_budget,
                "reasoning_effort": self.reasoning_effort,
                "max_tokens": self.max_tokens,
                "temperature": temperature if self.temperature is None else self.temperature,
                "top_p": self.top_p,
                **rule,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Measures:
    """How long a problem may take, and what is measured of its samples: of `record`, `attach`."""

    timeout: float | None = option(None, "Seconds per problem. Then its ended samples decide.")
    budget_checkpoints: str | None = option(
        None, "Force answers at these tokens, after the run.", metavar="64,128,.."
    )
    checkpoint_samples: int = option(8, "Samples of each problem that --budget-checkpoints cut.")
    logprobs: bool = option(False, "Measure log-probabilities and confidence of every sample.")

    def settings(self) -> dict[str, Any]:
        """Return them as `profiler.runs.record.record` takes them. Raises UsageError."""
        given = self.budget_checkpoints
        parts = [] if given is None else given.split(",")
        if not all(part.strip().isdecimal() for part in parts):
            raise UsageError(f"--budget-checkpoints {given}: give token counts, such as 64,128,256")
        return {
            "timeout_s": self.timeout,
            "budget_checkpoints": tuple(int(part) for part in parts),
            "checkpoint_samples": self.checkpoint_samples,
            "logprobs": self.logprobs,
        }


def check_price(price: float | None) -> None:
    """Raise UsageError for a price of a device-hour that is none."""
    if price is not None and not 0 < price < inf:
        raise UsageError(f"--price must be above 0 and finite, not {price}")


def verifier_for(sampling: Sampling, workload: str, given: str | None) -> str | None:
    """Return what judges a workload: what was given, or else what its policy's file names."""
    demo = workload.partition(":")[0] == "demo"
    if sampling.policy is None or given is not None or demo:
        return given
    from traces.deployment.documents import read_policy

    named = read_policy(sampling.policy).verifier
    return None if named == "demo" else named


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """What a problem may take and must reach: of `advise` and `report`."""

    max_latency: str | None = option(None, "Per problem: 5s, 250ms (mean, or --percentile).")
    percentile: str | None = option(None, "Which percentile --max-latency limits: 95 or p95.")
    min_accuracy: str | None = option(None, "0.8 or 80%.")
    max_cost: str | None = option(None, "Per problem: $0.002, or device-seconds as 0.5s.")
    max_energy: str | None = option(None, "Per problem: 800J, 2kJ.")
    gpus: int | None = option(None, "Devices at most.")
    rate: str | None = option(None, "Problems arriving: 2/s, 30/min.")
    price: list[str] | None = option(None, "USD per device-hour: 2.5, or by type H100=2.5.")
    optimise: str | None = option(
        None,
        "accuracy, latency, cost, energy or throughput. "
        "Without it latency, or accuracy within limits on what is spent alone.",
    )
    confidence: str = option("0.9", "How sure every limit must be met: 0.9 or 90%.")
    gpu: list[str] | None = option(None, "Also offer this GPU, by the prior: h100_sxm.")
    tables: Path | None = option(None, "--gpu: folder of its tables, if not installed.")
    power_cap: float | None = option(None, POWER_CAP, metavar="W")

    def given(self) -> dict[str, Any]:
        """Return what was given, for `advisor.search.budget.parse_budget`."""
        return {n: value for n, value in vars(self).items() if n not in FOR_PRIOR}

    def systems(self) -> list[str]:
        """Return the systems of the prior that are offered. Raises UsageError."""
        from advisor.step_time.prior.tables import named_tables

        if self.tables is not None and not self.gpu:
            raise UsageError("--tables goes with --gpu, which says the system in it")
        if self.power_cap is not None and not self.gpu:
            raise UsageError(CAP_ALONE)
        return named_tables(self.tables, self.gpu) if self.gpu else []


@dataclass(frozen=True, kw_only=True)
class AccountOptions:
    """What is told of an answer beside it: of `advise` and `report`."""

    effort_map: bool = option(False, "Print which reasoning effort to use, as JSON.")
    kwh_price: float | None = option(None, "USD per kWh, for the electricity of the picks.")
    pue: float | None = option(None, "Power of the site over its devices', such as 1.3.")
    api_price: float | None = option(
        None, "USD per million output tokens of an API, to compare renting with."
    )

    def tariff(self) -> Tariff:
        """Return the prices. Raises UsageError for what none can be."""
        from advisor.advice.accounts.costs import Tariff

        return Tariff(kwh_price=self.kwh_price, pue=self.pue, api_price=self.api_price)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is watched and how: of `ttscope attach`, and what is typed on the Live screen."""

    urls: list[str] = argument("vLLM or SGLang: http://HOST:PORT, replicas too.")
    duration: str | None = option(None, "End after 90s, 10m or 2h, else at Ctrl-C.")
    model: str | None = option(None, "Which of the served models to watch.")
    gpus: str = option("auto", "Read the power of this machine's GPUs.", metavar="auto|none|N")
    model_config: Path | None = option(
        None, "The model's config.json, for FLOPs and bytes of its steps.", metavar="FILE"
    )
    tensor_parallel_size: int | None = option(None, "That of the servers, if their pages lack it.")
    price: Price = None
    metrics_url: list[str] | None = option(
        None, "A server's metrics page, or one for each of its pods.", metavar="URL"
    )
    period: str = option("1s", "Time between polls of /metrics.")
    on_loss: str = option("wait", "What to do when a server is gone: wait or end.")
    listen: str | None = option(
        None, "Receive spans and the plugin's steps: 4318.", metavar="[HOST:]PORT"
    )
    listen_grpc: str | None = option(
        None, "Receive spans over gRPC: 4317 (extra grpc).", metavar="[HOST:]PORT"
    )
    spans_without_token: bool = option(
        False, "Take spans without a token, from any user of this machine."
    )
    fpm: list[str] | None = option(
        None, "Take forward passes from tcp://HOST:PORT as steps (extra fpm).", metavar="ENDPOINT"
    )
    kernels: Path | None = option(
        None, "Open profiler windows. The servers' traces lie here.", metavar="FOLDER"
    )
    kernel_windows: str = option(
        "4/60s", "N steps in each window, every T seconds at most.", metavar="N/Ts"
    )
    yes: bool = option(False, "Open windows without asking.")
    api_key_env: str | None = option(None, "Environment variable that holds the servers' key.")
    api_key_file: Path | None = option(None, "File that holds the key.")
    header: list[str] | None = option(
        None, "Header of every request. $VAR is filled in.", metavar="'NAME: VALUE'"
    )


@dataclass(frozen=True, kw_only=True)
class AgainstOptions:
    """Whether a server answers instead, and where the run is kept: of `replay`."""

    against: str | None = option(
        None, "Send the run to this server, and measure it.", metavar="URL"
    )
    workload: str | None = option(None, "--against: the file that the prompts came from.")
    raw_prompts: bool = option(False, "--against: without a chat template, as recorded.")
    api_key_env: str | None = option(None, "--against: variable that holds the server's key.")
    output: Path | None = option(
        None, "Keep the predicted run, or the measured one of --against.", "-o", "--output"
    )
    kwh_price: float | None = option(None, "USD per kWh, for what the energy costs.")
    pue: float | None = option(None, "Power of the site over its devices', such as 1.3.")
    explain: bool = option(False, "Print all notes, not the weightiest three.")
    as_json: Json = False


def takes(
    *groups: type[Any], panels: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb the fields of dataclasses as options; it is called with one of each.

    `panels` name the groups of `--help`, each by the field that it begins with.
    """

    def decorate(verb: Callable[..., Any]) -> Callable[..., Any]:
        def command(**given: Any) -> Any:
            return verb(*grouped(given, *groups))

        panel, parameters = OPTIONS, []
        for each, kind, declared in _fields(groups):
            panel = (panels or {}).get(each.name, panel)
            if isinstance(declared, OptionInfo) and panel != OPTIONS:  # arguments have their own
                declared.rich_help_panel = panel
            parameters.append(
                inspect.Parameter(
                    each.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if each.default is MISSING else each.default,
                    annotation=Annotated[kind, declared],
                )
            )
        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _fields(groups: Sequence[type[Any]]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield each field with its type, and what Typer is to know of it, as a copy."""
    for group in groups:
        hints = get_type_hints(group, include_extras=True)
        for each in fields(group):
            kind, declared = hints[each.name], each.metadata.get(_TOLD)
            if declared is None:
                kind, declared = kind.__origin__, kind.__metadata__[0]
            declared = copy.copy(declared)  # verbs share it, and may put it in other groups
            if kind is bool and declared.default is ...:  # without a --no- beside it
                declared.default = f"--{each.name.replace('_', '-')}"
            yield each, kind, declared


def grouped(given: Mapping[str, Any], *groups: type[Any]) -> list[Any]:
    """Return one of each dataclass, made of options by name.

    A value may be what its type can be read from: a path as a text, a list as a single value, a
    number as a text or as numpy's, a text as a number. None leaves the default. Raises UsageError
    for other names and values.
    """
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    if unknown := sorted(given.keys() - hints.keys()):
        raise UsageError(f"no option {unknown[0]}: {meant(unknown[0], sorted(hints))}")
    values = {
        name: read_as(name, value, hints[name])
        for name, value in given.items()
        if value is not None
    }
    return [
        group(**{f.name: values[f.name] for f in fields(group) if f.name in values})
        for group in groups
    ]


def read_as(name: str, value: Any, hint: Any) -> Any:
    """Return an option's value as its type. Raises UsageError for what is none."""
    kinds = (hint, *get_args(hint))
    several = next((kind for kind in kinds if get_origin(kind) is list), None)
    if several is not None:
        items = value if isinstance(value, list | tuple) else [value]
        return [read_as(name, item, get_args(several)[0]) for item in items]
    kind = next(each for each in _READ if each in kinds)
    wanted, read = _READ[kind]
    truth = isinstance(value, bool) or type(value).__name__ == "bool"  # numpy's too
    typed = None
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        typed = read(value) if truth == (kind is bool) else None
    if typed is None:
        raise UsageError(f"{name}={str(value)[:60]}: wants {wanted}")
    if name == "seed" and not 0 <= typed < 1 << 63:
        raise UsageError(f"--seed {typed}: must be from 0 to {(1 << 63) - 1}")
    return typed


def _whole(value: Any) -> int:
    number = value if isinstance(value, Integral) else float(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _text(value: Any) -> str:
    if not isinstance(value, str | Real):
        raise TypeError
    return str(value)


_READ: dict[type[Any], tuple[str, Callable[[Any], Any]]] = {
    bool: ("True or False", bool),
    int: ("a whole number", _whole),
    float: ("a number", float),
    Path: ("a path", Path),
    str: ("a text", _text),
}


def read_words(group: type[Group], words: Sequence[str]) -> Group:
    """Return a dataclass of options as it was typed. Raises UsageError."""
    app = typer.Typer(add_completion=False)
    app.command()(takes(group)(lambda read: read))
    try:
        return group(**typer.main.get_command(app).make_context("", list(words)).params)
    except Exception as error:  # click's errors of usage
        show = getattr(error, "format_message", None)
        if show is None:
            raise
        option = getattr(error, "option_name", None)
        if type(error).__name__ == "NoSuchOption" and option:
            names = option_names(group)
            raise UsageError(f"{option}: not here, {meant(option, names.split(', '))}") from None
        missing = type(error).__name__ == "MissingParameter"
        raise UsageError("name a server: http://HOST:8000" if missing else show()) from None


def option_names(group: type[Any]) -> str:
    """Return the names of a dataclass's options as they are typed."""
    names = (f"--{field.name.replace('_', '-')}" for field in fields(group))
    return ", ".join(name for name in names if name != "--urls")
