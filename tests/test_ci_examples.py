"""The steps of the examples for CI in docs/gate.md, run as a runner runs them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.test_docs import DOCS
from tui.verbs.demo import SHIPPED

pytestmark = pytest.mark.slow

GITHUB, GITLAB = (
    yaml.safe_load(block)
    for block in re.findall(r"```yaml\n(.*?)```", (DOCS / "gate.md").read_text(), re.DOTALL)
)
INPUT = re.compile(r"\$\{\{ inputs\.(\w+) \}\}")
VOTE, ALONE = (
    next(SHIPPED.glob(f"demo-s-tp1-seqs64-{name}")) for name in ("maj@16*", "greedy-t0-*")
)


def shell(step, folder, **variables):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step],
        cwd=folder,
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("new", "code"), [(VOTE, 0), (ALONE, 3)])
def test_the_action(tmp_path, new, code):
    shutil.copytree(VOTE, tmp_path / "the base")
    shutil.copytree(new, tmp_path / "new")
    inputs = {"against": "the base", "recording": "new"}
    assert set(GITHUB["inputs"]) == set(inputs)
    (step,) = [each for each in GITHUB["runs"]["steps"] if "run" in each]
    variables = {
        name: INPUT.sub(lambda found: inputs[found[1]], text) for name, text in step["env"].items()
    }
    ran = shell(step["run"], tmp_path, GITHUB_STEP_SUMMARY=str(tmp_path / "sum.md"), **variables)
    assert ran.returncode == code, ran.stdout + ran.stderr
    verdict = "failed" if code else "passed"
    assert (tmp_path / "sum.md").read_text().startswith(f"### ttscope gate {verdict}")
    uploaded = [each["with"]["path"] for each in GITHUB["runs"]["steps"] if "uses" in each]
    assert ElementTree.parse(tmp_path / uploaded[0]).getroot().tag == "testsuites"


@pytest.mark.parametrize(("new", "code"), [(VOTE, 0), (ALONE, 3)])
def test_gitlab(tmp_path, new, code):
    (tmp_path / "config").mkdir()
    shutil.copytree(VOTE, tmp_path / "config" / "expect.json")  # a recording may stand there too
    shutil.copytree(new, tmp_path / "runs" / "new")
    (step,) = GITLAB["gate"]["script"]
    ran = shell(step, tmp_path)
    assert ran.returncode == code, ran.stdout + ran.stderr
    artifacts = GITLAB["gate"]["artifacts"]
    for name in [*artifacts["paths"], artifacts["reports"]["junit"]]:
        assert (tmp_path / name).stat().st_size
