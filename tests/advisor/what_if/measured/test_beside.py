"""What a client measured beside the replay of the same requests."""

import dataclasses

import numpy as np
import pytest

from advisor.what_if.measured.beside import PARTS, _quantiles
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from benchmarks.made.foreign_files import aiperf, vllm_bench
from tests.advisor.step_time.prior.prior_files import TINY
from traces.foreign.requests.importer import import_requests
from traces.recording.reader import Recording
from traces.summary.run import summarise

SENT = [(0.05 * i, 64, 20 + i, 0.01 + 0.001 * i, 0.2 + 0.01 * i) for i in range(40)]


def imported(tmp_path, sent, write=vllm_bench):
    """Requests that a client sent; gives the recording, and what predicts it."""
    write(tmp_path / "client", sent)
    import_requests(tmp_path / "client", tmp_path / "import")
    base = Recording.open(tmp_path / "import")
    run = summarise(base)[0]

    def predicted(max_num_batched_tokens=2048, **load):
        limits = {"max_num_seqs": 16, "max_num_batched_tokens": max_num_batched_tokens}
        engine = dataclasses.replace(run.engine, **limits)
        asked = Question(engine=engine, policy=run.policy, gpu="test_gpu", model_facts=TINY, **load)
        return predict(base, run, asked)

    return base, predicted


@pytest.mark.slow
@pytest.mark.parametrize("write", [vllm_bench, aiperf])
def test_every_time_of_a_client_stands_beside_the_predicted(tmp_path, prior, write):
    base, predicted = imported(tmp_path, SENT, write)
    found = {(each.name, each.part): each for each in predicted().compared}
    assert len(found) == 3 * len(PARTS)
    ttft = np.array([each[3] for each in SENT])
    tpot = np.array([(each[4] - each[3]) / (each[2] - 1) for each in SENT])
    for name, values in (("TTFT", ttft), ("TPOT", tpot)):
        mean = found[name, "mean"]
        assert mean.measured_s == pytest.approx(values.mean(), rel=1e-4)
        assert mean.relative == pytest.approx(mean.predicted_s / mean.measured_s - 1)
        p99 = found[name, "p99"].measured_s
        assert np.sort(values)[-2] <= p99 * 1.0001 and p99 <= values.max() * 1.0001
    itl = [found["ITL", part] for part in PARTS]
    assert all(each.predicted_s > 0 for each in itl)
    assert itl[1].predicted_s <= itl[2].predicted_s <= itl[3].predicted_s
    gaps = sum(each[4] - each[3] for each in SENT) / sum(each[2] - 1 for each in SENT)
    if write is vllm_bench:  # which tells every gap, or the ttft and all that follow
        told = base.manifest.provenance["imported"].get("itl_s")
        assert told is None or told["mean"] == pytest.approx(gaps, rel=1e-3)
    else:
        assert itl[0].measured_s is itl[0].relative is None


def test_itl_of_a_replay_is_over_tokens(tmp_path, prior):
    _, predicted = imported(tmp_path, SENT)
    prediction = predicted(concurrency=1)
    (mean,) = [e for e in prediction.compared if (e.name, e.part) == ("ITL", "mean")]
    samples = prediction.tables["samples"]
    took = (samples["end"] - samples["first_token"]).sum() / 1e9
    assert mean.predicted_s == pytest.approx(took / (samples["output_tokens"] - 1).sum(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("longer", [0, 30])
def test_ttft_of_requests_of_one_length_in_a_closed_loop_is_not_determined(tmp_path, prior, longer):
    alike = [(0.05 * i, 512, 60 + longer * (i % 5), 0.01, 0.2) for i in range(60)]
    _, predicted = imported(tmp_path, alike)
    found = {load: predicted(1024, concurrency=load) for load in (1, 12)}
    told = [any("TTFT is not determined" in n for n in each.notes) for each in found.values()]
    assert told == [False, not longer]
    ttft = found[12].predicted.ttft_s["mean"]
    if not longer:  # in lock-step twelve prompts come at once
        assert ttft.low < 0.8 * ttft.value <= ttft.high


def test_quantiles_lie_between_few_values():
    assert _quantiles(np.array([0.1, 0.3, np.nan])) == pytest.approx(
        {"mean": 0.2, "p50": 0.2, "p95": 0.29, "p99": 0.298}
    )
    assert _quantiles(np.array([np.nan])) == {}
