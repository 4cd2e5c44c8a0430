"""The prompt of a revision: a template with the first prompt, the thought and the answer so far."""

from __future__ import annotations

from profiler.chain import Chain
from profiler.engines.protocol import Prompt


def revised_prompt(template: str, prompt: Prompt, earlier: Chain) -> Prompt:
    """Return the prompt of a revision; of a chat its last message is the one that is filled in."""
    if isinstance(prompt, str):
        return _filled(template, prompt, earlier)
    last = dict(prompt[-1])
    return (*prompt[:-1], last | {"content": _filled(template, last["content"], earlier)})


def _filled(template: str, prompt: str, earlier: Chain) -> str:
    """Return the prompt of a revision; braces in what is filled in stay as they are."""
    known = {"prompt": prompt, "answer": earlier.answer or "", "thought": earlier.thought}
    parts = template.split("{")
    filled = [parts[0]]
    for part in parts[1:]:
        name, brace, rest = part.partition("}")
        filled.append(known[name] + rest if brace and name in known else "{" + part)
    return "".join(filled)
