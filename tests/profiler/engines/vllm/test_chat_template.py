"""Chats and templates: what a request says, and which template files are refused."""

import pytest

from profiler.engines.interface import SampleRequest
from profiler.engines.options import MOST_TEMPLATE_BYTES, EngineOptions, read_template
from profiler.engines.start import start_engine
from traces.errors import UsageError


def request(prompt):
    return SampleRequest(
        request_id="r", prompt=prompt, chat=True, temperature=0.0, top_p=1.0, max_tokens=None
    )


def test_a_text_is_what_the_user_says():
    assert request("hi").messages() == [{"role": "user", "content": "hi"}]
    chat = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
    assert request(chat).messages() == [dict(each) for each in chat]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"{{ messages[", "not a Jinja template"),
        (b"{% for %}", "not a Jinja template"),
        (b"\xff\xfe\x00", "not a Jinja template"),
        (b"{{ " + b"(" * 10_000 + b")" * 10_000 + b" }}", "not a Jinja template"),
        (b" " * (MOST_TEMPLATE_BYTES + 1), "is larger than 1,048,576 bytes"),
    ],
)
@pytest.mark.parametrize("where", [{"model": "absent"}, {"endpoint": "http://127.0.0.1:9"}])
def test_bad_template_files(tmp_path, content, message, where):
    path = tmp_path / "t.jinja"
    if content is not None:
        path.write_bytes(content)
    options = EngineOptions(chat_template=str(path), **where)
    with pytest.raises(UsageError, match=f"--chat-template .*{message}"):
        start_engine(options, thinking_budget=False)


def test_a_template_is_no_device():
    with pytest.raises(UsageError, match="--chat-template /dev/zero: is no regular file"):
        read_template("/dev/zero")
