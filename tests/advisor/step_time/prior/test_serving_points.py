"""How rows of published serving points are read (benchmarks/serving_points.py)."""

import pytest

from advisor.step_time.operators.tables import captured_sizes
from benchmarks.serving_points import _silicon_point

CONFIG = """{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
"num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 64}"""


def point(folder, **told):
    """Return a row of InferenceX, read without any model's config."""
    source = f"silicon_concurrency=64; measured={told.pop('date', '2026-04-22')}T00:00:00.000Z"
    row = {
        "id": "row", "silicon_data_source": source, "backend_version": "0.19.0",
        "model_path": "MiniMaxAI/MiniMax-M2.5", "system": "b200_sxm", "precision": "fp8",
        "mode": "agg", "isl": "1024", "osl": "1024", "batch_size": "64", "tp_size": "4",
        "attention_dp_size": "4", "moe_ep_size": "16", "silicon_ttft_ms": "150",
        "silicon_tpot_ms": "16",
    }  # fmt: skip
    return _silicon_point(row | told, folder)


@pytest.mark.parametrize(("date", "tensor", "ranks"), [("2026-04-22", 1, 4), ("2026-04-03", 4, 1)])
def test_sizes_that_multiply_name_the_same_gpus(tmp_path, date, tensor, ranks):
    engine = point(tmp_path, date=date).engine
    assert (engine.tensor_parallel_size, engine.data_parallel_size) == (tensor, ranks)
    assert engine.expert_parallel
    alone = point(tmp_path, date=date, attention_dp_size="1", moe_ep_size="1").engine
    assert (alone.tensor_parallel_size, alone.data_parallel_size) == (4, 1)


def test_the_ranks_of_aiconfigurators_rows_are_those_that_its_experts_are_on(tmp_path):
    """It writes no data-parallel ranks: tp x ranks is moe_tp x moe_ep in all it runs."""
    source = "source_file=/data/aic-auto-gap-analysis/x.csv; silicon_concurrency=11"
    row = {"silicon_data_source": source, "attention_dp_size": "", "moe_ep_size": "1"}
    for tensor, experts, ranks in (("2", "4", 2), ("1", "2", 2), ("4", "4", 1), ("2", "0", 1)):
        found = point(tmp_path, **row, tp_size=tensor, moe_tp_size=experts)
        engine = found.engine
        assert (engine.tensor_parallel_size, engine.data_parallel_size) == (int(tensor), ranks)
        assert (found.in_flight, found.drawn) == (11, (1.0, 1.0))


def test_a_row_that_does_not_say_how_many_requests_were_in_flight_is_not_priced(tmp_path):
    (tmp_path / "openai--gpt-oss-120b_config.json").write_text(CONFIG)
    source = "source_file=/data/aic-auto-gap-analysis/x.csv; measured=2026-01-23"
    found = point(
        tmp_path, model_path="openai/gpt-oss-120b", silicon_data_source=source, moe_tp_size="0"
    )
    assert found.unknown == "how many requests were in flight is not told"


def test_a_row_whose_requests_waited_for_what_is_not_told_is_not_priced(tmp_path):
    (tmp_path / "openai--gpt-oss-120b_config.json").write_text(CONFIG)
    waits, runs = (
        point(tmp_path, model_path="openai/gpt-oss-120b", silicon_ttft_ms=ttft)
        for ttft in ("68000", "16000")
    )
    assert "waited for a limit that is not told" in waits.unknown
    assert runs.unknown is None
    assert runs.drawn == (0.8, 1.0)


def test_a_row_has_the_settings_that_its_recipe_gives(tmp_path):
    plain = {"attention_dp_size": "1", "moe_ep_size": "1"}
    newer, older = (point(tmp_path, **plain, backend_version=v) for v in ("0.19.0", "0.17.0"))
    assert (newer.engine.max_num_batched_tokens, newer.engine.kv_cache_dtype) == (2048, "fp8")
    assert captured_sizes(newer.engine)[-1] == 2048
    assert not newer.engine.expert_parallel
    assert older.engine.expert_parallel  # whatever its sizes
    gpt = point(tmp_path, **plain, model_path="openai/gpt-oss-120b", system="h100_sxm").engine
    assert (gpt.max_num_batched_tokens, gpt.max_num_seqs, gpt.kv_cache_dtype) == (8192, 64, None)
