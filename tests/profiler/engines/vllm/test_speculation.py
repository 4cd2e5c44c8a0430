"""Real speculative decoding here: drafts as the rule foretells them, the mended sampler."""

import json

import pytest

from profiler.demo.task import PREAMBLE
from profiler.engines.interface import SampleRequest
from profiler.engines.options import EngineOptions
from profiler.engines.start import start_engine
from profiler.engines.vllm.cpu_sampler import mend_cpu_sampler
from profiler.engines.vllm.draft_steps import accounts_for
from profiler.workload.problems import load_workload
from tests.profiler.command import warm_ttscope
from traces.recording.reader import Recording
from traces.schema.engine import Speculative
from traces.summary.speculation.ngram import KnownTokens, PromptLookup

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]  # of vLLM

LOOKUP = PromptLookup(num_speculative_tokens=3, prompt_lookup_min=2, prompt_lookup_max=4)
MAX_MODEL_LEN = 160


def run(engine, prompts, temperature=0.0, max_tokens=120):
    for index, prompt in enumerate(prompts):
        engine.submit(
            SampleRequest(
                request_id=str(index), prompt=prompt, chat=False, temperature=temperature,
                top_p=1.0, max_tokens=max_tokens,
            )
        )  # fmt: skip
    ended = {}
    timed = []
    while engine._live:
        ended |= {result.request_id: result for result in engine.poll()}
        timed.append(engine.probe.draft_timer and engine.probe.draft_timer.last_ns)
    return [ended[str(index)] for index in range(len(prompts))], timed


def prompts():
    """Thoughts of both efforts, repetitions, and some that the model's length cuts."""
    rows = [problem.prompt for problem in load_workload("demo", problems=8, seed=4).problems]
    texts = [f"<bos>{row}{mark}<think>" for row in rows for mark in ".!"]
    long = [f"<bos>{PREAMBLE[-100:]}{row}!<think>" for row in rows[-2:]]
    return [*texts, *long, texts[0] * 3, "0123" * 20, "7" * 40, "".join(rows)[:140]]


@pytest.fixture(scope="module")
def ngram():
    options = EngineOptions(
        model="demo/s",
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=16,
        speculative=Speculative(method="ngram", **LOOKUP.to_json()),
    )
    engine = start_engine(options, thinking_budget=False)
    yield engine
    engine.close()


def test_ngram_drafts_as_foretold(ngram):
    drafted = accepted = 0
    lengths = set()
    for prompt in prompts():  # one at a time: near the model's length others would be affected
        for max_tokens in (120, 400):
            (result,), _ = run(ngram, [prompt], max_tokens=max_tokens)
            known = KnownTokens(result.prompt_token_ids, result.token_ids, longest=4)
            rule = known.replay(LOOKUP, max_model_len=MAX_MODEL_LEN)
            assert list(result.drafted_per_step) == rule.drafted.tolist()
            assert list(result.accepted_per_step[:-1]) == rule.accepted.tolist()[:-1]
            # vLLM counts in the last step what it accepted and threw away
            assert list(result.accepted_per_step[-1:]) >= rule.accepted[-1:].tolist()
            assert result.last_step - result.first_step == len(rule.drafted)
            assert accounts_for(result.accepted_per_step, result.output_tokens)
            drafted, accepted = drafted + rule.drafted.sum(), accepted + rule.accepted.sum()
            lengths.add(result.prompt_tokens + result.output_tokens)
    assert drafted > accepted > 50
    assert max(lengths) == MAX_MODEL_LEN  # the rule at the end of the model's length was met


def test_ngram_drafts_as_foretold_in_a_batch_and_at_a_temperature(ngram):
    assert ngram.notes and "corrected" in ngram.notes[0]
    for temperature in (0.0, 0.8):
        results, timed = run(ngram, prompts()[:6] * 3, temperature, max_tokens=60)
        assert all(time is None or time > 0 for time in timed) and any(timed)
        for result in results:
            known = KnownTokens(result.prompt_token_ids, result.token_ids, longest=4)
            rule = known.replay(LOOKUP, max_model_len=MAX_MODEL_LEN)
            assert list(result.drafted_per_step) == rule.drafted.tolist()
            assert list(result.accepted_per_step[:-1]) == rule.accepted.tolist()[:-1]


