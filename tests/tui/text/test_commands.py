"""What is printed to be pasted: broken into lines, whole paths, and a server that starts."""

import shlex
import subprocess
import sys

import pytest

from tui.text import commands
from tui.text.commands import command_lines, own_name, served_path, split_command

LONG = (
    "OMP_NUM_THREADS=1 '/my env/bin/python' -m vllm.entrypoints.openai.api_server --model "
    """'/models/it'"'"'s large' --enforce-eager --max-num-seqs 64 --speculative-config """
    """'{"method": "ngram -- x", "num_speculative_tokens": 3}' --no-async-scheduling"""
)
LONGEST = len("""'{"method": "ngram -- x", "num_speculative_tokens": 3}'""")


@pytest.mark.parametrize("width", [1, 30, 60, 80, 200])
@pytest.mark.parametrize("indent", [0, 11])
def test_a_broken_command_is_the_same_to_a_shell(width, indent):
    lines = command_lines(LONG, width=width, indent=indent)
    shell = ["bash", "-c", "printf '%s\\n' " + "\n".join(lines).lstrip()]
    done = subprocess.run(shell, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == shlex.split(LONG)
    if width >= 80:
        assert max(map(len, lines)) <= max(width, indent + 4 + 2 + LONGEST)


def test_a_run_to_record_stands_by_itself():
    said, command = split_command("the pick was never run. Run it: ttscope record --model m --n 4")
    assert (said, command) == ("the pick was never run. Run it:", "ttscope record --model m --n 4")
    assert split_command("more problems") == ("more problems", None)


def test_ttscope_is_called_as_it_was(monkeypatch, tmp_path):
    script = tmp_path / "my bin" / "ttscope"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", "/usr/bin")
    assert own_name() == f"'{script}'"
    monkeypatch.setenv("PATH", str(script.parent))
    assert own_name() == "ttscope"


def test_models_are_whole_paths_or_hub_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert served_path("models/mine") == str(tmp_path / "models" / "mine")
    assert served_path("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert served_path("demo/s").startswith("/") and served_path("demo/none") == "demo/none"


def test_only_the_cpu_build_is_named(monkeypatch):
    monkeypatch.setattr("profiler.engines.vllm.environment.on_cpu", lambda: False)
    assert commands.cpu_build_here() is None
    monkeypatch.setattr("profiler.engines.vllm.environment.on_cpu", lambda: True)
    assert commands.cpu_build_here().python == sys.executable
