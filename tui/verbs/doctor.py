"""`ttscope doctor`: what can be captured here or of a server, and what predicted of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from traces.errors import UsageError
from tui.options import OPTIONS, Json, argument, option, takes
from tui.terminal import say_all, say_json
from tui.text.commands import findings_text, next_lines
from tui.text.layout import wrap


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Which server, and its key, or which model; without either, this machine."""

    url: str | None = argument("A running server, looked at from outside.", default=None)
    metrics_url: str | None = option(None, "Where the server's metrics are.", metavar="URL")
    api_key_env: str | None = option(None, "Environment variable that holds the server's key.")
    api_key_file: Path | None = option(None, "File that holds the key.")
    header: list[str] | None = option(
        None, "Header of every request. $VAR is filled in.", metavar="'NAME: VALUE'"
    )
    model_config: Path | None = option(None, "A model's config.json: what is known of it.")
    gpu: str | None = option(None, "System of the prior that would price it, such as h100_sxm.")
    as_json: Json = False


@takes(Doctor, panels={"metrics_url": "A server", "model_config": "A model", "as_json": OPTIONS})
def doctor(asked: Doctor) -> None:
    """Check what can be captured here or on a server, or predicted of a model."""
    from tui.verbs.progress import progress_bar

    of_server = (asked.api_key_env, asked.api_key_file, asked.header, asked.metrics_url)
    if asked.url is None and any(of_server):
        raise UsageError("a key, a header and a metrics page are of a server. Name its URL")
    if asked.model_config is not None or asked.gpu is not None:
        _model(asked)
        return
    if asked.url is None:
        from profiler.doctor import examine

        with progress_bar() as bar:
            bar.add_task("looking at vLLM and this machine", total=None)
            findings = examine()
    else:
        from profiler.doctor import examine_server
        from profiler.engines.server.access import Access, read_headers, read_key

        given = read_headers(read_key(asked.api_key_env, asked.api_key_file), asked.header or ())
        access = Access.of(asked.url, given)
        if asked.metrics_url is not None:
            access = access.with_metrics(asked.metrics_url)
        with progress_bar() as bar:
            bar.add_task(f"looking at {access.url}", total=None)
            findings = examine_server(access)
    if asked.as_json:
        say_json({"findings": [finding.to_json() for finding in findings]})
        return
    lines = findings_text(findings, width=80, indent=26)
    if asked.url is not None:
        if any(each.present for each in findings if each.what == "metrics"):
            elsewhere = ("--metrics-url", asked.metrics_url) if asked.metrics_url else ()
            key = ("--api-key-env", asked.api_key_env) if asked.api_key_env else ()
            listen = [word for each in dict.fromkeys(f.attach for f in findings) for word in each]
            lines += next_lines("attach", asked.url, *elsewhere, *key, *listen, "--duration", "10m")
    elif any(each.present for each in findings if each.what == "vLLM in process"):
        words = "record --model demo/s --problems 24 --n 8 -o runs/votes"
        lines += next_lines(*words.split())
    else:
        lines += next_lines("demo", "--shipped")
    say_all(lines)


def _model(asked: Doctor) -> None:
    """Say what is known of a model, and what can be predicted of it."""
    from advisor.what_if.coverage import prior_of_gpu, replay_of
    from profiler.engines.models.model_facts import given_facts
    from tui.text.model import model_lines

    if asked.url is not None or asked.model_config is None:
        raise UsageError("--gpu goes with --model-config, and neither with a URL")
    facts = given_facts(asked.model_config)
    answers = {"replay": replay_of(facts), "prior": prior_of_gpu(facts, asked.gpu)}
    if asked.as_json:
        plain = {name: answer.to_json() for name, answer in answers.items()}
        say_json({"name": facts.name, "facts": facts.to_json(), **plain})
        return
    lines = list(model_lines(facts))
    for name, answer in answers.items():
        text = f"{'yes' if answer.ok else 'no'}. {answer.why}"
        lines += wrap(name, text, width=80, indent=16)
    say_all(lines)
