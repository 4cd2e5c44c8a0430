"""The wheel holds all files of the packages, and answers where there is no checkout."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from benchmarks.made.terminal import ROOT
from tests.golden_outputs import KEPT

pytestmark = pytest.mark.slow

PACKED = ("traces", "profiler", "advisor", "tui", "ttscope.py", "ttscope_plugin.py")
SOURCES = (*PACKED, "pyproject.toml", "README.md", "LICENSE")


def call(*command, cwd):
    outside = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(  # noqa: PLW1510
        [str(part) for part in command], cwd=cwd, env=outside, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel offline, from a copy without leftovers, and install it alone."""
    folder = tmp_path_factory.mktemp("wheel")
    sources, pip = folder / "sources", (sys.executable, "-m", "pip")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, sources / name, ignore=leave)
        else:
            shutil.copy(ROOT / name, sources / name)
    offline = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    call(*pip, "wheel", *offline, "--no-build-isolation", "-w", folder, sources, cwd=folder)
    (wheel,) = folder.glob("ttscope-*-py3-none-any.whl")
    wanted = {
        path.relative_to(sources).as_posix()
        for name in PACKED
        for path in [sources / name, *(sources / name).rglob("*")]
        if path.is_file()
    }
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())
    shutil.rmtree(sources)
    venv.create(folder / "venv", with_pip=False)
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # In their order, and none of what setuptools adds from within its own folder.
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (own / "others.pth").write_text("\n".join(others))
    python = folder / "venv" / "bin" / "python"
    call(*pip, "--python", python, "install", *offline, wheel, cwd=folder)
    return python.with_name("ttscope"), own


def test_it_answers_elsewhere(installed, tmp_path):
    ttscope, own = installed
    assert call(ttscope, "--version", cwd=tmp_path) == "ttscope 0.1.0\n"
    where = "import tui, ttscope; print(tui.__file__, ttscope.__file__)"
    found = call(ttscope.with_name("python"), "-c", where, cwd=tmp_path).split()
    assert all(Path(each).is_relative_to(own) for each in found)
    recordings = own / "profiler" / "demo" / "recordings"
    votes = next(recordings.glob("demo-s-*-maj@16-*"))
    answer = call(ttscope, "show", votes, "--price", "2.5", cwd=tmp_path)
    kept = (KEPT / "show-votes.txt").read_text()
    assert "\n".join(answer.splitlines()[:12]) in kept
