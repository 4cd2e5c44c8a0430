import json

import numpy as np
import pytest

from advisor.advice.advisor import Advisor
from advisor.step_time.saved import load_laws
from tests.advisor.synthetic import GREEDY, VOTE16, engine_of, record
from traces.errors import RecordingError
from traces.schema.advice import Budget


@pytest.mark.slow
def test_saved_laws_answer_as_those_learned(tmp_path, monkeypatch):
    recordings = [record(tmp_path / "a", engine_of(), VOTE16, problems=10)]
    path = tmp_path / "models.json"
    learned = Advisor.fit(recordings, draws=40, saved=path)
    monkeypatch.setattr("advisor.step_time.fit.StepTimeModel.fit", None)
    read = Advisor.fit(recordings, draws=40, saved=path)
    for engine, law in learned.model.laws_.items():
        assert np.array_equal(read.model.laws_[engine].seconds, law.seconds)
    budget = Budget(min_accuracy=0.3)
    assert read.recommend(budget).to_json() == learned.recommend(budget).to_json()
    json.loads(path.read_text())  # and nothing but JSON


@pytest.mark.slow
def test_other_recordings_are_learned_anew(tmp_path):
    path = tmp_path / "models.json"
    one = record(tmp_path / "a", engine_of(), VOTE16, problems=6)
    Advisor.fit([one], draws=40, saved=path)
    before = path.read_text()
    other = record(tmp_path / "b", engine_of(), GREEDY, problems=6)
    assert load_laws(path, [one]) is not None
    assert load_laws(path, [one, other]) is None
    Advisor.fit([one, other], draws=40, saved=path)
    assert path.read_text() != before


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', "\x80\x04K\x01."])
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "models.json"
    path.write_text(text)
    with pytest.raises(RecordingError, match="holds no saved models") as caught:
        load_laws(path, [])
    assert "\n" not in str(caught.value)
