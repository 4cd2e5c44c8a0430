"""Processes that begin with vLLM imported: forks of one that imported it, in ten seconds."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import warnings

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["benchmarks.servers.vllm_imported"])


class Warm:
    """`ttscope ARGUMENTS`, or `python -m MODULE ARGUMENTS`, in a session of its own.

    It has the face of `subprocess.Popen`. What it says is appended to the files `stdout` and
    `stderr`, which may be the same.
    """

    def __init__(self, arguments, *, module=None, stdout, stderr, env=None, cwd=None):
        self._process = _CONTEXT.Process(
            target=_run,
            args=(
                module,
                [str(each) for each in arguments],
                dict(os.environ if env is None else env),
                str(cwd or "."),
                (str(stdout), str(stderr)),
            ),
        )
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a warm process", timeout)
        return self._process.exitcode

    def kill(self):
        os.killpg(self.pid, signal.SIGKILL)


def _run(module, arguments, variables, cwd, files):
    atexit._clear()  # what the process that forked this one does at its end
    try:
        _program(module, arguments, variables, cwd, files)
    finally:
        atexit._run_exitfuncs()  # as programs do, and forks do not


def _program(module, arguments, variables, cwd, files):
    os.setsid()
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    for number, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), number)
    sys.path[:0] = [part for part in variables.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.argv = [module or "ttscope", *arguments]
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
