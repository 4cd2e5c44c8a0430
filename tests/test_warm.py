"""The process that forks others for the tests (benchmarks/servers/warm.py)."""

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.servers.warm import ROOT, Warm

IMPORTED = "colorsys"  # which is small, and imported by a process for these tests alone
CLIENT = """
import select, sys
from benchmarks.servers.warm import Warm

def begun():
    return Warm(["replai"], imported=sys.argv[1], stdout="said", stderr="said")

held = begun()
select.select([held], [], [])
del held  # and its exit code is unread
sys.exit(begun().wait(60))
"""


def test_what_a_program_says_and_how_it_ends_is_told(tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("before\n")
    variables = {**os.environ, "COLUMNS": "50"}
    process = Warm(["--help"], imported=IMPORTED, stdout=out, stderr=err, env=variables)
    assert process.wait(60) == process.poll() == 0
    before, *lines = out.read_text().splitlines()
    assert before == "before" and any("replay" in line for line in lines)
    assert max(map(len, lines)) == 50 and err.read_text() == ""

    process = Warm(["replai"], imported=IMPORTED, stdout=out, stderr=err)
    assert process.wait(60) == 2 and "replay" in err.read_text()


def test_a_program_that_hangs_is_killed(tmp_path):
    full = tmp_path / "full"
    os.mkfifo(full)
    reader = os.open(full, os.O_RDWR | os.O_NONBLOCK)  # nobody reads, so that a writer waits
    os.write(reader, bytes(fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)))
    said = tmp_path / "said"
    process = Warm(["--help"], imported=IMPORTED, stdout=full, stderr=said, cwd=tmp_path)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    assert Path(f"/proc/{process.pid}/cwd").readlink() == tmp_path
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    process.kill()
    assert process.wait(60) == -9
    os.close(reader)


def test_it_goes_on_where_an_answer_is_unread_and_ends_when_nobody_is_left(tmp_path):
    run = str(tmp_path)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_XDIST_TESTRUNUID": run}
    command = [sys.executable, "-c", CLIENT, IMPORTED]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=variables, timeout=60)
    assert done.returncode == 2
    assert (tmp_path / "said").read_text().count("No such command") == 2
    until = time.monotonic() + 60
    while accepts(f"\0{IMPORTED} {run}"):
        assert time.monotonic() < until
        time.sleep(0.01)


def accepts(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        try:
            line.connect(address)
        except ConnectionRefusedError:
            return False
    return True
