"""An install that was interrupted, at any of its steps, goes on at the next one."""

import shutil
import subprocess

import pytest

from benchmarks.made.terminal import ROOT

# It stands for Python, and for that of the environment which it makes. Each call is a step or
# several, and at the step END it ends the install: half of what the step does is then done.
STUB = r"""#!/bin/sh
step() {
    n=$(($(cat "$STEPS") + 1))
    echo $n >"$STEPS"
    [ "$n" != "${END:-none}" ] && return
    if [ "$HOW" = INT ]; then
        kill -INT 0  # as a terminal does; pip then ends by itself
        exit 1
    fi
    kill -KILL $PPID
    exit 137
}
trap : INT
packages=$HOME/.venv/lib/python3/site-packages
case "$*" in
"-m venv --clear "*)
    rm -rf "$4"
    step
    mkdir -p "$4/bin"
    step
    cp "$0" "$4/bin/python"
    step
    mkdir -p "$4/lib/python3/site-packages/pip"  # which pip's --version needs
    step
    touch "$4/lib/python3/site-packages/pip/whole"
    step
    ;;
"-m pip --version") [ -d "$packages/pip" ] ;;
"-m pip install"*)
    [ -e "$packages/pip/whole" ] || { echo "a part of pip is missing" >&2; exit 1; }
    for name in $WANTED; do
        case "$*" in *"$name"*) ;; *) continue ;; esac
        [ -d "$packages/$name.dist-info" ] && continue
        mkdir "$packages/$name.dist-info"
        step
        touch "$packages/$name.dist-info/INSTALLER" "$packages/$name-is-whole"
        step
    done
    ;;
esac
"""


class Checkout:
    """A folder in which `make install` runs with the stub."""

    def __init__(self, folder):
        self.folder, self.steps = folder, folder / "steps"
        shutil.copy(ROOT / "Makefile", folder)
        (folder / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "install.sh", folder / "scripts")
        (folder / "pyproject.toml").touch()
        self.python = folder / "stub"
        self.python.write_text(STUB)
        self.python.chmod(0o755)
        self.steps.write_text("0")

    def make(self, *arguments, end=None, how="KILL"):
        variables = {
            "PATH": "/usr/bin:/bin", "HOME": str(self.folder), "STEPS": str(self.steps),
            "WANTED": "dev vllm", "HOW": how, "PYTHON": str(self.python),
        }  # fmt: skip
        self.steps.write_text("0")
        return subprocess.run(
            ["make", "VLLM=vllm", *arguments],  # the CPU build may ask apt-get
            check=False,
            cwd=self.folder,
            capture_output=True,
            text=True,
            env=variables | ({} if end is None else {"END": str(end)}),
            start_new_session=True,
            timeout=60,
        )

    @property
    def whole(self):
        return {path.name for path in self.folder.glob(".venv/lib/python3/site-packages/*whole")}


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_a_whole_install_is_made_once(checkout):
    assert checkout.make("install").returncode == 0
    assert checkout.whole == {"dev-is-whole", "vllm-is-whole"}
    assert checkout.steps.read_text() == "9\n"
    assert checkout.make("install").returncode == 0
    assert checkout.steps.read_text() == "0"


@pytest.mark.slow
@pytest.mark.parametrize(("how", "shell"), [("KILL", "sh"), ("INT", "bash")])
def test_it_goes_on_after_each_step_that_it_can_end_at(checkout, how, shell):
    shutil.which(shell) or pytest.skip(f"no {shell} here")
    makefile = checkout.folder / "Makefile"
    makefile.write_text(makefile.read_text().replace(" sh scripts/", f" {shell} scripts/"))
    for step in range(1, 10):
        shutil.rmtree(checkout.folder / ".venv", ignore_errors=True)
        ended = checkout.make("install", end=step, how=how)
        assert ended.returncode != 0 and "going on without" not in ended.stdout, step
        assert checkout.steps.read_text() == f"{step}\n"
        again = checkout.make("install")
        assert again.returncode == 0, (step, again.stdout + again.stderr)
        assert checkout.whole == {"dev-is-whole", "vllm-is-whole"}, step
        assert not (checkout.folder / ".venv.making").exists()


def test_an_environment_without_pip_is_made_again_and_a_good_one_is_kept(checkout):
    assert checkout.make("install").returncode == 0
    kept = checkout.folder / ".venv" / "kept"
    kept.touch()
    (checkout.folder / ".venv" / ".installed").unlink()
    assert checkout.make("install").returncode == 0 and kept.exists()
    (checkout.folder / ".venv" / ".installed").unlink()
    shutil.rmtree(checkout.folder / ".venv" / "lib")
    assert checkout.make("install").returncode == 0 and not kept.exists()
    assert checkout.whole == {"dev-is-whole", "vllm-is-whole"}


def test_docs_need_no_engine(checkout):
    planned = checkout.make("-n", "docs").stdout
    assert "VLLM=none" in planned and "vllm" not in planned
    assert checkout.make(".venv/.light").returncode == 0
    assert checkout.whole == {"dev-is-whole"}
    assert "install.sh" not in checkout.make("-n", "docs").stdout
    assert checkout.make("install").returncode == 0  # which brings the engine
    assert checkout.whole == {"dev-is-whole", "vllm-is-whole"}
    assert "install.sh" not in checkout.make("-n", "docs").stdout
