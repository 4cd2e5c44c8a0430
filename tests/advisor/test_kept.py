"""What was learned is kept by content, and answers as if it were learned again."""

import dataclasses
import stat
import subprocess
import sys

import numpy as np
import pytest

from advisor import kept as kept_module
from advisor.evidence.gather import gather
from advisor.step_time.fit import StepTimeModel, learned
from advisor.step_time.power.law import power_laws
from tests.advisor.synthetic import GREEDY, VOTE16, engine_of, record

ENGINES = ({}, {"max_num_seqs": 8}, {"tensor_parallel_size": 2})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ttscope" / "laws"


@pytest.fixture
def never(monkeypatch):
    """Return what forbids to fit from now on."""

    def forbid():
        monkeypatch.setattr(StepTimeModel, "fit", None)
        monkeypatch.setattr("advisor.step_time.power.law._fitted", None)

    return forbid


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return gather(
        [
            record(folder / f"r{i}", engine_of(**changes), VOTE16, problems=8, watts=300.0)
            for i, changes in enumerate(ENGINES)
        ]
    )


def same(one, other):
    for field in dataclasses.fields(one):
        values = (getattr(each, field.name) for each in (one, other))
        first, second = values
        assert np.array_equal(first, second) if isinstance(first, np.ndarray) else first == second


def test_kept_laws_are_those_learned(cache, never, evidence):
    made, powers = learned(evidence.steps), power_laws(evidence.power)
    assert made.errors_ and powers
    never()
    again, power_again = learned(evidence.steps), power_laws(evidence.power)
    assert made.laws_.keys() == again.laws_.keys() and powers.keys() == power_again.keys()
    for key, law in made.laws_.items():
        same(law, again.laws_[key])
    for key, law in powers.items():
        same(law, power_again[key])
    assert (made.errors_, made.inside_) == (again.errors_, again.inside_)
    assert made.configurations_ == again.configurations_


@pytest.mark.slow
def test_a_second_replay_and_advice_load_no_scikit_learn(cache, tmp_path):
    made = record(tmp_path / "r", engine_of(), VOTE16, problems=6)
    code = (
        "import sys, ttscope\n"
        f"ttscope.replay({str(made.path)!r}, {{'policy.n': 4}})\n"
        f"ttscope.advise([{str(made.path)!r}], min_accuracy=0.1)\n"
        "print('sklearn' in sys.modules)"
    )
    loaded = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [each.stdout.split()[-1] for each in loaded] == ["True", "False"]


def test_other_steps_and_other_code_are_learned_again(cache, never, evidence, monkeypatch):
    learned(evidence.steps)
    (first, *rest) = evidence.steps
    seconds = first.seconds.copy()
    seconds[0] *= 1 + 1e-9
    learned((dataclasses.replace(first, seconds=seconds), *rest))
    monkeypatch.setattr(kept_module, "code_version", lambda: "another")
    learned(evidence.steps)
    learned(evidence.steps, held_out=False)
    assert len(list(cache.glob("*.json"))) == 4
    never()
    learned(evidence.steps)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"laws": 3}', '{"laws": [], "left_out": [1]}'])
def test_a_damaged_file_is_learned_again(cache, evidence, text):
    made = learned(evidence.steps)
    (path,) = cache.glob("*.json")
    path.write_text(text)
    assert learned(evidence.steps).laws_.keys() == made.laws_.keys()
    assert path.read_text() != text


def test_few_files_are_kept(cache, evidence, monkeypatch):
    monkeypatch.setattr(kept_module, "MOST", 2)
    for count in range(4):
        learned(evidence.steps[: count + 1] if count < 3 else evidence.steps[1:])
    assert len(list(cache.glob("*.json"))) == 2


def test_nothing_is_read_where_others_can_write(cache, evidence, monkeypatch):
    learned(evidence.steps)
    (path,) = cache.glob("*.json")
    cache.chmod(stat.S_IRWXU | stat.S_IRWXO)
    path.write_text('{"laws": [], "left_out": []}')
    assert learned(evidence.steps).laws_


def test_a_solver_of_the_users_is_used_each_time(cache, tmp_path):
    from sklearn.linear_model import Ridge

    (table,) = gather([record(tmp_path / "r", engine_of(), GREEDY, problems=6)]).steps
    solver = Ridge(alpha=10.0, positive=True, fit_intercept=False)
    (law,) = learned([table], solver=solver).laws_.values()
    (own,) = learned([table]).laws_.values()
    assert not np.allclose(law.seconds, own.seconds)
    assert len(list(cache.glob("*.json"))) == 1
