"""The token of a user: made once, open to nobody else, and in no message."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from profiler.plugin import shared_token as module
from profiler.plugin.shared_token import (
    FILE_VARIABLE,
    VARIABLE,
    in_a_shell,
    shared_token,
    token_path,
)
from traces.errors import UsageError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state of mine"))
    return tmp_path


def test_it_is_made_once_and_for_the_user_alone(home):
    token, path = shared_token(), token_path()
    assert len(token) > 40
    assert shared_token() == token == path.read_text().strip()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert os.listdir(path.parent) == ["token"]


@pytest.mark.slow
def test_of_several_that_need_it_first_all_have_the_same(home):
    code = "from profiler.plugin.shared_token import shared_token; print(shared_token())"

    def make(_):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        )
        return done.stdout

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(8)))) == 1


def test_a_variable_or_a_named_file_comes_first(home, monkeypatch):
    named = home / "secret"
    named.write_text("from-a-named-file-0\n")
    monkeypatch.setenv(FILE_VARIABLE, str(named))
    assert shared_token() == "from-a-named-file-0"
    monkeypatch.setenv(VARIABLE, "from-a-variable-00")
    assert shared_token() == "from-a-variable-00"
    assert not token_path().exists()


def written(home, *, mode=0o600, folder=0o700, text="canary-canary-canary\n"):
    path = token_path()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(mode)
    path.parent.chmod(folder)
    return path


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"mode": 0o644}, "chmod 600"),
        ({"folder": 0o755}, "chmod 700"),
        ({"text": ""}, "holds no token"),
        ({"text": "canary\n"}, "holds no token"),
        ({"text": "canary canary canary canary"}, "holds no token"),
        ({"text": "canary" * 1000}, "holds no token"),
    ],
)
def test_a_file_that_others_can_open_or_that_holds_none_is_refused(home, how, told):
    path = written(home, **how)
    with pytest.raises(UsageError, match=told) as error:
        shared_token()
    assert str(path) in str(error.value) or told == "chmod 700"
    assert "canary" not in str(error.value)


def test_a_link_and_a_file_of_another_are_refused(home, monkeypatch):
    path = written(home)
    elsewhere = path.rename(home / "elsewhere")
    path.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="cannot be kept there"):
        shared_token()
    path.unlink()
    elsewhere.rename(path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UsageError, match="belongs to another user"):
        shared_token()


def test_a_folder_that_is_a_link_is_refused_as_one(home, tmp_path):
    path = token_path()
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    path.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"ttscope: is a link. Put a folder there"):
        shared_token()


def test_where_no_file_can_be_made(home, monkeypatch):
    (home / "state of mine").write_text("a file")
    with pytest.raises(UsageError, match=f"Set {VARIABLE} instead"):
        shared_token()
    monkeypatch.setattr(module.Path, "home", _raise)
    monkeypatch.delenv("XDG_STATE_HOME")
    with pytest.raises(UsageError, match="no home folder"):
        shared_token()
    monkeypatch.setenv(FILE_VARIABLE, "/nowhere/canary")
    with pytest.raises(UsageError, match="cannot be read"):
        shared_token()
    monkeypatch.setenv(VARIABLE, "too short")
    with pytest.raises(UsageError) as error:
        shared_token()
    assert "too short" not in str(error.value)


def _raise():
    raise RuntimeError("no home")


@pytest.mark.parametrize("how", ["file", "named", "variable"])
def test_what_is_printed_for_a_shell_gives_it_there(home, monkeypatch, how):
    if how == "named":
        (home / "it's").write_text("from-a-named-file-0\n")
        monkeypatch.setenv(FILE_VARIABLE, str(home / "it's"))
    if how == "variable":
        monkeypatch.setenv(VARIABLE, "from-a-variable-00")
    token = shared_token()
    command = f'HEADERS="authorization=Bearer%20{in_a_shell()}" sh -c \'echo "$HEADERS"\''
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == f"authorization=Bearer%20{token}\n"
    assert how == "variable" or token not in in_a_shell()