def test_the_mended_sampler_spreads_temperatures(ngram):
    import torch
    from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens

    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    spread = expand_batch_to_tokens(torch.tensor([0.8, 0.3, 0.0]), ends, 5, 0, 1)
    assert spread.tolist() == pytest.approx([0.8, 0.8, 1, 1, 1])
    top_k = expand_batch_to_tokens(torch.tensor([7, 8, 9], dtype=torch.int32), ends, 5)
    assert top_k.tolist() == [7, 7, 9, 9, 9]
    assert mend_cpu_sampler() is None  # there is nothing left to mend


def test_the_rule_is_vllms_own_function():
    import numpy as np
    from vllm.v1.spec_decode.ngram_proposer import _find_longest_matched_ngram_and_propose_tokens

    rng = np.random.default_rng(3)
    for _ in range(400):
        tokens = rng.integers(0, rng.integers(1, 5), rng.integers(0, 40))
        low = int(rng.integers(1, 5))
        high, k = low + int(rng.integers(0, 4)), int(rng.integers(1, 7))
        mine = KnownTokens([], tokens, longest=high).draft_sources(low, high)
        for size in range(tokens.size + 1):
            theirs = _find_longest_matched_ngram_and_propose_tokens(
                origin_tokens=tokens[:size], min_ngram=low, max_ngram=high, max_model_len=99, k=k
            )
            ours = [] if mine[size] < 0 else tokens[mine[size] : size][:k]
            assert list(theirs) == list(ours), (tokens[:size], low, high, k)


def test_record_with_a_draft_model(tmp_path):
    draft = {"method": "draft_model", "model": "demo/s", "num_speculative_tokens": 3}
    command = ["record", "--model", "demo/l", "--problems", "6", "--dtype", "float32", "--json"]
    command += ["--max-tokens", "120", "--speculative", json.dumps(draft), "-o", tmp_path / "r"]
    done = warm_ttscope(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "corrected in this process" in " ".join(done.stderr.split())
    (run,) = json.loads(done.stdout)["runs"]
    found = run["acceptance"]
    assert (found["method"], len(found["accepted_per_position"])) == ("draft_model", 3)
    assert 1 <= found["tokens_per_step"]["value"] <= found["length"]["value"] <= 4
    assert found["draft_s"]["value"] > 0 and found["by_batch"]
    assert len(run["ngram_what_if"]) == 4
    recording = Recording.open(tmp_path / "r")
    models = recording.manifest.models
    assert models["demo/s"].total_parameters < models["demo/l"].total_parameters
    for row in recording.samples.iter_rows(named=True):
        assert accounts_for(row["accepted_per_step"], row["output_tokens"])
    assert (recording.steps["draft_ns"].drop_nulls() < recording.steps["wall_ns"].max()).all()


def test_drafts_whose_length_goes_by_batch_are_recorded_as_they_ran(tmp_path):
    ranges = [[1, 2, 3], [3, 64, 0]]
    drafts = {
        "method": "draft_model", "model": "demo/s", "num_speculative_tokens": 3,
        "num_speculative_tokens_per_batch_size": ranges,
    }  # fmt: skip
    command = ["record", "--model", "demo/l", "--problems", "8", "--concurrency", "8"]
    command += ["--dtype", "float32", "--max-tokens", "120", "--json"]
    done = warm_ttscope(*command, "--speculative", json.dumps(drafts), "-o", tmp_path / "r")
    assert done.returncode == 0, done.stderr[-3000:]
    recording = Recording.open(tmp_path / "r")
    (engine,) = recording.manifest.engines.values()
    assert [*map(list, engine.speculative.num_speculative_tokens_per_batch_size)] == ranges
    decoding = recording.steps.filter(recording.steps["prefill_requests"] == 0)
    many = decoding.filter(decoding["decode_requests"] > 4)  # a step is drafted for by the last one
    assert many.height and (many["decode_tokens"] == many["decode_requests"]).all()
    few = decoding.filter(decoding["decode_requests"] <= 1)
    assert (few["decode_tokens"] > few["decode_requests"]).any()
