"""Processes that begin with much imported: forks of one that imported it, once for all tests.

Importing vLLM takes fifteen seconds of a processor, the verbs two. The process that forks is shared
by all processes of a test run. It ends with the last of them.
"""

import atexit
import functools
import importlib
import json
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
VLLM, VERBS = "benchmarks.servers.vllm_imported", "benchmarks.servers.verbs_imported"
_MOST = 1 << 20  # bytes of a request


class Warm:
    """`ttscope ARGUMENTS`, or `python -m MODULE ARGUMENTS`, in a session of its own.

    It has the face of `subprocess.Popen`. `stdin` may be a terminal, which is then its own. What it
    says is appended to the files `stdout` and `stderr`, which may be the same.
    """

    def __init__(
        self, arguments, *, module=None, imported=VLLM, stdin=os.devnull, stdout, stderr, env=None,
        cwd=None,
    ):  # fmt: skip
        _kept(imported)
        self._line, self.returncode = _connected(imported), None
        request = {
            "module": module,
            "arguments": [str(each) for each in arguments],
            "variables": dict(os.environ if env is None else env),
            "cwd": str(cwd or Path.cwd()),
            "files": [str(stdin), str(stdout), str(stderr)],
        }
        self._line.send(json.dumps(request).encode())
        self.pid = self._told("pid")

    def _told(self, what):
        name, _, number = self._line.recv(64).decode().partition(" ")
        assert name == what, f"the process that forks sent {name!r} and not {what!r}"
        return int(number)

    def fileno(self):
        """Return what `select` finds ready when the process has ended."""
        return self._line.fileno()

    def poll(self):
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                self.returncode = self._told("code")
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a warm process", timeout) from None
            self._line.close()
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        os.killpg(self.pid, signal.SIGKILL)


def _connected(imported):
    """Connect to the process that has a module imported, which is started where there is none."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or os.getpid()
    address = f"\0{imported} {run}"
    while True:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            line.connect(address)
            return line
        except ConnectionRefusedError:
            line.close()
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)  # which one process can
            listener.listen(100)
            number = listener.fileno()
            code = f"from benchmarks.servers import warm; warm.serve({imported!r}, {number})"
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                pass_fds=[number], start_new_session=True,
            )  # fmt: skip
            process.returncode = 0  # it ends when this process has ended


@functools.cache
def _kept(imported):
    """Connect once, and while that stands the process goes on."""
    line = _connected(imported)
    atexit.register(line.close)
    return line


def serve(imported, number):
    """Import a module and fork a process for each request, until nobody is connected."""
    sys.path[0] = str(ROOT)  # and not the folder where one stands
    listener = socket.socket(fileno=number)
    importlib.import_module(imported)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    ready, clients, running = selectors.DefaultSelector(), set(), {}
    ready.register(listener, selectors.EVENT_READ)
    ready.register(ended, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj is listener:
                client, _ = listener.accept()
                if _user_of(client) == os.getuid():
                    clients.add(client)
                    ready.register(client, selectors.EVENT_READ)
            elif key.fileobj == ended:
                os.read(ended, 1024)
            elif request := _received(key.fileobj):
                process = multiprocessing.get_context("fork").Process(
                    target=_run, args=(json.loads(request), key.fileobj, listener)
                )
                process.start()
                running[process] = key.fileobj
            else:
                ready.unregister(key.fileobj)
                clients.discard(key.fileobj)
                key.fileobj.close()
        for process in [each for each in running if each.exitcode is not None]:
            with suppress(OSError):  # nobody waits for it
                running.pop(process).send(b"code %d" % process.exitcode)
        if not clients:
            os._exit(0)


def _received(client):
    """Return a request, or nothing where the client has gone, with or without what it was sent."""
    try:
        return client.recv(_MOST)
    except ConnectionError:
        return b""


def _user_of(client):
    told = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", told)[1]


def _run(request, line, listener):
    atexit._clear()  # what the process that forked this one does at its end
    try:
        _program(request, line, listener)
    finally:
        atexit._run_exitfuncs()  # as programs do, and forks do not


def _program(request, line, listener):
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener.close()
    variables, module = request["variables"], request["module"]
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(request["cwd"])
    ways = (os.O_RDWR, *[os.O_WRONLY | os.O_APPEND | os.O_CREAT] * 2)
    for number, (path, way) in enumerate(zip(request["files"], ways, strict=True)):
        os.dup2(os.open(path, way, 0o644), number)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    # The old one takes a terminal for the file it was made of, and seeks in it.
    sys.stdout = sys.__stdout__ = open(  # noqa: SIM115
        1, "w", buffering=1 if os.isatty(1) else -1, encoding=sys.stdout.encoding,
        errors=sys.stdout.errors, closefd=False,
    )  # fmt: skip
    line.send(b"pid %d" % os.getpid())
    line.close()
    sys.path[:0] = [part for part in variables.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.argv = [module or "ttscope", *request["arguments"]]
    if module is None:
        from tui.cli import main

        main()
    from vllm import logger

    # vLLM spawns its engine and workers on a CPU; these begin with vLLM imported too.
    of_method = multiprocessing.get_context
    multiprocessing.get_context = lambda name=None: of_method("fork" if name == "spawn" else name)
    logger._configure_vllm_root_logger()  # as the variables of this process say
    warnings.simplefilter("ignore")  # that the module was imported before
    runpy.run_module(module, run_name="__main__", alter_sys=True)
